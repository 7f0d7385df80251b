"""How does one get an average that nobody kept? By mixing snapshots of those that were kept.

A snapshot of a power-function average taken at step t_i is the run's weights under the weighting

    p_i(tau) = (gamma_i + 1) tau^gamma_i / t_i^(gamma_i + 1)    for 0 < tau <= t_i, and 0 after.

An average of any other width is another such p. If x mixes the p_i into something close to p, then x mixes the
snapshots into something close to that average (Karras et al. 2023, arXiv 2312.02696, section 3.2 and appendix C). All
inner products of these functions are known, so the best x costs a small linear system, whatever the model's size.

One thing is added to the paper: sum(x) = 1 is demanded, not hoped for. Weights move little around a large constant, and
a mixture whose sum is off by a thousandth would scale all of them.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from t2im.errors import ModelError
from t2im.training.ema_snapshots import EMASnapshot
from t2im.training.power_ema import exponent_of

Vector = NDArray[np.float64]


@dataclass(frozen=True)
class Mixture:
    """How much of each snapshot makes the wanted average."""

    shares: tuple[float, ...]
    """They sum to 1; some are negative."""
    error: float
    """Distance between the mixed weighting and the wanted one, as a share of the latter's norm: 0 is exact."""


def inner_products(gammas_a: Vector, steps_a: Vector, gammas_b: Vector, steps_b: Vector) -> NDArray[np.float64]:
    """Return the integrals of p_a p_b for every a (rows) and b (columns).

        (gamma_a + 1) (gamma_b + 1) / (gamma_a + gamma_b + 1) * (earlier / later)^gamma_of_the_later / later

    This is the paper's formula with the powers divided out, so that large steps do not overflow.
    """
    gamma_a, gamma_b = gammas_a[:, None], gammas_b[None, :]
    step_a, step_b = steps_a[:, None], steps_b[None, :]
    later = np.maximum(step_a, step_b)
    ratio = np.minimum(step_a, step_b) / later
    product = (gamma_a + 1) * (gamma_b + 1) / (gamma_a + gamma_b + 1) / later
    integrals: NDArray[np.float64] = product * ratio ** np.where(step_a < step_b, gamma_b, gamma_a)
    return integrals


def mixture(kept: Sequence[tuple[float, int]], sigma: float, step: int) -> Mixture:
    """Return the mixture of kept averages that comes closest to the average of another width.

    kept: sigma_rel and step of each snapshot, no pair twice. sigma, step: those of the wanted average. In float64.

        minimise |sum_i x_i p_i - p|^2  subject to  sum_i x_i = 1:    A x + lambda 1 = b,  1^T x = 1
        with A_ij = <p_i, p_j>,  b_i = <p_i, p>
    """
    # In units of the wanted step, which leaves the mixture as it is, and its numbers near 1.
    gammas = np.array([exponent_of(width) for width, _ in kept])
    steps = np.array([at / step for _, at in kept])
    wanted, now = np.array([exponent_of(sigma)]), np.ones(1)
    count = len(kept)
    system = np.ones((count + 1, count + 1))
    system[:count, :count] = inner_products(gammas, steps, gammas, steps)
    system[count, count] = 0
    target = np.append(inner_products(gammas, steps, wanted, now)[:, 0], 1.0)
    # Least squares and not a plain solution: of snapshots that are almost alike, such as those of sigma 0.1 and 0.1001,
    # the smallest mixture is taken, not one of huge shares that cancel.
    shares = np.linalg.lstsq(system, target)[0][:count]
    norm = inner_products(wanted, now, wanted, now).item()
    squared = shares @ system[:count, :count] @ shares - 2 * shares @ target[:count] + norm
    return Mixture(tuple(shares.tolist()), float(np.sqrt(max(0.0, squared) / norm)))


def reconstruct(snapshots: Sequence[EMASnapshot], sigma: float) -> tuple[dict[str, Tensor], Mixture]:
    """Return the average of width sigma at the last snapshot's step, in fp32, and how it was mixed.

    The snapshots are read one after the other and summed in float64; memory does not grow with their number.

    Raises: ModelError for a snapshot that cannot be read or is of another network, or if the result is not finite.
    """
    mixed = mixture([(kept.sigma, kept.step) for kept in snapshots], sigma, max(kept.step for kept in snapshots))
    total: dict[str, Tensor] = {}
    for share, snapshot in zip(mixed.shares, snapshots, strict=True):
        weights = snapshot.weights()
        total = total or {name: torch.zeros(weight.shape, dtype=torch.float64) for name, weight in weights.items()}
        if {name: weight.shape for name, weight in weights.items()} != {n: w.shape for n, w in total.items()}:
            raise ModelError(f"{snapshot.path}: holds another network than {snapshots[0].path.name}. Delete it.")
        for name, weight in weights.items():
            total[name].add_(weight.double(), alpha=share)
    for name, weight in total.items():
        if not torch.isfinite(weight).all():
            raise ModelError(f'{snapshots[0].path.parent}: mixed to sigma {sigma:g}, "{name}" is not finite.')
    return {name: weight.float() for name, weight in total.items()}, mixed
