"""How does a network learn? The loop one reads at a sitting.

    for each step:  draw samples -> loss -> gradient -> clip -> AdamW -> moving average
    now and then:   measure on held-out images, draw previews, save

It trains the UNet, the VAE and the text encoder alike; what one step computes is a `Task`. Nothing here is random: what
a sample is, and every draw made for it, follows from its index (see `seeds.py`), so a run that was stopped and resumed
takes the same steps as one that was not.
"""

import math
import time
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from t2im.config import OptimizationConfig
from t2im.errors import TrainingError
from t2im.training.checkpoint import Checkpoints
from t2im.training.ema import EMA
from t2im.training.interrupt import Interruption
from t2im.training.optim import adamw, clip_gradients, learning_rate, set_learning_rate
from t2im.training.report import Report


class Task(Protocol):
    """What is trained: a model, the loss of some samples, and how to judge the model."""

    name: str
    examples: int
    """Training examples: the samples of one epoch."""

    @property
    def model(self) -> nn.Module:
        """What learns."""
        ...

    def loss(self, model: nn.Module, samples: range) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the mean loss of samples of the run (numbered from its start), and numbers worth logging."""
        ...

    def evaluate(self, model: nn.Module) -> dict[str, float]:
        """Measure the model on held-out data."""
        ...

    def preview(self, model: nn.Module, path: Path) -> None:
        """Write a picture that shows what the model can do now."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """Return what a checkpoint must hold beside the model's own state."""
        ...

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take up such a state."""
        ...


@dataclass(frozen=True)
class Budget:
    """How long to train: a number of steps, or minutes of training time.

    Minutes depend on the machine, so only a run over steps can be repeated bit by bit.
    """

    steps: int | None = None
    minutes: float | None = None

    def done(self, progress: "Progress") -> float:
        """Return the share of the run that is behind, 1 at its end."""
        by_steps = progress.step / self.steps if self.steps else 0.0
        by_time = progress.seconds / (60 * self.minutes) if self.minutes else 0.0
        return max(by_steps, by_time)


@dataclass
class Progress:
    """Where a run is."""

    step: int = 0
    samples: int = 0
    epoch: int = 0
    seconds: float = 0.0
    """Of training, evaluating and saving."""
    skipped_steps: int = 0
    evaluation: dict[str, float] = field(default_factory=dict)
    """What the last evaluation measured."""
    finished: bool = False


@dataclass(frozen=True)
class Plan:
    """How often to look at the model and to save it."""

    evaluations: int = 20
    """Over the run."""
    checkpoint_epochs: int = 0
    """Epochs between checkpoints; 0: by time only."""
    checkpoint_minutes: float = 15.0
    """Minutes of training between checkpoints."""


def fit(
    task: Task,
    settings: OptimizationConfig,
    budget: Budget,
    plan: Plan,
    checkpoints: Checkpoints,
    report: Report,
    *,
    seed: int = 0,
    ema_decay: float = 0.0,
    mixed_precision: str = "auto",
    device: str = "cpu",
    resume: bool = False,
) -> Progress:
    """Train a task's model until the budget is spent or the user stops it; the model ends with its averaged weights.

    Raises: TrainingError if steps stay non-finite; ModelError if there is nothing sound to resume from.
    """
    from accelerate import Accelerator

    accelerator = Accelerator(mixed_precision=_precision(mixed_precision, device), cpu=device == "cpu")
    torch.manual_seed(seed)  # dropout, where a model has it, is the one draw that torch makes by itself
    task.model.to(accelerator.device).train()
    ema = EMA(task.model, ema_decay) if ema_decay else None
    model, optimizer = accelerator.prepare(task.model, adamw(task.model, settings))
    progress = Progress()
    if resume:
        path, state = checkpoints.read_newest()
        progress = _restore(state, task, ema, optimizer)
        report.event("resume", step=progress.step, path=path.name)
        report.say(f"{task.name}: going on from {path.name}, step {progress.step}")
    bad_steps = 0
    rhythm = _Rhythm(plan, budget, progress)
    speed = _Speed()

    with Interruption(report.say) as interruption:
        while not (finished := budget.done(progress) >= 1) and not interruption.requested:
            started = time.perf_counter()
            samples = range(progress.samples, progress.samples + settings.batch_size)
            set_learning_rate(optimizer, learning_rate(progress.step, budget.done(progress), settings))
            with accelerator.autocast():
                loss, numbers = task.loss(model, samples)
            accelerator.backward(loss)
            gradient_norm = clip_gradients(model, settings.max_grad_norm)

            # Judged before the optimizer moves: one non-finite step would poison the weights and both its memories.
            if finite := bool(torch.isfinite(loss.detach()) & torch.isfinite(gradient_norm)):
                optimizer.step()
                if ema is not None:
                    ema.update(task.model)
                bad_steps = 0
            else:
                bad_steps += 1
                progress.skipped_steps += 1
                report.event("skipped", step=progress.step, samples=[samples.start, samples.stop])
            optimizer.zero_grad(set_to_none=True)
            if bad_steps >= settings.max_bad_steps:
                raise TrainingError(
                    f"{task.name}: {bad_steps} steps in a row were not finite, up to step {progress.step}. The newest "
                    f"checkpoint is sound: lower the learning rate (now {settings.learning_rate:g}) and --resume."
                )

            progress.step += 1
            progress.samples += settings.batch_size
            progress.epoch = progress.samples // task.examples
            speed.add(settings.batch_size, time.perf_counter() - started)
            if finite and rhythm.log(progress):
                shown = {"loss": loss.item(), **{key: value.item() for key, value in numbers.items()}}
                rate = optimizer.param_groups[0]["lr"]
                report.event(
                    "step",
                    step=progress.step,
                    epoch=progress.epoch,
                    samples=progress.samples,
                    **shown,
                    learning_rate=rate,
                    gradient_norm=gradient_norm.item(),
                    samples_per_second=round(speed.rate, 2),
                )
                report.progress(
                    budget.done(progress), f"epoch {progress.epoch} loss {shown['loss']:.4f} {speed.rate:.1f} samples/s"
                )
            if rhythm.evaluate(progress):
                _evaluate(task, ema, model, checkpoints.folder, progress, report)
            progress.seconds += time.perf_counter() - started
            if rhythm.save(progress):
                _save(checkpoints, task, ema, optimizer, progress, report)

    progress.finished = finished
    _save(checkpoints, task, ema, optimizer, progress, report)
    if ema is not None:
        ema.copy_to(task.model)
    return progress


def _evaluate(task: Task, ema: EMA | None, model: nn.Module, folder: Path, progress: Progress, report: Report) -> None:
    """Measure with the averaged weights, for they are what samples come from, and with the raw ones beside them."""
    started = time.perf_counter()
    training = model.training
    model.eval()
    with torch.no_grad():
        raw = {f"raw_{key}": value for key, value in task.evaluate(model).items()} if ema is not None else {}
        with ema.swapped_in(task.model) if ema is not None else nullcontext():
            numbers = task.evaluate(model)
            task.preview(model, folder / "previews" / f"{task.name}_step_{progress.step:08d}.png")
    model.train(training)
    progress.evaluation = numbers
    seconds = round(time.perf_counter() - started, 2)
    report.event("evaluation", step=progress.step, epoch=progress.epoch, **numbers, **raw, seconds=seconds)
    words = ", ".join(f"{key.replace('_', ' ')} {value:.4g}" for key, value in numbers.items())
    report.say(f"{task.name} step {progress.step} epoch {progress.epoch}: {words}")


def _save(
    checkpoints: Checkpoints, task: Task, ema: EMA | None, optimizer: Any, progress: Progress, report: Report
) -> None:
    state = {
        "model": task.model.state_dict(),
        "ema": ema.state_dict() if ema is not None else None,
        "optimizer": optimizer.state_dict(),
        "progress": asdict(progress),
        "rng": _random_state(),
        **task.state_dict(),
    }
    # An epoch rarely ends with a batch; the batch that reaches its end counts as its end.
    at_epoch = progress.samples % task.examples * progress.step < max(1, progress.samples)
    path = checkpoints.write(state, step=progress.step, epoch=progress.epoch, at_epoch=at_epoch)
    report.event("save", step=progress.step, path=path.name)


def _restore(state: dict[str, Any], task: Task, ema: EMA | None, optimizer: Any) -> Progress:
    task.model.load_state_dict(state["model"])
    if ema is not None and state["ema"] is not None:
        ema.load_state_dict(state["ema"])
    optimizer.load_state_dict(state["optimizer"])
    torch.set_rng_state(state["rng"]["cpu"])
    if "cuda" in state["rng"] and torch.cuda.is_available():
        torch.cuda.set_rng_state_all(state["rng"]["cuda"])
    task.load_state_dict(state)
    return Progress(**state["progress"])


def _random_state() -> dict[str, Any]:
    state: dict[str, Any] = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state_all()
    return state


def _precision(wanted: str, device: str) -> str:
    """bf16 only where the hardware multiplies it fast; on most CPUs it is many times slower than fp32."""
    if wanted != "auto":
        return wanted
    return "bf16" if device.startswith("cuda") and torch.cuda.is_bf16_supported(including_emulation=False) else "no"


class _Rhythm:
    """Says when something is due; its answers follow from the progress alone, so they survive a resume."""

    def __init__(self, plan: Plan, budget: Budget, progress: Progress) -> None:
        self._plan, self._budget = plan, budget
        self._evaluated = self._slot(progress, plan.evaluations)
        self._epoch = progress.epoch
        self._saved_seconds = progress.seconds

    def log(self, progress: Progress) -> bool:
        return progress.step <= 10 or progress.step % 10 == 0

    def evaluate(self, progress: Progress) -> bool:
        due = self._slot(progress, self._plan.evaluations) > self._evaluated
        self._evaluated = self._slot(progress, self._plan.evaluations)
        return due

    def save(self, progress: Progress) -> bool:
        every = self._plan.checkpoint_epochs
        due = every > 0 and progress.epoch // every > self._epoch // every
        self._epoch = progress.epoch
        due = due or progress.seconds - self._saved_seconds > 60 * self._plan.checkpoint_minutes
        if due:
            self._saved_seconds = progress.seconds
        return due

    def _slot(self, progress: Progress, count: int) -> int:
        return min(count, math.floor(self._budget.done(progress) * count + 1e-9))


class _Speed:
    """Samples per second over the last steps."""

    def __init__(self, steps: int = 20) -> None:
        self._steps = steps
        self._recent: list[tuple[int, float]] = []

    def add(self, samples: int, seconds: float) -> None:
        self._recent = [*self._recent[-self._steps + 1 :], (samples, seconds)]

    @property
    def rate(self) -> float:
        return sum(samples for samples, _ in self._recent) / sum(seconds for _, seconds in self._recent)
