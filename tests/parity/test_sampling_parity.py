"""Our reverse loop draws what the stock Stable Diffusion pipeline draws: same weights, noise, samplers and guidance."""

import importlib.util

import pytest
import torch
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import StableDiffusionPipeline

from t2im.config import ScheduleConfig
from t2im.diffusion.sample import sample
from t2im.diffusion.schedule import Schedule
from t2im.samplers import SCHEDULERS
from t2im.shapes import TextStates

RUNNABLE = [name for name in SCHEDULERS if name != "lms" or importlib.util.find_spec("scipy")]
SEEDS = (7, 8)


@pytest.fixture(scope="module")
def unet():
    torch.manual_seed(0)
    return UNet2DConditionModel(
        sample_size=8,
        down_block_types=("CrossAttnDownBlock2D",),
        up_block_types=("CrossAttnUpBlock2D",),
        block_out_channels=(8,),
        layers_per_block=1,
        attention_head_dim=2,
        cross_attention_dim=5,
        norm_num_groups=4,
    ).eval()


def states(seed):
    return torch.randn(2, 3, 5, generator=torch.Generator().manual_seed(seed))


def both(unet, schedule, name, *, latents=None, **options):
    """Return the latents of the stock pipeline and of our loop."""
    pipeline = StableDiffusionPipeline(
        vae=None,
        text_encoder=None,
        tokenizer=None,
        unet=unet,
        scheduler=schedule.scheduler(name),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipeline.set_progress_bar_config(disable=True)
    options = {"num_inference_steps": 5, "guidance_scale": 5.0, **options}
    stock = pipeline(
        prompt_embeds=states(1),
        negative_prompt_embeds=states(2),
        height=64,  # latents of 8: without a VAE the pipeline takes a latent to be 8 pixels wide
        width=64,
        generator=[torch.Generator().manual_seed(seed) for seed in SEEDS],
        latents=latents,
        output_type="latent",
        **options,
    ).images

    def denoiser(noisy, timesteps, text):
        return unet(noisy, timesteps, text.hidden_states).sample

    *_, last = sample(
        denoiser,
        schedule,
        TextStates(states(1)),
        negative=TextStates(states(2)),
        seed=SEEDS,
        shape=(4, 8, 8),
        scheduler=name,
        latents=latents,
        **options,
    )
    return stock, last.latents


@pytest.mark.parametrize("spacing", ["leading", "trailing", "linspace"])
@pytest.mark.parametrize("name", RUNNABLE)
def test_our_loop_is_the_stock_pipeline(unet, name, spacing):
    stock, ours = both(unet, Schedule(ScheduleConfig(timestep_spacing=spacing)), name)
    torch.testing.assert_close(ours, stock, rtol=0, atol=1e-4)


@pytest.mark.parametrize("name", ["ddim", "ddpm"])
def test_given_latents_and_all_options_mean_the_same(unet, name):
    latents = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(3))
    options = {"guidance_rescale": 0.7, "eta": 0.5 * (name == "ddim"), "num_inference_steps": 10}
    stock, ours = both(unet, Schedule(ScheduleConfig()), name, latents=latents, **options)
    torch.testing.assert_close(ours, stock, rtol=0, atol=1e-4)


@pytest.mark.parametrize("name", ["ddim", "ddpm", "euler", "euler_a", "dpm++2m", "unipc"])
def test_zero_terminal_snr_too(unet, name):
    schedule = Schedule(ScheduleConfig(rescale_betas_zero_snr=True), "v_prediction")
    stock, ours = both(unet, schedule, name)
    torch.testing.assert_close(ours, stock, rtol=0, atol=1e-4)


@pytest.mark.parametrize("name", ["dpm++2m", "unipc"])
def test_flow_too(unet, name):
    stock, ours = both(unet, Schedule(ScheduleConfig(), "flow"), name)
    torch.testing.assert_close(ours, stock, rtol=0, atol=1e-4)


def test_no_guidance_is_no_guidance_in_both(unet):
    stock, ours = both(unet, Schedule(ScheduleConfig()), "ddim", guidance_scale=1.0)
    torch.testing.assert_close(ours, stock, rtol=0, atol=1e-4)
