"""How long should the average be? Nobody knows before the run ends, so keep two that any other can be made of.

An exponential average forgets at a fixed rate, which is too slow at the start of a run and too fast at its end. The
power-function average of Karras et al. 2023 ("EDM2", arXiv 2312.02696, section 3.1) grows with the run:

    average(t) = (gamma + 1) / t^(gamma + 1)  *  integral over tau from 0 to t of  tau^gamma theta(tau)

Its weights look the same at every t, so its width is a share of the run and not a number of steps: sigma_rel, the
standard deviation of the weighting tau^gamma on [0, 1]. At sigma_rel 0.10 most of the average comes from the last fifth
of the run. And the initial weights, which know nothing, count for nothing.

These weightings can be mixed: of snapshots of two of these averages, `posthoc.py` makes the average of any other width
after training. `ema_snapshots.py` keeps them.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from t2im.errors import ModelError
from t2im.training.ema import require_average, some_values, trainable


def width_of(gamma: float) -> float:
    """Return sigma_rel of an exponent: sqrt(gamma + 1) / ((gamma + 2) sqrt(gamma + 3)).

    It is the standard deviation of the distribution with density (gamma + 1) tau^gamma on [0, 1].
    """
    return float((gamma + 1) ** 0.5 / ((gamma + 2) * (gamma + 3) ** 0.5))


def exponent_of(sigma_rel: float) -> float:
    """Return the gamma of a width in (0, 0.29): the largest root of `width_of` squared, written as a cubic.

        gamma^3 + 7 gamma^2 + (16 - sigma_rel^-2) gamma + (12 - sigma_rel^-2) = 0

    >>> round(exponent_of(0.10), 2), round(exponent_of(0.05), 2)
    (6.94, 16.97)
    """
    roots = np.roots([1.0, 7.0, 16.0 - sigma_rel**-2, 12.0 - sigma_rel**-2])
    return float(roots.real.max())


def decay_at(step: int, gamma: float) -> float:
    """Return beta(t) = (1 - 1/t)^(gamma + 1), the decay of update number t = 1, 2, ...

    With it the recursion below is the integral above, exactly, for weights that stay constant between two updates: the
    weights after update tau count (tau^(gamma+1) - (tau-1)^(gamma+1)) / t^(gamma+1).
    """
    return float((1 - 1 / step) ** (gamma + 1))


class PowerEMA:
    """Power-function averages of a model's parameters, one for each width; never of its buffers.

        average <- beta(t) average + (1 - beta(t)) theta

    They are kept in fp32, a copy of the weights for each width.
    """

    def __init__(self, model: nn.Module, sigmas: Sequence[float]) -> None:
        """Prepare averages of widths sigma_rel in (0, 0.29); the model's present weights will not count."""
        self.updates = 0
        self.averages = {sigma: trainable(model) for sigma in sigmas}
        self._exponents = {sigma: exponent_of(sigma) for sigma in sigmas}
        self._start = some_values(p for p in model.parameters() if p.requires_grad)

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        """Move every average towards the model's present weights."""
        self.updates += 1
        live = dict(model.named_parameters())
        for sigma, average in self.averages.items():
            share = 1 - decay_at(self.updates, self._exponents[sigma])
            torch._foreach_lerp_(list(average.values()), [live[name].detach() for name in average], share)

    def check(self, model: nn.Module) -> None:
        """Sound the alarm if one of these is no average of what was trained; see `ema.require_average`."""
        for sigma, average in self.averages.items():
            require_average(average, model, self._start, f"the power-function average (sigma {sigma:g})")

    def state_dict(self) -> dict[str, Any]:
        """Return the count of updates, and the averages by their width as text."""
        return {"updates": self.updates, "averages": {str(sigma): dict(a) for sigma, a in self.averages.items()}}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take up averages that were saved.

        Raises: ModelError if they are of other widths; KeyError if a parameter is missing from them.
        """
        saved: Mapping[str, Mapping[str, Tensor]] = state["averages"]
        wanted = {str(sigma): average for sigma, average in self.averages.items()}
        if saved.keys() != wanted.keys():
            raise ModelError(
                f"the checkpoint keeps averages of widths {', '.join(saved) or '(none)'}, the settings ask for "
                f"{', '.join(wanted)}. Set training.ema_sigmas as it was."
            )
        for sigma, average in wanted.items():
            for name, tensor in average.items():
                tensor.copy_(saved[sigma][name])
        self.updates = int(state["updates"])
