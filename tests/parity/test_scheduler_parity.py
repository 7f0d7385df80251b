"""Our schedule and diffusers' are one: same tables, same noising, same velocity, same rescaling."""

import pytest
import torch
from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import rescale_noise_cfg
from diffusers.schedulers.scheduling_ddpm import DDPMScheduler

from t2im.config import ScheduleConfig
from t2im.diffusion.guidance import rescale
from t2im.diffusion.schedule import Schedule

ZERO_SNR = {"rescale_betas_zero_snr": True}
SETTINGS = [
    pytest.param(
        {"beta_schedule": beta_schedule, "num_train_timesteps": steps} | options, id=f"{beta_schedule}-{steps}{i}"
    )
    for beta_schedule in ("scaled_linear", "linear", "squaredcos_cap_v2")
    for steps in (997, 1000)
    for i, options in enumerate(({}, {"beta_start": 1e-4, "beta_end": 0.02}, ZERO_SNR))
]


def normal(*shape, seed):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(params=SETTINGS)
def pair(request):
    """Return our schedule, and diffusers' scheduler built without our help."""
    config = ScheduleConfig(**request.param)
    return Schedule(config), DDPMScheduler(**config.model_dump())


def test_alphas_cumprod_are_equal(pair):
    ours, theirs = pair
    torch.testing.assert_close(ours.path.alphas_cumprod.float(), theirs.alphas_cumprod, rtol=0, atol=1e-6)
    torch.testing.assert_close(ours.path.betas.float(), theirs.betas, rtol=1e-4, atol=1e-6)


def test_noising_and_velocity_are_equal(pair):
    ours, theirs = pair
    timesteps = torch.tensor([0, 1, 11, 499, 907, len(ours) - 1])
    latents, noise = normal(6, 3, 5, 7, seed=0), normal(6, 3, 5, 7, seed=1)
    velocity = Schedule(ours.config, "v_prediction").target
    for method, counterpart in ((ours.add_noise, theirs.add_noise), (velocity, theirs.get_velocity)):
        result, expected = method(latents, noise, timesteps), counterpart(latents, noise, timesteps)
        # Their float32 square roots lose digits where alpha_bar is nearly 0 or nearly 1; ours are of float64.
        torch.testing.assert_close(result, expected, rtol=0, atol=2e-4)


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction", "sample"])
@pytest.mark.parametrize("name", ["ddim", "ddpm"])
def test_predictions_imply_the_same_picture(name, prediction_type):
    ours = Schedule(ScheduleConfig(), prediction_type)
    theirs = ours.scheduler(name)
    theirs.set_timesteps(10)
    for t in theirs.timesteps:
        prediction, noisy = normal(2, 3, 5, 7, seed=0), normal(2, 3, 5, 7, seed=int(t))
        expected = theirs.step(prediction, t, noisy, generator=torch.Generator()).pred_original_sample
        result = ours.pred_original_sample(prediction, noisy, t.expand(2))
        torch.testing.assert_close(result, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["ddim", "euler", "dpm++2m"])
def test_a_scheduler_we_save_reopens_as_another_with_the_same_schedule(tmp_path, name):
    # So a stock pipeline may swap the sampler of an exported model.
    config = ScheduleConfig(**ZERO_SNR, num_train_timesteps=997)
    schedule = Schedule(config, "v_prediction")
    schedule.scheduler(name).save_pretrained(tmp_path)
    reopened = DDPMScheduler.from_pretrained(tmp_path)
    assert {key: reopened.config[key] for key in config.model_dump()} == config.model_dump()
    assert reopened.config["prediction_type"] == "v_prediction"
    torch.testing.assert_close(reopened.alphas_cumprod, schedule.path.alphas_cumprod.float(), rtol=0, atol=1e-6)


@pytest.mark.parametrize("phi", [0.3, 0.7, 1.0])
def test_guidance_rescale_is_diffusers(phi):
    guided, conditional = 5 * normal(3, 2, 5, 7, seed=0), normal(3, 2, 5, 7, seed=1)
    torch.testing.assert_close(rescale(guided, conditional, phi), rescale_noise_cfg(guided, conditional, phi))
