"""What does the UNet learn?

To see through noise. Each training sample gets one random timestep and one random noise; the UNet sees the noisy
latents and must name the noise that was added (or, by the schedule's `prediction_type`, the velocity, the clean latents
or the flow). The loss is a mean squared error, in which every noise level has its weight:

    L = E w(t) |target - UNet(x_t, t, text)|^2              Ho et al. 2020, eq. 12 and 14, arXiv 2006.11239

How t is drawn is in `timesteps.py`, what w is in `weighting.py`; by default t is uniform and w is 1.

The timestep and the noise of a sample are pure functions of the run's seed and the sample's index, whatever the batch
it comes in and whatever the device: see `seeds.py`.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

from t2im.config import ObjectiveConfig
from t2im.diffusion.schedule import Schedule
from t2im.diffusion.timesteps import draw_timesteps
from t2im.diffusion.weighting import loss_weight
from t2im.seeds import seed_for
from t2im.shapes import Latents, PerSample, Timesteps

PLAIN = ObjectiveConfig()
"""Uniform timesteps that all count alike."""


@dataclass(frozen=True)
class Noised:
    """A batch ready for the UNet: `latents` at `timesteps`, the `noise` inside them, the `target` and its `weight`."""

    latents: Latents
    timesteps: Timesteps
    noise: Latents
    target: Latents
    weight: PerSample


def noise(
    latents: Latents,
    sample_indices: Int[Tensor, "batch"] | Sequence[int],
    schedule: Schedule,
    seed: int,
    config: ObjectiveConfig = PLAIN,
) -> Noised:
    """Noise clean latents as training does: sample i of the run always gets the same timestep and the same noise."""
    indices = sample_indices.tolist() if isinstance(sample_indices, Tensor) else sample_indices
    timesteps = draw_timesteps(indices, schedule, seed, config)
    return noise_at(latents, draw_noise(latents.shape[1:], indices, seed), timesteps, schedule, config)


def noise_at(
    latents: Latents, noise: Latents, timesteps: Timesteps, schedule: Schedule, config: ObjectiveConfig = PLAIN
) -> Noised:
    """Noise clean latents with a noise and at timesteps that are given, as on the fixed grid of the held-out loss."""
    noise = noise.to(latents)
    return Noised(
        latents=schedule.add_noise(latents, noise, timesteps),
        timesteps=timesteps.to(latents.device),
        noise=noise,
        target=schedule.target(latents, noise, timesteps),
        weight=loss_weight(timesteps, schedule, config).to(latents.device),
    )


def draw_noise(
    shape: Sequence[int], sample_indices: Sequence[int], seed: int, purpose: str = "noise"
) -> Float[Tensor, "batch ..."]:
    """Draw N(0, 1) noise of `shape` for each sample, on the CPU, so that every device trains on the same numbers."""
    noise = torch.empty(len(sample_indices), *shape)
    generator = torch.Generator()
    for row, index in zip(noise, sample_indices, strict=True):
        row.normal_(generator=generator.manual_seed(seed_for(seed, index, purpose)))
    return noise


def loss(prediction: Latents, noised: Noised) -> Float[Tensor, ""]:
    """Return the weighted mean squared error of a batch."""
    return (noised.weight * per_sample_loss(prediction, noised)).mean()


def per_sample_loss(prediction: Latents, noised: Noised) -> PerSample:
    """Return the mean squared error of each sample, unweighted, in float32 whatever the UNet computed in."""
    return F.mse_loss(prediction.float(), noised.target.float(), reduction="none").flatten(1).mean(1)
