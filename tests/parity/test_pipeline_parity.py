"""Our loop and the stock pipeline, opened from the folder we write, draw the same pictures."""

import pytest
import torch
from diffusers import DiffusionPipeline, StableDiffusionPipeline, UNet2DConditionModel

from t2im.config import ScheduleConfig
from t2im.diffusion.schedule import Schedule
from t2im.model import TextToImage
from t2im.nn.unet import ConditionalUNet
from t2im.samplers import SCHEDULERS

PROMPTS = ["a red apple", "A blue OWL!"]
SCHEDULES = {
    "epsilon": Schedule(ScheduleConfig()),
    "v_prediction": Schedule(ScheduleConfig(rescale_betas_zero_snr=True), "v_prediction"),
    "flow": Schedule(ScheduleConfig(), "flow"),
}


@pytest.fixture(scope="module", params=SCHEDULES)
def schedule(request):
    return SCHEDULES[request.param]


def opened(folder):
    pipeline = DiffusionPipeline.from_pretrained(folder)
    assert type(pipeline) is StableDiffusionPipeline
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def stock_images(pipeline, seed, *, negative_prompt="", **settings):
    generators = [torch.Generator().manual_seed(seed + i) for i in range(len(PROMPTS))]
    negative = [negative_prompt] * len(PROMPTS)
    return (
        pipeline(PROMPTS, generator=generators, negative_prompt=negative, output_type="pt", **settings).images * 2 - 1
    )


def our_images(model, seed, **settings):
    *_, last = model.steps(PROMPTS, seed=seed, **settings)
    return model.vae.decode(last.latents)


@pytest.mark.parametrize(
    ("scheduler", "guidance"),
    [
        ("ddim", {"guidance_scale": 1.0}),
        ("ddim", {"guidance_scale": 4.0, "guidance_rescale": 0.7}),
        ("ddpm", {"guidance_scale": 4.0}),
        ("dpm++2m", {"guidance_scale": 4.0}),
        ("unipc", {"guidance_scale": 4.0}),
    ],
)
def test_the_stock_pipeline_draws_the_same(build_model, schedule, scheduler, guidance, tmp_path):
    if schedule.prediction_type == "flow" and SCHEDULERS[scheduler].flow is None:
        return  # refused, see test_samplers.py
    model = build_model(schedule, scheduler=scheduler)
    pipeline = opened(model.save(tmp_path / "model", for_diffusers=True))
    settings = {"num_inference_steps": 5, "negative_prompt": "blurry", "height": 24, "width": 16, **guidance}
    ours = our_images(model, 11, **settings)
    assert ours.std() > 0.05
    assert (ours - stock_images(pipeline, 11, **settings)).abs().max() < 1e-4
    assert (ours - stock_images(pipeline, 12, **settings)).abs().max() > 1e-2, "the comparison must be able to fail"


def test_a_half_precision_folder_opens_in_single_precision_on_both_sides(build_model, schedule, tmp_path):
    folder = build_model(schedule, scheduler="dpm++2m").save(tmp_path / "model", dtype="float16")
    pipeline, model = opened(folder), TextToImage.load(folder)
    parts = pipeline.unet, pipeline.vae, pipeline.text_encoder, model.unet, model.vae.module, model.text_encoder.module
    assert {weight.dtype for part in parts for weight in part.parameters()} == {torch.float32}
    settings = {"num_inference_steps": 5, "guidance_scale": 3.0}
    assert (our_images(model, 3, **settings) - stock_images(pipeline, 3, **settings)).abs().max() < 1e-4


def test_a_folder_written_by_the_stock_pipeline_opens_here(build_model, schedule, tmp_path):
    model = build_model(schedule, scheduler="unipc")
    pipeline = opened(model.save(tmp_path / "ours"))
    pipeline.save_pretrained(tmp_path / "theirs")
    theirs = TextToImage.load(tmp_path / "theirs")
    assert (theirs.schedule.config, theirs.schedule.prediction_type) == (schedule.config, schedule.prediction_type)
    assert theirs.sampling.scheduler == "unipc"
    settings = {"num_inference_steps": 3, "guidance_scale": 2.0}
    assert torch.equal(our_images(theirs, 3, **settings), our_images(model, 3, **settings))


def test_the_two_unets_open_each_others_files(tiny_model, tmp_path):
    folder = tiny_model.save(tmp_path / "model")
    theirs = UNet2DConditionModel.from_pretrained(folder / "unet")
    theirs.save_pretrained(tmp_path / "back")
    ours = ConditionalUNet.load(tmp_path / "back")
    assert ours.config == tiny_model.unet.config
    for name, weight in tiny_model.unet.state_dict().items():
        assert torch.equal(weight, ours.state_dict()[name])
        assert torch.equal(weight, theirs.state_dict()[name])
