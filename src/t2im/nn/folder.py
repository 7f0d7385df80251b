"""How does a UNet become two files that diffusers opens, and how is one of theirs read?

config.json holds the settings under diffusers' keys, diffusion_pytorch_model.safetensors the weights under diffusers'
names. Their UNet has many settings which Stable Diffusion never touches. Those are written at their default, and
accepted only there: a setting that we ignored would give a model that loads, runs, and draws something else.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from t2im.config import UNetConfig, parse_settings
from t2im.errors import ConfigError, ModelError, nearest
from t2im.files import atomic_path, write_json

CLASS_NAME = "UNet2DConditionModel"
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
    """Write our settings as a complete diffusers configuration."""
    return {"_class_name": CLASS_NAME} | DIFFUSERS_DEFAULTS | config.model_dump()


def from_diffusers_config(values: Mapping[str, Any]) -> UNetConfig:
    """Read a diffusers configuration; keys it leaves out have diffusers' defaults.

    Raises: ConfigError, naming every key that is unknown, and every value that this UNet does not support.
    """
    faults = []
    class_name = values.get("_class_name", CLASS_NAME)
    if class_name != CLASS_NAME:
        faults.append(f'_class_name is "{class_name}" (supported: "{CLASS_NAME}")')
    settings = {}
    for key, default in DIFFUSERS_DEFAULTS.items():
        value = values.get(key, default)
        if key in ("cross_attention_dim", "only_cross_attention") and isinstance(value, list | tuple):
            value = value[0] if len(set(value)) == 1 else value  # one value, spelled out for every level
        if key in UNetConfig.model_fields:
            settings[key] = value
        elif value != default:
            faults.append(f"{key} is {value!r} (supported: {default!r})")
    for key in set(values).difference(DIFFUSERS_DEFAULTS, BOOKKEEPING):
        faults.append(f'"{key}" is unknown{nearest(key, DIFFUSERS_DEFAULTS)}')
    if faults:
        raise ConfigError(
            f"UNet configuration: {'; '.join(faults)}. This UNet is of the Stable Diffusion 1 and 2 family."
        )
    return parse_settings(UNetConfig, settings)


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
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    config_path, weights_path = Path(folder) / CONFIG_FILE, Path(folder) / WEIGHTS_FILE
    for path in (config_path, weights_path):
        if not path.is_file():
            raise ModelError(
                f"{folder}: no UNet there ({path.name} is missing). "
                f"Give a folder with {CONFIG_FILE} and {WEIGHTS_FILE}, such as the unet folder of a pipeline."
            )
    path = config_path
    try:
        values = json.loads(config_path.read_text(encoding="utf-8"))
        path = weights_path
        weights = load_file(weights_path)
    except (ValueError, OSError, SafetensorError) as error:
        raise ModelError(f"{path}: cannot be read ({error}). Copy it again from its source.") from None
    return from_diffusers_config(values), weights


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
