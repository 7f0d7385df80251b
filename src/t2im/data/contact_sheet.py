"""Do the words fit the pictures? One look at a sheet of both tells more than any statistics.

The pictures are shown as training sees them: upright, on the background colour, cut to the square in their centre.
"""

import textwrap
from collections.abc import Sequence
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from t2im.data.captions import Example
from t2im.data.images import decode, square
from t2im.errors import UsageError
from t2im.files import atomic_path

COLUMNS, ROWS = 6, 4
SIDE, MARGIN = 160, 12  # pixels
LINES, LINE_HEIGHT, FONT_SIZE = 3, 15, 12
SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")
# Pillow's own font knows ASCII only. Where the system has one of these, other captions can be read as well.
FONTS = ("NotoSansCJK-Regular.ttc", "Arial Unicode.ttf", "msyh.ttc", "DejaVuSans.ttf", "LiberationSans-Regular.ttf")

Font = ImageFont.FreeTypeFont | ImageFont.ImageFont


def require_free(path: Path, folder: Path) -> Path:
    """Check that a sheet may be written: as a picture, outside the image folder, and over no other file.

    Raises: UsageError if not, before any work is done.
    """
    if path.suffix.lower() not in SUFFIXES:
        raise UsageError(f"{path}: the contact sheet is a picture; name it with {', '.join(SUFFIXES)}.")
    if path.resolve().is_relative_to(folder.resolve()):
        raise UsageError(f"{path}: is inside the image folder, where nothing is written. Name a place outside it.")
    if path.exists() or path.is_symlink():
        raise UsageError(f"{path}: exists already, and is not overwritten. Choose another --contact-sheet.")
    return path


def free_beside(path: Path, folder: Path) -> Path | None:
    """Return the path, or its first numbered neighbour that does not exist yet; None if it is in the image folder."""
    if path.resolve().is_relative_to(folder.resolve()):
        return None
    number = 2
    free = path
    while free.exists() or free.is_symlink():
        free = path.with_stem(f"{path.stem}-{number}")
        number += 1
    return free


def draw(examples: Sequence[Example], *, background: str = "white") -> Image.Image:
    """Draw up to 24 examples, spread evenly over all, each with its first caption.

    Raises: BadImage if one of their images cannot be read.
    """
    shown = min(len(examples), COLUMNS * ROWS)
    chosen = [examples[index * len(examples) // shown] for index in range(shown)]
    width, height = SIDE + MARGIN, SIDE + LINES * LINE_HEIGHT + MARGIN
    columns = max(1, min(shown, COLUMNS))
    sheet = Image.new("RGB", (columns * width + MARGIN, -(-shown // columns) * height + MARGIN), "white")
    pen = ImageDraw.Draw(sheet)
    font = _font()
    for index, example in enumerate(chosen):
        left, top = MARGIN + index % columns * width, MARGIN + index // columns * height
        picture = decode(example.path, background=background, at_least=2 * SIDE)
        sheet.paste(square(picture, SIDE), (left, top))
        pen.rectangle((left - 1, top - 1, left + SIDE, top + SIDE), outline="lightgrey")
        for line, words in enumerate(_wrapped(example.captions[0], pen, font)):
            pen.text((left, top + SIDE + 2 + line * LINE_HEIGHT), words, fill="black", font=font)
    return sheet


def write(examples: Sequence[Example], path: Path, *, background: str = "white") -> None:
    """Draw the sheet into a file that does not exist yet; see `require_free`."""
    with atomic_path(path) as temporary:
        draw(examples, background=background).save(temporary)


def _font() -> Font:
    for name in FONTS:
        try:
            return ImageFont.truetype(name, FONT_SIZE)
        except OSError:  # not installed
            continue
    return ImageFont.load_default(FONT_SIZE)


def _wrapped(caption: str, pen: ImageDraw.ImageDraw, font: Font) -> list[str]:
    """Break a caption into lines as wide as a picture; what does not fit is marked with "..."."""
    characters = SIDE // 2
    while characters > 1:
        lines = textwrap.wrap(caption, characters, max_lines=LINES, placeholder="...")
        if all(pen.textlength(line, font=font) <= SIDE for line in lines):
            return lines
        characters -= 1
    return []
