"""What is in a checkpoint, and how do we know that it is whole?

A checkpoint `output/checkpoint_epoch_600.pt` holds all that a run needs to go on, and all that sampling needs but the
encoders, which lie beside it in `output/encoders/`, written once per run. Beside the file stands
`checkpoint_epoch_600.pt.sha256`, in the form of `sha256sum`. A reader trusts nothing: the checksum must match, the file
is unpickled with `weights_only=True` (it can run no code), and the weights must have the names and the shapes that the
configuration asks for, dense and finite.
"""

import os
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from t2im.config import Config
from t2im.data.folder import unsafe
from t2im.errors import ConfigError, ModelError, nearest
from t2im.files import atomic_path, sha256_of_file, write_text
from t2im.migrate import migrate_config
from t2im.nn.unet import ConditionalUNet
from t2im.settings import parse_settings
from t2im.weights import is_finite, read_pickled, tensors_in

FORMAT = "t2im-checkpoint"
SCHEMA = 2
"""Version of the form below, and of the settings in it; a reader refuses what is newer than itself."""

PARTS: dict[str, tuple[type, ...]] = {
    "unet": (Mapping,),  # raw weights: name -> tensor
    "ema": (Mapping, type(None)),  # their moving average by the same names, and the count of "updates"
    "optimizer": (Mapping,),
    "progress": (Mapping,),  # step, samples, epoch
    "judged_by": (Mapping,),  # held-out numbers measured with exactly these weights; empty if none were
    "rng": (Mapping,),  # states of the global generators
    "environment": (Mapping,),  # versions, threads and processor, on which the last bits of a step depend
    "config": (Mapping,),  # the resolved tree of settings
    "encoders": (Mapping,),  # {"vae", "text_encoder"}: {"folder" relative to the file, "sha256", "source"}
    "data": (Mapping,),  # what it was trained on, some of its "captions", mean and std of its "latents"
    "summary": (Mapping,),  # what the model card tells of the training
}
"""What a checkpoint must hold, beside its format and schema."""
SINCE_SCHEMA_1: dict[str, Any] = {
    "judged_by": {},
    "environment": {},
    "power_ema": None,
    "loss_scale": {},
    "guard": {"in_a_row": 0, "recent": []},
}
"""What older checkpoints do not hold, as a run that had none of it would write it."""


def write_checkpoint(path: str | Path, checkpoint: Mapping[str, Any]) -> None:
    """Write a checkpoint and its checksum, then prove that what lies on the disk is what was meant.

    Raises: ModelError if the checkpoint is not sound, before anything is written, or if the disk gave back other bytes;
    OSError if the disk is full or fails.
    """
    checkpoint = {"format": FORMAT, "schema": SCHEMA, **checkpoint}
    _require_sound(checkpoint, Path(path))
    write_verified(Path(path), checkpoint)


def read_checkpoint(path: str | Path) -> dict[str, Any]:
    """Read a checkpoint onto the CPU, whole and sound; one of an older schema comes as one of today's.

    Raises: ModelError if it is missing, damaged, of another kind or not finite. Warns if its checksum file is missing.
    """
    path = Path(path)
    if not path.is_file():
        raise ModelError(f"{path}: no such checkpoint{_nearest_checkpoints(path)}.")
    checkpoint = _of_today(read_verified(path), path)
    _require_sound(checkpoint, path)
    return dict(checkpoint)


def write_verified(path: Path, value: Mapping[str, Any]) -> None:
    """Write tensors and plain values to a file and its checksum beside it, and read the file back.

    The old checksum goes first and the new one comes last, so a crash in between leaves a file without a checksum
    rather than a whole file that looks damaged.

    Raises: OSError if the disk is full or fails; ModelError if it gave back other bytes. Older files stay as they were.
    """
    with atomic_path(path) as temporary:
        with open(temporary, "wb") as handle:
            try:
                torch.save(value, handle)
            except RuntimeError as error:
                # torch reports its own half-written zip file; what happened to the disk stands behind that.
                if isinstance(error.__context__, OSError):
                    raise error.__context__ from None
                raise
            handle.flush()
            os.fsync(handle.fileno())  # before the older checksum goes: now nothing more can run full
        written = sha256_of_file(temporary)
        checksum_path(path).unlink(missing_ok=True)
    if sha256_of_file(path) != written:
        raise ModelError(f"{path}: the disk gave back other bytes than were written. Check the disk.")
    write_text(checksum_path(path), f"{written}  {path.name}\n")


def read_verified(path: Path) -> Any:
    """Read such a file onto the CPU; it can run no code.

    Raises: ModelError if it is damaged. Warns if its checksum file is missing.
    """
    verify_checksum(path)
    return read_pickled(path)


def checksum_path(path: Path) -> Path:
    """Return where the checksum of a file stands."""
    return path.with_name(f"{path.name}.sha256")


def recorded_checksum(path: Path) -> str | None:
    """Return the SHA-256 that is written beside a checkpoint, if it is."""
    try:
        words = checksum_path(path).read_text(encoding="utf-8", errors="replace").split()
    except FileNotFoundError:
        return None
    return words[0] if words else ""


def verify_checksum(path: Path) -> None:
    """Compare a checkpoint with its checksum; warns if there is none to compare with."""
    expected = recorded_checksum(path)
    if expected is None:
        warnings.warn(f"{path}: cannot be verified, {checksum_path(path).name} is missing.", stacklevel=4)
    elif sha256_of_file(path) != expected:
        raise ModelError(f"{path}: damaged, its checksum is not that of {checksum_path(path).name}. Use another one.")


def config_of(checkpoint: Mapping[str, Any], path: Path) -> Config:
    """Return the configuration that a checkpoint was trained with."""
    try:
        return parse_settings(Config, checkpoint["config"])
    except ConfigError as error:
        raise ModelError(f"{path}: its configuration cannot be used: {error}") from None


def weights_of(checkpoint: Mapping[str, Any], which: Literal["ema", "raw"] = "ema") -> dict[str, Tensor]:
    """Return the UNet's averaged weights, or the raw ones if they are asked for or nothing was averaged."""
    if which == "raw" or checkpoint["ema"] is None:
        return dict(checkpoint["unet"])
    return {name: weight for name, weight in checkpoint["ema"].items() if name != "updates"}


def first_not_finite(state: Any) -> str:
    """Return where in a state the first tensor stands that is not finite; empty if all are."""
    return next((where for where, tensor in tensors_in(state) if not is_finite(tensor)), "")


def _of_today(checkpoint: Any, path: Path) -> Any:
    """Return a checkpoint of an older schema as one of today's; anything else as it is."""
    if not isinstance(checkpoint, Mapping) or checkpoint.get("schema") not in range(1, SCHEMA):
        return checkpoint
    try:
        config = migrate_config(checkpoint.get("config", {}), checkpoint["schema"])
    except ConfigError as error:
        raise ModelError(f"{path}: its configuration cannot be used: {error}") from None
    return {**SINCE_SCHEMA_1, **checkpoint, "schema": SCHEMA, "config": config}


def _require_sound(checkpoint: Any, path: Path) -> None:
    if not isinstance(checkpoint, Mapping) or checkpoint.get("format") != FORMAT:
        raise ModelError(f"{path}: not a checkpoint of t2im.")
    if checkpoint.get("schema") != SCHEMA:
        raise ModelError(f"{path}: has schema {checkpoint.get('schema')}, this version reads {SCHEMA}. Update t2im.")
    for name, kinds in PARTS.items():
        if not isinstance(checkpoint.get(name, ...), kinds):
            raise ModelError(f'{path}: damaged, its part "{name}" is missing or of the wrong kind.')
    for part in ("vae", "text_encoder"):
        entry = checkpoint["encoders"].get(part)
        if not isinstance(entry, Mapping) or not all(isinstance(entry.get(key), str) for key in ("folder", "sha256")):
            raise ModelError(f'{path}: damaged, it does not name the folder and sha256 of its "{part}".')
        if reason := unsafe(entry["folder"]):
            raise ModelError(f'{path}: the folder of its "{part}", {entry["folder"]!a}, {reason}.')
    for where, tensor in tensors_in(checkpoint):
        if tensor.layout is not torch.strided or tensor.is_quantized:
            raise ModelError(f'{path}: "{where}" is no dense tensor.')
        if not is_finite(tensor):
            raise ModelError(f'{path}: "{where}" holds values that are not finite.')
    with torch.device("meta"):
        expected = ConditionalUNet(config_of(checkpoint, path).unet).state_dict()
    _require_weights(checkpoint["unet"], expected, f"{path}: unet")
    if checkpoint["ema"] is not None:
        _require_weights(weights_of(checkpoint, "ema"), expected, f"{path}: ema")


def _require_weights(found: Mapping[str, Any], expected: Mapping[str, Tensor], where: str) -> None:
    if odd := next((name for name in found if not isinstance(name, str) or not name.isprintable()), None):
        raise ModelError(f"{where}: {odd!a} is no name of a weight.")
    for name in sorted(expected.keys() - found.keys()):
        raise ModelError(f'{where}: weight "{name}" is missing{nearest(name, found)}.')
    for name in sorted(found.keys() - expected.keys()):
        raise ModelError(f'{where}: weight "{name}" is unknown to its configuration{nearest(name, expected)}.')
    for name, weight in expected.items():
        if not isinstance(found[name], Tensor) or found[name].shape != weight.shape:
            shape = tuple(getattr(found[name], "shape", ()))
            raise ModelError(
                f'{where}: weight "{name}" has shape {shape}, its configuration asks {tuple(weight.shape)}.'
            )
        if not found[name].is_floating_point():
            raise ModelError(
                f'{where}: weight "{name}" is of {found[name].dtype}, its configuration asks for fractions.'
            )


def _nearest_checkpoints(path: Path) -> str:
    there = sorted(entry.name for entry in path.parent.glob("*.pt")) if path.parent.is_dir() else []
    if not there:
        return f" (and none in {path.parent})"
    return nearest(path.name, there) or f" (there are {', '.join(there[-3:])})"
