"""How does a network learn? The loop one reads at a sitting.

    for each step:  draw samples -> loss -> gradient -> clip -> optimizer -> moving averages
    now and then:   measure on held-out images, draw previews, save

It trains the UNet, the VAE and the text encoder alike; what one step computes is a `Task`. Nothing here is random: what
a sample is, and every draw made for it, follows from its index (see `seeds.py`), so a run that was stopped and resumed
takes the same steps as one that was not. Each technique lives in a file beside this one; `Trainer` holds them together.
"""

import time
from dataclasses import asdict
from pathlib import Path
from typing import Any, Protocol

from torch import Tensor, nn

from t2im.checkpoint import first_not_finite
from t2im.config import OptimizationConfig
from t2im.training.checkpoint import Checkpoints, NotFinite, Saved
from t2im.training.ema_snapshots import FOLDER, EMASnapshots, identity
from t2im.training.environment import changes_since
from t2im.training.interrupt import Interruption
from t2im.training.learning_rate import learning_rate
from t2im.training.memory import peak_memory
from t2im.training.nonfinite import Guard
from t2im.training.report import Report
from t2im.training.rhythm import Budget, Plan, Progress, Rhythm, Speed
from t2im.training.trainer import Compute, Forward, Taken, Trainer

ON_THE_CPU = Compute()


class Task(Protocol):
    """What is trained: a model, the loss of some samples, and how to judge the model."""

    name: str
    examples: int
    """Training examples: the samples of one epoch."""
    headlines: tuple[str, ...]
    """Which of the numbers of `evaluate` a person wants to see first."""

    @property
    def model(self) -> nn.Module:
        """What learns."""
        ...

    def loss(self, model: Forward, samples: range) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the mean loss of samples of the run (numbered from its start), and numbers worth logging."""
        ...

    def evaluate(self, model: nn.Module) -> dict[str, float]:
        """Measure the model on held-out data."""
        ...

    def preview(self, model: nn.Module, path: Path) -> None:
        """Write a picture that shows what the model can do now."""
        ...

    def describe(self, samples: range) -> list[str]:
        """Return what each sample of the run shows, to name those that broke a step."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """Return what a checkpoint must hold beside the model's own state."""
        ...

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take up such a state."""
        ...


def fit(
    task: Task,
    settings: OptimizationConfig,
    budget: Budget,
    plan: Plan,
    checkpoints: Checkpoints,
    report: Report,
    *,
    seed: int = 0,
    compute: Compute = ON_THE_CPU,
    ema_sigmas: tuple[float, ...] = (),
    resume: bool = False,
) -> Progress:
    """Train a task's model until the budget is spent or the user stops it; the model ends with its averaged weights.

    Weights that are found to be no numbers any more, as a fault of the memory makes them, are never saved: the run goes
    back to its newest checkpoint, once.

    Raises: TrainingError if steps stay non-finite, or nothing can be saved; ModelError if there is nothing sound to
    resume from.
    """
    options: dict[str, Any] = {"seed": seed, "compute": compute, "ema_sigmas": ema_sigmas}
    try:
        return _fit(task, settings, budget, plan, checkpoints, report, **options, resume=resume)
    except NotFinite as error:
        if not checkpoints.paths():
            raise
        report.event("rollback", reason=str(error))
        report.say(f"{error} Going back to the newest checkpoint.")
    return _fit(task, settings, budget, plan, checkpoints, report, **options, resume=True)


def _fit(
    task: Task,
    settings: OptimizationConfig,
    budget: Budget,
    plan: Plan,
    checkpoints: Checkpoints,
    report: Report,
    *,
    seed: int,
    compute: Compute,
    ema_sigmas: tuple[float, ...],
    resume: bool,
) -> Progress:
    trainer = Trainer(task.model, settings, seed=seed, compute=compute, ema_sigmas=ema_sigmas, say=report.say)
    run = _Run(task, trainer, checkpoints, report, Guard(checkpoints.folder, settings.max_bad_steps))
    if resume:
        run.resume()
    progress = run.progress
    rhythm, speed = Rhythm(plan, budget, progress), Speed()
    snapshots = run.snapshots() if ema_sigmas else None
    began = time.perf_counter() - progress.seconds

    with checkpoints, Interruption(report.say) as interruption:
        while budget.done(progress) < 1 and not interruption.requested:
            started = time.perf_counter()
            samples = range(progress.samples, progress.samples + settings.batch_size)
            rate = learning_rate(progress.step, budget.done(progress), settings)
            taken = trainer.step(task.loss, samples, rate)
            run.judge(taken, samples)
            trainer.forget_gradients()

            progress.step += 1
            progress.samples += settings.batch_size
            progress.epoch = progress.samples // task.examples
            progress.seconds = time.perf_counter() - began
            speed.add(settings.batch_size, time.perf_counter() - started)
            rhythm.step(progress)
            if taken.finite and rhythm.log:
                run.log(taken, rate, speed.rate, budget.done(progress))
            judged_by = run.evaluate() if rhythm.evaluate else {}
            if rhythm.preview(progress) and not judged_by:
                run.preview()
            if snapshots is not None and trainer.power_ema is not None and rhythm.snapshot:
                snapshots.write(trainer.power_ema)
            if rhythm.save(progress) or checkpoints.is_best(judged_by):
                run.save(judged_by)
            run.tell_saves()
            progress.seconds = time.perf_counter() - began

        progress.finished = budget.done(progress) >= 1
        progress.exit_code = interruption.exit_code
        run.save_and_wait()
    trainer.finish()
    return progress


class _Run:
    """What happens around the steps: judging, measuring, showing, saving."""

    def __init__(self, task: Task, trainer: Trainer, checkpoints: Checkpoints, report: Report, guard: Guard) -> None:
        self.progress = Progress()
        self._task, self._trainer = task, trainer
        self._checkpoints, self._report, self._guard = checkpoints, report, guard

    def resume(self) -> None:
        """Go on from the newest sound checkpoint."""
        path, state = self._checkpoints.read_newest()
        self._trainer.load_state_dict(state)
        self._task.load_state_dict(state)
        self._guard.load_state_dict(state["guard"])
        self.progress = Progress(**state["progress"])
        if changes := changes_since(state["environment"]):
            self._report.say(changes)
        self._report.event("resume", step=self.progress.step, path=path.name)
        self._report.say(f"{self._task.name}: going on from {path.name}, step {self.progress.step}")

    def snapshots(self) -> EMASnapshots:
        """Return where averages are kept, without those that a resumed run will make again."""
        snapshots = EMASnapshots(self._checkpoints.folder / FOLDER, identity(self._task.state_dict()))
        assert self._trainer.power_ema is not None
        snapshots.go_on_from(self._trainer.power_ema.updates)
        return snapshots

    def judge(self, taken: Taken, samples: range) -> None:
        """Note a step that was not finite, and what it was made of.

        Raises: Diverged if it is one too many; NotFinite if the weights themselves are to blame, for no later step
        could be better.
        """
        if taken.finite:
            self._guard.good()
            return
        step = self.progress.step
        self.progress.skipped_steps += 1
        self._report.event("skipped", step=step, samples=[samples.start, samples.stop], excused=taken.excused)
        if where := first_not_finite(self._trainer.model.state_dict()):
            raise NotFinite(f'step {step}: the weight "{where}" is not finite.')
        if not taken.excused:
            shown = self._task.describe(samples)
            self._guard.bad(step, lambda: self._trainer.evidence(self._task.loss, samples, taken, shown))

    def log(self, taken: Taken, rate: float, samples_per_second: float, done: float) -> None:
        """Write a step's numbers."""
        progress = self.progress
        shown = {"loss": taken.loss.item(), **{name: value.item() for name, value in taken.numbers.items()}}
        self._report.event(
            "step",
            step=progress.step,
            epoch=progress.epoch,
            samples=progress.samples,
            **shown,
            learning_rate=rate,
            gradient_norm=taken.gradient_norm.item(),
            samples_per_second=round(samples_per_second, 2),
            training_seconds=round(progress.seconds, 2),
            **peak_memory(),
        )
        self._report.progress(
            done, f"epoch {progress.epoch} loss {shown['loss']:.4f} {samples_per_second:.1f} samples/s"
        )

    def evaluate(self) -> dict[str, float]:
        """Measure with the averaged weights, for they are what samples come from, and with the raw ones beside them."""
        started = time.perf_counter()
        self._trainer.check_averages()
        raw = {}
        if self._trainer.ema is not None:
            with self._trainer.at_rest(averaged=False) as model:
                raw = {f"raw_{key}": value for key, value in self._task.evaluate(model).items()}
        with self._trainer.at_rest(averaged=True) as model:
            numbers = self._task.evaluate(model)
        self.preview()
        progress = self.progress
        progress.evaluation = numbers
        spent = time.perf_counter() - started
        self._report.event(
            "evaluation",
            step=progress.step,
            epoch=progress.epoch,
            samples=progress.samples,
            **numbers,
            **raw,
            seconds=round(spent, 2),
            training_seconds=round(progress.seconds, 2),
        )
        words = ", ".join(
            f"{key.replace('_', ' ')} {numbers[key]:.4g}" for key in self._task.headlines if key in numbers
        )
        self._report.say(f"{self._task.name} step {progress.step} epoch {progress.epoch}: {words}")
        return numbers

    def preview(self) -> None:
        """Draw what the model can do now."""
        path = self._checkpoints.folder / "previews" / f"{self._task.name}_step_{self.progress.step:08d}.png"
        with self._trainer.at_rest(averaged=True) as model:
            self._task.preview(model, path)
        if path.exists():  # CLIP has nothing to show
            self._report.preview(path, step=self.progress.step)

    def save(self, judged_by: dict[str, float]) -> None:
        """Begin to write a checkpoint; training goes on meanwhile."""
        self._checkpoints.write_in_background(self._state(judged_by), **self._place())

    def tell_saves(self) -> None:
        """Report the saves that have ended."""
        for saved in self._checkpoints.finished():
            self._tell(saved)

    def save_and_wait(self) -> None:
        """Write the last checkpoint."""
        self._tell(self._checkpoints.write(self._state({}), **self._place()))
        progress = self.progress
        self._report.event("end", step=progress.step, finished=progress.finished, exit_code=progress.exit_code)

    def _tell(self, saved: Saved) -> None:
        self._report.event("save", step=saved.step, path=saved.path.name, best=saved.best, problem=saved.problem)
        if saved.problem:
            self._report.say(f"{saved.path.name}: not saved, training goes on: {saved.problem}")

    def _state(self, judged_by: dict[str, float]) -> dict[str, Any]:
        return {
            **self._trainer.state_dict(),
            "progress": asdict(self.progress),
            "guard": self._guard.state_dict(),
            "judged_by": judged_by,
            **self._task.state_dict(),
        }

    def _place(self) -> dict[str, Any]:
        progress = self.progress
        # An epoch rarely ends with a batch; the batch that reaches its end counts as its end.
        at_epoch = progress.samples % self._task.examples * progress.step < max(1, progress.samples)
        return {"step": progress.step, "epoch": progress.epoch, "at_epoch": at_epoch}
