"""What is a model on the disk? One folder in the layout of a diffusers pipeline.

model_index.json                                        which class reads which sub-folder
unet/ vae/ text_encoder/ tokenizer/ scheduler/          a config.json and safetensors weights each
README.md                                               the model card
t2im.json                                               what diffusers does not keep: sampling defaults, the reading
                                                        of padding, facts for the card, a checksum of every file
"""

import json
from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import Any

from t2im.card import ModelFacts
from t2im.config import ObjectiveConfig, PredictionType, SamplingConfig, ScheduleConfig, TextConfig
from t2im.data.folder import unsafe
from t2im.errors import ConfigError, ModelError, nearest
from t2im.files import sha256_of_file, write_json
from t2im.samplers import SCHEDULERS
from t2im.settings import Settings, parse_settings

DESCRIPTION_FILE = "t2im.json"
SCHEMA = 1
"""Version of `t2im.json`; a reader refuses what is newer than itself."""
UNET_WEIGHTS = "unet/diffusion_pytorch_model.safetensors"
"""The file whose checksum names the model."""


class Description(Settings):
    """What `t2im.json` says."""

    facts: ModelFacts
    """For the model card and for people."""
    sampling: SamplingConfig = SamplingConfig()
    """What the model does when it is only given a prompt."""
    text: TextConfig = TextConfig()
    """How it reads padded prompts."""
    stock_obstacle: str | None = None
    """Why diffusers' own pipeline cannot draw with it; None if it can."""
    checksums: Mapping[str, str] = {}
    """SHA-256 of every file but the card, by path."""


def builtin_folder() -> Path:
    """Return the folder of the model that ships with the package.

    Raises: ModelError if this copy of the package was built without one.
    """
    folder = Path(str(resources.files("t2im") / "builtin"))
    if not (folder / DESCRIPTION_FILE).is_file():
        raise ModelError("this copy of t2im has no built-in model. Name a model folder or a checkpoint, or train one.")
    return folder


def write_description(folder: Path, description: Description) -> None:
    """Seal a finished folder: write `t2im.json` with the checksums of all files but the card, which people may edit."""
    paths = sorted(path for path in folder.rglob("*") if path.is_file() and path != folder / "README.md")
    checksums = {path.relative_to(folder).as_posix(): sha256_of_file(path) for path in paths}
    sealed = description.model_copy(update={"checksums": checksums})
    write_json(folder / DESCRIPTION_FILE, {"schema": SCHEMA, **sealed.model_dump(mode="json")})


def read_description(folder: Path) -> Description:
    """Read and verify `t2im.json`; a pipeline folder made elsewhere has none, and gets the defaults.

    Raises: ModelError for a folder that holds no model, or a damaged one.
    """
    if not (folder / "unet").is_dir():
        checkpoints = sorted(path.name for path in folder.glob("*.pt"))
        hint = f" It holds checkpoints; load one, such as {folder / checkpoints[-1]}." if checkpoints else ""
        raise ModelError(f"{folder}: no model folder, it has no unet/ inside.{hint}")
    path = folder / DESCRIPTION_FILE
    if not path.is_file():
        facts = ModelFacts(name=folder.resolve().name)
        return Description(facts=facts, sampling=SamplingConfig(scheduler=_scheduler_of(folder)[0]))
    try:
        values = dict(json.loads(path.read_text(encoding="utf-8")))
        schema = values.pop("schema", None)
        if schema != SCHEMA:
            raise ModelError(f"{path}: has schema {schema}, this version reads {SCHEMA}. Update t2im.")
        description = parse_settings(Description, values)
    except (ValueError, TypeError) as error:
        raise ModelError(f"{path}: damaged ({error}).") from None
    for name, expected in description.checksums.items():
        if reason := unsafe(name):
            raise ModelError(f"{path}: the name {name!a} {reason}.")
        part = folder / name
        if not part.is_file():
            raise ModelError(f"{part}: missing. Copy the whole folder again.")
        if sha256_of_file(part) != expected:
            raise ModelError(
                f"{part}: damaged or changed, its checksum is not that of {DESCRIPTION_FILE}. Copy it again."
            )
    return description


def read_schedule(folder: Path) -> tuple[ScheduleConfig, PredictionType]:
    """Return the noise schedule that a pipeline's scheduler was configured with.

    Raises: ModelError if there is none, or it is of a kind that we do not have.
    """
    _, values = _scheduler_of(folder)
    if values.get("trained_betas") is not None:
        raise ModelError(f"{folder}/scheduler: trained_betas are not supported.")
    if any(values.get(name, 1.0) != 1.0 for name in ("shift", "flow_shift")):
        raise ModelError(f"{folder}/scheduler: a shifted flow is not supported.")
    predicts = values.get("prediction_type", "epsilon")
    if str(values["_class_name"]).startswith("FlowMatch") or predicts == "flow_prediction":
        predicts = "flow"
    try:
        schedule = parse_settings(
            ScheduleConfig, {key: values[key] for key in ScheduleConfig.model_fields if key in values}
        )
        objective = parse_settings(ObjectiveConfig, {"type": predicts})
    except ConfigError as error:
        raise ModelError(f"{folder}/scheduler: {error}") from None
    return schedule, objective.type


def model_index(scheduler_class: str) -> dict[str, Any]:
    """Return what tells diffusers which class reads which sub-folder."""
    from importlib.metadata import version

    return {
        "_class_name": "StableDiffusionPipeline",
        "_diffusers_version": version("diffusers"),
        "feature_extractor": [None, None],
        "image_encoder": [None, None],
        "requires_safety_checker": False,
        "safety_checker": [None, None],
        "scheduler": ["diffusers", scheduler_class],
        "text_encoder": ["transformers", "CLIPTextModel"],
        "tokenizer": ["transformers", "CLIPTokenizer"],
        "unet": ["diffusers", "UNet2DConditionModel"],
        "vae": ["diffusers", "AutoencoderKL"],
    }


def halve_weights(folder: Path) -> None:
    """Round all weights in a folder to fp16; every reader of ours brings them back to fp32.

    Raises: ModelError if a weight is too large for fp16.
    """
    import torch
    from safetensors.torch import load_file, save_file

    for path in sorted(folder.rglob("*.safetensors")):
        halved = {
            name: weight.half() if weight.is_floating_point() else weight for name, weight in load_file(path).items()
        }
        for name, weight in halved.items():
            if not torch.isfinite(weight).all():
                raise ModelError(f'weight "{name}" of {path.parent.name}/ does not fit into fp16. Save as float32.')
        save_file(halved, path, metadata={"format": "pt"})
    # Of all readers, transformers alone computes in the type of the file unless the configuration names another.
    config = folder / "text_encoder" / "config.json"
    write_json(config, {**json.loads(config.read_text(encoding="utf-8")), "dtype": "float32"})


def _scheduler_of(folder: Path) -> tuple[str, dict[str, Any]]:
    """Return our name and the settings of a pipeline's scheduler."""
    path = folder / "scheduler" / "scheduler_config.json"
    try:
        values = dict(json.loads(path.read_text(encoding="utf-8")))
    except FileNotFoundError:
        raise ModelError(f"{path}: missing. Copy the whole folder again.") from None
    except (ValueError, TypeError) as error:
        raise ModelError(f"{path}: damaged ({error}).") from None
    known = {class_name: name for name, sampler in SCHEDULERS.items() for class_name in sampler.class_names}
    class_name = str(values.get("_class_name"))
    if class_name not in known:
        raise ModelError(f'{path}: scheduler "{class_name}" is unknown{nearest(class_name, known)}.')
    return known[class_name], values
