"""Where do an encoder's weights come from, and are they still the same ones?

A source is a folder on this disk or an id on the model hub. A hub id is fetched into the local hub cache first, so that
from there on everything is a folder. Weights are read from safetensors only: a pickled file can run code.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from t2im.errors import ModelError, nearest


def locate(source: str | Path, parts: Mapping[str, Sequence[str]], *, local_files_only: bool = False) -> Path:
    """Return the folder named by `source`: itself if it exists, else the local copy of that hub repository.

    parts: for each sub-folder of a pipeline (such as "vae"), the files worth fetching; the same names are looked for in
    the root, where repositories of a single encoder keep them.

    Raises: ModelError, if there is neither.
    """
    folder = Path(source).expanduser()
    if folder.is_dir():
        return folder
    name = str(source)
    if folder.is_absolute() or name.startswith((".", "~")) or name.count("/") > 1 or not name:
        siblings = [entry.name for entry in folder.parent.iterdir()] if folder.parent.is_dir() else []
        raise ModelError(f'"{name}" is no folder{nearest(folder.name, siblings)}. Name an existing folder or a hub id.')
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError, RepositoryNotFoundError

    patterns = [wanted for part, files in parts.items() for file in files for wanted in (file, f"{part}/{file}")]
    try:
        return Path(snapshot_download(name, allow_patterns=patterns, local_files_only=local_files_only))
    except LocalEntryNotFoundError:
        reason = "it is not in the local hub cache" + ("" if local_files_only else ", and the hub cannot be reached")
    except RepositoryNotFoundError:
        reason = "the hub has no such public repository"
    except Exception as error:  # dozens of families: broken connections, quotas, malformed names, full disks
        reason = first_line(error)
    raise ModelError(
        f'"{name}" is no folder, and no hub id that can be fetched ({reason}). '
        f"Give the folder of a local copy, or train an encoder here."
    )


def part_of(folder: Path, part: str, kind: str, weights: str) -> Path:
    """Return the folder with config.json and safetensors weights: `folder/part` of a pipeline, or `folder` itself.

    Raises: ModelError, if it is not there, is no `kind`, or holds no safetensors weights.
    """
    for candidate in (folder / part, folder):
        if (candidate / "config.json").is_file():
            break
    else:
        raise ModelError(
            f"{folder}: holds neither config.json nor {part}/config.json. Point at a {kind} or a pipeline."
        )
    try:
        config = json.loads((candidate / "config.json").read_text(encoding="utf-8"))
        found = [str(config.get("_class_name", "")), *map(str, config.get("architectures") or ())]
    except (ValueError, AttributeError) as error:
        raise ModelError(
            f"{candidate}/config.json: not a model's configuration ({error}). Save the model again."
        ) from None
    if not any(name in kind.split("|") for name in found):
        raise ModelError(
            f"{candidate}: is a {' '.join(filter(None, found)) or 'model of no named kind'}, not a {kind}."
        )
    if not (candidate / weights).is_file():
        raise ModelError(
            f"{candidate}: {weights} is missing. Only safetensors weights are read; convert other formats."
        )
    return candidate


def require_complete(module: nn.Module, folder: Path, missing: Sequence[str] = ()) -> None:
    """Refuse weights that are absent or non-finite: both would only show as bad pictures later.

    Raises: ModelError naming the first such weight.
    """
    if missing:
        raise ModelError(f'{folder}: the weights lack "{sorted(missing)[0]}" ({len(missing)} in all). Fetch it again.')
    for name, tensor in module.state_dict().items():
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            raise ModelError(f'{folder}: weight "{name}" is not finite; the file is damaged. Fetch or train it again.')


def first_line(error: Exception) -> str:
    """Return what an error of another library says first; the rest is advice about that library."""
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__


def sha256_of_weights(module: nn.Module, settings: Any) -> str:
    """Return one SHA-256 over names, types, shapes and values of all weights, and over settings.

    settings: what else decides the output, and only that: a library's whole configuration changes with its versions.
    """
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode())
    for name, tensor in sorted(module.state_dict().items()):
        digest.update(f"{name}\0{tensor.dtype}\0{tuple(tensor.shape)}\0".encode())
        flat = tensor.detach().cpu().contiguous().reshape(-1)
        digest.update(flat.view(torch.uint8).numpy())  # as bytes: numpy has no bfloat16
    return digest.hexdigest()
