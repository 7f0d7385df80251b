import importlib.util
import math
import subprocess
import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from t2im.config import ScheduleConfig
from t2im.diffusion.schedule import SCHEDULERS, Schedule, scheduler_name
from t2im.errors import UsageError

BETA_SCHEDULES = ("scaled_linear", "linear", "squaredcos_cap_v2")
PREDICTION_TYPES = ("epsilon", "v_prediction", "sample")
ZERO_SNR = ScheduleConfig(rescale_betas_zero_snr=True)
RUNNABLE = [name for name in SCHEDULERS if name != "lms" or importlib.util.find_spec("scipy")]


def normal(*shape, seed=0, dtype=torch.float32):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


@pytest.mark.parametrize("beta_schedule", BETA_SCHEDULES)
@pytest.mark.parametrize("steps", [1, 7, 1000])
def test_signal_only_falls(beta_schedule, steps):
    schedule = Schedule(ScheduleConfig(beta_schedule=beta_schedule, num_train_timesteps=steps))
    table = schedule.alphas_cumprod
    assert len(schedule) == len(table) == len(schedule.betas) == steps
    assert (table.diff() < 0).all()
    assert 0 < table[-1] <= table[0] < 1


def test_linear_table_is_the_running_product():
    schedule = Schedule(ScheduleConfig(beta_schedule="linear", num_train_timesteps=3, beta_start=0.1, beta_end=0.3))
    torch.testing.assert_close(schedule.alphas_cumprod, torch.tensor([0.9, 0.9 * 0.8, 0.9 * 0.8 * 0.7]))


def test_scaled_linear_is_linear_in_the_root():
    schedule = Schedule(ScheduleConfig(num_train_timesteps=5, beta_start=0.04, beta_end=0.16))
    torch.testing.assert_close(schedule.betas, torch.tensor([0.2, 0.25, 0.3, 0.35, 0.4]) ** 2)


def test_cosine_table_is_the_squared_cosine():
    schedule = Schedule(ScheduleConfig(beta_schedule="squaredcos_cap_v2"))

    def level(time):
        return math.cos((time + 0.008) / 1.008 * math.pi / 2) ** 2

    expected = torch.tensor([level((t + 1) / 1000) / level(0) for t in (0, 250, 500, 998)])
    torch.testing.assert_close(schedule.alphas_cumprod[[0, 250, 500, 998]], expected, rtol=1e-4, atol=0)
    assert schedule.betas.max() == pytest.approx(0.999)


def test_zero_terminal_snr_ends_in_pure_noise_and_keeps_the_start():
    plain, rescaled = Schedule(ScheduleConfig()), Schedule(ZERO_SNR, "v_prediction")
    assert plain.alphas_cumprod[-1] == pytest.approx(0.00466, abs=1e-5)
    assert rescaled.alphas_cumprod[-1] == 0
    assert rescaled.snr(torch.tensor([999])) == 0
    torch.testing.assert_close(rescaled.alphas_cumprod[0], plain.alphas_cumprod[0])
    assert (rescaled.alphas_cumprod.diff() < 0).all()
    # The square roots are only shifted and scaled, so the ratios of their differences stay.
    for a, b in ((100, 500), (300, 900)):
        ratio = [(s.sqrt_alphas_cumprod[a] - s.sqrt_alphas_cumprod[b]) for s in (plain, rescaled)]
        whole = [(s.sqrt_alphas_cumprod[0] - s.sqrt_alphas_cumprod[-1]) for s in (plain, rescaled)]
        torch.testing.assert_close(ratio[0] / whole[0], ratio[1] / whole[1], rtol=1e-5, atol=0)


def test_snr_is_signal_over_noise():
    schedule = Schedule(ScheduleConfig())
    timesteps = torch.tensor([0, 11, 999])
    alpha_bar = schedule.alphas_cumprod[timesteps]
    torch.testing.assert_close(schedule.snr(timesteps), alpha_bar / (1 - alpha_bar))


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
        a = schedule.alphas_cumprod[t].item()
        torch.testing.assert_close(noisy[i], a**0.5 * latents[i] + (1 - a) ** 0.5 * noise[i])


def test_velocity_is_the_speed_along_the_arc():
    # With sqrt(alpha_bar) = cos(phi), the path x = cos(phi) x_0 + sin(phi) eps has the velocity dx / dphi.
    schedule = Schedule(ScheduleConfig())
    latents, noise = normal(1, 2, 5, 7, dtype=torch.float64), normal(1, 2, 5, 7, seed=1, dtype=torch.float64)
    for t in (0, 317, 999):
        phi, h = math.acos(schedule.sqrt_alphas_cumprod[t].item()), 1e-4
        ahead, behind = (math.cos(p) * latents + math.sin(p) * noise for p in (phi + h, phi - h))
        velocity = schedule.velocity(latents, noise, torch.tensor([t]))
        torch.testing.assert_close(velocity, (ahead - behind) / (2 * h), rtol=0, atol=1e-4)


@given(
    prediction_type=st.sampled_from(PREDICTION_TYPES),
    beta_schedule=st.sampled_from(("scaled_linear", "linear")),
    timestep=st.integers(0, 999),
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
    by_type = {kind: Schedule(ScheduleConfig(), kind) for kind in PREDICTION_TYPES}
    noisy, velocity = (normal(1, 2, 3, 5, seed=seed + i, dtype=torch.float64) for i in (0, 1))
    t = torch.tensor([timestep])
    x_0 = by_type["v_prediction"].pred_original_sample(velocity, noisy, t)
    eps = by_type["v_prediction"].noise_from(velocity, noisy, t)
    torch.testing.assert_close(by_type["v_prediction"].velocity(x_0, eps, t), velocity, rtol=0, atol=1e-5)
    torch.testing.assert_close(by_type["epsilon"].pred_original_sample(eps, noisy, t), x_0, rtol=0, atol=1e-5)
    torch.testing.assert_close(by_type["sample"].noise_from(x_0, noisy, t), eps, rtol=0, atol=1e-5)


def test_target_is_what_its_name_says():
    latents, noise, t = normal(1, 2, 3, 5), normal(1, 2, 3, 5, seed=1), torch.tensor([500])
    assert Schedule(ScheduleConfig(), "epsilon").target(latents, noise, t) is noise
    assert Schedule(ScheduleConfig(), "sample").target(latents, noise, t) is latents
    schedule = Schedule(ScheduleConfig(), "v_prediction")
    assert torch.equal(schedule.target(latents, noise, t), schedule.velocity(latents, noise, t))


def test_velocity_is_invertible_where_there_is_no_signal():
    schedule = Schedule(ZERO_SNR, "v_prediction")
    latents, noise, t = normal(1, 2, 3, 5), normal(1, 2, 3, 5, seed=1), torch.tensor([999])
    noisy, target = schedule.add_noise(latents, noise, t), schedule.target(latents, noise, t)
    assert torch.equal(noisy, noise)
    torch.testing.assert_close(schedule.pred_original_sample(target, noisy, t), latents)


@pytest.mark.parametrize("timestep", [-1, 1000])
def test_a_timestep_outside_the_schedule_is_refused(timestep):
    schedule = Schedule(ScheduleConfig())
    with pytest.raises(UsageError, match=rf"timestep {timestep} is outside .* 0 to 999"):
        schedule.add_noise(normal(2, 1, 2, 3), normal(2, 1, 2, 3), torch.tensor([5, timestep]))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_latents_keep_their_dtype(dtype):
    latents = normal(2, 1, 2, 3, dtype=torch.float32).to(dtype)
    assert Schedule(ScheduleConfig()).add_noise(latents, latents, torch.tensor([5, 7])).dtype == dtype


@pytest.mark.parametrize(
    ("spelling", "name"),
    [
        ("ddim", "ddim"),
        ("DDPM", "ddpm"),
        ("Euler a", "euler_a"),
        ("euler_ancestral", "euler_a"),
        ("k_euler", "euler"),
        ("DPM++ 2M", "dpm++2m"),
        ("dpmpp_2m", "dpm++2m"),
        ("uni_pc", "unipc"),
        ("PLMS", "pndm"),
        ("EulerAncestralDiscreteScheduler", "euler_a"),
        ("LCM", "lcm"),
        ("k-lms", "lms"),
    ],
)
def test_samplers_answer_to_every_usual_spelling(spelling, name):
    assert scheduler_name(spelling) == name


def test_an_unknown_sampler_names_the_nearest():
    with pytest.raises(UsageError, match=r'"eulerb" is unknown \(did you mean "euler"\?\)\. Valid: ddim, '):
        Schedule(ScheduleConfig()).scheduler("eulerb")


@pytest.mark.parametrize("name", RUNNABLE)
def test_schedulers_are_built_from_the_training_settings(name):
    config = ScheduleConfig(
        num_train_timesteps=997,
        beta_start=0.001,
        beta_end=0.02,
        beta_schedule="linear",
        timestep_spacing="leading",
    )
    schedule = Schedule(config, "v_prediction")
    scheduler = schedule.scheduler(name)
    built = scheduler.config
    assert {key: built[key] for key in config.model_dump() if key in built} == {
        key: value for key, value in config.model_dump().items() if key in built
    }
    assert built["prediction_type"] == "v_prediction"
    assert built.get("timestep_spacing", "leading") == "leading"
    assert built["steps_offset"] == 1
    assert not built.get("clip_sample", False)
    assert not built.get("set_alpha_to_one", False)
    torch.testing.assert_close(scheduler.alphas_cumprod, schedule.alphas_cumprod, rtol=0, atol=1e-6)


def test_each_call_builds_a_fresh_scheduler():
    # Multistep samplers carry the history of their run; a second run must not see it.
    schedule = Schedule(ScheduleConfig())
    assert schedule.scheduler("pndm") is not schedule.scheduler("pndm")


@pytest.mark.parametrize("name", RUNNABLE)
def test_zero_terminal_snr_runs_rescaled_or_not_at_all(name):
    schedule = Schedule(ZERO_SNR, "v_prediction")
    if name in ("heun", "pndm", "deis", "lms"):
        with pytest.raises(UsageError, match=f'"{name}" cannot run zero terminal SNR'):
            schedule.scheduler(name)
    else:
        assert schedule.scheduler(name).alphas_cumprod[-1] < 1e-7


@pytest.mark.parametrize("name", ["euler_a", "pndm"])
def test_samplers_that_cannot_take_a_picture_prediction_say_so(name):
    with pytest.raises(UsageError, match=f'"{name}" cannot run a model that predicts "sample"'):
        Schedule(ScheduleConfig(), "sample").scheduler(name)


def test_lms_without_scipy_says_what_to_install(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UsageError, match=r'"lms" needs scipy: pip install scipy'):
        Schedule(ScheduleConfig()).scheduler("lms")


def test_the_mathematics_do_not_import_diffusers():
    code = "import sys, t2im.diffusion.sample, t2im.diffusion.objective; sys.exit('diffusers' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
