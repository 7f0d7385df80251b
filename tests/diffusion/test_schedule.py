import math
import subprocess
import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from t2im.config import ScheduleConfig
from t2im.diffusion.schedule import CurvedPath, Schedule
from t2im.errors import UsageError

BETA_SCHEDULES = ("scaled_linear", "linear", "squaredcos_cap_v2")
CURVED = ("epsilon", "v_prediction", "sample")
PREDICTION_TYPES = (*CURVED, "flow")
ZERO_SNR = ScheduleConfig(rescale_betas_zero_snr=True)


def normal(*shape, seed=0, dtype=torch.float32):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


@pytest.mark.parametrize("beta_schedule", BETA_SCHEDULES)
@pytest.mark.parametrize("steps", [1, 7, 1000])
def test_signal_only_falls(beta_schedule, steps):
    path = CurvedPath(ScheduleConfig(beta_schedule=beta_schedule, num_train_timesteps=steps))
    table = path.alphas_cumprod
    assert len(path.timesteps) == len(table) == len(path.betas) == steps
    assert (table.diff() < 0).all()
    assert 0 < table[-1] <= table[0] < 1


def test_linear_table_is_the_running_product():
    path = CurvedPath(ScheduleConfig(beta_schedule="linear", num_train_timesteps=3, beta_start=0.1, beta_end=0.3))
    assert path.alphas_cumprod.tolist() == pytest.approx([0.9, 0.9 * 0.8, 0.9 * 0.8 * 0.7])


def test_scaled_linear_is_linear_in_the_root():
    path = CurvedPath(ScheduleConfig(num_train_timesteps=5, beta_start=0.04, beta_end=0.16))
    assert path.betas.sqrt().tolist() == pytest.approx([0.2, 0.25, 0.3, 0.35, 0.4])


def test_cosine_table_is_the_squared_cosine():
    path = CurvedPath(ScheduleConfig(beta_schedule="squaredcos_cap_v2"))

    def level(time):
        return math.cos((time + 0.008) / 1.008 * math.pi / 2) ** 2

    expected = [level((t + 1) / 1000) / level(0) for t in (0, 250, 500, 998)]
    assert path.alphas_cumprod[[0, 250, 500, 998]].tolist() == pytest.approx(expected, rel=1e-6)
    assert path.betas.max() == pytest.approx(0.999)


def test_zero_terminal_snr_ends_in_pure_noise_and_keeps_the_start():
    plain, rescaled = (path.alphas_cumprod.sqrt() for path in (CurvedPath(ScheduleConfig()), CurvedPath(ZERO_SNR)))
    assert plain[-1] == pytest.approx(0.0683, abs=1e-4)
    assert rescaled[-1] == 0
    assert Schedule(ZERO_SNR, "v_prediction").snr(torch.tensor([999])) == 0
    assert rescaled[0] == pytest.approx(plain[0].item())
    assert (rescaled.diff() < 0).all()
    # They are only shifted and scaled, so the ratios of their differences stay.
    for a, b in ((100, 500), (300, 900)):
        ratios = [(roots[a] - roots[b]) / (roots[0] - roots[-1]) for roots in (plain, rescaled)]
        torch.testing.assert_close(*ratios)


def test_snr_is_signal_over_noise():
    schedule = Schedule(ScheduleConfig())
    timesteps = torch.tensor([0, 11, 999])
    alpha_bar = schedule.path.alphas_cumprod[timesteps]
    torch.testing.assert_close(schedule.snr(timesteps), (alpha_bar / (1 - alpha_bar)).float())


def test_noising_keeps_unit_variance():
    schedule = Schedule(ScheduleConfig())
    timesteps = torch.tensor([0, 313, 709, 999])
    noisy = schedule.add_noise(normal(4, 2, 101, 103), normal(4, 2, 101, 103, seed=1), timesteps)
    torch.testing.assert_close(noisy.var(dim=(1, 2, 3)), torch.ones(4), rtol=0.03, atol=0)


def test_each_sample_gets_its_own_noise_level():
    schedule = Schedule(ScheduleConfig())
    latents, noise = normal(3, 2, 5, 7), normal(3, 2, 5, 7, seed=1)
    timesteps = torch.tensor([0, 999, 500])
    noisy = schedule.add_noise(latents, noise, timesteps)
    for i, t in enumerate(timesteps.tolist()):
        a = schedule.path.alphas_cumprod[t].item()
        torch.testing.assert_close(noisy[i], a**0.5 * latents[i] + (1 - a) ** 0.5 * noise[i])


def test_velocity_is_the_speed_along_the_arc():
    # With sqrt(alpha_bar) = cos(phi), the path x = cos(phi) x_0 + sin(phi) eps has the velocity dx / dphi.
    schedule = Schedule(ScheduleConfig(), "v_prediction")
    latents, noise = normal(1, 2, 5, 7, dtype=torch.float64), normal(1, 2, 5, 7, seed=1, dtype=torch.float64)
    for t in (0, 317, 999):
        phi, h = math.acos(schedule.path.alphas_cumprod[t].sqrt().item()), 1e-4
        ahead, behind = (math.cos(p) * latents + math.sin(p) * noise for p in (phi + h, phi - h))
        velocity = schedule.target(latents, noise, torch.tensor([t]))
        torch.testing.assert_close(velocity, (ahead - behind) / (2 * h), rtol=0, atol=1e-4)


@given(
    prediction_type=st.sampled_from(PREDICTION_TYPES),
    beta_schedule=st.sampled_from(("scaled_linear", "linear")),
    timestep=st.integers(1, 999),
    seed=st.integers(0, 2**31),
)
@settings(max_examples=60, deadline=None)
def test_a_perfect_prediction_gives_back_picture_and_noise(prediction_type, beta_schedule, timestep, seed):
    schedule = Schedule(ScheduleConfig(beta_schedule=beta_schedule), prediction_type)
    latents = normal(1, 2, 3, 5, seed=seed, dtype=torch.float64)
    noise = normal(1, 2, 3, 5, seed=seed + 1, dtype=torch.float64)
    t = torch.tensor([timestep])
    noisy, target = schedule.add_noise(latents, noise, t), schedule.target(latents, noise, t)
    torch.testing.assert_close(schedule.pred_original_sample(target, noisy, t), latents, rtol=0, atol=1e-5)
    torch.testing.assert_close(schedule.noise_from(target, noisy, t), noise, rtol=0, atol=1e-5)


@given(timestep=st.integers(0, 999), seed=st.integers(0, 2**31))
@settings(max_examples=30, deadline=None)
def test_all_prediction_types_say_the_same(timestep, seed):
    # A wrong prediction too: whatever the UNet says, translated to another type it implies the same picture and noise.
    by_type = {kind: Schedule(ScheduleConfig(), kind) for kind in CURVED}
    noisy, velocity = (normal(1, 2, 3, 5, seed=seed + i, dtype=torch.float64) for i in (0, 1))
    t = torch.tensor([timestep])
    x_0 = by_type["v_prediction"].pred_original_sample(velocity, noisy, t)
    eps = by_type["v_prediction"].noise_from(velocity, noisy, t)
    torch.testing.assert_close(by_type["v_prediction"].target(x_0, eps, t), velocity, rtol=0, atol=1e-5)
    torch.testing.assert_close(by_type["epsilon"].pred_original_sample(eps, noisy, t), x_0, rtol=0, atol=1e-5)
    torch.testing.assert_close(by_type["sample"].noise_from(x_0, noisy, t), eps, rtol=0, atol=1e-5)


def test_target_is_what_its_name_says():
    latents, noise, t = normal(1, 2, 3, 5), normal(1, 2, 3, 5, seed=1), torch.tensor([500])
    assert torch.equal(Schedule(ScheduleConfig(), "epsilon").target(latents, noise, t), noise)
    assert torch.equal(Schedule(ScheduleConfig(), "sample").target(latents, noise, t), latents)
    assert torch.equal(Schedule(ScheduleConfig(), "flow").target(latents, noise, t), noise - latents)
    alpha_bar = CurvedPath(ScheduleConfig()).alphas_cumprod[500].item()
    expected = alpha_bar**0.5 * noise - (1 - alpha_bar) ** 0.5 * latents
    torch.testing.assert_close(Schedule(ScheduleConfig(), "v_prediction").target(latents, noise, t), expected)


def test_velocity_is_invertible_where_there_is_no_signal():
    schedule = Schedule(ZERO_SNR, "v_prediction")
    latents, noise, t = normal(1, 2, 3, 5), normal(1, 2, 3, 5, seed=1), torch.tensor([999])
    noisy, target = schedule.add_noise(latents, noise, t), schedule.target(latents, noise, t)
    assert torch.equal(noisy, noise)
    torch.testing.assert_close(schedule.pred_original_sample(target, noisy, t), latents)


def test_the_straight_path_is_straight():
    schedule = Schedule(ScheduleConfig(), "flow")
    latents, noise = normal(4, 2, 3, 5), normal(4, 2, 3, 5, seed=1)
    t = torch.tensor([1.0, 250.0, 333.3, 1000.0])
    for i, sigma in enumerate((t / 1000).tolist()):
        noisy = schedule.add_noise(latents, noise, t)[i]
        torch.testing.assert_close(noisy, (1 - sigma) * latents[i] + sigma * noise[i])
        assert schedule.snr(t)[i].item() == pytest.approx(((1 - sigma) / sigma) ** 2, rel=1e-5)
    torch.testing.assert_close(schedule.add_noise(latents, noise, t)[3], noise[3])


def test_the_target_of_flow_is_the_speed_along_the_line():
    schedule = Schedule(ScheduleConfig(num_train_timesteps=500), "flow")
    latents, noise = normal(1, 2, 3, 5), normal(1, 2, 3, 5, seed=1)
    ahead, behind = (schedule.add_noise(latents, noise, torch.tensor([t])) for t in (300, 200))
    torch.testing.assert_close(schedule.target(latents, noise, torch.tensor([250])), (ahead - behind) / (100 / 500))


@pytest.mark.parametrize(
    ("prediction_type", "first"), [("epsilon", 0), ("v_prediction", 0), ("sample", 0), ("flow", 1)]
)
def test_timesteps_of_training_begin_where_there_is_noise(prediction_type, first):
    schedule = Schedule(ScheduleConfig(num_train_timesteps=7), prediction_type)
    assert list(schedule.timesteps) == list(range(first, first + 7))
    assert len(schedule) == 7
    assert torch.isfinite(schedule.snr(torch.tensor(schedule.timesteps))).all()


@pytest.mark.parametrize("schedule", [Schedule(ScheduleConfig()), Schedule(ScheduleConfig(), "flow")])
def test_timesteps_are_found_by_their_signal_to_noise_ratio(schedule):
    t = torch.tensor([1, 13, 500, 999])
    assert torch.equal(schedule.timestep_at_snr(schedule.snr(t)), t)
    middle = (schedule.snr(t).log() + schedule.snr(t - 1 if schedule.timesteps[0] == 0 else t + 1).log()) / 2
    assert ((schedule.timestep_at_snr(middle.exp()) - t).abs() <= 1).all()
    beyond = torch.tensor([1e9, 0.0])
    assert schedule.timestep_at_snr(beyond).tolist() == [schedule.timesteps[0], schedule.timesteps[-1]]


def test_half_signal_and_half_noise_is_half_way_along_the_line():
    assert Schedule(ScheduleConfig(), "flow").timestep_at_snr(torch.tensor([1.0])).tolist() == [500]


@pytest.mark.parametrize("timestep", [-1, 1001])
def test_a_timestep_outside_the_straight_path_is_refused(timestep):
    schedule = Schedule(ScheduleConfig(), "flow")
    with pytest.raises(UsageError, match=rf"timestep {timestep} is outside .* 1 to 1000"):
        schedule.add_noise(normal(2, 1, 2, 3), normal(2, 1, 2, 3), torch.tensor([5, timestep]))


@pytest.mark.parametrize("timestep", [-1, 1000])
def test_a_timestep_outside_the_schedule_is_refused(timestep):
    schedule = Schedule(ScheduleConfig())
    with pytest.raises(UsageError, match=rf"timestep {timestep} is outside .* 0 to 999"):
        schedule.add_noise(normal(2, 1, 2, 3), normal(2, 1, 2, 3), torch.tensor([5, timestep]))


@pytest.mark.parametrize("prediction_type", PREDICTION_TYPES)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_latents_keep_their_dtype(dtype, prediction_type):
    schedule, latents, t = (
        Schedule(ScheduleConfig(), prediction_type),
        normal(2, 1, 2, 3).to(dtype),
        torch.tensor([5, 7]),
    )
    for method in (schedule.add_noise, schedule.target, schedule.pred_original_sample, schedule.noise_from):
        assert method(latents, latents, t).dtype == dtype


def test_the_mathematics_do_not_import_diffusers():
    code = "import sys, t2im.diffusion.sample, t2im.diffusion.objective; sys.exit('diffusers' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
