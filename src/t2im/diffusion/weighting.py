"""How much does each noise level count?

Predictions of noise, velocity, picture and flow can be worked out from each other, so they are one problem, and what
really differs between their plain losses is a weight. At a fixed x_t an error in the target is a multiple of the error
in x_0 that it implies (see `schedule.py` for the symbols):

    |target - prediction|^2 = ((alpha q - sigma p) / sigma)^2 |x_0 - predicted x_0|^2

    epsilon  SNR        v_prediction  1 / sigma^2 = 1 + SNR        sample  1        flow  1 / sigma^2

So the plain loss of epsilon looks away where there is much noise, and the one of `sample` does not care for detail. A
weighting is stated for the error in x_0, where all types mean the same, and divided by that factor:

    min_snr   w = min(SNR, gamma)     as epsilon, but never so hard on what is nearly clean: Hang et al. 2023, 2303.09556
    debiased  w = sqrt(SNR)           half way from epsilon to sample: Yu et al. 2023, 2310.08442

Both vanish with SNR, yet sampling begins there. `min_loss_weight` is a floor under the final weight, that is the factor
on the target's own loss, where there is more noise than picture: no such noise level counts less than that share of
what it would count in the plain loss. The other end, where weights are small on purpose, is left as the papers have it.
"""

import torch

from t2im.config import ObjectiveConfig
from t2im.diffusion.schedule import Schedule
from t2im.shapes import PerSample, Timesteps


def loss_weight(timesteps: Timesteps, schedule: Schedule, config: ObjectiveConfig) -> PerSample:
    """Return the factor on each sample's loss, in the target's own space, in float32 on the device of `timesteps`."""
    alpha, sigma = schedule.alpha_sigma(timesteps)
    snr = (alpha / sigma).square()
    match config.loss_weighting:
        case "none":
            return torch.ones(len(timesteps), device=timesteps.device)
        case "min_snr":
            wanted = snr.clamp(max=config.min_snr_gamma)
        case "debiased":
            wanted = snr.sqrt()
    weight = wanted / target_per_x0(timesteps, schedule).double().cpu()
    floored = torch.where(snr < 1, weight.clamp(min=config.min_loss_weight), weight)
    return floored.float().to(timesteps.device)


def target_per_x0(timesteps: Timesteps, schedule: Schedule) -> PerSample:
    """Return by how much the squared error of the target is larger than that of the x_0 it implies."""
    (alpha, sigma), (p, q) = schedule.alpha_sigma(timesteps), schedule.target_mix(timesteps)
    return ((alpha * q - sigma * p) / sigma).square().float().to(timesteps.device)
