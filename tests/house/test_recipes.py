"""Recipes are settings that somebody promised to be good: they load, and what their texts say is so."""

import re
from importlib import resources

import pytest
import torch

from t2im.diffusion.schedule import Schedule
from t2im.encoders.vae import new_vae
from t2im.nn.unet import ConditionalUNet
from t2im.recipe import load_config, recipe_names


@pytest.fixture(params=recipe_names())
def recipe(request):
    return request.param


def test_every_recipe_gives_a_model_that_can_be_built(recipe):
    config = load_config(recipe)
    with torch.device("meta"):
        unet = ConditionalUNet(config.unet)
        new_vae(config.vae, config.data.resolution)
    side = config.data.resolution // config.vae.downscale
    assert unet.latent_shape == (config.vae.latent_channels, side, side)
    assert config.unet.cross_attention_dim == config.clip.width
    Schedule(config.schedule, config.objective.type).scheduler(config.sampling.scheduler)


def test_every_recipe_says_what_it_is_for(recipe):
    text = (resources.files("t2im") / "recipes" / f"{recipe}.toml").read_text(encoding="utf-8")
    assert text.startswith("# ")


def test_nano_has_the_size_that_it_claims():
    text = (resources.files("t2im") / "recipes" / "nano.toml").read_text(encoding="utf-8")
    claimed = re.search(r"a UNet of ([\d.]+) million parameters", text)
    with torch.device("meta"):
        unet = ConditionalUNet(load_config("nano").unet)
    assert claimed
    assert f"{unet.num_parameters() / 1e6:.1f}" == claimed[1] == "5.8"
