"""Where else can a run be watched? In TensorBoard, trackio or Weights & Biases, beside `metrics.jsonl`.

A tracker is a mirror: whatever it shows is in the run's own files too. So it may be missing before a run, which is then
refused in one line, and it may break within a run, which then goes on without it. None of them sends anything away
unless the user's own environment says so: TensorBoard and trackio write to the disk, and wandb is offline until
WANDB_MODE=online.
"""

import importlib
import importlib.util
import math
import os
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Protocol

from t2im.errors import UsageError

PROJECT = "t2im"

INSTALL = {
    "tensorboard": ("tensorboard", 'pip install "t2im[train]"'),
    "trackio": ("trackio", "pip install trackio"),
    "wandb": ("wandb", "pip install wandb"),
}
"""The package that a tracker needs, and the command that brings it."""


class Tracker(Protocol):
    """Something that shows numbers and pictures of a run as it goes."""

    def scalars(self, numbers: Mapping[str, float], step: int) -> None:
        """Show numbers by their names, such as "train/loss"."""
        ...

    def image(self, name: str, path: Path, step: int) -> None:
        """Show a picture that lies in a file."""
        ...

    def close(self) -> None:
        """Write what is left."""
        ...


class TensorBoard:
    """Event files in the run's folder `tensorboard`; look with `tensorboard --logdir FOLDER`."""

    def __init__(self, folder: Path, config: Mapping[str, Any]) -> None:
        self._folder = folder / "tensorboard"
        self._writer: Any = None

    def scalars(self, numbers: Mapping[str, float], step: int) -> None:
        """Add a point to each curve."""
        for name, number in numbers.items():
            self._at(step).add_scalar(name, number, step)

    def image(self, name: str, path: Path, step: int) -> None:
        """Add a picture."""
        import numpy as np
        from PIL import Image

        with Image.open(path) as picture:
            self._at(step).add_image(name, np.asarray(picture.convert("RGB")), step, dataformats="HWC")

    def close(self) -> None:
        """Close the event file."""
        if self._writer is not None:
            self._writer.close()

    def _at(self, step: int) -> Any:
        if self._writer is None:
            from torch.utils.tensorboard import SummaryWriter

            # Points that an earlier part of the run wrote after the checkpoint it is resumed from are taken back.
            self._writer = SummaryWriter(str(self._folder), purge_step=step)
        return self._writer


class Trackio:
    """A local data base of all runs; look with `trackio show`."""

    def __init__(self, folder: Path, config: Mapping[str, Any]) -> None:
        self._trackio = importlib.import_module("trackio")
        self._trackio.init(project=PROJECT, name=_name(folder), config=dict(config), resume="allow")

    def scalars(self, numbers: Mapping[str, float], step: int) -> None:
        """Log numbers."""
        self._trackio.log(dict(numbers), step=step)

    def image(self, name: str, path: Path, step: int) -> None:
        """Log a picture."""
        self._trackio.log({name: self._trackio.Image(str(path))}, step=step)

    def close(self) -> None:
        """End the run."""
        self._trackio.finish()


class WandB:
    """Weights & Biases; offline unless WANDB_MODE says otherwise, `wandb sync` sends such a run later."""

    def __init__(self, folder: Path, config: Mapping[str, Any]) -> None:
        self._wandb = importlib.import_module("wandb")
        # Without a mode it would stop and ask for an account, and nobody may be there to answer.
        mode = os.environ.get("WANDB_MODE", "offline")
        self._run = self._wandb.init(
            project=PROJECT, name=_name(folder), dir=str(folder), config=dict(config), mode=mode
        )

    def scalars(self, numbers: Mapping[str, float], step: int) -> None:
        """Log numbers."""
        self._run.log(dict(numbers), step=step)

    def image(self, name: str, path: Path, step: int) -> None:
        """Log a picture."""
        self._run.log({name: self._wandb.Image(str(path))}, step=step)

    def close(self) -> None:
        """End the run."""
        self._run.finish()


MAKERS: Mapping[str, Callable[[Path, Mapping[str, Any]], Tracker]] = {
    "tensorboard": TensorBoard,
    "trackio": Trackio,
    "wandb": WandB,
}


def require_trackers(names: Sequence[str]) -> None:
    """Make sure that all trackers are installed; asked before a run, so that no hour is lost to a missing package.

    Raises: UsageError, with the command that installs the first missing one.
    """
    for name in names:
        package, command = INSTALL[name]
        if importlib.util.find_spec(package) is None:
            raise UsageError(f"training.trackers: {name} is not installed. Install it with: {command}")


class Trackers:
    """All trackers of a run as one; one that fails is named once and left out from then on."""

    def __init__(
        self, names: Sequence[str], folder: Path, config: Mapping[str, Any], say: Callable[[str], None]
    ) -> None:
        self._say = say
        self._open: dict[str, Tracker] = {}
        for name in names:
            self._try(name, partial(self._start, name, folder, config))

    def scalars(self, numbers: Mapping[str, Any], step: int) -> None:
        """Show those of the numbers that are finite."""
        finite = {
            name: float(number)
            for name, number in numbers.items()
            if isinstance(number, int | float) and not isinstance(number, bool) and math.isfinite(number)
        }
        self._each(lambda tracker: tracker.scalars(finite, step))

    def image(self, name: str, path: Path, step: int) -> None:
        """Show a picture that lies in a file."""
        self._each(lambda tracker: tracker.image(name, path, step))

    def close(self) -> None:
        """Close all."""
        self._each(lambda tracker: tracker.close())
        self._open = {}

    def _start(self, name: str, folder: Path, config: Mapping[str, Any]) -> None:
        self._open[name] = MAKERS[name](folder, config)

    def _each(self, act: Callable[[Tracker], None]) -> None:
        for name, tracker in list(self._open.items()):
            self._try(name, partial(act, tracker))

    def _try(self, name: str, act: Callable[[], None]) -> None:
        try:
            act()
        except Exception as error:  # whatever a foreign package raises, it must not end hours of training
            self._open.pop(name, None)
            reason = str(error).partition("\n")[0] or type(error).__name__
            self._say(f"{name}: {reason}. The run goes on without it; metrics.jsonl has all numbers.")


def _name(folder: Path) -> str:
    return folder.resolve().name
