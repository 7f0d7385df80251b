"""What does the UNet learn?

To see through noise. Each training sample gets one random timestep and one random noise; the UNet sees the noisy
latents and must name the noise that was added (or, by `prediction_type`, the velocity or the clean latents). The loss
is the plain mean squared error, L_simple:

    L = E |target - UNet(x_t, t, text)|^2,    t uniform in [0, T)         Ho et al. 2020, eq. 14, arXiv 2006.11239

The timestep and the noise of a sample are pure functions of the run's seed and the sample's index, whatever the batch
it comes in and whatever the device: see `seeds.py`.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

from t2im.diffusion.schedule import Schedule
from t2im.seeds import seed_for
from t2im.shapes import Latents, PerSample, Timesteps


@dataclass(frozen=True)
class Noised:
    """A batch ready for the UNet: `latents` at `timesteps`, the `noise` inside them, the `target` to predict."""

    latents: Latents
    timesteps: Timesteps
    noise: Latents
    target: Latents


def noise(
    latents: Latents, sample_indices: Int[Tensor, "batch"] | Sequence[int], schedule: Schedule, seed: int
) -> Noised:
    """Noise clean latents as training does: sample i of the run always gets the same timestep and the same noise."""
    indices = sample_indices.tolist() if isinstance(sample_indices, Tensor) else sample_indices
    timesteps = draw_timesteps(indices, schedule, seed)
    return noise_at(latents, draw_noise(latents.shape[1:], indices, seed), timesteps, schedule)


def noise_at(latents: Latents, noise: Latents, timesteps: Timesteps, schedule: Schedule) -> Noised:
    """Noise clean latents with a noise and at timesteps that are given, as on the fixed grid of the held-out loss."""
    noise = noise.to(latents)
    return Noised(
        latents=schedule.add_noise(latents, noise, timesteps),
        timesteps=timesteps.to(latents.device),
        noise=noise,
        target=schedule.target(latents, noise, timesteps),
    )


def draw_timesteps(sample_indices: Iterable[int], schedule: Schedule, seed: int) -> Timesteps:
    """Draw a timestep in [0, T) for each sample, on the CPU.

    The seed itself is a uniform 63-bit number, so its remainder is the timestep; the bias is below T / 2^63.
    """
    return torch.tensor([seed_for(seed, index, "timestep") % len(schedule) for index in sample_indices])


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
    """Return the mean squared error of a batch."""
    return per_sample_loss(prediction, noised).mean()


def per_sample_loss(prediction: Latents, noised: Noised) -> PerSample:
    """Return the mean squared error of each sample, in float32 whatever the UNet computed in."""
    return F.mse_loss(prediction.float(), noised.target.float(), reduction="none").flatten(1).mean(1)
