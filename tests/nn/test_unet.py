import dataclasses

import pytest
import torch

from t2im.errors import ConfigError, UsageError
from t2im.networks import UNetConfig
from t2im.nn.unet import ConditionalUNet, PreparedContext
from t2im.shapes import TextStates

TINY = UNetConfig(
    sample_size=7,
    in_channels=3,
    out_channels=5,
    down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
    up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
    block_out_channels=(6, 10),
    attention_head_dim=2,
    cross_attention_dim=9,
    norm_num_groups=2,
)
WITH_TEXT_IN_TIME = TINY.model_copy(update={"addition_embed_type": "text", "addition_embed_type_num_heads": 3})


def unet_of(config=TINY):
    torch.manual_seed(0)
    return ConditionalUNet(config)


def inputs(batch=3, *, size=(7, 5), tokens=4, masked=False):
    torch.manual_seed(1)
    latents, states = torch.randn(batch, 3, *size), torch.randn(batch, tokens, 9)
    mask = torch.rand(batch, tokens) < 0.6
    return latents, TextStates(states, mask if masked else None)


@pytest.mark.parametrize("size", [(7, 5), (8, 8), (1, 1), (2, 13)])
def test_prediction_has_the_size_of_the_latents_and_the_channels_of_the_config(size):
    latents, text = inputs(size=size)
    assert unet_of()(latents, 5, text).shape == (3, 5, *size)


@pytest.mark.parametrize("timesteps", [500, torch.tensor(500), torch.tensor([500]), torch.tensor([500.0] * 3)])
def test_one_timestep_serves_all_samples(timesteps):
    unet = unet_of()
    latents, text = inputs()
    assert torch.equal(unet(latents, timesteps, text), unet(latents, torch.tensor([500, 500, 500]), text))


def test_bare_hidden_states_are_text_without_a_mask():
    unet = unet_of()
    latents, text = inputs()
    assert torch.equal(unet(latents, 3, text.hidden_states), unet(latents, 3, text))


@pytest.mark.parametrize("config", [TINY, WITH_TEXT_IN_TIME])
def test_every_sample_of_a_batch_equals_a_single_run(config):
    unet = unet_of(config)
    latents, text = inputs(masked=True)
    timesteps = torch.tensor([1, 500, 999])
    together = unet(latents, timesteps, text)
    for i in range(3):
        alone = unet(latents[i : i + 1], timesteps[i : i + 1], text[i : i + 1])
        torch.testing.assert_close(together[i : i + 1], alone, atol=1e-6, rtol=1e-5)


def test_masked_tokens_have_no_influence():
    unet = unet_of()
    latents, text = inputs(masked=True)
    other = TextStates(text.hidden_states.masked_fill(~text.mask[..., None], 7.0), text.mask)
    assert torch.equal(unet(latents, 3, text), unet(latents, 3, other))


def test_time_text_and_latents_all_matter():
    unet = unet_of()
    latents, text = inputs()
    output = unet(latents, 500, text)
    assert not torch.allclose(output, unet(latents, 400, text), atol=1e-4)
    assert not torch.allclose(output, unet(latents, 500, text.hidden_states.flip(0)), atol=1e-4)
    assert not torch.allclose(output, unet(latents.flip(0), 500, text), atol=1e-4)


def test_every_parameter_receives_a_gradient():
    unet = unet_of(WITH_TEXT_IN_TIME)
    unet(*inputs()[:1], 500, inputs()[1]).square().sum().backward()
    silent = [name for name, parameter in unet.named_parameters() if not parameter.grad.abs().sum() > 0]
    # A bias right before a norm over its own channels cannot matter: there is none, since groups hold several channels.
    assert silent == []


@pytest.mark.parametrize("config", [TINY, WITH_TEXT_IN_TIME])
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("time_scale_shift", ["default", "scale_shift"])
def test_prepared_context_gives_equal_outputs_at_every_timestep(config, masked, time_scale_shift):
    unet = unet_of(config.model_copy(update={"resnet_time_scale_shift": time_scale_shift}))
    latents, text = inputs(masked=masked)
    timesteps = torch.tensor([999, 613, 7])
    prepared = unet.prepare(text, timesteps)
    for timestep in timesteps:
        torch.testing.assert_close(unet(latents, timestep, prepared), unet(latents, timestep, text), atol=1e-6, rtol=0)


@pytest.mark.parametrize("config", [TINY, WITH_TEXT_IN_TIME])
def test_prepared_context_serves_samples_at_different_timesteps(config):
    unet = unet_of(config)
    latents, text = inputs()
    prepared = unet.prepare(text, torch.tensor([999, 613, 7]))
    mixed = torch.tensor([7, 999, 7])
    torch.testing.assert_close(unet(latents, mixed, prepared), unet(latents, mixed, text), atol=1e-6, rtol=0)


def test_prepared_context_knows_fractional_timesteps():
    unet = unet_of()
    latents, text = inputs()
    timesteps = torch.tensor([957.3756, 0.5])
    prepared = unet.prepare(text, timesteps)
    torch.testing.assert_close(unet(latents, timesteps[0], prepared), unet(latents, timesteps[0], text))
    assert torch.equal(unet(latents, 0.5, prepared), unet(latents, timesteps[1], prepared))


def test_prepared_context_carries_gradients():
    unet = unet_of(WITH_TEXT_IN_TIME)
    latents, text = inputs()
    text.hidden_states.requires_grad_()
    gradients = []
    for condition in (text, unet.prepare(text, torch.tensor([613, 7]))):
        loss = unet(latents, 7, condition).square().mean()
        gradients.append(torch.autograd.grad(loss, [text.hidden_states, *unet.parameters()]))
    torch.testing.assert_close(*gradients, atol=1e-6, rtol=1e-5)


def test_prepared_context_spares_every_projection_of_time_and_text(monkeypatch):
    unet = unet_of()
    latents, text = inputs()
    prepared = unet.prepare(text, torch.tensor([3]))
    for name, module in unet.named_modules():
        if "time" in name or "attn2.to_k" in name or "attn2.to_v" in name:
            monkeypatch.setattr(module, "forward", lambda *_: pytest.fail("was prepared already"))
    unet(latents, 3, prepared)
    with pytest.raises(pytest.fail.Exception, match="was prepared"):
        unet(latents, 3, text)


def test_prepared_keys_and_values_are_headed():
    prepared = unet_of().prepare(inputs()[1], torch.tensor([3]))
    key, value = prepared.context.mid_block[0].text[0]
    assert key.shape == value.shape == (3, 2, 4, 5)


def test_prepared_context_is_frozen():
    prepared = unet_of().prepare(inputs()[1], torch.tensor([3]))
    assert isinstance(prepared, PreparedContext)
    with pytest.raises(dataclasses.FrozenInstanceError):
        prepared.prompts = 2


def test_a_timestep_that_was_not_prepared_is_refused():
    unet = unet_of()
    latents, text = inputs()
    prepared = unet.prepare(text, torch.tensor([999, 7]))
    with pytest.raises(UsageError, match=r"timestep 500 was not prepared \(prepared: 999, 7\)"):
        unet(latents, 500, prepared)


@pytest.mark.parametrize("prepare", [False, True])
def test_another_number_of_prompts_than_latents_is_refused(prepare):
    unet = unet_of()
    latents, text = inputs()
    condition = unet.prepare(text[:1], torch.tensor([5])) if prepare else text[:1]
    with pytest.raises(UsageError, match="1 prompts for 3 latents"):
        unet(latents, 5, condition)


def test_another_number_of_timesteps_than_latents_is_refused():
    latents, text = inputs()
    with pytest.raises(UsageError, match=r"timesteps of shape \(2,\) for 3 latents"):
        unet_of()(latents, torch.tensor([1, 2]), text)


def test_latents_with_other_channels_are_refused():
    latents, text = inputs()
    with pytest.raises(UsageError, match="latents have 2 channels, but the UNet takes 3"):
        unet_of()(latents[:, :2], 5, text)


def test_states_of_another_text_encoder_are_refused():
    latents, text = inputs()
    unet = unet_of()
    for call in (
        lambda: unet(latents, 5, text.hidden_states[..., :8]),
        lambda: unet.prepare(text.hidden_states[..., :8], torch.tensor([5])),
    ):
        with pytest.raises(UsageError, match="8 wide, but the UNet's cross_attention_dim is 9"):
            call()


def test_channels_last_gives_the_same_prediction_in_channels_last():
    unet = unet_of()
    latents, text = inputs(size=(8, 6))
    expected = unet(latents, 5, text)
    unet.to(memory_format=torch.channels_last)
    output = unet(latents.contiguous(memory_format=torch.channels_last), 5, text)
    torch.testing.assert_close(output, expected, atol=1e-6, rtol=1e-5)
    assert output.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("upcast", [False, True])
def test_autocast_to_bf16_stays_near(upcast):
    unet = unet_of(WITH_TEXT_IN_TIME.model_copy(update={"upcast_attention": upcast}))
    latents, text = inputs(masked=True)
    expected = unet(latents, 5, text)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        prepared = unet.prepare(text, torch.tensor([5]))
        for condition in (text, prepared):
            torch.testing.assert_close(unet(latents, 5, condition).float(), expected, atol=0.05, rtol=0.05)


def test_a_model_in_bf16_takes_and_gives_bf16():
    unet = unet_of(WITH_TEXT_IN_TIME).bfloat16()
    latents, text = inputs(masked=True)
    output = unet(latents.bfloat16(), 5, text.to(dtype=torch.bfloat16))
    assert output.dtype == torch.bfloat16


@pytest.mark.parametrize("upcast", [False, True])
def test_shapes_can_be_worked_out_without_any_weights(upcast):
    with torch.device("meta"):
        unet = ConditionalUNet(TINY.model_copy(update={"upcast_attention": upcast}))
        assert unet(torch.empty(2, 3, 7, 5), 5, torch.empty(2, 4, 9)).shape == (2, 5, 7, 5)


@pytest.mark.parametrize(("size", "shape"), [(7, (3, 7, 7)), ((7, 5), (3, 7, 5))])
def test_latent_shape_is_channels_height_width(size, shape):
    assert unet_of(TINY.model_copy(update={"sample_size": size})).latent_shape == shape


def test_a_unet_without_native_size_says_so():
    unet = unet_of(TINY.model_copy(update={"sample_size": None}))
    with pytest.raises(ConfigError, match="sample_size is not set"):
        _ = unet.latent_shape


def expected_parameters(config):
    """Count by hand, from the description of the architecture, without building it."""
    c, width = config.block_out_channels, config.cross_attention_dim
    time = 4 * c[0]
    counts, depths = config.per_level(config.layers_per_block), config.per_level(config.transformer_layers_per_block)
    time_channels = 2 if config.resnet_time_scale_shift == "scale_shift" else 1

    def linear(i, o):
        return i * o + o

    def conv(i, o, kernel=3):
        return kernel * kernel * i * o + o

    def resnet(i, o):
        shortcut = conv(i, o, 1) if i != o else 0
        return 2 * i + conv(i, o) + linear(time, time_channels * o) + 2 * o + conv(o, o) + shortcut

    def transformer(o, depth):
        attentions = 3 * o * o + linear(o, o) + o * o + 2 * o * width + linear(o, o)
        block = 3 * 2 * o + attentions + linear(o, 8 * o) + linear(4 * o, o)
        return 2 * o + 2 * linear(o, o) + depth * block

    total = conv(config.in_channels, c[0]) + linear(c[0], time) + linear(time, time)
    if config.addition_embed_type == "text":
        total += 2 * width + width + 3 * linear(width, width) + linear(width, time) + 2 * time
    skips = [c[0]]
    for level, kind in enumerate(config.down_block_types):
        for _ in range(counts[level]):
            total += resnet(skips[-1], c[level]) + ("Cross" in kind) * transformer(c[level], depths[level])
            skips.append(c[level])
        if level < len(c) - 1:
            total += conv(c[level], c[level])
            skips.append(c[level])
    total += 2 * resnet(c[-1], c[-1]) + transformer(c[-1], depths[-1])
    below = c[-1]
    for kind, level in zip(config.up_block_types, reversed(range(len(c))), strict=True):
        for _ in range(counts[level] + 1):
            total += resnet(below + skips.pop(), c[level]) + ("Cross" in kind) * transformer(c[level], depths[level])
            below = c[level]
        total += conv(below, below) if level else 0
    return total + 2 * c[0] + conv(c[0], config.out_channels)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"resnet_time_scale_shift": "scale_shift", "layers_per_block": (1, 3)},
        {"addition_embed_type": "text", "addition_embed_type_num_heads": 3, "transformer_layers_per_block": (1, 2)},
        {"down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"), "use_linear_projection": False},
    ],
)
def test_parameters_are_as_many_as_the_architecture_says(changes):
    config = TINY.model_copy(update=changes)
    assert unet_of(config).num_parameters() == expected_parameters(config)


def test_default_model_has_the_size_of_the_nano_recipe():
    with torch.device("meta"):
        unet = ConditionalUNet(UNetConfig())
    assert unet.num_parameters() == expected_parameters(UNetConfig())
