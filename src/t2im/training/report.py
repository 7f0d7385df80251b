"""What does a run tell while it goes? One progress line on the terminal, and every number in `metrics.jsonl`.

The file is the truth: it is appended to and never rewritten, whatever becomes of the run, and the page `report.html` is
made of it alone. Trackers, where some are wanted, are shown the same numbers.
"""

import json
import math
import os
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TextIO

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TaskProgressColumn, TextColumn, TimeRemainingColumn

from t2im.training.trackers import Trackers

METRICS = "metrics.jsonl"
TRACKED = {"step": "train", "evaluation": "heldout"}
"""The events whose numbers trackers show, and the group they show them in."""
PLACES = ("step", "epoch", "samples", "seconds", "training_seconds")
"""What says where a run is, not how it goes."""


class Report:
    """Writes metrics as JSON lines, and shows a bar where a person looks or plain lines where a log file does.

    A line is one event: {"event": "step" | "evaluation" | "save" | "resume" | ..., "step": ..., ...}.
    """

    def __init__(
        self,
        folder: Path,
        *,
        name: str,
        quiet: bool = False,
        trackers: Sequence[str] = (),
        config: Mapping[str, Any] | None = None,
    ) -> None:
        """Tie a report to a folder.

        trackers: names of those to open. config: the settings that they show.
        """
        self.path = folder / METRICS
        self._name = name
        self._wanted, self._config = trackers, config or {}
        self._trackers: Trackers | None = None
        self._console = Console(stderr=True, quiet=quiet, highlight=False)
        self._lines: TextIO | None = None
        self._complete = True
        self._bar: Progress | None = None
        self._task: TaskID | None = None

    def __enter__(self) -> "Report":
        """Open the metrics file for appending, and the bar."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        _end_torn_line(self.path)
        self._lines = self.path.open("a", encoding="utf-8")
        self._trackers = Trackers(self._wanted, self.path.parent, self._config, self.say)
        if sys.stderr.isatty() and not self._console.quiet:
            columns = (TextColumn(self._name), BarColumn(), TaskProgressColumn(), TimeRemainingColumn())
            self._bar = Progress(*columns, TextColumn("{task.fields[note]}"), console=self._console)
            self._bar.start()
        return self

    def __exit__(self, *exception: object) -> None:
        """Close all; the file keeps what was written."""
        if self._bar is not None:
            self._bar.stop()
        if self._lines is not None:
            try:
                self._lines.close()
            except OSError as error:
                self._not_written(error)
        if self._trackers is not None:
            self._trackers.close()

    def event(self, event: str, **numbers: Any) -> None:
        """Append one line; numbers that are not finite become null, for JSON knows none."""
        assert self._lines is not None
        line = {"event": event, "time": round(time.time(), 3), **numbers}
        finite = {key: None if isinstance(v, float) and not math.isfinite(v) else v for key, v in line.items()}
        try:
            self._lines.write(json.dumps(finite) + "\n")
            self._lines.flush()
        except OSError as error:  # such as a full disk; what could not be written is tried again with the next line
            self._not_written(error)
        if event in TRACKED and self._trackers is not None:
            shown = {name: number for name, number in numbers.items() if name not in PLACES}
            self._trackers.scalars(
                {f"{TRACKED[event]}/{name}": number for name, number in shown.items()}, numbers["step"]
            )

    def _not_written(self, error: OSError) -> None:
        """Say once that numbers are lost, and go on: they are not worth a run."""
        if self._complete:
            self.say(f"{self.path}: cannot be written ({error.strerror}). The run goes on.")
        self._complete = False

    def preview(self, path: Path, *, step: int) -> None:
        """Note that a preview was drawn, and show it to the trackers."""
        self.event("preview", step=step, path=path.relative_to(self.path.parent).as_posix())
        if self._trackers is not None:
            self._trackers.image("preview", path, step)

    def say(self, text: str) -> None:
        """Print one line for a person."""
        self._console.print(text, markup=False, soft_wrap=True)

    def progress(self, done: float, note: str) -> None:
        """Move the bar to a share in [0, 1] of the run; does nothing where no person looks."""
        if self._bar is None:
            return
        if self._task is None:
            self._task = self._bar.add_task(self._name, total=1.0, note=note)
        self._bar.update(self._task, completed=done, note=note)


def _end_torn_line(path: Path) -> None:
    """End a line that a crash or a full disk has cut off, so that the next one is whole."""
    if path.exists() and path.stat().st_size:
        with path.open("rb+") as lines:
            lines.seek(-1, os.SEEK_END)
            if lines.read(1) != b"\n":
                lines.write(b"\n")
