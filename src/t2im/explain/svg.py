"""How is a drawing written down that is sharp at every size and readable by day and by night?

As SVG. Every element carries its colours by day, so any viewer shows it; and a class, by which a style sheet gives it its
colours by night wherever the reader has asked for a dark page. The background is part of the drawing, so it can stand
on any page.
"""

from collections.abc import Mapping, Sequence
from xml.etree import ElementTree

FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Helvetica Neue', 'DejaVu Sans', sans-serif"

Styles = Mapping[str, Mapping[str, str]]
"""The SVG attributes of each class: colours, lines and letters."""


class Drawing:
    """An SVG under construction; lengths are in pixels at its natural size, y grows downwards."""

    def __init__(self, width: float, height: float, title: str, *, light: Styles, dark: Styles) -> None:
        """Begin with a page of the class "page".

        title: what a screen reader says. light, dark: the SVG attributes of each class, by day and by night.
        """
        size = f"{width:g}", f"{height:g}"
        self._svg = ElementTree.Element(
            "svg",
            {
                "xmlns": "http://www.w3.org/2000/svg",
                "width": size[0],
                "height": size[1],
                "viewBox": f"0 0 {size[0]} {size[1]}",
                "role": "img",
                "class": "t2im",
                "font-family": FONT,
            },
        )
        ElementTree.SubElement(self._svg, "title").text = title
        night = "".join(_rule(style, attributes) for style, attributes in dark.items())
        ElementTree.SubElement(self._svg, "style").text = f"\n@media (prefers-color-scheme: dark) {{\n{night}}}\n"
        self._light = light
        self.box(0, 0, width, height, "page", radius=14)

    def box(self, x: float, y: float, width: float, height: float, style: str, *, radius: float = 7) -> None:
        """Draw a rectangle with round corners."""
        sides = {"x": x, "y": y, "width": width, "height": height, "rx": radius}
        self._add("rect", style, {name: f"{value:g}" for name, value in sides.items()})

    def text(self, x: float, y: float, text: str, style: str, *, anchor: str = "start") -> None:
        """Write one line; y is its base line, anchor "start", "middle" or "end" says what x is."""
        place = {"x": f"{x:g}", "y": f"{y:g}"}
        self._add("text", style, place | ({} if anchor == "start" else {"text-anchor": anchor})).text = text

    def line(self, points: Sequence[tuple[float, float]], style: str, *, arrow: str | None = None) -> None:
        """Draw straight lines through points; arrow: the class of a head at the last one."""
        path = "M" + " L".join(f"{x:g} {y:g}" for x, y in points)
        self._add("path", style, {"d": path})
        if arrow is not None:
            (x0, y0), (x, y) = points[-2:]
            along = max(abs(x - x0), abs(y - y0)) or 1
            dx, dy = (x - x0) / along, (y - y0) / along  # lines are horizontal or vertical, so this has length 1
            left, right = (x - 7 * dx - 4 * dy, y - 7 * dy + 4 * dx), (x - 7 * dx + 4 * dy, y - 7 * dy - 4 * dx)
            corners = " ".join(f"{a:g},{b:g}" for a, b in ((x, y), left, right))
            self._add("polygon", arrow, {"points": corners})

    def __str__(self) -> str:
        """Return the file's text."""
        ElementTree.indent(self._svg, " ")
        return ElementTree.tostring(self._svg, encoding="unicode") + "\n"

    def _add(self, tag: str, style: str, attributes: dict[str, str]) -> ElementTree.Element:
        return ElementTree.SubElement(self._svg, tag, {"class": style, **self._light[style], **attributes})


def _rule(style: str, attributes: Mapping[str, str]) -> str:
    """Return a rule of CSS with the colours, which is all that changes at night."""
    colours = "; ".join(f"{name}: {attributes[name]}" for name in ("fill", "stroke") if name in attributes)
    # Only below a drawing of ours: inside an HTML page, such as a notebook, a style sheet holds for the whole page.
    return f".t2im .{style} {{{colours}}}\n"
