"""A drawing is XML whatever it says, and arrows point where lines go."""

from xml.etree import ElementTree

import pytest

from t2im.explain.svg import Drawing

SVG = "{http://www.w3.org/2000/svg}"
LIGHT, DARK = (
    {"page": {"fill": page}, "note": {"fill": ink, "font-size": "9"}, "flow": {"stroke": ink}, "head": {"fill": ink}}
    for page, ink in (("#fff", "#111"), ("#000", "#eee"))
)


@pytest.fixture
def drawing():
    return Drawing(30, 20.5, "a <page>", light=LIGHT, dark=DARK)


def test_what_is_written_comes_back_unchanged(drawing):
    drawing.text(1, 2, 'fish & "chips" < 5 €', "note")
    root = ElementTree.fromstring(str(drawing))
    assert root.find(f"{SVG}text").text == 'fish & "chips" < 5 €'
    assert root.find(f"{SVG}title").text == "a <page>"
    assert root.get("viewBox") == "0 0 30 20.5"


@pytest.mark.parametrize("end", [(9, 3), (1, 3), (5, 8), (5, 1)], ids=["right", "left", "down", "up"])
def test_an_arrow_ends_at_the_last_point_and_opens_backwards(drawing, end):
    start = (5, 3)
    drawing.line([(0, 0), start, end], "flow", arrow="head")
    tip, *corners = (
        tuple(map(float, corner.split(",")))
        for corner in ElementTree.fromstring(str(drawing)).find(f"{SVG}polygon").get("points").split()
    )
    assert tip == end
    back = [(a + b) / 2 - c for a, b, c in zip(*corners, tip, strict=True)]
    along = [a - b for a, b in zip(start, end, strict=True)]
    assert [(side > 0) - (side < 0) for side in back] == [(side > 0) - (side < 0) for side in along]


def test_a_viewer_without_style_sheets_sees_the_day_and_others_may_see_the_night(drawing):
    drawing.text(1, 2, "words", "note")
    root = ElementTree.fromstring(str(drawing))
    assert root.find(f"{SVG}rect").get("fill") == "#fff"
    assert root.find(f"{SVG}text").get("font-size") == "9"
    sheet = root.find(f"{SVG}style").text
    assert "prefers-color-scheme: dark" in sheet
    assert ".t2im .note {fill: #eee}" in sheet
