"""What do the curves say? In plain words, what a person who has seen many runs would say at a glance.

Each finding names what it was seen by, and what to do. Thresholds are set so that noise alone does not reach them: the
held-out exam is the same at every evaluation, so a change of two hundredths of it is a change of the weights.
"""

import statistics
from collections.abc import Iterator
from dataclasses import dataclass

from t2im.training.chart import smoothed
from t2im.training.history import History, Point

CHANGE = 0.02
"""Relative change of a held-out number that is worth a word."""
READS_TEXT = 0.02
"""Text gain from which the text is certainly read; one that is not read scores 0 to within a hundredth."""
SLOWER = 0.7
"""Share of the usual speed from which a run has slowed down."""


@dataclass(frozen=True)
class Finding:
    """Something worth knowing of a run."""

    good: bool
    text: str


def findings(history: History) -> list[Finding]:
    """Return what the curves of a run say, the most important first."""
    return [*_learning(history), *_text(history), *_trouble(history)]


def _learning(history: History) -> Iterator[Finding]:
    curve = history.curve("heldout_loss")
    if len(curve) < 2:
        yield Finding(False, "Fewer than two held-out evaluations: nothing can be said of learning yet.")
        return
    (best_step, best), (_, last) = min(curve, key=lambda point: point[1]), curve[-1]
    loss = smoothed(history.curve("loss"))
    if last > best * (1 + CHANGE) and _at(loss, curve[-1][0]) < _at(loss, best_step):
        yield Finding(
            False,
            f"The held-out loss has risen since step {best_step:,.0f} ({best:.4g} to {last:.4g}) while the training loss "
            "still falls: since then the model learns images by heart. Take the checkpoint nearest to that step, train "
            "for fewer epochs, or add images.",
        )
    elif last > best * (1 + CHANGE):
        yield Finding(
            False,
            f"The held-out loss has risen since step {best_step:,.0f} ({best:.4g} to {last:.4g}), and so has the training "
            "loss: the steps are too large. Lower training.learning_rate, or lengthen training.warmup_steps.",
        )
    elif len(curve) >= 5 and last < curve[-1 - len(curve) // 5][1] * (1 - CHANGE / 2):
        yield Finding(True, "The held-out loss still falls: the model was still learning, and a longer run helps.")
    else:
        yield Finding(True, "The held-out loss has levelled off, and has not risen: no images are learned by heart.")
    blind = history.start.get("expected", {}).get("blind")
    if isinstance(blind, int | float) and last >= blind:
        yield Finding(
            False,
            f"The held-out loss {last:.4g} is not below {blind:.4g}, which needs no knowledge of pictures at all. Try "
            "t2im doctor: a model that cannot even overfit eight images has a fault in its settings or data.",
        )


def _text(history: History) -> Iterator[Finding]:
    gain = history.curve("text_gain")
    if not gain:
        return
    heard = next((step for step, value in gain if value >= READS_TEXT), None)
    if gain[-1][1] >= READS_TEXT:
        words = f"The right caption removes {gain[-1][1]:.0%} of the error that another one leaves"
        yield Finding(True, f"{words}; the text is read since step {heard:,.0f} at the latest.")
    else:
        yield Finding(
            False,
            f"Text gain {gain[-1][1]:.3f}: right captions help no more than wrong ones, so the text is not read (yet). "
            "It comes after the first outlines; if it does not, look whether captions fit their images.",
        )


def _trouble(history: History) -> Iterator[Finding]:
    if skipped := sum(event["event"] == "skipped" and not event.get("excused") for event in history.story):
        yield Finding(
            False,
            f"Steps that were not finite and were skipped: {skipped}. A few are harmless; many ask for a lower learning rate.",
        )
    if failed := sum(bool(event.get("problem")) for event in history.story):
        yield Finding(False, f"Checkpoints that could not be written: {failed}. See what happened, below.")
    speed = [value for _, value in history.curve("samples_per_second")]
    if len(speed) >= 20:
        usual, lately = statistics.median(speed), statistics.median(speed[-len(speed) // 5 :])
        if lately < SLOWER * usual:
            yield Finding(
                False,
                f"The run has slowed down from {usual:.0f} to {lately:.0f} samples/s: another program, a hot machine, or "
                "memory that is swapped out.",
            )


def _at(points: list[Point], step: float) -> float:
    return min(points, key=lambda point: abs(point[0] - step))[1] if points else 0.0
