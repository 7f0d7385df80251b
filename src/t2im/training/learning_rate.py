"""How large is a step, from the first to the last of a run?

    warm-up              lr_max (step + 1) / warmup_steps              while step < warmup_steps; times one of
    constant             lr_max
    linear               lr_max (1 - done)
    cosine               lr_max (1 + cos(pi done)) / 2                 Loshchilov and Hutter 2017, eq. 5, arXiv:1608.03983
    inverse_sqrt         lr_max / sqrt(max((step + 1) / t_ref, 1))     Karras et al. 2024, arXiv:2312.02696
    warmup_stable_decay  lr_max min((1 - done) / decay_share, 1)       Hu et al. 2024, arXiv:2404.06395

Here `step` counts optimizer steps and `done` is the share of the run that is behind; neither knows how many devices or
parts a step was computed with. As the learning rate is a pure function of the two, there is no scheduler whose state
could be lost, and none that counts wrong: what follows a resume is what would have followed.

Small first steps are for the optimizer, whose averages know little yet; small last steps are for the weights, which
settle where large steps would throw them about.
"""

import math
from collections.abc import Callable

from t2im.config import OptimizationConfig

Shape = Callable[[int, float, OptimizationConfig], float]


def learning_rate(step: int, done: float, settings: OptimizationConfig) -> float:
    """Return the learning rate of optimizer step `step` (0-based) when the share `done` in [0, 1] of the run is behind.

    >>> learning_rate(500, 0.5, OptimizationConfig(learning_rate=2.0, schedule="cosine", warmup_steps=0))
    1.0
    """
    warmup = min(1.0, (step + 1) / settings.warmup_steps) if settings.warmup_steps else 1.0
    return settings.learning_rate * warmup * SHAPES[settings.schedule](step, min(max(done, 0.0), 1.0), settings)


def _constant(step: int, done: float, settings: OptimizationConfig) -> float:
    return 1.0


def _linear(step: int, done: float, settings: OptimizationConfig) -> float:
    return 1.0 - done


def _cosine(step: int, done: float, settings: OptimizationConfig) -> float:
    return (1.0 + math.cos(math.pi * done)) / 2.0


def _inverse_sqrt(step: int, done: float, settings: OptimizationConfig) -> float:
    return 1.0 / math.sqrt(max((step + 1) / settings.reference_steps, 1.0))


def _warmup_stable_decay(step: int, done: float, settings: OptimizationConfig) -> float:
    return min((1.0 - done) / settings.decay_share, 1.0) if settings.decay_share else 1.0


SHAPES: dict[str, Shape] = {
    "constant": _constant,
    "linear": _linear,
    "cosine": _cosine,
    "inverse_sqrt": _inverse_sqrt,
    "warmup_stable_decay": _warmup_stable_decay,
}
