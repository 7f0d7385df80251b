"""Recipes are settings that somebody promised to be good: they load, and what their texts say is so."""

import re
from importlib import resources

import pytest
import torch

from t2im.diffusion.schedule import Schedule
from t2im.encoders.vae import new_vae
from t2im.nn.unet import ConditionalUNet
from t2im.recipe import load_config, recipe_names

PARAMETERS = {"nano": 6_068_900, "plain": 5_804_452, "small": 21_380_100, "base": 49_565_956, "sd15": 859_520_964}
OURS = sorted(PARAMETERS.keys() - {"sd15"})


@pytest.fixture(params=recipe_names())
def recipe(request):
    return request.param


def unet_of(recipe):
    with torch.device("meta"):
        return ConditionalUNet(load_config(recipe).unet)


def text_of(recipe):
    return (resources.files("t2im") / "recipes" / f"{recipe}.toml").read_text(encoding="utf-8")


def test_every_recipe_gives_a_model_that_can_be_built(recipe):
    config = load_config(recipe)
    unet = unet_of(recipe)
    with torch.device("meta"):
        new_vae(config.vae, config.data.resolution)
    side = config.data.resolution // config.vae.downscale
    assert unet.latent_shape == (config.vae.latent_channels, side, side)
    assert side % 2 ** (len(config.unet.block_out_channels) - 1) == 0
    assert config.unet.cross_attention_dim == config.clip.width
    Schedule(config.schedule, config.objective.type).scheduler(config.sampling.scheduler)


def test_every_recipe_says_what_it_is_for(recipe):
    assert text_of(recipe).startswith("# ")


@pytest.mark.parametrize("recipe", PARAMETERS)
def test_each_size_is_what_its_text_claims(recipe):
    claimed = re.search(r"a UNet of ([\d.]+) million parameters", text_of(recipe))
    parameters = unet_of(recipe).num_parameters()
    assert parameters == PARAMETERS[recipe]
    assert f"{parameters / 1e6:.1f}" == claimed[1]


@pytest.mark.parametrize("recipe", OURS)
def test_our_own_sizes_run_fast(recipe):
    """Wide groups and round channels vectorise; attention is quadratic, so it belongs where cells are few."""
    config = load_config(recipe).unet
    heads = config.per_level(config.attention_head_dim)
    for level, channels in enumerate(config.block_out_channels):
        attends = "CrossAttn" in config.down_block_types[level] + config.up_block_types[-1 - level]
        assert channels % 32 == 0
        assert channels // config.norm_num_groups >= 8
        assert not attends or config.sample_size // 2**level <= 16
        assert not attends or (channels % heads[level] == 0 and channels // heads[level] in (24, 32))


def test_the_sizes_of_sd15_are_the_originals():
    from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
    from transformers.models.clip.configuration_clip import CLIPConfig

    config = load_config("sd15")
    with torch.device("meta"):
        vae = new_vae(config.vae, config.data.resolution)
        theirs = AutoencoderKL(
            down_block_types=("DownEncoderBlock2D",) * 4,
            up_block_types=("UpDecoderBlock2D",) * 4,
            block_out_channels=(128, 256, 512, 512),
            layers_per_block=2,
        )
    shapes, originals = ({key: each.shape for key, each in part.state_dict().items()} for part in (vae, theirs))
    assert shapes == originals
    text = CLIPConfig().text_config
    assert (config.clip.vocab_size, config.clip.context_length) == (text.vocab_size, text.max_position_embeddings)
    assert (config.clip.layers, config.unet.cross_attention_dim) == (text.num_hidden_layers, 768)
