"""How does a run survive? Checkpoints are written whole, verified, and only then are the oldest of them removed.

    state -> copy (training waits) -> file under a temporary name -> sync -> rename -> read back -> checksum
          -> the best so far? a second name for it -> remove what is older than the newest few

All that follows the copy happens on a thread, one save at a time. A crash at any point leaves the older checkpoints as
they were; a save that fails, as on a full disk, is told and tried again at the next one.
"""

import errno
import math
import os
import re
import shutil
import time
import warnings
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from t2im.checkpoint import checksum_path, first_not_finite, read_verified, recorded_checksum, write_verified
from t2im.errors import Diverged, ModelError, TrainingError
from t2im.files import add_name, remove_strays, sha256_of_file
from t2im.training.environment import environment
from t2im.training.snapshot import Snapshot, bytes_of, in_background
from t2im.weights import read_pickled

Writer = Callable[[Path, Mapping[str, Any]], None]
Reader = Callable[[Path], dict[str, Any]]

MOST_FAILURES = 3
"""Saves in a row that may fail before a run stops: what nobody can resume is not worth computing."""
NAMES_AND_NUMBERS = 2**20
"""Bytes that a file may need beside its tensors."""
BEST = "best.pt"


class NotFinite(Diverged):
    """Weights, averages or the optimizer's memory are no numbers any more; nothing of it was written."""


@dataclass(frozen=True)
class Saved:
    """What became of a save."""

    path: Path
    step: int
    seconds: float
    """From the copy to the verified file."""
    best: bool = False
    """Whether it is the best so far."""
    problem: str = ""
    """Why there is no such file; empty if there is."""


class Checkpoints:
    """The checkpoints of one run, in one folder: `NAME_epoch_600.pt`, and `NAME_epoch_600_step_9876.pt` within epoch 601.

    The writer must write atomically and verify; the reader must raise ModelError for anything that is not sound. With
    `best_by`, the name of a held-out number of which less is better, the checkpoint with the least of it stays as
    `best.pt`. Used as a context manager, it removes what a killed process left, and at the end waits for the last save.
    """

    def __init__(
        self,
        folder: Path,
        write: Writer,
        read: Reader,
        *,
        name: str = "checkpoint",
        keep: int = 2,
        best_by: str | None = None,
    ) -> None:
        self.folder = folder
        self._write, self._read = write, read
        self._name, self._keep, self._best_by = name, keep, best_by
        self._snapshot = Snapshot()
        self._writing: Future[Saved] | None = None
        self._outcomes: list[Saved] = []
        self._failures = 0
        self._verified: set[Path] = set()
        self._least: float | None = None

    def __enter__(self) -> "Checkpoints":
        """Remove temporary files of ours that are older than an hour: whoever wrote them is dead."""
        ours = rf"\.({re.escape(self._name)}_epoch_\d+(_step_\d+)?|best)(\.pt)?\.\w{{8}}\.tmp\.(pt|sha256)"
        remove_strays(self.folder, ours)
        return self

    def __exit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        """Wait for the save that is under way, unless somebody wants to stop at once."""
        if kind is None or issubclass(kind, Exception):
            self._settle()

    def write(self, state: Mapping[str, Any], *, step: int, epoch: int, at_epoch: bool) -> Saved:
        """Save a state and wait until it is verified, as at the end of a run.

        Raises: TrainingError if that fails; NotFinite if the state is not finite.
        """
        self.write_in_background(state, step=step, epoch=epoch, at_epoch=at_epoch)
        self._settle()
        saved = self._outcomes.pop()
        if saved.problem:
            raise TrainingError(f"{saved.path}: not saved: {saved.problem}. {self._what_there_is()}")
        return saved

    def write_in_background(self, state: Mapping[str, Any], *, step: int, epoch: int, at_epoch: bool) -> None:
        """Copy a state, and save it while training goes on; waits if the save before is still under way.

        state: with "judged_by", the held-out numbers that were measured with exactly these weights, if any were.

        Raises: as `finished`, of the save before.
        """
        self._settle()
        suffix = "" if at_epoch else f"_step_{step}"
        path = self.folder / f"{self._name}_epoch_{epoch}{suffix}.pt"
        copy = self._snapshot.take({"judged_by": {}, **state, "environment": environment()})
        self._writing = in_background(partial(self._save, path, copy, step))

    def finished(self) -> list[Saved]:
        """Return the outcomes of saves that ended since the last call; never waits.

        Raises: NotFinite if a state was not finite; TrainingError if too many saves in a row have failed.
        """
        if self._writing is not None and self._writing.done():
            self._settle()
        outcomes, self._outcomes = self._outcomes, []
        return outcomes

    def is_best(self, judged_by: Mapping[str, float]) -> bool:
        """Return whether held-out numbers are better than those of the best checkpoint so far, so that it is worth a save."""
        return self._best_by is not None and judged_by.get(self._best_by, math.inf) < self._least_so_far()

    def paths(self) -> list[Path]:
        """Return the run's checkpoints, oldest first by their numbers (dates are lost when files are copied)."""
        pattern = re.compile(rf"{re.escape(self._name)}_epoch_(\d+)(?:_step_(\d+))?\.pt")
        matches = [(pattern.fullmatch(path.name), path) for path in self.folder.glob(f"{self._name}_epoch_*.pt")]
        return [path for _, path in sorted(((int(m[1]), int(m[2] or 0)), path) for m, path in matches if m)]

    def read_newest(self) -> tuple[Path, dict[str, Any]]:
        """Return the newest checkpoint that is sound; what is damaged is named in a warning and passed over.

        One without a checksum is taken only if no other is sound, and the best one if no newer is.

        Raises: ModelError if there is none.
        """
        self._settle()
        best = [self.folder / BEST] if (self.folder / BEST).exists() else []
        newest_first = [*reversed(self.paths()), *best]
        candidates = sorted(newest_first, key=lambda path: recorded_checksum(path) is None)
        damaged = []
        for path in candidates:
            try:
                state = self._read(path)
            except ModelError as error:
                damaged.append(str(error))
            else:
                if damaged:
                    warnings.warn(f"going on from {path.name}: {' '.join(damaged)}", stacklevel=2)
                return path, state
        raise ModelError(
            f"{self.folder}: no checkpoint to resume from. " + (" ".join(damaged) or "Start without --resume.")
        )

    def _settle(self) -> None:
        """Wait for the save under way and take note of its outcome."""
        if self._writing is None:
            return
        writing, self._writing = self._writing, None
        saved = writing.result()
        self._outcomes.append(saved)
        self._failures = self._failures + 1 if saved.problem else 0
        if self._failures >= MOST_FAILURES:
            raise TrainingError(
                f"{saved.path}: {self._failures} saves in a row have failed: {saved.problem}. {self._what_there_is()}"
            )

    def _save(self, path: Path, state: dict[str, Any], step: int) -> Saved:
        """Do all that follows the copy; runs on a thread."""
        started = time.perf_counter()
        if where := first_not_finite(state):
            raise NotFinite(f'step {step}: "{where}" is not finite, so {path.name} was not written.')
        needed = bytes_of(state) + NAMES_AND_NUMBERS
        try:
            _require_room(path.parent, needed)
            self._write(path, state)
            best = self.is_best(state["judged_by"])
            if best:
                add_name(path, self.folder / BEST)
                self._least = state["judged_by"][self._best_by]
            self._verified.add(path)
            self._remove_old(path)
        except (OSError, ModelError) as error:
            return Saved(path, step, time.perf_counter() - started, problem=_reason(error, path.parent, needed))
        return Saved(path, step, time.perf_counter() - started, best=best)

    def _remove_old(self, newest: Path) -> None:
        """Remove what is older than the newest few that are sound; those that are damaged do not count."""
        sound = 0
        for path in reversed(self.paths()):
            if sound >= self._keep and path != newest:
                path.unlink(missing_ok=True)
                checksum_path(path).unlink(missing_ok=True)
                self._verified.discard(path)
            elif self._is_sound(path):
                sound += 1

    def _is_sound(self, path: Path) -> bool:
        """Compare a file with its checksum, once: a file of gigabytes is not read again at every save."""
        if path not in self._verified and recorded_checksum(path) == sha256_of_file(path):
            self._verified.add(path)
        return path in self._verified

    def _least_so_far(self) -> float:
        """Return the held-out number of the best checkpoint, without reading its tensors; infinity if there is none."""
        if self._least is None:
            try:
                best = read_pickled(self.folder / BEST, mmap=True)
                self._least = float(best["judged_by"][self._best_by])
            except (ModelError, ValueError, KeyError, TypeError):
                self._least = math.inf
        return self._least

    def _what_there_is(self) -> str:
        there = self.paths()
        kept = f"{there[-1].name} is untouched: --resume goes on from it" if there else "There is no older one"
        return f"{kept}, once there is room."


def write_state(path: Path, state: Mapping[str, Any]) -> None:
    """Write the training state of an encoder: atomically, with its checksum beside it."""
    write_verified(path, dict(state))


def read_state(path: Path) -> dict[str, Any]:
    """Read such a state.

    Raises: ModelError if it is damaged.
    """
    state: dict[str, Any] = read_verified(path)
    return state


def _require_room(folder: Path, needed: int) -> None:
    """Refuse what cannot fit before anything is written.

    Raises: OSError, as a disk does that is already full.
    """
    if shutil.disk_usage(folder).free < needed:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def _reason(error: Exception, folder: Path, needed: int) -> str:
    if not isinstance(error, OSError):
        return str(error).rstrip(".")
    if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return error.strerror or str(error)
    free = shutil.disk_usage(folder).free
    return f"{error.strerror}; it needs {needed / 1e6:.0f} MB, and {free / 1e6:.0f} MB are free"
