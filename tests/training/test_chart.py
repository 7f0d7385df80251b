import math
import re
from xml.etree import ElementTree

import pytest

from t2im.training.chart import (
    BOTTOM,
    HEIGHT,
    LEFT,
    MOST_POINTS,
    RIGHT,
    TOP,
    WIDTH,
    Line,
    Mark,
    chart,
    smoothed,
    thinned,
)


def corners(svg, line=0):
    lines = [element for element in ElementTree.fromstring(svg).iter("polyline")]
    return [tuple(map(float, pair.split(","))) for pair in lines[line].get("points").split()]


def test_points_lie_where_their_values_say():
    points = corners(chart("t", [Line("loss", [(0, 1.0), (50, 3.0), (100, 2.0)])]))
    assert [x for x, _ in points] == pytest.approx([LEFT, (LEFT + WIDTH - RIGHT) / 2, WIDTH - RIGHT], abs=0.1)
    low, high, middle = (y for _, y in points)
    assert high < middle < low and middle == pytest.approx((low + high) / 2, abs=0.1)


def test_a_logarithmic_axis_gives_every_decade_the_same_room():
    points = corners(chart("t", [Line("norm", [(0, 0.1), (1, 1.0), (2, 10.0), (3, 0.0), (4, -1.0)])], log=True))
    (_, a), (_, b), (_, c) = points
    assert a - b == pytest.approx(b - c, abs=0.2)


@pytest.mark.parametrize(
    "values", [[1.0], [0.0, 0.0], [5.0] * 4, [1e-12, 1e12], [-1.0, 1.0], [math.nan, 1.0], [math.inf, 2.0, 3.0], []]
)
@pytest.mark.parametrize("log", [False, True])
def test_any_numbers_can_be_drawn(values, log):
    svg = chart("t", [Line("x", list(enumerate(values)))], [Mark("m", 0.5), Mark("zero", 0.0)], log=log)
    for x, y in corners(svg):
        assert LEFT - 0.1 <= x <= WIDTH - RIGHT + 0.1 and TOP - 0.1 <= y <= HEIGHT - BOTTOM + 0.1
    assert "nan" not in svg and "inf" not in svg


def test_a_wild_start_does_not_press_the_rest_into_one_line():
    points = corners(chart("t", [Line("loss", [(0, 1000.0), *((step, 1 + step % 2) for step in range(1, 100))])]))
    heights = [y for _, y in points[1:]]
    assert max(heights) - min(heights) > 0.2 * HEIGHT


def test_an_axis_from_zero_makes_small_changes_look_small():
    line = [Line("samples/s", [(0, 100.0), (1, 101.0)])]
    spans = []
    for from_zero in (False, True):
        (_, a), (_, b) = corners(chart("t", line, from_zero=from_zero))
        spans.append(abs(a - b))
    assert spans[1] < 0.05 * spans[0]


def test_values_under_the_pointer_are_those_of_the_nearest_points():
    loss, heldout = [(0, 0.5), (10, 0.25), (20, 0.125)], [(1, 7.0), (19, 8.0)]
    svg = chart("t", [Line("loss", loss), Line("held-out", heldout, 1), Line("raw", loss, 2, faint=True)])
    columns = [
        [text.text for text in group.iter("text")]
        for group in ElementTree.fromstring(svg).iter("g")
        if group.get("class") == "at"
    ]
    assert [column[0] for column in columns] == [f"step {step}" for step in (0, 1, 10, 19, 20)]
    assert columns[2] == ["step 10", "loss 0.25", "held-out 7"] and columns[4][1:] == ["loss 0.125", "held-out 8"]


def test_names_are_escaped():
    svg = chart("<b>&", [Line("<script>alert(1)</script>", [(0, 1.0)])])
    assert "<script" not in svg and "&lt;script&gt;" in svg


def test_a_moving_average_is_the_mean_of_its_neighbours():
    points = [(step, float(step % 2)) for step in range(100)]
    smooth = smoothed(points, share=0.1)
    assert [step for step, _ in smooth] == list(range(100))
    assert smooth[50][1] == pytest.approx(sum(value for _, value in points[45:56]) / 11)
    assert smooth[0][1] == pytest.approx(sum(value for _, value in points[:6]) / 6)
    assert smoothed([]) == [] and smoothed([(3, 2.0)]) == [(3, 2.0)]


def test_a_long_run_is_thinned_by_means():
    points = [(step, float(step)) for step in range(10_001)]
    thin = thinned(points)
    assert len(thin) <= MOST_POINTS and thin[0] == (12.5, 12.5)
    assert thinned(points[:MOST_POINTS]) == points[:MOST_POINTS]
    assert len(re.findall('class="at"', chart("t", [Line("x", points)]))) == 64
