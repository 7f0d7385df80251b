"""What is a normal loss? Two marks to read a held-out curve by, in closed form, before anything is trained.

A loss of 0.3 means nothing by itself: it depends on the objective and the schedule. But for latents of unit variance,
which ours are, two students' results are known. With x_t = alpha x_0 + sigma eps and the target p x_0 + q eps (see
`schedule.py`), averaged over the timesteps:

    zero     always answers 0, as a new model about does:           E[p^2 + q^2]                    (1; of flow 2)
    blind    knows how noisy its input is, but of pictures nothing  E[(alpha q - sigma p)^2 / (alpha^2 + sigma^2)]
             beyond their variance, and makes the best of that

The second is the error of the best linear guess, target = c x_t with c = E[target x_t] / E[x_t^2]. A model that has
learned anything about pictures is below it. In x_0 the same guess leaves 1 / (1 + SNR), whatever the objective, which on
the exam's noise levels is 0.5.
"""

from dataclasses import dataclass

import torch

from t2im.diffusion.schedule import Schedule
from t2im.training.heldout import LOG_SNRS


@dataclass(frozen=True)
class Expected:
    """Held-out numbers of students that know nothing."""

    zero: float
    """`heldout_loss` of a model that answers 0."""
    blind: float
    """`heldout_loss` of the best that knows the noise level alone."""
    blind_x0: float
    """`heldout_x0` of the latter."""


def expected(schedule: Schedule) -> Expected:
    """Return the marks of a schedule and what is predicted on it.

    >>> from t2im.config import ScheduleConfig
    >>> expected(Schedule(ScheduleConfig(), "v_prediction"))
    Expected(zero=1.0, blind=1.0, blind_x0=0.5)
    """
    timesteps = torch.tensor(schedule.timesteps)
    (alpha, sigma), (p, q) = schedule.alpha_sigma(timesteps), schedule.target_mix(timesteps)
    blind = (alpha * q - sigma * p).square() / (alpha.square() + sigma.square())
    blind_x0 = 1 / (1 + torch.tensor(LOG_SNRS, dtype=torch.float64).exp())
    zero = p.square() + q.square()
    return Expected(*(round(mark.mean().item(), 6) for mark in (zero, blind, blind_x0)))
