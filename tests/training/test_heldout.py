import numpy as np
import pytest
import torch

from t2im.batches import Batch, Store
from t2im.config import ScheduleConfig
from t2im.diffusion.schedule import Schedule
from t2im.shapes import TextStates
from t2im.training.heldout import ROWS, HeldOut

CPU = torch.device("cpu")


class Constant(Store):
    """A store of latents that are all one value; remembers what was asked of it."""

    def __init__(self, value=0.5):
        self.value, self.asked = value, []

    def batch(self, example_indices, sample_indices, seed, caption_dropout=0.0):
        self.asked += example_indices.tolist()
        count = len(example_indices)
        return Batch(
            latents=torch.full((count, 3, 5, 7), self.value),
            text=TextStates(torch.zeros(count, 2, 3)),
            sample_indices=torch.as_tensor(sample_indices),
            example_indices=torch.as_tensor(example_indices),
        )


def test_the_loss_is_a_pure_function_of_the_weights():
    heldout = HeldOut(Constant(), np.array([4, 2, 9]), Schedule(ScheduleConfig()), seed=1)

    def denoiser(latents, timesteps, text):
        return 0.3 * latents

    assert heldout.loss(denoiser, CPU) == heldout.loss(denoiser, CPU)


def test_a_denoiser_that_knows_the_data_has_no_loss():
    schedule = Schedule(ScheduleConfig())
    heldout = HeldOut(Constant(0.5), np.array([1]), schedule, seed=1)

    def exact(latents, timesteps, text):
        alpha_bar = schedule.alphas_cumprod[timesteps][:, None, None, None]
        return (latents - alpha_bar.sqrt() * 0.5) / (1 - alpha_bar).sqrt()

    assert heldout.loss(exact, CPU) < 1e-6
    assert heldout.loss(lambda latents, timesteps, text: torch.zeros_like(latents), CPU) == pytest.approx(1.0, abs=0.02)


def test_timesteps_are_spread_evenly_whatever_the_number_of_images():
    seen = []

    def denoiser(latents, timesteps, text):
        seen.extend(timesteps.tolist())
        return latents

    store = Constant()
    HeldOut(store, np.array([7, 8, 9]), Schedule(ScheduleConfig()), seed=1).loss(denoiser, CPU)
    assert len(seen) == ROWS and np.abs(np.sort(seen) - (np.arange(ROWS) + 0.5) * 1000 / ROWS).max() <= 1
    assert {store.asked.count(example) for example in (7, 8, 9)} <= {ROWS // 3, ROWS // 3 + 1}
