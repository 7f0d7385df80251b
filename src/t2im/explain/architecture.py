"""What does the UNet look like? A drawing of its U, in which every number is read from the model that is drawn.

The way down is on the left, the way up on the right, and a band for each resolution lies across both. Within a band
every skip connection is a level line, because `anatomy` pairs what the pile of skips pairs.
"""

from dataclasses import dataclass
from itertools import pairwise

from t2im.explain.anatomy import Anatomy, Block, Level, Part, anatomy
from t2im.explain.svg import Drawing
from t2im.nn.unet import ConditionalUNet

COLUMN, GAP = 392, 200  # widths of the way down or up, and between them
BUS = 15  # from a column to the lines that tell it time and text
LEFT = 158
RIGHT = LEFT + COLUMN + GAP
DOWN, UP = LEFT + COLUMN / 2, RIGHT + COLUMN / 2  # where the picture goes down and up
WIDTH = RIGHT + COLUMN + BUS + 29
PART, BETWEEN, CAPTION, PADDING = 46, 16, 25, 9  # heights
SOURCES, ENDS, HEADER = 78, 138, 198  # tops of: time and text, latents and prediction, the first band
SLIT = 6  # between parts of a layer
MID_PART = 176
SIZE_PART = 121  # what may stand left of the timestep
STYLES = {"time": "time", "text": "text", "nothing": "plain"}
LIGHT, DARK = (
    {
        "page": {"fill": page},
        "band": {"fill": band},
        "frame": {"fill": "none", "stroke": edge},
        "plain": {"fill": page, "stroke": edge},
        "time": {"fill": time_fill, "stroke": time},
        "text": {"fill": text_fill, "stroke": text},
        "heading": {"fill": ink, "font-size": "22", "font-weight": "700"},
        "total": {"fill": ink, "font-size": "16", "font-weight": "600"},
        "size": {"fill": ink, "font-size": "16", "font-weight": "700"},
        "name": {"fill": ink, "font-size": "13", "font-weight": "600"},
        **{style: {"fill": muted, "font-size": "12"} for style in ("detail", "count", "block", "note")},
        "flow": {"fill": "none", "stroke": ink, "stroke-width": "1.5"},
        "flow-head": {"fill": ink},
        "skip": {"fill": "none", "stroke": muted, "stroke-width": "1.5", "stroke-dasharray": "5 4"},
        "skip-head": {"fill": muted},
        "time-line": {"fill": "none", "stroke": time, "stroke-width": "1.5"},
        "time-head": {"fill": time},
        "text-line": {"fill": "none", "stroke": text, "stroke-width": "1.5"},
        "text-head": {"fill": text},
    }
    for page, band, edge, ink, muted, time, time_fill, text, text_fill in (
        ("#ffffff", "#f3f5f8", "#c2cad6", "#1c2330", "#586274", "#c47d00", "#fff3dc", "#2f6bd8", "#e6effe"),
        ("#0f141b", "#1a212b", "#465266", "#e9edf3", "#a3aebd", "#e3a43c", "#382b12", "#74a2f5", "#172a4a"),
    )
)


Point = tuple[float, float]


@dataclass(frozen=True)
class Band:
    """Where a level lies."""

    top: float
    rows: tuple[float, ...]
    """The top of each row."""
    frames_end: float
    bottom: float

    @property
    def down_frame(self) -> float:
        """The top of the frame around the down block, which begins below what brings the picture here."""
        return self.rows[1] - CAPTION

    @property
    def up_frame(self) -> float:
        """The top of the frame around the up block."""
        return self.rows[0] - CAPTION


@dataclass(frozen=True)
class Tap:
    """A line's branch to a part that is told something."""

    line: float
    """The x of the line that it comes from."""
    points: tuple[Point, ...]


def architecture_svg(unet: ConditionalUNet) -> str:
    """Draw a UNet as an SVG: levels, blocks, channels, resolutions, parameters, and where time and text enter."""
    model = anatomy(unet)
    bands = _bands(model)
    drawing = Drawing(
        WIDTH,
        bands[-1].bottom + 14,
        f"A UNet of {model.parameters:,} parameters with {len(model.levels)} levels. On the left the way down, on the "
        "right the way up, skip connections between them; timestep and text enter from above.",
        light=LIGHT,
        dark=DARK,
    )
    taps: list[Tap] = []
    for level, band in zip(model.levels, bands, strict=True):
        taps += _draw_level(drawing, level, band)
    for level, (band, deeper) in zip(model.levels, pairwise(bands), strict=False):  # the coarsest is no passage
        if level.upsampler is not None:
            taps += _draw_passage(drawing, level.upsampler, band, deeper)
    taps += _draw_middle(drawing, model, bands[-1])
    _draw_ends(drawing, model, bands[0])
    _draw_sources(drawing, model, taps)
    return str(drawing)


def _bands(model: Anatomy) -> list[Band]:
    bands: list[Band] = []
    top: float = HEADER
    for level in model.levels:
        first = top + 12 + CAPTION + (0 if bands else PART + BETWEEN)  # the first band also holds the way out
        second = first + PART + BETWEEN + CAPTION
        rows = (first, *(second + index * (PART + BETWEEN) for index in range(len(level.rows) - 1)))
        frames_end = rows[-1] + PART + PADDING
        below = BETWEEN + PART if level.upsampler else 2 * BETWEEN + PART + CAPTION  # an upsampler, or the middle
        bands.append(Band(top, rows, frames_end, frames_end + below + 12))
        top = bands[-1].bottom + 10
    return bands


def _draw_level(drawing: Drawing, level: Level, band: Band) -> list[Tap]:
    drawing.box(14, band.top, WIDTH - 28, band.bottom - band.top, "band", radius=10)
    drawing.text(30, band.rows[0] + 20, level.size, "size")
    drawing.text(30, band.rows[0] + 39, f"{level.channels} channels", "note")
    _draw_frame(drawing, level.down, LEFT, COLUMN, band.down_frame, band.frames_end)
    _draw_frame(drawing, level.up, RIGHT, COLUMN, band.up_frame, band.frames_end)
    taps: list[Tap] = []
    for row, y in zip(level.rows, band.rows, strict=True):
        taps += _draw_layer(drawing, row.down, LEFT, y) + _draw_layer(drawing, row.up, RIGHT, y)
        middle = y + PART / 2
        drawing.line([(LEFT + COLUMN, middle), (RIGHT, middle)], "skip", arrow="skip-head")
        drawing.text((LEFT + COLUMN + RIGHT) / 2, middle - 7, f"{row.skip_channels} channels", "note", anchor="middle")
    _draw_flow(drawing, (DOWN, band.rows[0] + PART), (DOWN, band.down_frame))
    for above, below in pairwise(band.rows[1:]):
        _draw_flow(drawing, (DOWN, above + PART), (DOWN, below))
    for above, below in pairwise(band.rows):
        _draw_flow(drawing, (UP, below), (UP, above + PART))
    return taps


def _draw_passage(drawing: Drawing, upsampler: Part, band: Band, deeper: Band) -> list[Tap]:
    """Draw how the picture gets to the next level and back."""
    y = band.frames_end + BETWEEN
    _draw_flow(drawing, (DOWN, band.frames_end), (DOWN, deeper.rows[0]))
    _draw_flow(drawing, (UP, deeper.up_frame), (UP, y + PART))
    _draw_flow(drawing, (UP, y), (UP, band.frames_end))
    return _draw_layer(drawing, (upsampler,), RIGHT, y)


def _draw_middle(drawing: Drawing, model: Anatomy, band: Band) -> list[Tap]:
    y = band.frames_end + 2 * BETWEEN
    width = len(model.mid_parts) * (MID_PART + SLIT) - SLIT
    x = (LEFT + RIGHT + COLUMN - width) / 2
    drawing.box(x - PADDING, y - PADDING, width + 2 * PADDING, PART + PADDING + CAPTION, "frame", radius=10)
    _draw_caption(drawing, model.mid, x, width, y + PART + CAPTION - 9)
    for index, part in enumerate(model.mid_parts):
        _draw_part(drawing, part, x + index * (MID_PART + SLIT), y, MID_PART)
    _draw_flow(drawing, (DOWN, band.frames_end), (DOWN, y + 13), (x, y + 13))
    _draw_flow(drawing, (x + width, y + PART / 2), (UP, y + PART / 2), (UP, band.frames_end))

    def from_above(line: float, index: int) -> Tap:
        target, turn = x + index * (MID_PART + SLIT) + 50, y - BETWEEN - 2
        return Tap(line, ((line, turn), (target, turn), (target, y)))

    first = Tap(LEFT - BUS, ((LEFT - BUS, y + 33), (x, y + 33)))
    return [first, from_above(LEFT + COLUMN + BUS, 1), from_above(RIGHT - BUS, 2)]


def _draw_ends(drawing: Drawing, model: Anatomy, band: Band) -> None:
    size = model.levels[0].size
    for x, name, channels in zip((LEFT, RIGHT), ("noisy latents", "prediction"), model.latent_channels, strict=True):
        drawing.box(x, ENDS, COLUMN, PART, "plain", radius=PART / 2)
        drawing.text(x + COLUMN / 2, ENDS + 20, name, "name", anchor="middle")
        drawing.text(x + COLUMN / 2, ENDS + 37, f"{channels} × {size}", "detail", anchor="middle")
    out = band.up_frame - BETWEEN - PART
    _draw_layer(drawing, model.out, RIGHT, out)
    _draw_flow(drawing, (DOWN, ENDS + PART), (DOWN, band.rows[0]))
    _draw_flow(drawing, (UP, band.up_frame), (UP, out + PART))
    _draw_flow(drawing, (UP, out), (UP, ENDS + PART))


def _draw_sources(drawing: Drawing, model: Anatomy, taps: list[Tap]) -> None:
    """Draw title, time and text, and the lines from them to all parts that are told of them."""
    drawing.text(30, 42, "The denoiser", "heading")
    drawing.text(WIDTH - 30, 36, f"{model.parameters:,} parameters", "total", anchor="end")
    drawing.text(WIDTH - 30, 56, "the sum of all boxes", "note", anchor="end")
    for x, style, name, detail, parts in (
        (LEFT, "time", "timestep", f"as {model.waves} sines and cosines", model.time),
        (RIGHT, "text", "prompt", f"hidden states, {model.text_channels} wide", model.text),
    ):
        width = (COLUMN + SLIT) / (1 + len(parts)) - SLIT
        drawing.box(x, SOURCES, width, PART, style)
        drawing.text(x + 10, SOURCES + 19, name, "name")
        drawing.text(x + 10, SOURCES + 37, detail, "detail")
        for index, part in enumerate(parts, start=1):
            _draw_part(drawing, part, x + index * (width + SLIT), SOURCES, width, style)
    if model.size is not None:
        _draw_part(drawing, model.size, LEFT - BUS - SIZE_PART - 8, SOURCES, SIZE_PART, "time")
        drawing.line([(LEFT - BUS - 8, SOURCES + 36), (LEFT, SOURCES + 36)], "time-line", arrow="time-head")
    above = SOURCES - 10  # round whatever stands beside the prompt
    for style, x, start in (
        ("time", LEFT - BUS, [(LEFT, SOURCES + 23)]),
        ("time", RIGHT - BUS, [(LEFT + COLUMN, SOURCES + 14)]),
        ("text", LEFT + COLUMN + BUS, [(RIGHT, SOURCES + 32)]),
        ("text", RIGHT + COLUMN + BUS, [(RIGHT + 60, SOURCES), (RIGHT + 60, above)]),
    ):
        branches = [tap.points for tap in taps if tap.line == x]
        if branches:
            end = max(points[0][1] for points in branches)
            drawing.line([*start, (x, start[-1][1]), (x, end)], f"{style}-line")
        for points in branches:
            drawing.line(points, f"{style}-line", arrow=f"{style}-head")


def _draw_layer(drawing: Drawing, parts: tuple[Part, ...], x: float, y: float) -> list[Tap]:
    """Draw parts side by side over the width of a column; return where they are told time and text."""
    width = (COLUMN + SLIT) / len(parts) - SLIT
    for index, part in enumerate(parts):
        _draw_part(drawing, part, x + index * (width + SLIT), y, width)
    taps: list[Tap] = []
    if parts[0].hears == "time":
        taps.append(Tap(x - BUS, ((x - BUS, y + 13), (x, y + 13))))
    if parts[-1].hears == "text":
        edge = x + COLUMN
        taps.append(Tap(edge + BUS, ((edge + BUS, y + 13), (edge, y + 13))))
    return taps


def _draw_part(drawing: Drawing, part: Part, x: float, y: float, width: float, style: str | None = None) -> None:
    drawing.box(x, y, width, PART, style or STYLES[part.hears])
    drawing.text(x + 10, y + 19, part.kind, "name")
    drawing.text(x + 10, y + 37, part.detail, "detail")
    drawing.text(x + width - 10, y + 37, f"{part.parameters:,}", "count", anchor="end")


def _draw_frame(drawing: Drawing, block: Block, x: float, width: float, top: float, end: float) -> None:
    drawing.box(x - PADDING, top, width + 2 * PADDING, end - top, "frame", radius=10)
    _draw_caption(drawing, block, x, width, top + CAPTION - 8)


def _draw_caption(drawing: Drawing, block: Block, x: float, width: float, y: float) -> None:
    drawing.text(x, y, f"{block.path} · {block.kind}", "note")
    drawing.text(x + width, y, f"{block.parameters:,}", "block", anchor="end")


def _draw_flow(drawing: Drawing, *points: Point) -> None:
    drawing.line(points, "flow", arrow="flow-head")
