"""How is a curve drawn so that it can be read in any browser, by day and by night, without a script?

As an SVG inside the page. Colours are the page's, so they follow its day and night; the values under the pointer are
drawn all along and merely hidden, so that a style sheet alone can show them.
"""

import math
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from xml.etree import ElementTree

from t2im.training.history import Point

WIDTH, HEIGHT = 560, 260
LEFT, RIGHT, TOP, BOTTOM = 58, 26, 14, 30
MOST_POINTS = 400
"""Of a line; more could not be told apart."""
FEW = 20
"""Points of which all are shown, however far apart."""
COLUMNS = 64
"""Places along the x axis where values can be read."""

STYLE = """
.chart { width: 100%; height: auto; display: block; }
.chart text { font: 11px system-ui, sans-serif; fill: var(--soft); }
.chart .grid { stroke: var(--rule); stroke-width: 1; }
.chart .line { fill: none; stroke-width: 2; stroke-linejoin: round; }
.chart .faint { stroke-width: 1; opacity: .35; }
.chart .mark { stroke: var(--soft); stroke-width: 1; stroke-dasharray: 5 4; fill: none; }
.chart .at { opacity: 0; }
.chart .at:hover { opacity: 1; }
.chart .at rect { fill: transparent; }
.chart .at line { stroke: var(--soft); stroke-width: 1; }
.chart .at text { fill: var(--ink); paint-order: stroke; stroke: var(--page); stroke-width: 4px; }
""" + "".join(f".chart .c{colour} {{ stroke: var(--c{colour}); }}\n" for colour in range(5))


@dataclass(frozen=True)
class Line:
    """One curve of a chart; colour: 0 to 4; faint: in the background, and left out of the values under the pointer."""

    name: str
    points: Sequence[Point]
    colour: int = 0
    faint: bool = False


@dataclass(frozen=True)
class Mark:
    """A horizontal line at a value that means something."""

    name: str
    value: float


def chart(
    title: str, lines: Sequence[Line], marks: Sequence[Mark] = (), *, log: bool = False, from_zero: bool = False
) -> str:
    """Return the SVG of curves over the steps.

    log: the y axis is logarithmic, and what is not positive is left out. from_zero: it begins at 0, so that small changes
    of a large number look small.
    """
    lines = [Line(line.name, thinned(_drawable(line.points, log)), line.colour, line.faint) for line in lines]
    marks = [mark for mark in marks if mark.value > 0 or not log]
    svg = ElementTree.Element("svg", {"class": "chart", "viewBox": f"0 0 {WIDTH} {HEIGHT}", "role": "img"})
    ElementTree.SubElement(svg, "title").text = title
    frame = _Frame.around(lines, [*marks, *[Mark("", 0.0)] * from_zero], log)
    for value in frame.ticks():
        y = frame.y(value)
        _line(svg, (LEFT, y), (WIDTH - RIGHT, y), "grid")
        _text(svg, LEFT - 6, y + 4, f"{value:g}", "end")
    for step in _ticks(frame.first, frame.last, 5):
        _text(svg, frame.x(step), HEIGHT - 10, f"{step:,.0f}", "middle")
    for mark in marks:
        if frame.low <= frame.scale(mark.value) <= frame.high:
            _line(svg, (LEFT, frame.y(mark.value)), (WIDTH - RIGHT, frame.y(mark.value)), "mark")
    for line in lines:
        corners = " ".join(f"{frame.x(step):.1f},{frame.y(value):.1f}" for step, value in line.points)
        style = f"line c{line.colour}" + " faint" * line.faint
        ElementTree.SubElement(svg, "polyline", {"class": style, "points": corners})
    _columns(svg, frame, [line for line in lines if not line.faint])
    return ElementTree.tostring(svg, encoding="unicode")


def smoothed(points: Sequence[Point], share: float = 0.05) -> list[Point]:
    """Return the moving average over a share of the points, centred, and cut off at both ends."""
    sums = [0.0]
    for _, value in points:
        sums.append(sums[-1] + value)
    reach = int(len(points) * share / 2)
    smooth = []
    for index, (step, _) in enumerate(points):
        first, end = max(0, index - reach), min(len(points), index + reach + 1)
        smooth.append((step, (sums[end] - sums[first]) / (end - first)))
    return smooth


def thinned(points: Sequence[Point], most: int = MOST_POINTS) -> list[Point]:
    """Return at most so many points: the means of equally many neighbours."""
    size = math.ceil(len(points) / most) or 1
    groups = [points[start : start + size] for start in range(0, len(points), size)]
    return [
        (sum(step for step, _ in group) / len(group), sum(value for _, value in group) / len(group)) for group in groups
    ]


@dataclass(frozen=True)
class _Frame:
    """Where values lie on the paper."""

    first: float
    last: float
    low: float
    high: float
    log: bool

    @classmethod
    def around(cls, lines: Sequence[Line], marks: Sequence[Mark], log: bool) -> "_Frame":
        steps = [step for line in lines for step, _ in line.points] or [0.0]
        values = sorted(value for line in lines if not line.faint for _, value in line.points) or [1.0]
        low, high = values[0], values[-1]
        if not log and len(values) >= FEW:  # a wild start would press all else into one line at the bottom
            usual = values[int(0.95 * (len(values) - 1))]
            high = min(high, 2 * usual - low) if usual > low else high
        near = [mark.value for mark in marks if mark.value <= 1.5 * high]
        low, high = min([low, *near]), max([high, *near])
        if log:
            low, high = math.log10(low), math.log10(high)
        room = 0.06 * (high - low) or 0.1 * abs(high) or 0.1
        first, last = min(steps), max(steps)
        return cls(first, last if last > first else first + 1, low - room, high + room, log)

    def scale(self, value: float) -> float:
        return math.log10(value) if self.log else value

    def x(self, step: float) -> float:
        return LEFT + (step - self.first) / (self.last - self.first) * (WIDTH - LEFT - RIGHT)

    def y(self, value: float) -> float:
        share = (self.scale(value) - self.low) / (self.high - self.low)
        return HEIGHT - BOTTOM - min(1.0, max(0.0, share)) * (HEIGHT - TOP - BOTTOM)

    def ticks(self) -> list[float]:
        if not self.log or self.high - self.low < 1:
            low, high = (10**self.low, 10**self.high) if self.log else (self.low, self.high)
            return _ticks(low, high, 5)
        factors = (1, 2, 5) if self.high - self.low < 2 else (1,)
        powers = range(math.floor(self.low), math.ceil(self.high) + 1)
        round_numbers = (factor * 10.0**power for power in powers for factor in factors)
        return [number for number in round_numbers if self.low <= math.log10(number) <= self.high]


def _ticks(low: float, high: float, count: int) -> list[float]:
    """Return round numbers in a range: multiples of 1, 2 or 5 times a power of ten."""
    rough = (high - low) / count
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= rough)
    return [round(index * step, 12) for index in range(math.ceil(low / step), math.floor(high / step) + 1)]


def _drawable(points: Sequence[Point], log: bool) -> list[Point]:
    return [(step, value) for step, value in points if math.isfinite(value) and (value > 0 or not log)]


def _columns(svg: ElementTree.Element, frame: _Frame, lines: Sequence[Line]) -> None:
    """Draw the values at places along the x axis, each hidden until the pointer is there."""
    steps = sorted({step for line in lines for step, _ in line.points})
    if not steps:
        return
    count = min(COLUMNS, len(steps))
    steps = [steps[round(index * (len(steps) - 1) / max(1, count - 1))] for index in range(count)]
    edges = [LEFT, *((frame.x(a) + frame.x(b)) / 2 for a, b in pairwise(steps)), WIDTH - RIGHT]
    for step, (left, right) in zip(steps, pairwise(edges), strict=True):
        column = ElementTree.SubElement(svg, "g", {"class": "at"})
        box = {"x": f"{left:.1f}", "y": str(TOP), "width": f"{right - left:.1f}", "height": str(HEIGHT - TOP - BOTTOM)}
        ElementTree.SubElement(column, "rect", box)
        _line(column, (frame.x(step), TOP), (frame.x(step), HEIGHT - BOTTOM), None)
        told = [f"step {step:,.0f}"]
        told += [f"{line.name} {_nearest(line.points, step):.4g}" for line in lines if line.points]
        leftward = frame.x(step) > WIDTH / 2
        for row, text in enumerate(told):
            place = frame.x(step) + (-8 if leftward else 8)
            _text(column, place, TOP + 14 + 14 * row, text, "end" if leftward else "start")


def _nearest(points: Sequence[Point], step: float) -> float:
    after = bisect_left(points, (step, -math.inf))
    return min(points[max(0, after - 1) : after + 1], key=lambda point: abs(point[0] - step))[1]


def _line(parent: ElementTree.Element, start: Point, end: Point, style: str | None) -> None:
    ends = {"x1": start[0], "y1": start[1], "x2": end[0], "y2": end[1]}
    place = {name: f"{value:.1f}" for name, value in ends.items()}
    ElementTree.SubElement(parent, "line", place | ({"class": style} if style else {}))


def _text(parent: ElementTree.Element, x: float, y: float, text: str, anchor: str) -> None:
    place = {"x": f"{x:.1f}", "y": f"{y:.1f}", "text-anchor": anchor}
    ElementTree.SubElement(parent, "text", place).text = text
