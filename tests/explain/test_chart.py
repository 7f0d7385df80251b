import math
from xml.etree import ElementTree

import pytest

from t2im.explain.chart import Axis, Chart, linear_axis, log_axis
from t2im.explain.svg import Drawing

SVG = "{http://www.w3.org/2000/svg}"
STYLES = {style: {} for style in ("page", "band", "grid", "name", "note", "curve")}


@pytest.mark.parametrize(
    ("values", "ticks"),
    [
        ([0, 1], (0, 0.2, 0.4, 0.6, 0.8, 1)),
        ([0.2, 3.9], (0, 1, 2, 3, 4)),
        ([-4.9, 6.8], (-5, 0, 5, 10)),
        ([0, 997], (0, 200, 400, 600, 800, 1000)),
        ([7, math.inf, 7, math.nan], (7.0, 7.2)),
    ],
)
def test_ticks_are_few_and_round_and_hold_all_values(values, ticks):
    axis = linear_axis(values)
    assert axis.ticks == pytest.approx(ticks)
    assert (axis.low, axis.high) == pytest.approx((ticks[0], ticks[-1]))


@pytest.mark.parametrize(
    ("values", "ticks"),
    [
        ([0.2, 3.9], (0.1, 1, 10)),
        ([1, 1], (1, 10)),
        ([0.0, -1.0, 5.0, math.inf], (1, 10)),
        ([1e-4, 1e6], (1e-4, 1e-2, 1, 1e2, 1e4, 1e6)),
    ],
)
def test_logarithmic_ticks_are_powers_of_ten(values, ticks):
    assert log_axis(values).ticks == pytest.approx(ticks)


def test_places_are_shares_of_the_range():
    assert Axis(2, 4, ()).along(3) == 0.5
    assert Axis(0.01, 100, (), logarithmic=True).along(1) == pytest.approx(0.5)
    assert Axis(0.01, 100, (), logarithmic=True).along(0) is None
    assert Axis(0, 1, ()).along(math.inf) is None


@pytest.mark.parametrize(("tick", "label"), [(1e-3, "0.001"), (1e-4, "10⁻⁴"), (1.0, "1"), (1e6, "10⁶")])
def test_powers_are_written_as_powers_where_digits_would_be_counted(tick, label):
    assert Axis(1e-4, 1e6, (), logarithmic=True).label(tick) == label


def chart():
    drawing = Drawing(200, 200, "chart", light=STYLES, dark=STYLES)
    return drawing, Chart(drawing, 0, 0, 200, 200, Axis(0, 4, (0, 4)), Axis(0, 1, (0, 1)))


def test_a_curve_is_interrupted_where_there_is_nothing_to_draw():
    drawing, place = chart()
    place.curve([0, 1, 2, 3, 4], [0.0, 0.5, math.inf, 0.5, 1.0], "curve")
    paths = [path.get("d") for path in ElementTree.fromstring(str(drawing)).iter(f"{SVG}path")]
    assert len(paths) == 2
    assert all(path.count(" L") == 1 for path in paths)


def test_a_curve_and_the_ticks_stand_at_the_same_places():
    drawing, place = chart()
    place.frame("title", "note", "x")
    place.curve([0, 4], [0.0, 1.0], "curve")
    *grid, curve = [path.get("d") for path in ElementTree.fromstring(str(drawing)).iter(f"{SVG}path")]
    start, end = curve[1:].split(" L")
    assert grid[0][1:].split(" L")[0] == start
    assert grid[1][1:].split(" L")[1] == end
