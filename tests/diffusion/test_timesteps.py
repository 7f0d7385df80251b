import math
from statistics import NormalDist

import pytest
import torch

from t2im.config import ObjectiveConfig, ScheduleConfig
from t2im.diffusion import timesteps
from t2im.diffusion.schedule import Schedule
from t2im.diffusion.timesteps import draw_timesteps, independent, probabilities, stratified

CURVED, STRAIGHT = Schedule(ScheduleConfig()), Schedule(ScheduleConfig(), "flow")
LOGIT_NORMAL = ObjectiveConfig(timestep_sampling="logit_normal", logit_mean=0.7, logit_std=0.8, uniform_share=0.25)


def settings(**changes):
    return ObjectiveConfig(**changes)


def drawn(count, schedule=CURVED, seed=0, first=0, **changes):
    return draw_timesteps(range(first, first + count), schedule, seed, settings(**changes))


def test_draws_never_change_between_versions():
    # A run that is resumed years later must see the same timesteps.
    assert drawn(5).tolist() == [846, 139, 973, 282, 69]
    assert drawn(5, stratified=True).tolist() == [741, 359, 977, 596, 214]


def test_draws_differ_by_seed():
    assert drawn(50, seed=0).tolist() != drawn(50, seed=1).tolist()
    assert drawn(50, seed=0, stratified=True).tolist() != drawn(50, seed=1, stratified=True).tolist()


@pytest.mark.parametrize("stratify", [False, True])
@pytest.mark.parametrize("schedule", [CURVED, STRAIGHT], ids=["curved", "straight"])
@pytest.mark.parametrize("first", [0, 10**15])
def test_a_timestep_depends_on_seed_and_index_only(schedule, stratify, first):
    together = drawn(40, schedule, first=first, stratified=stratify)
    alone = [drawn(1, schedule, first=first + i, stratified=stratify) for i in range(40)]
    assert torch.equal(together, torch.cat(alone))


def chi_square(counts, expected):
    return ((counts - expected) ** 2 / expected).sum()


@pytest.mark.parametrize("prediction_type", ["epsilon", "flow"])
@pytest.mark.parametrize("sampling", ["uniform", "logit_normal"])
def test_draws_follow_their_probabilities(prediction_type, sampling):
    schedule = Schedule(ScheduleConfig(num_train_timesteps=7), prediction_type)
    config = settings(timestep_sampling=sampling, logit_mean=-0.5)
    counts = torch.bincount(draw_timesteps(range(7000), schedule, 0, config), minlength=8)
    assert counts[0 if prediction_type == "flow" else 7] == 0
    counts = counts[schedule.timesteps.start : schedule.timesteps.stop]
    # chi-square with 6 degrees of freedom, p = 0.001
    assert chi_square(counts, 7000 * probabilities(schedule, config)) < 22.5


def test_uniform_is_uniform():
    torch.testing.assert_close(probabilities(CURVED, settings()), torch.full((1000,), 1e-3, dtype=torch.float64))


@pytest.mark.parametrize("schedule", [CURVED, STRAIGHT], ids=["curved", "straight"])
def test_logit_normal_is_its_density_with_a_uniform_share(schedule):
    shares = probabilities(schedule, LOGIT_NORMAL)
    assert shares.sum() == pytest.approx(1)
    assert len(shares) == 1000
    normal = NormalDist(0.7, 0.8)
    for k in (3, 200, 668, 990):
        x = (k + 0.5) / 1000
        density = normal.pdf(math.log(x / (1 - x))) / (x * (1 - x))
        assert shares[k].item() == pytest.approx((0.25 + 0.75 * density) / 1000, rel=1e-3, abs=1e-7)


def test_logit_normal_has_its_median_at_the_mean_of_the_logits():
    config = LOGIT_NORMAL.model_copy(update={"uniform_share": 0.0})
    below = probabilities(STRAIGHT, config).cumsum(dim=0)
    assert below[round(1000 / (1 + math.exp(-0.7))) - 1] == pytest.approx(0.5, abs=0.002)
    quartile = 1 / (1 + math.exp(-NormalDist(0.7, 0.8).inv_cdf(0.25)))
    assert below[round(1000 * quartile) - 1] == pytest.approx(0.25, abs=0.002)


@pytest.mark.parametrize("first", [0, 12_345, 2**40 + 1, 10**15])
@pytest.mark.parametrize("count", [8, 61, 256])
def test_every_window_of_stratified_samples_is_evenly_spread(first, count):
    places = torch.tensor([stratified(i, seed=3) for i in range(first, first + count)], dtype=torch.float64).sort()[0]
    gaps = torch.cat([places.diff(), places[:1] + 1 - places[-1:]])
    # Of all steps round a circle the golden ratio has the smallest bound: no gap above 1 + 2 / sqrt(5) fair shares ...
    assert gaps.max() * count < 1 + 2 / 5**0.5
    assert gaps.min() * count > 0.3
    alike = torch.tensor([independent(i, seed=3) for i in range(first, first + count)], dtype=torch.float64).sort()[0]
    assert alike.diff().min() * count < 0.4  # ... and independent draws have clumps


def test_stratified_draws_keep_the_density():
    config = LOGIT_NORMAL.model_copy(update={"stratified": True})
    schedule = Schedule(ScheduleConfig(num_train_timesteps=11))
    counts = torch.bincount(draw_timesteps(range(500), schedule, 0, config), minlength=11)
    # Independent draws would be off by about ten.
    assert (counts - 500 * probabilities(schedule, config)).abs().max() < 3


def test_stratified_batches_agree_on_their_mean():
    spread = {
        stratify: drawn(64 * 64, stratified=stratify).double().view(64, 64).mean(dim=1).std().item()
        for stratify in (False, True)
    }
    assert spread[True] < spread[False] / 3


def test_the_billionth_sample_is_as_exact_as_the_first():
    # In floating point, i times the golden ratio would have lost its digits behind the point long before.
    step = (stratified(10**15 + 1, seed=0) - stratified(10**15, seed=0)) % 1
    assert step == pytest.approx((math.sqrt(5) - 1) / 2, abs=1e-12)


def test_the_largest_number_is_still_below_one():
    assert timesteps._fraction(2**64 - 1) < 1
