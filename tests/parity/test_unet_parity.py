"""The UNet against an independent reference: diffusers' UNet2DConditionModel with the same weights."""

import random

import pytest
import torch
from torch import nn

from t2im.nn.folder import from_diffusers_config, to_diffusers_config
from t2im.nn.unet import ConditionalUNet
from t2im.shapes import TextStates

# As the files unet/config.json of the two models say.
SD_1_5 = {
    "_class_name": "UNet2DConditionModel",
    "_diffusers_version": "0.6.0",
    "act_fn": "silu",
    "attention_head_dim": 8,
    "block_out_channels": [320, 640, 1280, 1280],
    "center_input_sample": False,
    "cross_attention_dim": 768,
    "down_block_types": ["CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"],
    "downsample_padding": 1,
    "flip_sin_to_cos": True,
    "freq_shift": 0,
    "in_channels": 4,
    "layers_per_block": 2,
    "mid_block_scale_factor": 1,
    "norm_eps": 1e-05,
    "norm_num_groups": 32,
    "out_channels": 4,
    "sample_size": 64,
    "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"],
}
SD_2_1 = SD_1_5 | {
    "_diffusers_version": "0.10.0.dev0",
    "attention_head_dim": [5, 10, 20, 20],
    "cross_attention_dim": 1024,
    "dual_cross_attention": False,
    "num_class_embeds": None,
    "only_cross_attention": False,
    "sample_size": 96,
    "upcast_attention": True,
    "use_linear_projection": True,
}
TINY = {
    "sample_size": 7,
    "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D"],
    "up_block_types": ["CrossAttnUpBlock2D", "UpBlock2D"],
    "block_out_channels": [4, 8],
    "layers_per_block": 1,
    "attention_head_dim": 2,
    "cross_attention_dim": 6,
    "norm_num_groups": 2,
}


def draw(seed):
    """Draw a configuration, and the shape of a batch, from all that Stable Diffusion's family allows."""
    rng = random.Random(seed)
    levels = 1 + seed % 4
    groups = rng.choice([1, 2, 3])

    def per_level(*choices):
        each = [rng.choice(choices) for _ in range(levels)]
        return rng.choice([each[0], each])

    attends_down, attends_up = ([rng.random() < 0.6 for _ in range(levels)] for _ in range(2))
    if rng.random() < 0.5:
        attends_up = attends_down[::-1]
    config = {
        "sample_size": rng.choice([None, 8, (5, 7)]),
        "in_channels": rng.choice([1, 3, 4]),
        "out_channels": rng.choice([1, 4, 6]),
        "flip_sin_to_cos": rng.choice([True, False]),
        "freq_shift": rng.choice([0, 1]),
        "down_block_types": ["CrossAttnDownBlock2D" if attends else "DownBlock2D" for attends in attends_down],
        "up_block_types": ["CrossAttnUpBlock2D" if attends else "UpBlock2D" for attends in attends_up],
        "block_out_channels": [groups * rng.choice([4, 5, 7, 8]) for _ in range(levels)],
        "layers_per_block": per_level(1, 2, 3),
        "transformer_layers_per_block": per_level(1, 2),
        "attention_head_dim": per_level(1, 2, 3, 4),
        "cross_attention_dim": rng.choice([6, 10, 14]),
        "use_linear_projection": rng.choice([True, False]),
        "resnet_time_scale_shift": rng.choice(["default", "scale_shift"]),
        "addition_embed_type": rng.choice([None, "text"]),
        "addition_embed_type_num_heads": 2,
        "norm_num_groups": groups,
        "norm_eps": rng.choice([1e-5, 1e-6, 1e-3]),
        "upcast_attention": rng.choice([True, False]),
    }
    shape = (rng.choice([1, 2, 3]), rng.choice([5, 8, 11, 16]), rng.choice([5, 8, 13]))
    # Theirs pools over masked-out tokens as well; what ours does has a test of its own.
    return config, shape, rng.choice([1, 3, 7]), rng.random() < 0.5 and config["addition_embed_type"] is None


def reference_unet(config):
    from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel

    return UNet2DConditionModel(**{key: value for key, value in config.items() if not key.startswith("_")})


def build_both(config):
    torch.manual_seed(0)
    theirs = reference_unet(config)
    ours = ConditionalUNet(from_diffusers_config(dict(theirs.config)))
    with torch.no_grad():  # no bias is 0 and no norm is 1, so that each one must be in its place
        for parameter in theirs.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    ours.load_state_dict(theirs.state_dict(), strict=True)
    return ours, theirs


def batch_for(config, shape, tokens, masked):
    batch, height, width = shape
    torch.manual_seed(1)
    latents = torch.randn(batch, config.get("in_channels", 4), height, width, requires_grad=True)
    states = torch.randn(batch, tokens, config["cross_attention_dim"], requires_grad=True)
    timesteps = torch.randint(1000, (batch,))
    mask = torch.rand(batch, tokens) < 0.6 if masked else None
    return latents, timesteps, states, mask


def outputs_and_gradients(unet, output, latents, states):
    torch.manual_seed(2)
    loss = (output * torch.randn_like(output)).mean()
    names, parameters = zip(*unet.named_parameters(), strict=True)
    gradients = torch.autograd.grad(loss, [latents, states, *parameters], allow_unused=True)
    return {"output": output} | dict(zip(("latents", "states", *names), gradients, strict=True))


def require_equal(ours, theirs, *, atol=1e-5):
    assert list(ours) == list(theirs)
    for name, value in theirs.items():
        assert (ours[name] is None) == (value is None), name
        if value is not None:
            torch.testing.assert_close(ours[name], value, atol=atol, rtol=1e-5, msg=lambda m, name=name: f"{name}: {m}")


@pytest.mark.parametrize("seed", range(16))
def test_outputs_and_gradients_equal_diffusers_on_drawn_configurations(seed):
    config, *shape = draw(seed)
    ours, theirs = build_both(config)
    latents, timesteps, states, mask = batch_for(config, *shape)
    reference = theirs(latents, timesteps, states, encoder_attention_mask=mask).sample
    reference = outputs_and_gradients(theirs, reference, latents, states)
    text = TextStates(states, mask)
    for condition in (text, ours.prepare(text, timesteps)):
        result = outputs_and_gradients(ours, ours(latents, timesteps, condition), latents, states)
        require_equal(result, reference)


CORNERS = {
    "attention on the outer levels only": {
        "down_block_types": ["CrossAttnDownBlock2D", "DownBlock2D", "CrossAttnDownBlock2D"],
        "up_block_types": ["CrossAttnUpBlock2D", "UpBlock2D", "CrossAttnUpBlock2D"],
        "block_out_channels": [4, 6, 8],
        "transformer_layers_per_block": [1, 2, 3],
        "attention_head_dim": [1, 5, 2],
        "layers_per_block": [3, 1, 2],
    },
    "attention on the way up only": {"down_block_types": ["DownBlock2D", "DownBlock2D"], "block_out_channels": [8, 4]},
    "attention in the middle only": {
        "down_block_types": ["DownBlock2D"],
        "up_block_types": ["UpBlock2D"],
        "block_out_channels": [6],
    },
    "heads that do not divide the channels": {"attention_head_dim": 3, "use_linear_projection": True},
    "heads that do not divide the channels, convolved": {"attention_head_dim": [7, 3]},
    "an odd number of time waves": {"block_out_channels": [5, 10], "norm_num_groups": 5},
    "one channel per group": {"norm_num_groups": 4},
    "a fully spelled out text width": {"cross_attention_dim": [6, 6]},
}


@pytest.mark.parametrize("corner", CORNERS)
def test_outputs_and_gradients_equal_diffusers_in_the_corners(corner):
    config = TINY | CORNERS[corner]
    ours, theirs = build_both(config)
    latents, timesteps, states, mask = batch_for(config | {"cross_attention_dim": 6}, (2, 7, 9), 5, True)
    results = [
        outputs_and_gradients(unet, output, latents, states)
        for unet, output in (
            (ours, ours(latents, timesteps, TextStates(states, mask))),
            (theirs, theirs(latents, timesteps, states, encoder_attention_mask=mask).sample),
        )
    ]
    require_equal(*results)


def test_a_prompt_that_is_masked_out_altogether_equals_diffusers():
    ours, theirs = build_both(TINY)
    latents, timesteps, states, _ = batch_for(TINY, (2, 7, 5), 4, False)
    mask = torch.tensor([[False] * 4, [True] * 4])
    reference = theirs(latents, timesteps, states, encoder_attention_mask=mask).sample
    # Scores of -10000 have an fp32 resolution of 0.001, and each side rounds them in its own order.
    torch.testing.assert_close(ours(latents, timesteps, TextStates(states, mask)), reference, atol=1e-4, rtol=0)


def test_a_masked_prompt_is_pooled_as_the_same_prompt_cut_short():
    config = TINY | {"addition_embed_type": "text", "addition_embed_type_num_heads": 2}
    ours, theirs = build_both(config)
    latents, timesteps, states, _ = batch_for(config, (3, 7, 5), 5, False)
    lengths = torch.tensor([5, 1, 3])
    output = ours(latents, timesteps, TextStates(states, torch.arange(5) < lengths[:, None]))
    for row, length in enumerate(lengths):
        one = slice(row, row + 1)
        reference = theirs(latents[one], timesteps[one], states[one, :length]).sample
        torch.testing.assert_close(output[one], reference, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_large_batches_in_either_memory_format_equal_diffusers(memory_format):
    ours, theirs = build_both(TINY)
    ours.to(memory_format=memory_format)
    latents, timesteps, states, _ = batch_for(TINY, (67, 6, 8), 4, False)
    output = ours(latents.contiguous(memory_format=memory_format), timesteps, states)
    torch.testing.assert_close(output, theirs(latents, timesteps, states).sample, atol=1e-5, rtol=1e-5)


def test_dropout_of_diffusers_is_in_the_same_places():
    config = TINY | {"dropout": 0.4}
    ours, theirs = build_both(config)
    latents, timesteps, states, _ = batch_for(config, (2, 7, 5), 4, False)
    outputs = []
    for unet in (ours, theirs):
        torch.manual_seed(3)
        outputs.append(unet.train()(latents, timesteps, states))
    torch.testing.assert_close(outputs[0], outputs[1].sample, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("config", "parameters"),
    [(SD_1_5, 859_520_964), (SD_2_1, 865_910_724), (TINY, None)],
    ids=["sd15", "sd21", "tiny"],
)
def test_names_and_shapes_of_all_weights_equal_diffusers(config, parameters):
    with torch.device("meta"):
        ours = ConditionalUNet(from_diffusers_config(config))
        theirs = reference_unet(config)
    expected = [(name, weight.shape) for name, weight in theirs.state_dict().items()]
    assert [(name, weight.shape) for name, weight in ours.state_dict().items()] == expected
    assert [name for name, _ in ours.named_parameters()] == [name for name, _ in theirs.named_parameters()]
    for name, module in theirs.named_modules():  # strides, paddings, and what 1e-5 cannot see: epsilons
        if isinstance(module, nn.Conv2d | nn.Linear | nn.GroupNorm | nn.LayerNorm):
            assert repr(ours.get_submodule(name)) == repr(module), name
    assert ours.num_parameters() == theirs.num_parameters()
    assert parameters in (None, ours.num_parameters())


@pytest.mark.parametrize("seed", range(2))
def test_weights_move_both_ways_unchanged(seed):
    ours, theirs = build_both(draw(seed)[0])
    torch.manual_seed(5)
    with torch.no_grad():
        for parameter in ours.parameters():
            parameter.normal_()
    theirs.load_state_dict(ours.state_dict(), strict=True)
    moved = theirs.state_dict()
    assert all(torch.equal(weight, moved[name]) for name, weight in ours.state_dict().items())


@pytest.mark.parametrize("seed", range(0, 20, 3))
def test_configurations_of_diffusers_survive_the_way_there_and_back(seed):
    with torch.device("meta"):
        theirs = reference_unet(draw(seed)[0]).config
    back = to_diffusers_config(from_diffusers_config(dict(theirs)))
    assert back.pop("_class_name") == "UNet2DConditionModel"
    for key, value in back.items():
        assert value == (tuple(theirs[key]) if isinstance(theirs[key], list) else theirs[key]), key
    assert set(back) == {key for key in theirs if not key.startswith("_")}


def test_random_weights_are_drawn_from_diffusers_distribution():
    torch.manual_seed(0)
    config = TINY | {"block_out_channels": [32, 64], "addition_embed_type": "text", "addition_embed_type_num_heads": 2}
    theirs = reference_unet(config).state_dict()
    ours = ConditionalUNet(from_diffusers_config(config)).state_dict()
    for name, weight in theirs.items():
        if weight.numel() >= 2000:
            for measure in (torch.mean, torch.std, torch.amax):
                measured, reference = measure(ours[name]).item(), measure(weight).item()
                assert measured == pytest.approx(reference, abs=0.1 * weight.std().item()), name
        elif weight.unique().numel() == 1:
            assert torch.equal(ours[name], weight), name


def test_saved_folder_opens_in_diffusers_and_theirs_in_ours(tmp_path):
    from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel

    config = TINY | {"addition_embed_type": "text", "addition_embed_type_num_heads": 3, "layers_per_block": [1, 2]}
    ours, theirs = build_both(config)
    latents, timesteps, states, _ = batch_for(config, (2, 7, 5), 4, False)
    expected = ours(latents, timesteps, states)
    ours.to(memory_format=torch.channels_last).save(tmp_path / "ours")
    reopened = UNet2DConditionModel.from_pretrained(tmp_path / "ours")
    torch.testing.assert_close(reopened(latents, timesteps, states).sample, expected, atol=1e-5, rtol=1e-5)
    theirs.save_pretrained(tmp_path / "theirs")
    assert torch.equal(ConditionalUNet.load(tmp_path / "theirs")(latents, timesteps, states), expected)
