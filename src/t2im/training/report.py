"""What does a run tell while it goes? One progress line on the terminal, and every number in `metrics.jsonl`."""

import json
import math
import sys
import time
from pathlib import Path
from typing import Any, TextIO

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TaskProgressColumn, TextColumn, TimeRemainingColumn


class Report:
    """Writes metrics as JSON lines, and shows a bar where a person looks or plain lines where a log file does.

    A line is one event: {"event": "step" | "evaluation" | "save" | "resume" | ..., "step": ..., ...}.
    """

    def __init__(self, folder: Path, *, name: str, quiet: bool = False) -> None:
        self.path = folder / "metrics.jsonl"
        self._name = name
        self._console = Console(stderr=True, quiet=quiet, highlight=False)
        self._lines: TextIO | None = None
        self._bar: Progress | None = None
        self._task: TaskID | None = None

    def __enter__(self) -> "Report":
        """Open the metrics file for appending, and the bar."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._lines = self.path.open("a", encoding="utf-8")
        if sys.stderr.isatty() and not self._console.quiet:
            columns = (TextColumn(self._name), BarColumn(), TaskProgressColumn(), TimeRemainingColumn())
            self._bar = Progress(*columns, TextColumn("{task.fields[note]}"), console=self._console)
            self._bar.start()
        return self

    def __exit__(self, *exception: object) -> None:
        """Close both; the file keeps what was written."""
        if self._bar is not None:
            self._bar.stop()
        if self._lines is not None:
            self._lines.close()

    def event(self, event: str, **numbers: Any) -> None:
        """Append one line; numbers that are not finite become null, for JSON knows none."""
        assert self._lines is not None
        line = {"event": event, "time": round(time.time(), 3), **numbers}
        finite = {key: None if isinstance(v, float) and not math.isfinite(v) else v for key, v in line.items()}
        self._lines.write(json.dumps(finite) + "\n")
        self._lines.flush()

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
