"""What if a loss or a gradient is not a number?

Then the step is not taken: one infinite number would enter the weights, the optimizer's memory and the averages, and
nothing would take it out again. The step is counted, and a file says what can be said about it: which of its samples
have no loss, which tensors went wrong, and how large the others were. A run where that happens again and again stops.
"""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from t2im.errors import Diverged
from t2im.files import write_json

WINDOW = 1000
SHARE = 0.01
"""More bad steps than this share of the last `WINDOW` ones stop a run, even if good ones lie between them."""
DUMPS = 10
"""Dumps of one run; those after them would say the same."""
NAMED = 20
"""Tensors of each kind that a dump names."""

Evidence = Callable[[], dict[str, Any]]


def is_finite(loss: Tensor, gradient_norm: Tensor) -> bool:
    """Say whether a step may be taken; asks the device once."""
    return bool(torch.isfinite(loss.detach()) & torch.isfinite(gradient_norm))


def evidence(
    model: nn.Module, samples: range, loss: Tensor, descriptions: list[str], loss_of: Callable[[range], Tensor]
) -> dict[str, Any]:
    """Collect what can be said about a step that went wrong, while its gradients are still there.

    Args:
        model: with the gradients of the step, neither clipped nor scaled.
        samples: of the step.
        loss: of the step.
        descriptions: what each sample shows, such as its image and caption.
        loss_of: computes the loss of some samples. It is asked for one at a time, so that the guilty can be named.
    """
    gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    norms = {name: float(gradient.float().norm()) for name, gradient in gradients.items()}
    weights = [name for name, p in model.named_parameters() if not bool(torch.isfinite(p).all())]
    bad = [name for name, gradient in gradients.items() if not bool(torch.isfinite(gradient).all())]
    losses = {}
    # A look at the samples must not change what dropout draws in the steps to come.
    with torch.no_grad(), torch.random.fork_rng([loss.device] if loss.is_cuda else []):
        for sample in samples:
            losses[sample] = float(loss_of(range(sample, sample + 1)))
    guilty = [sample for sample, value in losses.items() if not math.isfinite(value)]
    shown = dict(zip(samples, descriptions, strict=True))

    if weights:
        suspect = f"weights were not finite before the step, first {weights[0]}"
    elif guilty and len(guilty) < len(losses):
        suspect = f"sample {guilty[0]} has no finite loss: {shown[guilty[0]]}"
    elif guilty:
        suspect = "no sample has a finite loss, so the weights have gone too far"
    elif bad:
        suspect = f"every sample's loss is finite, but gradients are not, first that of {bad[0]}"
    else:
        suspect = "each number is finite, but their sum is not, so the weights have gone too far"
    largest = sorted((name for name in norms if math.isfinite(norms[name])), key=lambda name: -norms[name])
    return {
        "suspect": suspect,
        "loss": _number(float(loss.detach())),
        "samples": [{"sample": i, "shows": shown[i], "loss": _number(losses[i])} for i in (guilty or samples)],
        "weights_not_finite": {"count": len(weights), "first": weights[:NAMED]},
        "gradients_not_finite": {"count": len(bad), "of": len(gradients), "first": bad[:NAMED]},
        "largest_gradient_norms": {name: _number(norms[name]) for name in largest[:NAMED]},
    }


class Guard:
    """Counts the steps that were not finite, writes down the first of them, and stops a run that has too many."""

    def __init__(self, folder: Path, max_in_a_row: int) -> None:
        self._folder = folder / "nonfinite"
        self._max_in_a_row = max_in_a_row
        self._in_a_row = 0
        self._recent: list[int] = []

    def good(self) -> None:
        """Note a step that was taken."""
        self._in_a_row = 0

    def bad(self, step: int, evidence: Evidence) -> Path | None:
        """Note a step that was left out; return the file about it, or nothing when there are enough of these.

        Raises: Diverged if it is one too many.
        """
        self._in_a_row += 1
        self._recent = [*(earlier for earlier in self._recent if step - WINDOW < earlier < step), step]
        many = self._too_many()
        # The step that stops a run is written down in any case, for the message names the file.
        if not many and len(list(self._folder.glob("step_*.json"))) >= DUMPS:
            return None
        found = {"step": step, **evidence()}
        path = self._written(found)
        if many:
            more = f" (more in {path.parent.name}/{path.name})" if path else ""
            raise Diverged(
                f"{many} were not finite, up to step {step}: {found['suspect']}{more}. "
                "The newest checkpoint is sound: remove the cause or lower the learning rate, and --resume."
            )
        return path

    def _written(self, found: dict[str, Any]) -> Path | None:
        path = self._folder / f"step_{found['step']:08d}.json"
        try:
            write_json(path, found)
        except OSError:  # such as a full disk, which is no reason to stop training
            return None
        return path

    def _too_many(self) -> str:
        if self._in_a_row >= self._max_in_a_row:
            return f"{self._in_a_row} steps in a row"
        return f"{len(self._recent)} of the last {WINDOW} steps" if len(self._recent) > SHARE * WINDOW else ""

    def state_dict(self) -> dict[str, Any]:
        """Return which of the last steps were bad."""
        return {"in_a_row": self._in_a_row, "recent": list(self._recent)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take up such a state."""
        self._in_a_row, self._recent = state["in_a_row"], list(state["recent"])


def _number(value: float) -> float | str:
    """JSON knows no infinity; a word does."""
    return value if math.isfinite(value) else str(value)
