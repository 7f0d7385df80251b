"""Any average of a run can be mixed from two that were kept: against averages that were tracked all along."""

import numpy as np
import pytest
import torch

from t2im.training.ema_snapshots import EMASnapshots, series
from t2im.training.posthoc import inner_products, reconstruct
from t2im.training.power_ema import PowerEMA, exponent_of

STEPS, COUNT = 960, 32
KEPT = (0.05, 0.10)


class Wanderer(torch.nn.Module):
    """A model whose weights are known functions of the step: a constant, a line, a decay, waves, a jump, and noise."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(6))
        self._noise = torch.Generator().manual_seed(7)

    def at(self, step):
        t = torch.tensor(step / STEPS, dtype=torch.float64)
        noise = torch.randn((), generator=self._noise)
        values = (t * 0 + 1.0, t, (-5 * t).exp(), (9 * t).sin(), (t > 0.61).double(), 0.3 * noise)
        with torch.no_grad():
            self.weight.copy_(torch.stack(tuple(values)))


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Return the folder of a run's snapshots and the averages of other widths that were tracked beside them."""
    folder = tmp_path_factory.mktemp("run") / "ema"
    model = Wanderer()
    kept = PowerEMA(model, KEPT)
    tracked = PowerEMA(model, (0.03, *KEPT, 0.07, 0.15, 0.20))
    snapshots = EMASnapshots(folder, "one run")
    for step in range(1, STEPS + 1):
        model.at(step)
        kept.update(model)
        tracked.update(model)
        if step % (STEPS // COUNT) == 0:
            snapshots.write(kept)
    return folder, tracked


def test_inner_products_are_the_integrals_of_the_weightings():
    gammas, steps = np.array([exponent_of(0.05), exponent_of(0.2)]), np.array([0.4, 1.0])
    grid = (np.arange(200_000) + 0.5) / 200_000
    weightings = [np.where(grid <= t, (g + 1) * grid**g / t ** (g + 1), 0) for g, t in zip(gammas, steps, strict=True)]
    expected = [[np.mean(a * b) for b in weightings] for a in weightings]
    assert inner_products(gammas, steps, gammas, steps) == pytest.approx(np.array(expected), rel=1e-4)


@pytest.mark.parametrize("sigma", [0.03, 0.07, 0.15, 0.20])
def test_a_reconstructed_average_is_the_one_that_was_tracked(run, sigma):
    folder, tracked = run
    weights, mixed = reconstruct(series(folder), sigma)
    assert mixed.error < 0.015
    assert weights["weight"] == pytest.approx(tracked.averages[sigma]["weight"], abs=3e-3)


@pytest.mark.parametrize("sigma", KEPT)
def test_a_width_that_was_kept_comes_back_as_it_was_kept(run, sigma):
    folder, tracked = run
    weights, mixed = reconstruct(series(folder), sigma)
    assert mixed.error < 1e-6
    assert torch.equal(weights["weight"], tracked.averages[sigma]["weight"].half().float())
