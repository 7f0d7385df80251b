"""How do numbers become curves that one can read?

A chart is a box with two axes. An axis knows its range, where to put its few round ticks, and how far along it a value
lies; whatever is not finite, or cannot be drawn on a logarithmic axis, is left out of a curve.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from t2im.explain.svg import Drawing

HEADER, LABELS, MARGIN = 66, 52, 26
"""Heights of what stands above and below the plot, and the room to its right."""
TICKS = 62
"""Room for the labels of the vertical axis."""


@dataclass(frozen=True)
class Axis:
    """A range of values and the ticks in it."""

    low: float
    high: float
    ticks: tuple[float, ...]
    logarithmic: bool = False

    def along(self, value: float) -> float | None:
        """Return where a value lies, from 0 at the low end to 1 at the high end; None where it cannot be drawn."""
        if not math.isfinite(value) or (self.logarithmic and value <= 0):
            return None
        low, high, value = (math.log(x) if self.logarithmic else x for x in (self.low, self.high, value))
        return (value - low) / (high - low)

    def label(self, tick: float) -> str:
        """Write a tick: small powers of ten plainly, others as powers."""
        exponent = round(math.log10(tick)) if self.logarithmic else 0
        if abs(exponent) <= 3:
            return f"{tick:g}".replace("-", "−")
        return "10" + str(exponent).translate(str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"))


def linear_axis(values: Sequence[float]) -> Axis:
    """Return an axis over all finite values, widened to its round ticks.

    >>> linear_axis([0.2, 3.9]).ticks
    (0.0, 1.0, 2.0, 3.0, 4.0)
    """
    finite = [value for value in values if math.isfinite(value)]
    span = (max(finite) - min(finite)) or 1.0
    power = 10.0 ** math.floor(math.log10(span / 4))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= span / 5)
    first, last = math.floor(min(finite) / step + 1e-9), math.ceil(max(finite) / step - 1e-9)
    ticks = tuple(round(index * step, 12) for index in range(first, max(last, first + 1) + 1))
    return Axis(ticks[0], ticks[-1], ticks)


def log_axis(values: Sequence[float]) -> Axis:
    """Return a logarithmic axis over all positive values, from one power of ten to another.

    >>> log_axis([0.2, 3.9]).ticks
    (0.1, 1.0, 10.0)
    """
    exponents = [math.log10(value) for value in values if math.isfinite(value) and value > 0]
    first, last = math.floor(min(exponents) + 1e-9), math.ceil(max(exponents) - 1e-9)
    last = max(last, first + 1)
    every = 1 + (last - first) // 6
    return Axis(10.0**first, 10.0**last, tuple(10.0**e for e in range(first, last + 1, every)), logarithmic=True)


@dataclass(frozen=True)
class Chart:
    """A place for curves on a drawing that has the classes "band", "grid", "name" and "note"."""

    drawing: Drawing
    left: float
    top: float
    width: float
    height: float
    x: Axis
    y: Axis

    def frame(self, title: str, note: str, x_label: str) -> None:
        """Draw the panel, its title, a line that says what is shown, the axes and the grid."""
        self.drawing.box(self.left, self.top, self.width, self.height, "band", radius=10)
        self.drawing.text(self.left + MARGIN, self.top + 28, title, "name")
        self.drawing.text(self.left + MARGIN, self.top + 48, note, "note")
        for tick in self.y.ticks:
            y = self._y(self.y.along(tick) or 0.0)
            self.drawing.line([(self._x(0), y), (self._x(1), y)], "grid")
            self.drawing.text(self._x(0) - 8, y + 4, self.y.label(tick), "note", anchor="end")
        for tick in self.x.ticks:
            x = self._x(self.x.along(tick) or 0.0)
            self.drawing.line([(x, self._y(0)), (x, self._y(0) + 5)], "grid")
            self.drawing.text(x, self._y(0) + 19, self.x.label(tick), "note", anchor="middle")
        self.drawing.text(self._x(0.5), self._y(0) + 38, x_label, "note", anchor="middle")

    def legend(self, *entries: tuple[str, str]) -> None:
        """Name curves at the right of the title, the last one outermost; an entry is a curve's class and its name."""
        x = self.left + self.width - MARGIN
        for style, name in reversed(entries):
            self.drawing.text(x, self.top + 28, name, "note", anchor="end")
            x -= 6.6 * len(name) + 8  # about the width of the letters
            self.drawing.line([(x - 22, self.top + 24), (x, self.top + 24)], style)
            x -= 36

    def curve(self, xs: Sequence[float], ys: Sequence[float], style: str) -> None:
        """Draw a curve, interrupted where there is nothing to draw."""
        run: list[tuple[float, float]] = []
        for x, y in [*zip(xs, ys, strict=True), (math.nan, math.nan)]:
            along, up = self.x.along(x), self.y.along(y)
            if along is not None and up is not None:
                run.append((self._x(along), self._y(up)))
            elif len(run) > 1:
                self.drawing.line(run, style)
                run = []

    def _x(self, along: float) -> float:
        return round(self.left + TICKS + along * (self.width - TICKS - MARGIN), 2)

    def _y(self, up: float) -> float:
        return round(self.top + HEADER + (1 - up) * (self.height - HEADER - LABELS), 2)
