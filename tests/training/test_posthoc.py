"""Any average of a run can be mixed from two that were kept: against averages that were tracked all along."""

import numpy as np
import pytest
import torch

from t2im.errors import ModelError
from t2im.training.ema_snapshots import EMASnapshot, EMASnapshots, series
from t2im.training.posthoc import inner_products, mixture, reconstruct
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


@pytest.mark.parametrize(("sigma", "error"), [(0.03, 0.012), (0.07, 0.002), (0.15, 0.003), (0.20, 0.007)])
def test_a_reconstructed_average_is_the_one_that_was_tracked(run, sigma, error):
    folder, tracked = run
    weights, mixed = reconstruct(series(folder), sigma)
    assert mixed.error < error
    # Of this, 0.0005 is the rounding of snapshots to fp16 times their shares; the jump costs most of the rest.
    assert (weights["weight"] - tracked.averages[sigma]["weight"]).abs().max() < 0.003
    others = [other for other in tracked.averages if other != sigma]
    apart = [(tracked.averages[other]["weight"] - tracked.averages[sigma]["weight"]).abs().max() for other in others]
    assert min(apart) > 0.02  # so the width that was asked for is the one that came


@pytest.mark.parametrize("sigma", KEPT)
def test_a_width_that_was_kept_comes_back_as_it_was_kept(run, sigma):
    folder, tracked = run
    weights, mixed = reconstruct(series(folder), sigma)
    assert mixed.error < 1e-6
    assert torch.equal(weights["weight"], tracked.averages[sigma]["weight"].half().float())


def test_the_best_mixture_has_no_better_neighbour():
    kept = [(sigma, step) for sigma in KEPT for step in range(5, 41, 5)]
    best = mixture(kept, 0.07, 40)
    gammas, steps = np.array([exponent_of(s) for s, _ in kept]), np.array([float(t) for _, t in kept])
    wanted, now = np.array([exponent_of(0.07)]), np.array([40.0])

    def squared_distance(shares):
        cross = inner_products(gammas, steps, wanted, now)[:, 0]
        return shares @ inner_products(gammas, steps, gammas, steps) @ shares - 2 * shares @ cross

    shares = np.array(best.shares)
    steps_aside = np.random.RandomState(3).randn(50, len(shares)) * 1e-3
    for aside in steps_aside - steps_aside.mean(axis=1, keepdims=True):  # the sum stays 1
        assert squared_distance(shares + aside) > squared_distance(shares)


@pytest.mark.parametrize("sigma", [0.01, 0.03, 0.07, 0.25])
def test_weights_that_never_change_come_back_whatever_the_width(sigma):
    kept = [(width, step) for width in KEPT for step in range(1, 9)]
    assert sum(mixture(kept, sigma, 8).shares) == pytest.approx(1, abs=1e-10)


def test_a_width_that_the_snapshots_are_too_far_apart_for_says_so():
    sparse, dense = ([(width, step) for width in KEPT for step in range(96 // n, 97, 96 // n)] for n in (8, 32))
    assert mixture(sparse, 0.02, 96).error > 0.2 > 0.05 > mixture(dense, 0.02, 96).error


def test_the_mixture_is_the_same_in_steps_of_any_length():
    short, long = ([(width, step * scale) for width in KEPT for step in range(1, 17)] for scale in (1, 100_000))
    assert mixture(short, 0.04, 16).shares == pytest.approx(mixture(long, 0.04, 1_600_000).shares, abs=1e-9)


def test_snapshots_that_are_almost_alike_do_not_explode():
    kept = [(width, step) for width in (0.1, 0.1 + 1e-9) for step in range(1, 17)]
    assert max(map(abs, mixture(kept, 0.07, 16).shares)) < 10


def test_a_snapshot_of_another_network_is_refused(tmp_path):
    snapshots = EMASnapshots(tmp_path, "one run")
    for updates, width in ((1, 3), (2, 5)):
        model = torch.nn.Linear(width, 2)
        ema = PowerEMA(model, (0.05,))
        for _ in range(updates):
            ema.update(model)
        snapshots.write(ema)
    with pytest.raises(ModelError, match=r"step_00000002.*holds another network than step_00000001"):
        reconstruct(series(tmp_path), 0.05)


def test_a_snapshot_that_became_unreadable_is_named(tmp_path):
    gone = EMASnapshot(tmp_path / "step_00000001_sigma_0.05.safetensors", 0.05, 1, "one run")
    with pytest.raises(ModelError, match=r"step_00000001_sigma_0.05.safetensors: cannot be read"):
        reconstruct([gone], 0.05)


def test_numbers_that_are_not_finite_do_not_become_a_model(tmp_path):
    from safetensors.torch import save_file

    about = {"t2im": '{"sigma_rel": 0.05, "step": 1, "run": "one run"}'}
    save_file({"weight": torch.tensor([1.0, float("inf")])}, tmp_path / "step_1_sigma_0.05.safetensors", about)
    with pytest.raises(ModelError, match='"weight" is not finite'):
        reconstruct(series(tmp_path), 0.05)
