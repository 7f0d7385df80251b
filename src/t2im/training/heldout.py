"""Does the model learn, or only remember? The loss on images it never trained on.

The training loss of diffusion jumps with every draw of timesteps, so it shows little. Here everything is fixed once: the
images, their captions, a grid of timesteps spread evenly over the schedule, and the noise. Two evaluations differ by the
weights alone.
"""

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from t2im.batches import Indices, Store
from t2im.diffusion import objective
from t2im.diffusion.schedule import Schedule
from t2im.seeds import seed_for
from t2im.shapes import Latents, TextStates, Timesteps

ROWS = 256
"""Pairs of an image and a timestep; few images are shown at several timesteps."""
AT_ONCE = 64


class HeldOut:
    """A fixed grid of held-out examples, timesteps and noise."""

    def __init__(self, store: Store, examples: Indices, schedule: Schedule, seed: int) -> None:
        self._store, self._schedule = store, schedule
        self._seed = seed_for(seed, 0, "heldout")  # not the run's own seed: no noise of training is met again
        rows = max(ROWS, len(examples))
        self._samples = np.arange(rows, dtype=np.int64)
        self._examples = np.resize(examples, rows)
        # Evenly spaced in t, in an order that has nothing to do with the order of the images.
        steps = (torch.arange(rows) * 2 + 1) * len(schedule) // (2 * rows)
        self._timesteps = steps[torch.from_numpy(np.random.RandomState(rows).permutation(rows))]

    @torch.no_grad()
    def loss(self, denoiser: Callable[[Latents, Timesteps, TextStates], Latents], device: torch.device) -> float:
        """Return the mean squared error over the grid; a pure function of the weights."""
        losses: list[Tensor] = []
        for start in range(0, len(self._samples), AT_ONCE):
            rows = slice(start, start + AT_ONCE)
            batch = self._store.batch(self._examples[rows], self._samples[rows], self._seed)
            noise = objective.draw_noise(batch.latents.shape[1:], batch.sample_indices.tolist(), self._seed)
            noised = objective.noise_at(batch.latents.to(device), noise, self._timesteps[rows], self._schedule)
            prediction = denoiser(noised.latents, noised.timesteps, batch.text.to(device))
            losses.append(objective.per_sample_loss(prediction, noised).double().cpu())
        return torch.cat(losses).mean().item()
