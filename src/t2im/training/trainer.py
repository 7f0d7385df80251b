"""What changes while a model learns? Its weights, their averages, the optimizer's memory: all that a checkpoint keeps.

`loop.py` says when what happens; here is what then happens to the weights.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from t2im.config import OptimizationConfig
from t2im.training.compiling import channels_last, compiled
from t2im.training.ema import EMA, trainable
from t2im.training.nonfinite import evidence, is_finite
from t2im.training.optimizers import (
    averages_weights,
    build_optimizer,
    clip_gradients,
    evaluation_weights,
    for_evaluation,
    for_training,
    set_learning_rate,
)
from t2im.training.power_ema import PowerEMA
from t2im.training.precision import LossScale, precision_for

Forward = Callable[..., Any]
"""What computes as the model does: the model itself, or what a compiler made of it."""

Loss = Callable[[Forward, range], tuple[Tensor, dict[str, Tensor]]]


@dataclass(frozen=True)
class Compute:
    """On what, and in which numbers, to compute."""

    device: str = "cpu"
    mixed_precision: str = "auto"
    compile: bool = False
    channels_last: bool = False


@dataclass(frozen=True)
class Taken:
    """What a step saw."""

    loss: Tensor
    gradient_norm: Tensor
    numbers: dict[str, Tensor]
    finite: bool
    """Whether loss and gradient were, so that the weights have moved."""
    excused: bool
    """Whether a gradient that was not finite may be the fault of fp16's loss scale alone."""


class Trainer:
    """A model, its optimizer and its moving averages."""

    def __init__(
        self,
        model: nn.Module,
        settings: OptimizationConfig,
        *,
        seed: int,
        compute: Compute,
        ema_sigmas: tuple[float, ...],
        say: Callable[[str], None],
    ) -> None:
        from accelerate import Accelerator

        torch.manual_seed(seed)  # dropout, where a model has it, is the one draw that torch makes by itself
        self.model, self._settings = model, settings
        self._accelerator = Accelerator(
            mixed_precision=precision_for(compute.mixed_precision, compute.device), cpu=compute.device == "cpu"
        )
        model.to(self._accelerator.device).train()
        if compute.channels_last:
            channels_last(model)
        optimizer = build_optimizer(model, settings)
        # A schedule-free optimizer averages by itself.
        self.ema = EMA(model, settings.ema_decay) if settings.ema_decay and not averages_weights(optimizer) else None
        self.power_ema = PowerEMA(model, ema_sigmas) if ema_sigmas else None
        self._prepared, self._optimizer = self._accelerator.prepare(model, optimizer)
        self._scale = LossScale(self._accelerator.scaler)
        self._forward: Forward = compiled(self._prepared, say) if compute.compile else self._prepared
        for_training(self._optimizer)
        self.forget_gradients()  # of an attempt before this one

    def step(self, loss: Loss, samples: range, learning_rate: float) -> Taken:
        """Learn from some samples, in as many parts as the settings say; what is not finite changes nothing.

        The parts are equal and so each part's mean counts alike: the step is that of the whole batch.
        """
        set_learning_rate(self._optimizer, learning_rate)
        parts = self._settings.gradient_accumulation_steps
        size = len(samples) // parts
        losses, numbers = [], []
        for start in range(samples.start, samples.stop, size):
            with self._accelerator.autocast():
                part, seen = loss(self._forward, range(start, start + size))
            self._accelerator.backward(part / parts)
            losses.append(part.detach())
            numbers.append(seen)
        self._scale.unscale(self._optimizer)
        gradient_norm = clip_gradients(self.model, self._settings.max_grad_norm)
        mean = torch.stack(losses).mean()
        # Judged before the optimizer moves: one non-finite step would poison the weights and both its memories.
        finite = is_finite(mean, gradient_norm)
        excused = not finite and self._scale.explains(mean)
        self._scale.step(self._optimizer, finite=finite)
        if finite:
            for average in self._averages:
                average.update(self.model)
        means = {name: torch.stack([part[name] for part in numbers]).mean() for name in numbers[0]}
        return Taken(mean, gradient_norm, means, finite, excused)

    def evidence(self, loss: Loss, samples: range, taken: Taken, descriptions: list[str]) -> dict[str, Any]:
        """Return what can be said about a step that was not finite, before its gradients are forgotten."""

        def loss_of(some: range) -> Tensor:
            with self._accelerator.autocast():
                return loss(self._prepared, some)[0]

        return evidence(self.model, samples, taken.loss, descriptions, loss_of)

    def forget_gradients(self) -> None:
        """Let the gradients go, when nobody wants to look at them any more."""
        self._optimizer.zero_grad(set_to_none=True)

    @property
    def _averages(self) -> "list[EMA | PowerEMA]":
        return [average for average in (self.ema, self.power_ema) if average is not None]

    @contextmanager
    def at_rest(self, *, averaged: bool) -> Iterator[nn.Module]:
        """Lend the model for looking at, without dropout: with its averaged weights, or with the present ones."""
        self.model.eval()
        swapped = self.ema.swapped_in(self.model) if averaged and self.ema is not None else nullcontext()
        with torch.no_grad(), evaluation_weights(self._optimizer), swapped:
            yield self._prepared
        self.model.train()

    def check_averages(self) -> None:
        """Sound the alarm if an average is none; see `ema.require_average`."""
        for average in self._averages:
            average.check(self.model)

    def finish(self) -> None:
        """Put the weights to sample with into the model, for good."""
        for_evaluation(self._optimizer)
        if self.ema is not None:
            self.ema.copy_to(self.model)

    def state_dict(self) -> dict[str, Any]:
        """Return all of it, tensors by reference."""
        return {
            "model": self.model.state_dict(),
            "ema": self._averaged(),
            "power_ema": self.power_ema.state_dict() if self.power_ema is not None else None,
            "optimizer": self._optimizer.state_dict(),
            "loss_scale": self._scale.state_dict(),
            "rng": _random_state(),
        }

    def _averaged(self) -> dict[str, Any] | None:
        """Return the weights to sample with, where they are not those to learn with."""
        if self.ema is not None:
            return self.ema.state_dict()
        if not averages_weights(self._optimizer):
            return None
        with evaluation_weights(self._optimizer):
            return {**trainable(self.model), "updates": 0}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take up such a state."""
        self.model.load_state_dict(state["model"])
        for average, saved in ((self.ema, state["ema"]), (self.power_ema, state["power_ema"])):
            if average is not None and saved is not None:
                average.load_state_dict(saved)
        self._optimizer.load_state_dict(state["optimizer"])
        self._scale.load_state_dict(state["loss_scale"])
        torch.set_rng_state(state["rng"]["cpu"])
        if "cuda" in state["rng"] and torch.cuda.is_available():
            torch.cuda.set_rng_state_all(state["rng"]["cuda"])


def _random_state() -> dict[str, Any]:
    state: dict[str, Any] = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state_all()
    return state
