"""How does a UNet become two files that diffusers opens, and how is one of theirs read?

config.json holds the settings under diffusers' keys, diffusion_pytorch_model.safetensors the weights under diffusers'
names. Their UNet has many settings which Stable Diffusion never touches. Those are written at their default, and
accepted only there: a setting that we ignored would give a model that loads, runs, and draws something else.

The few options that their UNet does not have are written only where they are on, and then under a class name of ours:
what asks diffusers for the class of this model gets an error, and no pictures of a model without them.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from torch import Tensor

from t2im.errors import ConfigError, ModelError, nearest
from t2im.files import atomic_path, write_json
from t2im.networks import BEYOND_STOCK, UNetConfig
from t2im.weights import read_safetensors

CLASS_NAME = "UNet2DConditionModel"
OUR_CLASS_NAME = "ConditionalUNet"
CONFIG_FILE = "config.json"
WEIGHTS_FILE = "diffusion_pytorch_model.safetensors"

BOOKKEEPING = ("_class_name", "_diffusers_version", "_name_or_path", "_use_default_values", "_commit_hash")
"""Keys that say where a configuration comes from, and nothing about the network."""

DIFFUSERS_DEFAULTS: dict[str, Any] = {
    "sample_size": None,
    "in_channels": 4,
    "out_channels": 4,
    "center_input_sample": False,
    "flip_sin_to_cos": True,
    "freq_shift": 0,
    "down_block_types": ("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
    "mid_block_type": "UNetMidBlock2DCrossAttn",
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
    "only_cross_attention": False,
    "block_out_channels": (320, 640, 1280, 1280),
    "layers_per_block": 2,
    "downsample_padding": 1,
    "mid_block_scale_factor": 1,
    "dropout": 0.0,
    "act_fn": "silu",
    "norm_num_groups": 32,
    "norm_eps": 1e-5,
    "cross_attention_dim": 1280,
    "transformer_layers_per_block": 1,
    "reverse_transformer_layers_per_block": None,
    "encoder_hid_dim": None,
    "encoder_hid_dim_type": None,
    "attention_head_dim": 8,
    "num_attention_heads": None,
    "dual_cross_attention": False,
    "use_linear_projection": False,
    "class_embed_type": None,
    "addition_embed_type": None,
    "addition_time_embed_dim": None,
    "num_class_embeds": None,
    "upcast_attention": False,
    "resnet_time_scale_shift": "default",
    "resnet_skip_time_act": False,
    "resnet_out_scale_factor": 1.0,
    "time_embedding_type": "positional",
    "time_embedding_dim": None,
    "time_embedding_act_fn": None,
    "timestep_post_act": None,
    "time_cond_proj_dim": None,
    "conv_in_kernel": 3,
    "conv_out_kernel": 3,
    "projection_class_embeddings_input_dim": None,
    "attention_type": "default",
    "class_embeddings_concat": False,
    "mid_block_only_cross_attention": None,
    "cross_attention_norm": None,
    "addition_embed_type_num_heads": 64,
}
"""What diffusers fills in for keys that a configuration leaves out, as SD 1.5's does; not our own defaults."""


def to_diffusers_config(config: UNetConfig) -> dict[str, Any]:
    """Write our settings as a complete diffusers configuration, and those of our options that are on.

    How weights start (`zero_init_output`) is not written, for it says nothing about the weights that there are.
    """
    theirs = {key: value for key, value in config.model_dump().items() if key in DIFFUSERS_DEFAULTS}
    ours = dict.fromkeys(config.beyond_stock, True)
    return {"_class_name": OUR_CLASS_NAME if ours else CLASS_NAME} | DIFFUSERS_DEFAULTS | theirs | ours


def from_diffusers_config(values: Mapping[str, Any]) -> UNetConfig:
    """Read a diffusers configuration; keys it leaves out have diffusers' defaults.

    Raises: ConfigError, naming every key that is unknown, and every value that this UNet does not support.
    """
    given = {key: _without_repetition(key, values.get(key, default)) for key, default in DIFFUSERS_DEFAULTS.items()}
    faults = [
        f"{key} is {given[key]!r} (supported: {default!r})"
        for key, default in DIFFUSERS_DEFAULTS.items()
        if key not in UNetConfig.model_fields and given[key] != default
    ]
    faults += [
        f'"{key}" is unknown{nearest(key, DIFFUSERS_DEFAULTS)}'
        for key in values
        if key not in DIFFUSERS_DEFAULTS and key not in BEYOND_STOCK and key not in BOOKKEEPING
    ]
    if (class_name := values.get("_class_name", CLASS_NAME)) not in (CLASS_NAME, OUR_CLASS_NAME):
        faults.append(f"_class_name is {class_name!r} (supported: {CLASS_NAME!r})")
    settings = {key: value for key, value in given.items() if key in UNetConfig.model_fields}
    settings |= {key: values[key] for key in BEYOND_STOCK if key in values}
    try:
        config = UNetConfig.model_validate(settings)
    except ValidationError as error:
        faults += _explain(error, settings)
    if faults:
        raise ConfigError(f"{'; '.join(faults)}. The UNet must be of the family of Stable Diffusion 1 and 2.")
    return config


def _without_repetition(key: str, value: Any) -> Any:
    """Take one value for what diffusers allows to spell out for every level, but we have once for all."""
    once = key in ("cross_attention_dim", "only_cross_attention")
    if once and isinstance(value, list | tuple) and value and all(each == value[0] for each in value):
        return value[0]
    return value


def _explain(error: ValidationError, settings: Mapping[str, Any]) -> list[str]:
    supported: dict[str, list[str]] = {}
    for fault in error.errors():
        message = fault["msg"].removeprefix("Value error, ").removeprefix("Input should be ")
        messages = supported.setdefault(str(fault["loc"][0]) if fault["loc"] else "", [])
        if message not in messages:
            messages.append(message)
    for key in supported.keys() & {key for key, default in DIFFUSERS_DEFAULTS.items() if default is None}:
        supported[key].append("None")
    between_settings = supported.pop("", [])
    return between_settings + [
        f"{key} is {settings[key]!r} (supported: {', or '.join(messages)})" for key, messages in supported.items()
    ]


def write_unet(folder: str | Path, config: UNetConfig, state_dict: Mapping[str, Tensor]) -> None:
    """Write weights, then configuration; each file is whole or absent."""
    from safetensors.torch import save_file

    with atomic_path(Path(folder) / WEIGHTS_FILE) as temporary:
        weights = {name: weight.detach().contiguous() for name, weight in state_dict.items()}
        save_file(weights, temporary, metadata={"format": "pt"})
    write_json(Path(folder) / CONFIG_FILE, to_diffusers_config(config))


def read_unet(folder: str | Path) -> tuple[UNetConfig, dict[str, Tensor]]:
    """Read what `write_unet` or diffusers has written.

    Raises: ModelError for a file that is missing or damaged; ConfigError for a UNet that is not ours.
    """
    config_path, weights_path = Path(folder) / CONFIG_FILE, Path(folder) / WEIGHTS_FILE
    for path in (config_path, weights_path):
        if not path.is_file():
            raise ModelError(
                f"{folder}: no UNet there ({path.name} is missing). "
                f"Give a folder with {CONFIG_FILE} and {WEIGHTS_FILE}, such as the unet folder of a pipeline."
            )
    try:
        values = json.loads(config_path.read_text(encoding="utf-8"))
    except (ValueError, OSError, RecursionError) as error:
        raise ModelError(f"{config_path}: cannot be read ({error}). Copy it again from its source.") from None
    if not isinstance(values, dict):
        raise ModelError(f"{config_path}: holds no settings. Copy it again from its source.")
    return from_diffusers_config(values), read_safetensors(weights_path)


def require_same_weights(folder: str | Path, wanted: Mapping[str, Tensor], found: Mapping[str, Tensor]) -> None:
    """Check names and shapes of weights against those of the model.

    Raises: ModelError with the first of those that are missing, left over or of another shape.
    """
    faults = {
        "missing": [name for name in wanted if name not in found],
        "left over": [name for name in found if name not in wanted],
        "of another shape": [name for name in wanted if name in found and wanted[name].shape != found[name].shape],
    }
    told = [f"{len(names)} {fault} (first: {names[0]})" for fault, names in faults.items() if names]
    if told:
        raise ModelError(
            f"{folder}: weights do not fit {CONFIG_FILE}: {', '.join(told)}. Use the two files of one and the same model."
        )
