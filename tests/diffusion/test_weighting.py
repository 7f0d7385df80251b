import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from t2im.config import ObjectiveConfig, ScheduleConfig
from t2im.diffusion.schedule import Schedule
from t2im.diffusion.weighting import loss_weight, target_per_x0

TYPES = ("epsilon", "v_prediction", "sample", "flow")
GAMMA = 3.0


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def config(weighting, floor=0.0):
    return ObjectiveConfig(loss_weighting=weighting, min_snr_gamma=GAMMA, min_loss_weight=floor)


def wanted(weighting, snr):
    """Return the weighting as its paper states it for the error in x_0."""
    return {"min_snr": min(snr, GAMMA), "debiased": snr**0.5}[weighting]


@given(
    prediction_type=st.sampled_from(TYPES),
    weighting=st.sampled_from(("min_snr", "debiased")),
    timestep=st.integers(1, 999),
    seed=st.integers(0, 2**31),
)
@settings(max_examples=80, deadline=None)
def test_the_weighted_loss_is_the_papers_weight_on_the_error_in_x0(prediction_type, weighting, timestep, seed):
    schedule, t = Schedule(ScheduleConfig(), prediction_type), torch.tensor([timestep])
    latents, noise, error = (normal(1, 2, 3, 5, seed=seed + i) for i in range(3))
    noisy, target = schedule.add_noise(latents, noise, t), schedule.target(latents, noise, t)
    target_loss = error.square().mean()
    x0_loss = (schedule.pred_original_sample(target + error, noisy, t) - latents).square().mean()
    weight = loss_weight(t, schedule, config(weighting)).double().item()
    snr = schedule.snr(t).double().item()
    assert weight * target_loss.item() == pytest.approx(wanted(weighting, snr) * x0_loss.item(), rel=1e-5)


@pytest.mark.parametrize("timestep", [1, 500, 999])
@pytest.mark.parametrize("prediction_type", TYPES)
def test_weights_are_the_closed_forms_of_the_literature(prediction_type, timestep):
    schedule, t = Schedule(ScheduleConfig(), prediction_type), torch.tensor([timestep])
    snr = schedule.snr(t).item()
    sigma = timestep / 1000  # of flow
    per_x0 = {"epsilon": snr, "v_prediction": snr + 1, "sample": 1, "flow": 1 / sigma**2}[prediction_type]
    assert target_per_x0(t, schedule).item() == pytest.approx(per_x0, rel=1e-5)
    for weighting in ("min_snr", "debiased"):
        expected = wanted(weighting, snr) / per_x0
        assert loss_weight(t, schedule, config(weighting)).item() == pytest.approx(expected, rel=1e-5)


def test_debiased_epsilon_is_the_papers_inverse_root_of_snr():
    schedule, t = Schedule(ScheduleConfig()), torch.tensor([3, 600, 999])
    torch.testing.assert_close(loss_weight(t, schedule, config("debiased")), schedule.snr(t).rsqrt())


def test_min_snr_leaves_the_noisy_end_of_epsilon_as_it_was():
    schedule = Schedule(ScheduleConfig())
    weights = loss_weight(torch.arange(1000), schedule, config("min_snr"))
    noisy = schedule.snr(torch.arange(1000)) < GAMMA
    torch.testing.assert_close(weights[noisy], torch.ones(int(noisy.sum())))
    assert (weights[~noisy] < 1).all()


@pytest.mark.parametrize("prediction_type", TYPES)
def test_without_a_weighting_the_loss_is_plain(prediction_type):
    weights = loss_weight(torch.tensor([1, 999]), Schedule(ScheduleConfig(), prediction_type), config("none"))
    assert weights.tolist() == [1, 1]


@pytest.mark.parametrize("weighting", ["min_snr", "debiased"])
@pytest.mark.parametrize("prediction_type", ["v_prediction", "sample", "flow"])
def test_no_noisy_level_counts_less_than_the_floor_and_others_are_left_alone(prediction_type, weighting):
    schedule = Schedule(ScheduleConfig(rescale_betas_zero_snr=prediction_type != "flow"), prediction_type)
    t = torch.tensor(schedule.timesteps)
    assert schedule.snr(t)[-1] == 0
    without, floored = (loss_weight(t, schedule, config(weighting, floor)) for floor in (0.0, 0.25))
    assert without[-1] == 0
    assert floored[-1] == 0.25
    noisy = schedule.snr(t) < 1
    assert torch.equal(floored[noisy], without[noisy].clamp(min=0.25))
    assert torch.equal(floored[~noisy], without[~noisy])
    assert torch.isfinite(without).all()
