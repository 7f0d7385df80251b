"""What happened in a run? Its metrics file, read back: curves, previews, and the story of its interruptions.

The file is written for the worst moment, so it is read for it: a line that a crash cut off is skipped, and steps that
were taken again after a resume count once, as the run that goes on took them.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from t2im.errors import DataError
from t2im.training.report import METRICS

STORY = ("start", "resume", "skipped", "rollback", "end")
Point = tuple[float, float]
"""(step, value)"""


@dataclass
class History:
    """The events of a run by their kind, each in the order of the steps."""

    start: dict[str, Any] = field(default_factory=dict)
    """What was known before the first step; of a resumed run, of its last part."""
    steps: list[dict[str, Any]] = field(default_factory=list)
    evaluations: list[dict[str, Any]] = field(default_factory=list)
    story: list[dict[str, Any]] = field(default_factory=list)
    """What is not in the curves, as it happened: see `STORY`, and saves that failed."""

    def curve(self, name: str) -> list[Point]:
        """Return a number over the steps, from whichever events have it; where it is missing there is no point."""
        events = sorted([*self.steps, *self.evaluations], key=lambda event: event["step"])
        return [(event["step"], float(event[name])) for event in events if isinstance(event.get(name), int | float)]

    def last(self, name: str) -> float | None:
        """Return the newest value of a number."""
        return curve[-1][1] if (curve := self.curve(name)) else None

    @property
    def step(self) -> int:
        """The last step that is known of."""
        return max((int(event["step"]) for event in (*self.steps, *self.evaluations)), default=0)

    def count(self, event: str) -> int:
        """Return how often something of the story happened."""
        return sum(told.get("event") == event for told in self.story)


def read_history(folder: Path) -> History:
    """Read the metrics file of a run, finished or not, of this version or an older one.

    Raises: DataError if there is none, or no step in it.
    """
    path = folder / METRICS
    if not path.is_file():
        raise DataError(f"{path}: no such file. Name the output folder of a training run.")
    history = History()
    for event in _events(path):
        match event.get("event"):
            case "start":
                history.start = event
            case "resume":
                _forget_after(history, event.get("step", 0))
            case "step":
                history.steps.append(event)
            case "evaluation":
                history.evaluations.append(event)
        if event.get("event") in STORY or event.get("problem"):
            history.story.append(event)
    if not history.steps:
        raise DataError(f"{path}: no training step was logged yet. Wait for the first one, or name another folder.")
    return history


def _events(path: Path) -> Iterator[dict[str, Any]]:
    with path.open(encoding="utf-8", errors="replace") as lines:
        for line in lines:
            try:
                event = json.loads(line)
            except ValueError:  # the end of a line that was cut off
                continue
            if isinstance(event, dict) and (event.get("event") in STORY or isinstance(event.get("step"), int)):
                yield event


def _forget_after(history: History, step: int) -> None:
    """Drop what a resumed run does again."""
    for events in (history.steps, history.evaluations):
        events[:] = [event for event in events if event["step"] <= step]
