"""At which noise levels does the UNet practise, and how often at each?

Every training sample gets one timestep. Drawn uniformly, most of them fall where there is little to learn: next to pure
noise, or next to the clean picture. A logit-normal density visits the middle more often (Esser et al. 2024, section 3.1,
arXiv 2403.03206). With position = t / T in (0, 1), which for rectified flow is sigma,

    logit(position) ~ N(mean, std^2)

A draw is an inverted distribution function: u, uniform in [0, 1), picks the first timestep at which the summed
probability exceeds u. So one table of probabilities says both what is drawn and what `t2im plot schedule` shows.

u is a pure function of the run's seed and of the sample's index. Independent draws make clumps: of 64, some timesteps
come in pairs, and whole ranges are left out, so the loss jumps. Stratified draws walk round the circle by the golden
ratio, u_i = frac(u_0 + i phi): of all steps this one spreads every run of neighbours most evenly (its multiples are the
hardest to approximate by fractions), however long the run is and wherever it begins. So a batch of any size, split over
any number of devices, is evenly spread.
"""

from collections.abc import Iterable

import torch
from jaxtyping import Float
from torch import Tensor

from t2im.config import ObjectiveConfig
from t2im.diffusion.schedule import Schedule
from t2im.seeds import seed_for
from t2im.shapes import Timesteps

GOLDEN_RATIO = 0x9E3779B97F4A7C15
"""frac(phi) = (sqrt(5) - 1) / 2 as a share of 2^64."""
WHOLE = 2**64


def draw_timesteps(sample_indices: Iterable[int], schedule: Schedule, seed: int, config: ObjectiveConfig) -> Timesteps:
    """Draw a training timestep for each sample of the run, on the CPU."""
    spot = stratified if config.stratified else independent
    u = torch.tensor([spot(index, seed) for index in sample_indices], dtype=torch.float64)
    summed = probabilities(schedule, config).cumsum(dim=0)
    position = torch.searchsorted(summed, u * summed[-1], right=True)
    return torch.tensor(schedule.timesteps)[position.clamp(max=len(schedule) - 1)]


def probabilities(schedule: Schedule, config: ObjectiveConfig) -> Float[Tensor, "timesteps"]:
    """Return how likely each of `schedule.timesteps` is, in float64.

    Of the logit-normal density each timestep gets what lies over its share of (0, 1); `uniform_share` of the samples
    are drawn uniformly all the same.
    """
    steps = len(schedule)
    uniform = torch.full((steps,), 1 / steps, dtype=torch.float64)
    match config.timestep_sampling:
        case "uniform":
            return uniform
        case "logit_normal":
            edges = torch.linspace(0, 1, steps + 1, dtype=torch.float64)
            below = torch.special.ndtr((torch.logit(edges) - config.logit_mean) / config.logit_std)
            peaked: Tensor = below.diff()
            return config.uniform_share * uniform + (1 - config.uniform_share) * peaked


def independent(sample_index: int, seed: int) -> float:
    """Return a sample's u in [0, 1), independent of every other sample's."""
    return _fraction(seed_for(seed, sample_index, "timestep") << 1)


def stratified(sample_index: int, seed: int) -> float:
    """Return a sample's u in [0, 1) so that neighbouring samples are spread evenly: frac(u_0 + i phi).

    In whole numbers modulo 2^64, so that the billionth sample's u is as exact as the first one's.
    """
    start = seed_for(seed, 0, "stratified timesteps") << 1
    return _fraction((start + sample_index * GOLDEN_RATIO) % WHOLE)


def _fraction(number: int) -> float:
    """Bring a 64-bit number into [0, 1), keeping the 53 bits that a float can."""
    return (number >> 11) / 2**53
