"""What must be kept of a run so that its average can be chosen afterwards? A row of snapshots, evenly over the run.

    OUTPUT/ema/step_00001000_sigma_0.05.safetensors

Each holds one power-function average at one step, in fp16, with its width, its step and the run's identity in the file's
header. A snapshot is written whole or not at all, and once: a resumed run goes on with the row, and forgets those beyond
the step it goes on from, for they belong to a future that will not come (on a GPU the steps that are made again differ
in their last bits).
"""

import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import sha256
from json import dumps, loads
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from t2im.errors import ModelError, TrainingError, UsageError
from t2im.files import atomic_path, remove_strays
from t2im.training.power_ema import PowerEMA
from t2im.weights import read_metadata, read_safetensors

FOLDER = "ema"
"""Of snapshots, within a run's output."""
HEADER = "t2im"
"""The entry of a file's header that tells what the snapshot is, as JSON."""


@dataclass(frozen=True)
class EMASnapshot:
    """One average at one step, on the disk."""

    path: Path
    sigma: float
    """Its sigma_rel."""
    step: int
    """How many updates it is made of."""
    run: str
    """Identity of the run; see `identity`."""

    def weights(self) -> dict[str, Tensor]:
        """Read the average.

        Raises: ModelError if the file is damaged.
        """
        try:
            return read_safetensors(self.path)
        except ModelError as error:
            raise ModelError(f"{error} Or delete it; the others are enough.") from None


def identity(state: Mapping[str, Any]) -> str:
    """Return the SHA-256 of what a run cannot change on its way, nor a newer version of this package: seed and encoders.

    state: a checkpoint, or what a task adds to one: "config" and "encoders".
    """
    encoders = {name: encoder["sha256"] for name, encoder in state["encoders"].items()}
    return sha256(dumps([state["config"]["training"]["seed"], encoders], sort_keys=True).encode()).hexdigest()


class EMASnapshots:
    """Writes the row of one run."""

    def __init__(self, folder: Path, run: str) -> None:
        """Keep snapshots in a folder, under the identity of their run."""
        self.folder, self._run = folder, run

    def go_on_from(self, updates: int) -> None:
        """Remove snapshots of more updates than the run goes on from, 0 when it begins, and what a killed process left."""
        for path in self.folder.glob("step_*_sigma_*.safetensors"):
            if int(path.name.split("_")[1]) > updates:
                path.unlink()
        remove_strays(self.folder, r"\.step_.*\.tmp\.safetensors")

    def write(self, ema: PowerEMA) -> list[Path]:
        """Keep the present state of every average; return the files.

        A disk that is full leaves a gap in the row, with a warning: the others are enough, and the run is worth more.

        Raises: TrainingError if a weight is too large for fp16.
        """
        from safetensors import SafetensorError
        from safetensors.torch import save_file

        paths = []
        for sigma, average in ema.averages.items():
            path = self.folder / f"step_{ema.updates:08d}_sigma_{sigma}.safetensors"
            halved = {name: weight.to("cpu", torch.float16).contiguous() for name, weight in average.items()}
            for name, weight in halved.items():
                if not torch.isfinite(weight).all():
                    raise TrainingError(f'the average of "{name}" does not fit into fp16: the weights have exploded.')
            # One entry: safetensors writes several in any order, and equal snapshots should be equal files.
            about = {HEADER: dumps({"sigma_rel": sigma, "step": ema.updates, "run": self._run})}
            try:
                with atomic_path(path) as temporary:
                    save_file(halved, temporary, metadata=about)
            except (OSError, SafetensorError) as error:
                warnings.warn(f"{path}: this snapshot is not kept ({error})", stacklevel=2)
            else:
                paths.append(path)
        return paths


def series(folder: Path) -> list[EMASnapshot]:
    """Return a run's snapshots in the order of their steps, without reading their weights.

    Raises: UsageError if there are none; ModelError if one is damaged, or they are of different runs.
    """
    found = [_read_header(path) for path in sorted(folder.glob("step_*_sigma_*.safetensors"))]
    if not found:
        raise UsageError(
            f"{folder}: no snapshots, so no other average can be made. Train with "
            "--set training.ema_sigmas=(0.05,0.10) to keep them."
        )
    for snapshot in found:
        if snapshot.run != found[-1].run:
            raise ModelError(f"{snapshot.path}: of another run than {found[-1].path.name}. Delete those of one run.")
    return found


def _read_header(path: Path) -> EMASnapshot:
    try:
        metadata = read_metadata(path)
    except ModelError as error:
        raise ModelError(f"{error} Or delete it; the others are enough.") from None
    try:
        about = loads(metadata[HEADER])
        return EMASnapshot(path, float(about["sigma_rel"]), int(about["step"]), str(about["run"]))
    except (KeyError, TypeError, ValueError, RecursionError) as error:
        raise ModelError(
            f"{path}: no snapshot, or a damaged one ({error}). Delete it; the others are enough."
        ) from None
