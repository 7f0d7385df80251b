"""Samplers on data whose perfect denoiser is known.

If the data are Gaussian, x_0 ~ N(m, s^2), the best possible denoiser is a formula, so nothing is learned and nothing is
random but the start. Whatever then differs from N(m, s^2) is the sampler's own error: its discretisation, or a bug.
"""

import dataclasses
import importlib.util
import math

import pytest
import torch

from t2im import samplers
from t2im.config import ScheduleConfig
from t2im.diffusion import schedulers
from t2im.diffusion.sample import sample
from t2im.diffusion.schedule import Schedule
from t2im.samplers import SCHEDULERS
from t2im.shapes import TextStates

MEAN, STD = 0.7, 0.5
NOBODY = TextStates(torch.zeros(1, 1, 1))
RUNNABLE = [name for name in SCHEDULERS if name != "lms" or importlib.util.find_spec("scipy")]
ZERO_SNR = ScheduleConfig(rescale_betas_zero_snr=True)


FLOW = Schedule(ScheduleConfig(), "flow")


def runs(name, schedule):
    """Return whether a sampler can run a schedule; that it says so is tested in test_samplers.py."""
    sampler = SCHEDULERS[name]
    return sampler.takes_zero_snr if schedule.config is ZERO_SNR else bool(sampler.flow) or schedule is not FLOW


def start():
    """Return 20,000 antithetic points: their mean is exactly 0 and their standard deviation exactly 1."""
    half = torch.randn(1, 1, 100, 100, generator=torch.Generator().manual_seed(0))
    points = torch.cat([half, -half], dim=-1)
    return points / points.std(correction=0)


def alpha_sigma(schedule, timesteps):
    """Return the shares of picture and noise at the times that a sampler asks for."""
    if schedule.prediction_type == "flow":
        return 1 - timesteps.double() / len(schedule), timesteps.double() / len(schedule)
    a = schedule.path.alphas_cumprod[timesteps]
    return a.sqrt(), (1 - a).sqrt()


def exact_denoiser(schedule, mean=MEAN, std=STD):
    """Return E[eps | x_t], E[v | x_t], E[x_0 | x_t] or E[eps - x_0 | x_t] of data ~ N(mean, std^2)."""

    def denoise(noisy, timesteps, text):
        alpha, sigma = (share[:, None, None, None] for share in alpha_sigma(schedule, timesteps))
        surprise = (noisy.double() - alpha * mean) / (alpha**2 * std**2 + sigma**2)
        noise, x_0 = sigma * surprise, mean + alpha * std**2 * surprise
        prediction = {"epsilon": noise, "v_prediction": alpha * noise - sigma * x_0, "sample": x_0, "flow": noise - x_0}
        return prediction[schedule.prediction_type].float()

    return denoise


def draw(schedule, denoiser=None, latents=None, **options):
    latents = start() if latents is None else latents
    return list(sample(denoiser or exact_denoiser(schedule), schedule, NOBODY, latents=latents, **options))


def figures(steps):
    """Return mean and standard deviation of the points a sampler arrived at."""
    return steps[-1].latents.mean().item(), steps[-1].latents.std().item()


def trailing(prediction_type="epsilon"):
    return Schedule(ScheduleConfig(timestep_spacing="trailing"), prediction_type)


def affine_ddim(schedule, timesteps, eta=0.0):
    """Return mean and standard deviation after DDIM (Song et al. 2021, eq. 12), worked out without any samples.

    The exact denoiser is affine, so x stays Gaussian, and two numbers are the whole state. diffusers goes from t to
    t - T // n, which is not always where it looks next; so do we, as the stock pipeline does.
    """
    alpha_bar = schedule.path.alphas_cumprod.tolist()
    mean, std = 0.0, 1.0
    for t in timesteps:
        a, b = alpha_bar[t], alpha_bar[max(0, t - len(schedule) // len(timesteps))]
        variance = a * STD**2 + 1 - a
        sigma = eta * math.sqrt(max(0.0, (1 - b) / (1 - a) * (1 - a / b)))
        # x_0 = x0_slope x + x0_shift, eps = eps_slope x + eps_shift
        x0_slope, x0_shift = math.sqrt(a) * STD**2 / variance, MEAN * (1 - a * STD**2 / variance)
        eps_slope, eps_shift = math.sqrt(1 - a) / variance, -math.sqrt((1 - a) * a) * MEAN / variance
        onto_eps = math.sqrt(1 - b - sigma**2)
        slope = math.sqrt(b) * x0_slope + onto_eps * eps_slope
        mean = slope * mean + math.sqrt(b) * x0_shift + onto_eps * eps_shift
        std = math.hypot(slope * std, sigma)
    return mean, std


# name: standard deviation after 20 and after 100 "trailing" steps; the truth is 0.5.
ARRIVALS = {
    "ddim": (0.446, 0.489),
    "ddpm": (0.407, 0.474),
    "euler": (0.433, 0.483),
    "euler_a": (0.407, 0.474),
    "heun": (0.459, 0.491),
    "dpm++2m": (0.459, 0.494),
    "unipc": (0.459, 0.493),
    "pndm": (0.489, 0.500),
    "deis": (0.516, 0.504),
    "lms": (0.500, 0.500),
}
STOCHASTIC = ("ddpm", "euler_a", "lcm")


@pytest.mark.parametrize("name", [name for name in RUNNABLE if name != "lcm"])
def test_every_sampler_lands_on_the_data(name):
    for steps, expected in zip((20, 100), ARRIVALS[name], strict=True):
        mean, std = figures(draw(trailing(), scheduler=name, num_inference_steps=steps))
        assert std == pytest.approx(expected, abs=0.008 if name in STOCHASTIC else 0.002)
    # Stable Diffusion's flaw in plain sight: N(0, 1) is not quite where noising ends, and the ODE remembers its start.
    assert mean == pytest.approx(0.697 if name in STOCHASTIC else 0.676, abs=0.006 if name in STOCHASTIC else 0.001)


# The same of rectified flow, which begins at pure noise, so that its mean is the data's.
FLOW_ARRIVALS = {"euler": (0.464, 0.493), "heun": (0.498, 0.500), "dpm++2m": (0.507, 0.502), "unipc": (0.505, 0.501)}


@pytest.mark.parametrize("name", FLOW_ARRIVALS)
def test_every_flow_sampler_lands_on_the_data(name):
    for steps, expected in zip((20, 100), FLOW_ARRIVALS[name], strict=True):
        mean, std = figures(draw(FLOW, scheduler=name, num_inference_steps=steps))
        assert std == pytest.approx(expected, abs=0.001)
        assert mean == pytest.approx(MEAN, abs=0.001)


def test_every_sampler_that_says_it_can_run_flow_is_tried():
    assert list(FLOW_ARRIVALS) == [name for name, sampler in SCHEDULERS.items() if sampler.flow]


def test_flow_by_euler_is_its_closed_form():
    # dx/dsigma = E[eps - x_0 | x] is affine in x; n even steps from sigma = 1 to 0 (Liu et al. 2022, eq. 1).
    mean, std, n = 0.0, 1.0, 23
    for sigma in (1 - i / n for i in range(n)):
        alpha = 1 - sigma
        slope = (sigma - alpha * STD**2) / (alpha**2 * STD**2 + sigma**2)
        mean, std = mean - (slope * (mean - alpha * MEAN) - MEAN) / n, std * (1 - slope / n)
    steps = draw(FLOW, scheduler="euler", num_inference_steps=n)
    assert figures(steps) == pytest.approx((mean, std), abs=2e-5)


def test_the_guard_bites_when_the_flow_sampler_keeps_diffusers_last_step(monkeypatch):
    # deis is refused for flow because its last step leads nowhere: what is left of the noise is seen at once.
    deis = dataclasses.replace(SCHEDULERS["deis"], flow=("scheduling_deis_multistep", "DEISMultistepScheduler"))
    monkeypatch.setattr(samplers, "SCHEDULERS", {**SCHEDULERS, "deis": deis})
    mean, _ = figures(draw(FLOW, scheduler="deis", num_inference_steps=20))
    assert mean == pytest.approx(0.665, abs=0.005)


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction", "sample"])
@pytest.mark.parametrize("name", [name for name in RUNNABLE if name != "pndm"])
def test_prediction_types_are_one_model_in_three_languages(name, prediction_type):
    if prediction_type == "sample" and not SCHEDULERS[name].takes_sample_prediction:
        return
    reference = draw(trailing(), scheduler=name, num_inference_steps=20)
    steps = draw(trailing(prediction_type), scheduler=name, num_inference_steps=20)
    torch.testing.assert_close(steps[-1].latents, reference[-1].latents, rtol=0, atol=1e-3)


@pytest.mark.parametrize("spacing", ["leading", "trailing", "linspace"])
@pytest.mark.parametrize("beta_schedule", ["scaled_linear", "linear", "squaredcos_cap_v2"])
def test_ddim_is_its_closed_form(spacing, beta_schedule):
    schedule = Schedule(ScheduleConfig(timestep_spacing=spacing, beta_schedule=beta_schedule))
    steps = draw(schedule, scheduler="ddim", num_inference_steps=23)
    mean, std = affine_ddim(schedule, [step.timestep for step in steps])
    assert figures(steps) == pytest.approx((mean, std), abs=2e-4)


@pytest.mark.parametrize("eta", [0.5, 1.0])
def test_eta_adds_the_variance_that_the_paper_says(eta):
    schedule = trailing()
    steps = draw(schedule, scheduler="ddim", num_inference_steps=23, eta=eta, seed=1)
    mean, std = affine_ddim(schedule, [step.timestep for step in steps], eta)
    assert figures(steps) == pytest.approx((mean, std), abs=0.008)


def test_ddpm_with_all_timesteps_returns_the_data():
    # Training's own chain, reversed without leaving anything out: also the case in which "leading" must not shift.
    mean, std = figures(draw(Schedule(ScheduleConfig()), scheduler="ddpm", num_inference_steps=1000))
    assert mean == pytest.approx(MEAN, abs=0.01)
    assert std == pytest.approx(STD, abs=0.01)


@pytest.mark.parametrize("name", ["ddim", "euler", "dpm++2m", "unipc"])
def test_from_the_true_start_the_mean_is_the_datas(name):
    schedule = trailing()
    a = schedule.path.alphas_cumprod[-1].item()
    noisiest = math.sqrt(a) * MEAN + math.sqrt(a * STD**2 + 1 - a) * start()
    mean, _ = figures(draw(schedule, latents=noisiest, scheduler=name, num_inference_steps=100))
    # Euler's start is scaled by its sigma_max, not by sqrt(sigma_max^2 + 1): 0.2 % off.
    assert mean == pytest.approx(MEAN, abs=0.001)


@pytest.mark.parametrize("name", ["ddim", "ddpm", "euler", "euler_a", "dpm++2m", "unipc"])
def test_zero_terminal_snr_mends_the_mean(name):
    schedule = Schedule(ZERO_SNR, "v_prediction")
    mean, std = figures(draw(schedule, scheduler=name, num_inference_steps=100))
    assert mean == pytest.approx(MEAN, abs=0.006 if name in STOCHASTIC else 0.001)
    assert std == pytest.approx(ARRIVALS[name][1], abs=0.008 if name in STOCHASTIC else 0.003)


@pytest.mark.parametrize(
    "schedule",
    [
        Schedule(ScheduleConfig(timestep_spacing="leading")),
        Schedule(ScheduleConfig()),
        Schedule(ScheduleConfig(beta_schedule="linear")),
        Schedule(ZERO_SNR, "v_prediction"),
        FLOW,
    ],
    ids=["leading", "trailing", "linear", "zero", "flow"],
)
@pytest.mark.parametrize("name", RUNNABLE)
def test_a_sure_denoiser_is_foreseen_rightly_at_every_step(name, schedule):
    # All data are one picture, so every prediction implies exactly that picture, wherever the sampler stands.
    if not runs(name, schedule):
        return
    steps = draw(schedule, exact_denoiser(schedule, std=0.0), scheduler=name, num_inference_steps=11)
    for step in steps:
        torch.testing.assert_close(
            step.pred_original_sample, torch.full_like(step.latents, MEAN), rtol=0, atol=2e-3, msg=f"step {step.index}"
        )
    # ddim, ddpm and pndm stop at timestep 0, whose noise has a standard deviation of 0.03.
    assert figures(steps) == pytest.approx((MEAN, 0), abs=0.04)


def test_a_latent_consistency_sampler_needs_a_distilled_model():
    # It jumps to the expected picture and back, so a model that was not distilled loses variance: soft pictures.
    mean, std = figures(draw(trailing(), scheduler="lcm", num_inference_steps=20))
    assert mean == pytest.approx(MEAN, abs=0.01)
    assert 0.28 < std < 0.36


def test_guidance_between_two_gaussians_is_the_gaussian_beyond():
    # Two prompts with means -0.5 and 0.5 and one spread: eps is affine in the mean, so scale 2 draws from mean 1.5.
    schedule = trailing()
    text, negative = TextStates(torch.full((1, 1, 1), 0.5)), TextStates(torch.full((1, 1, 1), -0.5))

    def denoise(noisy, timesteps, text):
        return exact_denoiser(schedule, mean=text.hidden_states[..., None].double())(noisy, timesteps, text)

    options = {"num_inference_steps": 50, "guidance_scale": 2.0, "negative": negative}
    guided = list(sample(denoise, schedule, text, latents=start(), **options))
    beyond = draw(schedule, exact_denoiser(schedule, mean=1.5), num_inference_steps=50)
    torch.testing.assert_close(guided[-1].latents, beyond[-1].latents, rtol=0, atol=1e-4)


def test_the_guard_bites_when_latents_are_clipped(monkeypatch):
    # What diffusers does by default, and Stable Diffusion must not: the closed form notices at once.
    monkeypatch.setitem(schedulers.STABLE_DIFFUSION, "clip_sample", True)
    _, std = figures(draw(trailing(), scheduler="ddim", num_inference_steps=100))
    assert std == pytest.approx(0.39, abs=0.01)


def test_the_guard_bites_when_the_sampler_has_other_betas_than_training(monkeypatch):
    monkeypatch.setitem(schedulers.STABLE_DIFFUSION, "beta_end", 0.02)
    mean, std = figures(draw(trailing(), scheduler="ddim", num_inference_steps=100))
    assert abs(mean - 0.676) > 0.02
    assert abs(std - ARRIVALS["ddim"][1]) > 0.02
