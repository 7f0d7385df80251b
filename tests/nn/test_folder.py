import json

import pytest
import torch

from t2im.errors import ConfigError, ModelError
from t2im.networks import BEYOND_STOCK, UNetConfig
from t2im.nn.folder import DIFFUSERS_DEFAULTS, from_diffusers_config, to_diffusers_config
from t2im.nn.unet import ConditionalUNet

TINY = UNetConfig(
    sample_size=(5, 7),
    down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
    up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
    block_out_channels=(4, 6),
    layers_per_block=(1, 2),
    attention_head_dim=2,
    cross_attention_dim=3,
    norm_num_groups=2,
)


def as_read_from_json(config):
    return json.loads(json.dumps(config))


def test_defaults_are_the_installed_diffusers_own():
    import inspect

    from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel

    parameters = inspect.signature(UNet2DConditionModel.__init__).parameters
    theirs = {name: parameter.default for name, parameter in parameters.items() if name != "self"}
    assert theirs == DIFFUSERS_DEFAULTS


def test_every_setting_of_ours_is_one_of_theirs_but_for_those_that_say_so():
    assert set(UNetConfig.model_fields) - set(DIFFUSERS_DEFAULTS) == {*BEYOND_STOCK, "zero_init_output"}


@pytest.mark.parametrize("config", [TINY, UNetConfig(), UNetConfig(addition_embed_type="text", dropout=0.1)])
def test_configuration_survives_json_in_diffusers_form(config):
    assert from_diffusers_config(as_read_from_json(to_diffusers_config(config))) == config


def test_keys_left_out_have_diffusers_defaults_and_not_ours():
    config = from_diffusers_config({})
    assert config.layers_per_block == 2
    assert config.sample_size is None
    assert config.use_linear_projection is False
    assert config.cross_attention_dim == 1280


def test_bookkeeping_says_nothing_about_the_network():
    bookkeeping = {"_class_name": "UNet2DConditionModel", "_diffusers_version": "0.6.0", "_name_or_path": "x"}
    assert from_diffusers_config(bookkeeping) == from_diffusers_config({})


def test_one_value_spelled_out_for_every_level_is_that_value():
    config = from_diffusers_config({"only_cross_attention": [False] * 4, "cross_attention_dim": [768] * 4})
    assert config == from_diffusers_config({"cross_attention_dim": 768})


@pytest.mark.parametrize("value", [True, [True, False], 1])
def test_an_unsupported_value_is_refused_by_key_value_and_what_is_supported(value):
    with pytest.raises(ConfigError) as caught:
        from_diffusers_config({"only_cross_attention": value})
    assert f"only_cross_attention is {value!r} (supported: False)" in str(caught.value)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("act_fn", "gelu"),
        ("mid_block_scale_factor", 1.5),
        ("center_input_sample", True),
        ("downsample_padding", 0),
        ("class_embed_type", "timestep"),
        ("num_class_embeds", 1000),
        ("time_embedding_type", "fourier"),
        ("time_embedding_dim", 512),
        ("conv_in_kernel", 1),
        ("encoder_hid_dim", 64),
        ("dual_cross_attention", True),
        ("num_attention_heads", 8),
        ("reverse_transformer_layers_per_block", [1, 1, 1, 1]),
        ("attention_type", "gated"),
        ("resnet_out_scale_factor", 2.0),
        ("resnet_skip_time_act", True),
    ],
)
def test_settings_beyond_stable_diffusion_are_refused(key, value):
    with pytest.raises(ConfigError, match=f"{key} is .* \\(supported: "):
        from_diffusers_config({key: value})


def test_each_setting_beyond_ours_is_accepted_at_its_default():
    beyond = {key: value for key, value in DIFFUSERS_DEFAULTS.items() if key not in UNetConfig.model_fields}
    assert from_diffusers_config(as_read_from_json(beyond)) == from_diffusers_config({})


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("mid_block_type", "UNetMidBlock2D", "UNetMidBlock2DCrossAttn"),
        ("mid_block_type", None, "UNetMidBlock2DCrossAttn"),
        ("addition_embed_type", "text_time", "'text'"),
        ("resnet_time_scale_shift", "spatial", "'default' or 'scale_shift'"),
        ("down_block_types", ["AttnDownBlock2D"] * 4, "'DownBlock2D' or 'CrossAttnDownBlock2D'"),
        ("norm_num_groups", None, "valid integer"),
        ("transformer_layers_per_block", [[1, 2], 1, 1, 1], "valid integer"),
        ("cross_attention_dim", [6, 6, 6, 9], "valid integer"),
        ("layers_per_block", [1, 2], "2 entries"),
        ("layers_per_block", 0, "layers_per_block is 0 (supported: greater than 0"),
        ("addition_embed_type", "image", "addition_embed_type is 'image' (supported: 'text', or None)"),
        ("block_out_channels", [], "at least 1"),
    ],
)
def test_values_that_our_settings_cannot_hold_are_refused_by_name(key, value, message):
    with pytest.raises(ConfigError, match=key) as caught:
        from_diffusers_config({key: value})
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_an_unknown_key_is_refused_with_the_nearest_name():
    with pytest.raises(ConfigError, match=r'"dropuot" is unknown \(did you mean "dropout"\?\)'):
        from_diffusers_config({"dropuot": 0.1})


def test_everything_wrong_is_told_at_once():
    with pytest.raises(ConfigError) as caught:
        from_diffusers_config({"_class_name": "UNet2DModel", "act_fn": "mish", "depth": 3})
    message = str(caught.value)
    assert all(part in message for part in ("UNet2DModel", "act_fn is 'mish'", '"depth" is unknown'))


def saved(tmp_path):
    torch.manual_seed(0)
    unet = ConditionalUNet(TINY)
    unet.save(tmp_path / "unet")
    return unet, tmp_path / "unet"


def test_saved_model_comes_back_the_same_in_fp32_and_ready_for_use(tmp_path):
    unet, folder = saved(tmp_path)
    again = ConditionalUNet.load(folder)
    assert again.config == TINY
    assert not again.training
    for name, parameter in again.named_parameters():
        assert parameter.requires_grad
        assert parameter.dtype == torch.float32
        assert torch.equal(parameter, unet.get_parameter(name))


def test_half_precision_weights_are_read_into_fp32(tmp_path):
    unet, folder = saved(tmp_path)
    unet.half().save(folder)
    again = ConditionalUNet.load(folder)
    assert {parameter.dtype for parameter in again.parameters()} == {torch.float32}
    torch.testing.assert_close(again.conv_in.weight, unet.conv_in.weight.float())


def test_folder_holds_the_two_files_of_diffusers_and_nothing_else(tmp_path):
    _, folder = saved(tmp_path)
    assert sorted(path.name for path in folder.iterdir()) == ["config.json", "diffusion_pytorch_model.safetensors"]
    assert json.loads((folder / "config.json").read_text())["_class_name"] == "UNet2DConditionModel"


@pytest.mark.parametrize("name", ["config.json", "diffusion_pytorch_model.safetensors"])
def test_a_missing_file_is_named(tmp_path, name):
    _, folder = saved(tmp_path)
    (folder / name).unlink()
    with pytest.raises(ModelError, match=f"{name} is missing"):
        ConditionalUNet.load(folder)


@pytest.mark.parametrize("name", ["config.json", "diffusion_pytorch_model.safetensors"])
def test_a_damaged_file_is_told_in_one_line(tmp_path, name):
    _, folder = saved(tmp_path)
    (folder / name).write_bytes((folder / name).read_bytes()[:-9])
    with pytest.raises(ModelError, match=f"{name}: cannot be read") as caught:
        ConditionalUNet.load(folder)
    assert "\n" not in str(caught.value)


def test_a_configuration_that_holds_no_settings_is_refused(tmp_path):
    _, folder = saved(tmp_path)
    (folder / "config.json").write_text("[]")
    with pytest.raises(ModelError, match="holds no settings"):
        ConditionalUNet.load(folder)


def test_weights_of_another_model_are_refused(tmp_path):
    _, folder = saved(tmp_path)
    ConditionalUNet(TINY.model_copy(update={"layers_per_block": 1, "in_channels": 5})).save(tmp_path / "other")
    weights = "diffusion_pytorch_model.safetensors"
    (folder / weights).write_bytes((tmp_path / "other" / weights).read_bytes())
    with pytest.raises(ModelError, match=r"missing \(first: .*conv_in.weight") as caught:
        ConditionalUNet.load(folder)
    assert "of another shape" in str(caught.value)
