"""How sure is a comparison of a few runs? The mean of n of them with its 95 % interval, and paired differences.

Two runs that differ by their seed alone end at different losses, so one run of each setting proves little. Of n runs,
whose results are about normally distributed, the mean is known to within

    mean ± t · s / √n,    s² = sum (x - mean)² / (n - 1),    P(|T| < t) = 0.95 at n - 1 degrees of freedom   (Student 1908)

Runs of one seed share their data order, their noise and their held-out grid. So settings are compared by the
differences within each seed: what the seed does to both of them cancels, and the interval shrinks.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

CONFIDENCE = 0.95


@dataclass(frozen=True)
class Interval:
    """A mean with its 95 % interval; `half_width` is None where one number says nothing about its spread."""

    mean: float
    half_width: float | None
    count: int

    @property
    def differs_from_zero(self) -> bool:
        """Whether 0 lies outside."""
        return self.half_width is not None and abs(self.mean) > self.half_width


def interval(values: Sequence[float]) -> Interval:
    """Return the mean of at least one value and its t-interval.

    >>> print(f"{interval([1.0, 2.0, 3.0]).half_width:.4f}")
    2.4841
    """
    count = len(values)
    mean = math.fsum(values) / count
    if count == 1:
        return Interval(mean, None, 1)
    variance = math.fsum((value - mean) ** 2 for value in values) / (count - 1)
    return Interval(mean, t_quantile(CONFIDENCE, count - 1) * math.sqrt(variance / count), count)


def t_probability(t: float, degrees: int) -> float:
    """Return P(|T| < t) of Student's distribution: the finite series of Abramowitz & Stegun, 26.7.3 and 26.7.4.

    >>> t_probability(1.0, 1)  # a Cauchy variable lies in its quartiles half of the time
    0.5
    """
    angle = math.atan2(t, math.sqrt(degrees))
    sine, cosine = math.sin(angle), math.cos(angle)
    term = total = cosine if degrees % 2 else 1.0
    for number in range(3 if degrees % 2 else 2, degrees - 1, 2):
        term *= (number - 1) / number * cosine**2
        total += term
    if degrees == 1:
        return 2 / math.pi * angle
    return 2 / math.pi * (angle + sine * total) if degrees % 2 else sine * total


def t_quantile(probability: float, degrees: int) -> float:
    """Return the t with P(|T| < t) = probability, by halving."""
    low, high = 0.0, 1.0
    while t_probability(high, degrees) < probability:
        high *= 2
    for _ in range(80):  # more halvings than a float has bits
        middle = (low + high) / 2
        low, high = (middle, high) if t_probability(middle, degrees) < probability else (low, middle)
    return (low + high) / 2


def time_to_reach(times: Sequence[float], values: Sequence[float], target: float) -> float | None:
    """Return when a falling curve first comes down to a target, between two points by a straight line; None if never.

    times: in seconds, rising.

    >>> time_to_reach([10.0, 20.0, 30.0], [0.9, 0.5, 0.4], target=0.6)
    17.5
    """
    for index, value in enumerate(values):
        if value <= target:
            if index == 0:
                return times[0]
            share = (values[index - 1] - target) / (values[index - 1] - value)
            return times[index - 1] + share * (times[index] - times[index - 1])
    return None
