"""The options that diffusers' UNet does not have: each does what it says where it is on, and nothing where it is off."""

import dataclasses
import json
import random

import pytest
import torch

from t2im.errors import ConfigError
from t2im.networks import BEYOND_STOCK, UNetConfig
from t2im.nn.folder import CLASS_NAME, DIFFUSERS_DEFAULTS, from_diffusers_config, to_diffusers_config
from t2im.nn.unet import ConditionalUNet
from t2im.settings import parse_settings
from t2im.shapes import TextStates

TINY = UNetConfig(
    sample_size=7,
    in_channels=3,
    out_channels=3,
    down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
    up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
    block_out_channels=(6, 10),
    attention_head_dim=2,
    cross_attention_dim=9,
    norm_num_groups=2,
)
ON = {"qk_norm": True, "size_conditioning": True}


def draw(seed):
    """Draw a configuration with at least one of the options on."""
    rng = random.Random(seed)
    levels = 1 + seed % 3
    attends = [rng.random() < 0.6 for _ in range(levels)]
    return UNetConfig(
        in_channels=3,
        out_channels=rng.choice([3, 5]),
        down_block_types=tuple("CrossAttnDownBlock2D" if each else "DownBlock2D" for each in attends),
        up_block_types=tuple("CrossAttnUpBlock2D" if each else "UpBlock2D" for each in reversed(attends)),
        block_out_channels=tuple(2 * rng.choice([3, 5, 7]) for _ in range(levels)),
        layers_per_block=rng.choice([1, 2]),
        transformer_layers_per_block=tuple(rng.choice([1, 2, 3]) for _ in range(levels)),
        attention_head_dim=rng.choice([1, 2, 3]),
        cross_attention_dim=9,
        use_linear_projection=rng.choice([True, False]),
        resnet_time_scale_shift=rng.choice(["default", "scale_shift"]),
        addition_embed_type=rng.choice([None, "text"]),
        addition_embed_type_num_heads=3,
        norm_num_groups=2,
        upcast_attention=rng.choice([True, False]),
        qk_norm=seed % 3 != 1,
        size_conditioning=seed % 3 != 2,
    )


def unet_of(config, **changes):
    torch.manual_seed(0)
    return ConditionalUNet(config.model_copy(update=changes))


def inputs(batch=3, *, masked=True, sized=True):
    torch.manual_seed(1)
    mask = torch.rand(batch, 4) < 0.6 if masked else None
    sizes = torch.tensor([[64, 64, 0, 0], [0, 0, 0, 0], [40, 71, 0, 11]])[:batch] if sized else None
    return torch.randn(batch, 3, 7, 5), TextStates(torch.randn(batch, 4, 9), mask, sizes)


@pytest.mark.parametrize("seed", range(9))
def test_prepared_context_equals_plain_calls(seed):
    unet = unet_of(draw(seed))
    latents, text = inputs()
    timesteps = torch.tensor([999, 7])
    prepared = unet.prepare(text, timesteps)
    for timestep in timesteps:
        torch.testing.assert_close(unet(latents, timestep, prepared), unet(latents, timestep, text), atol=3e-6, rtol=0)


@pytest.mark.parametrize("seed", range(9))
def test_every_sample_of_a_batch_equals_a_single_run(seed):
    unet = unet_of(draw(seed))
    latents, text = inputs()
    together = unet(latents, 500, text)
    for row in range(3):
        one = slice(row, row + 1)
        torch.testing.assert_close(together[one], unet(latents[one], 500, text[one]), atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("seed", range(9))
def test_a_saved_model_comes_back_the_same(seed, tmp_path):
    unet = unet_of(draw(seed))
    unet.save(tmp_path)
    again = ConditionalUNet.load(tmp_path)
    assert again.config == unet.config
    assert torch.equal(again(inputs()[0], 5, inputs()[1]), unet(inputs()[0], 5, inputs()[1]))


@pytest.mark.parametrize("seed", range(9))
def test_gradients_reach_every_parameter(seed):
    unet = unet_of(draw(seed))
    latents, text = inputs()
    unet(latents, 500, text).square().sum().backward()
    silent = [name for name, weight in unet.named_parameters() if not weight.grad.abs().sum() > 0]
    assert silent == []


@pytest.mark.parametrize("options", [{}, *({name: True} for name in BEYOND_STOCK), ON])
def test_only_options_that_are_on_are_written_and_never_under_the_name_of_diffusers(options):
    config = UNetConfig(**options)
    written = json.loads(json.dumps(to_diffusers_config(config)))
    assert written.keys() - DIFFUSERS_DEFAULTS.keys() == {"_class_name", *options}
    assert (written["_class_name"] == CLASS_NAME) == (not options) == (not config.beyond_stock)
    assert set(config.beyond_stock) == set(options)
    assert from_diffusers_config(written) == config


def test_diffusers_refuses_a_model_with_options_of_ours(tmp_path):
    from diffusers import AutoModel

    unet_of(TINY, **ON).save(tmp_path)
    with pytest.raises(Exception, match="ConditionalUNet"):
        AutoModel.from_pretrained(tmp_path)


def test_weights_with_and_without_the_options_differ_by_their_own_parameters_only():
    plain, both = (unet_of(TINY, **options).state_dict() for options in ({}, ON))
    added = {name for name in both if name not in plain}
    assert plain.keys() <= both.keys()
    assert {name.rpartition(".")[0].split(".")[-1] for name in added if "attn" in name} == {"norm_q", "norm_k"}
    assert all(name.startswith("size_embedding.") for name in added if "attn" not in name)
    assert both["mid_block.attentions.0.transformer_blocks.0.attn2.norm_k.weight"].shape == (5,)


def test_what_is_told_of_sizes_is_heard_only_where_the_option_is_on():
    latents, text = inputs()
    other = dataclasses.replace(text, sizes=text.sizes.flip(0))
    for option in (False, True):
        unet = unet_of(TINY, size_conditioning=option)
        assert torch.equal(unet(latents, 5, text), unet(latents, 5, other)) == (not option)


@pytest.mark.parametrize("number", range(4))
def test_each_of_the_four_numbers_is_heard(number):
    unet = unet_of(TINY, size_conditioning=True)
    latents, text = inputs()
    changed = text.sizes.clone()
    changed[:, number] += 5
    difference = unet(latents, 5, text) - unet(latents, 5, dataclasses.replace(text, sizes=changed))
    assert difference.abs().mean() > 1e-5


def test_an_unknown_size_adds_nothing():
    """Unknown in every row, not told at all, and no such option: three ways to one prediction."""
    with_it = unet_of(TINY, size_conditioning=True)
    without = ConditionalUNet(TINY)
    without.load_state_dict({n: w for n, w in with_it.state_dict().items() if not n.startswith("size_embedding")})
    latents, text = inputs(sized=False)
    unknown = dataclasses.replace(text, sizes=torch.zeros(3, 4, dtype=torch.long))
    assert torch.equal(with_it(latents, 5, unknown), with_it(latents, 5, text))
    assert torch.equal(with_it(latents, 5, text), without(latents, 5, text))


@pytest.mark.parametrize("options", [{}, ON])
def test_a_unet_that_starts_from_zero_predicts_exactly_zero_and_then_learns(options):
    unet = unet_of(TINY, zero_init_output=True, **options)
    latents, text = inputs()
    assert not unet(latents, 5, text).any()
    optimizer = torch.optim.SGD(unet.parameters(), lr=0.1)
    (unet(latents, 5, text) - latents).square().mean().backward()
    optimizer.step()
    optimizer.zero_grad()
    assert unet(latents, 5, text).abs().mean() > 1e-4
    (unet(latents, 5, text) - latents).square().mean().backward()
    assert unet.conv_in.weight.grad.abs().sum() > 0


def test_how_a_unet_started_is_not_part_of_the_model(tmp_path):
    unet = unet_of(TINY, zero_init_output=True)
    assert to_diffusers_config(unet.config) == to_diffusers_config(TINY)
    unet.save(tmp_path)
    assert ConditionalUNet.load(tmp_path).config == TINY


@pytest.mark.parametrize("depths", [0, [1, 0]])
def test_a_depth_of_zero_is_named_by_its_block_types(depths):
    with pytest.raises(ConfigError, match="without transformers is a DownBlock2D and an UpBlock2D"):
        parse_settings(UNetConfig, {"transformer_layers_per_block": depths})


def test_every_level_has_its_own_depth():
    config = UNetConfig(
        block_out_channels=(16, 24, 32),
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D", "CrossAttnUpBlock2D"),
        transformer_layers_per_block=(1, 2, 3),
    )
    unet = ConditionalUNet(config)
    depths = {
        name.rpartition(".attentions")[0]: len(module)
        for name, module in unet.named_modules()
        if name.endswith("transformer_blocks")
    }
    assert depths == {"down_blocks.0": 1, "down_blocks.2": 3, "mid_block": 3, "up_blocks.0": 3, "up_blocks.2": 1}


@pytest.mark.parametrize("prepare", [False, True])
def test_autocast_to_bf16_stays_near(prepare):
    unet = unet_of(TINY, **ON)
    latents, text = inputs()
    expected = unet(latents, 5, text)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        condition = unet.prepare(text, torch.tensor([5])) if prepare else text
        torch.testing.assert_close(unet(latents, 5, condition).float(), expected, atol=0.05, rtol=0.05)
