"""Where is a run, how long is it, and what is due? Its progress, and the answers that follow from it alone.

Because nothing here remembers anything but the progress, a resumed run keeps the rhythm of the run it continues.
"""

import math
from dataclasses import dataclass, field


@dataclass
class Progress:
    """Where a run is."""

    step: int = 0
    samples: int = 0
    epoch: int = 0
    seconds: float = 0.0
    """Of training, evaluating and saving, over all parts of the run."""
    skipped_steps: int = 0
    saved_seconds: float = 0.0
    """When the last checkpoint was due."""
    previewed_seconds: float = 0.0
    """When the last previews were due."""
    evaluation: dict[str, float] = field(default_factory=dict)
    """What the last evaluation measured."""
    finished: bool = False
    exit_code: int = 0
    """What the command should end with if the user stopped the run."""


@dataclass(frozen=True)
class Budget:
    """How long to train: a number of steps, or minutes of training time.

    Minutes depend on the machine, so only a run over steps can be repeated bit by bit.
    """

    steps: int | None = None
    minutes: float | None = None

    def done(self, progress: Progress) -> float:
        """Return the share of the run that is behind, 1 at its end."""
        by_steps = progress.step / self.steps if self.steps else 0.0
        by_time = progress.seconds / (60 * self.minutes) if self.minutes else 0.0
        return min(1.0, max(by_steps, by_time))


@dataclass(frozen=True)
class Plan:
    """How often to look at the model and to save it. Zero means never for this reason."""

    evaluations: int = 20
    """Held-out losses and previews over the run, evenly spread."""
    preview_minutes: float = 0.0
    """Minutes between further previews."""
    checkpoint_steps: int = 0
    """Steps between checkpoints."""
    checkpoint_epochs: int = 0
    """Epochs between checkpoints."""
    checkpoint_minutes: float = 15.0
    """Minutes between checkpoints."""
    snapshots: int = 0
    """Snapshots of the power-function averages over the run, evenly spread."""


class Rhythm:
    """Says what is due after a step, by comparing the progress after it with the progress before it."""

    def __init__(self, plan: Plan, budget: Budget, progress: Progress) -> None:
        self._plan, self._budget = plan, budget
        self._step, self._epoch = progress.step, progress.epoch
        self._done = budget.done(progress)
        self._before = self._step, self._epoch, self._done

    def step(self, progress: Progress) -> None:
        """Take note of a step that was made."""
        self._before = self._step, self._epoch, self._done
        self._step, self._epoch, self._done = progress.step, progress.epoch, self._budget.done(progress)

    @property
    def log(self) -> bool:
        """Whether this step's numbers are written."""
        return self._step <= 10 or self._step % 10 == 0

    @property
    def evaluate(self) -> bool:
        """Whether it is time to measure."""
        return self._passed(self._plan.evaluations)

    @property
    def snapshot(self) -> bool:
        """Whether the power-function averages are due to be kept."""
        return self._passed(self._plan.snapshots)

    def preview(self, progress: Progress) -> bool:
        """Whether previews are due between evaluations."""
        due = self._minutes(self._plan.preview_minutes, progress.seconds - progress.previewed_seconds)
        if due:
            progress.previewed_seconds = progress.seconds
        return due

    def save(self, progress: Progress) -> bool:
        """Whether a checkpoint is due."""
        step, epoch, _ = self._before
        due = (
            _crossed(step, self._step, self._plan.checkpoint_steps)
            or _crossed(epoch, self._epoch, self._plan.checkpoint_epochs)
            or self._minutes(self._plan.checkpoint_minutes, progress.seconds - progress.saved_seconds)
        )
        if due:
            progress.saved_seconds = progress.seconds
        return due

    def _passed(self, count: int) -> bool:
        """Whether this step reached another of `count` even parts of the run."""
        return _part(self._done, count) > _part(self._before[2], count)

    @staticmethod
    def _minutes(every: float, seconds: float) -> bool:
        return every > 0 and seconds >= 60 * every


class Speed:
    """Samples per second over the last steps."""

    def __init__(self, steps: int = 20) -> None:
        self._steps = steps
        self._recent: list[tuple[int, float]] = []

    def add(self, samples: int, seconds: float) -> None:
        """Take note of a step."""
        self._recent = [*self._recent[-self._steps + 1 :], (samples, seconds)]

    @property
    def rate(self) -> float:
        """Samples per second."""
        return sum(samples for samples, _ in self._recent) / sum(seconds for _, seconds in self._recent)


def _crossed(before: int, now: int, every: int) -> bool:
    return every > 0 and now // every > before // every


def _part(done: float, count: int) -> int:
    return min(count, math.floor(done * count + 1e-9))  # a tenth of ten steps is one, whatever floats say
