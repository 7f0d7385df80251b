"""How does a run survive? Checkpoints are written whole, verified, and only then are the oldest of them removed."""

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from t2im.checkpoint import verify_checksum
from t2im.errors import ModelError
from t2im.files import atomic_path, sha256_of_file, write_text

Writer = Callable[[Path, Mapping[str, Any]], None]
Reader = Callable[[Path], dict[str, Any]]


class Checkpoints:
    """The checkpoints of one run, in one folder: `NAME_epoch_600.pt`, and `NAME_epoch_600_step_9876.pt` within epoch 601.

    The writer must write atomically and verify; the reader must raise ModelError for anything that is not sound.
    """

    def __init__(self, folder: Path, write: Writer, read: Reader, *, name: str = "checkpoint", keep: int = 2) -> None:
        self.folder = folder
        self._write, self._read = write, read
        self._name, self._keep = name, keep

    def write(self, state: Mapping[str, Any], *, step: int, epoch: int, at_epoch: bool) -> Path:
        """Save a state, then remove all but the newest few; return the path."""
        suffix = "" if at_epoch else f"_step_{step}"
        path = self.folder / f"{self._name}_epoch_{epoch}{suffix}.pt"
        self._write(path, state)
        for old in self.paths()[: -self._keep]:
            if old != path:
                old.unlink()
                old.with_name(f"{old.name}.sha256").unlink(missing_ok=True)
        return path

    def paths(self) -> list[Path]:
        """Return the run's checkpoints, oldest first by their numbers (dates are lost when files are copied)."""
        pattern = re.compile(rf"{re.escape(self._name)}_epoch_(\d+)(?:_step_(\d+))?\.pt")
        matches = [(pattern.fullmatch(path.name), path) for path in self.folder.glob(f"{self._name}_epoch_*.pt")]
        return [path for _, path in sorted(((int(m[1]), int(m[2] or 0)), path) for m, path in matches if m)]

    def read_newest(self) -> tuple[Path, dict[str, Any]]:
        """Return the newest checkpoint that is sound; a damaged newer one is passed over.

        Raises: ModelError if there is none.
        """
        reasons = []
        for path in reversed(self.paths()):
            try:
                return path, self._read(path)
            except ModelError as error:
                reasons.append(str(error))
        raise ModelError(
            f"{self.folder}: no checkpoint to resume from. " + (" ".join(reasons) or "Start without --resume.")
        )


def write_state(path: Path, state: Mapping[str, Any]) -> None:
    """Write the training state of an encoder: atomically, with its checksum beside it."""
    with atomic_path(path) as temporary:
        torch.save(dict(state), temporary)
        checksum = sha256_of_file(temporary)
    write_text(path.with_name(f"{path.name}.sha256"), f"{checksum}  {path.name}\n")


def read_state(path: Path) -> dict[str, Any]:
    """Read such a state.

    Raises: ModelError if it is damaged.
    """
    verify_checksum(path)
    state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    return state
