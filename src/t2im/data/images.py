"""How does a file become numbers? The second station: an image file becomes a tensor in [-1, 1], or a `BadImage`.

Image files are input from a stranger, too. What is refused, and why:

    not a regular file           a pipe or a device would hang or never end
    an unusual format            every decoder is attack surface; six formats hold nearly all training images
    more than 50 megapixels      judged by the header: 10 kB of PNG can unfold to gigabytes
    truncated, damaged           decoded to the last pixel here, not on day three of a training run
    tiny, or a thin strip        the square in its centre shows nothing

And what is easily got wrong: a phone's photo lies on its side until its EXIF orientation is obeyed; transparent pixels
have a colour (often black) that nobody was meant to see; 16-bit values are to be scaled, not clipped. Colour profiles
are not applied; of an animation the first frame is taken.
"""

import os
import stat
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image, ImageColor, UnidentifiedImageError
from torch import Tensor

from t2im.data.folder import printable
from t2im.errors import BadImage, UsageError, nearest
from t2im.shapes import Images

FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "TIFF", "GIF")
MAX_PIXELS = 50_000_000
MIN_SIDE = 8
MAX_ASPECT_RATIO = 16
FIX = ". Replace it, or leave it out with --skip-bad."

Orientation = Image.Transpose
UPRIGHT = {  # EXIF orientation -> what makes the image upright
    2: Orientation.FLIP_LEFT_RIGHT,
    3: Orientation.ROTATE_180,
    4: Orientation.FLIP_TOP_BOTTOM,
    5: Orientation.TRANSPOSE,
    6: Orientation.ROTATE_270,
    7: Orientation.TRANSVERSE,
    8: Orientation.ROTATE_90,
}
LYING = (5, 6, 7, 8)
EXIF_ORIENTATION = 0x0112


def decode(path: str | Path, *, background: str = "white", at_least: int | None = None) -> Image.Image:
    """Decode a whole image file to an upright 8-bit RGB image; transparent pixels show the background colour.

    at_least: pixels; a JPEG may come at a half, a quarter or an eighth of its size while no side gets shorter than
    this and both divide exactly; that saves most of the time of reading photographs.
    The result's `info` holds `size` (of the file's image, upright) and `animated` (whether there are more frames).

    Raises: BadImage, naming the file and the reason; UsageError if the background is no colour.
    """
    path, colour = Path(path), _colour(background)
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):
            raise ValueError("is no regular file")
        if not status.st_size:
            raise ValueError("is empty (0 bytes)")
        with Image.open(path, formats=FORMATS) as image:
            size = image.size
            _check_size(*size)
            if image.format == "PNG":
                _check_sums(path)
            animated = image.format in ("GIF", "PNG", "WEBP") and getattr(image, "is_animated", False)
            if at_least:
                factors = (f for f in (8, 4, 2) if not (size[0] % f or size[1] % f) and min(size) // f >= at_least)
                factor = next(factors, 1)
                image.draft(None, (size[0] // factor, size[1] // factor))
            image.load()
            orientation = _orientation(image)
            rgb = _rgb(image.transpose(UPRIGHT[orientation]) if orientation in UPRIGHT else image, colour)
    except Exception as error:  # damaged bytes make Pillow's parsers raise nearly anything: struct.error, KeyError, ...
        raise BadImage(f"{printable(path)}: {_reason(error)}{FIX}") from error
    rgb.info = {"size": size[::-1] if orientation in LYING else size, "animated": animated}
    return rgb


def read_image(path: str | Path, *, resolution: int, background: str = "white") -> Float[Tensor, "3 side side"]:
    """Read the centre square of an image, scaled to resolution x resolution pixels, RGB in [-1, 1].

    Raises: BadImage, naming the file and the reason; UsageError if the background is no colour.
    """
    image = square(decode(path, background=background, at_least=2 * resolution), resolution)
    return torch.from_numpy(np.array(image)).permute(2, 0, 1) / 127.5 - 1


def read_images(paths: Sequence[str | Path], *, resolution: int, background: str = "white") -> Images:
    """Read images into a batch (len(paths), 3, resolution, resolution) in [-1, 1], in the order of the paths.

    Raises: BadImage for the first path in order that cannot be read.
    """
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as threads:  # Pillow decodes outside Python's lock
        read = threads.map(lambda path: read_image(path, resolution=resolution, background=background), paths)
        return torch.stack(list(read))


def original_size(path: str | Path) -> tuple[int, int]:
    """Return (height, width) in pixels of a sound image file, upright; what its header says, without decoding it.

    Raises: BadImage, naming the file and the reason.
    """
    try:
        with Image.open(path, formats=FORMATS) as image:
            width, height = image.size  # upright in a TIFF already; a square's orientation does not matter
            lying = width != height and image.format != "TIFF" and _orientation(image) in LYING
    except Exception as error:
        raise BadImage(f"{printable(path)}: {_reason(error)}{FIX}") from error
    return (width, height) if lying else (height, width)


def centre_square(height: float, width: float) -> tuple[float, float, float]:
    """Return (side, top, left) of the square that is cut out of an image, in its own pixels."""
    side = min(height, width)
    return side, (height - side) / 2, (width - side) / 2


def square(image: Image.Image, side: int) -> Image.Image:
    """Cut out the centre square and scale it to side x side pixels, antialiased."""
    shorter, top, left = centre_square(image.height, image.width)
    if shorter < 2 * side:  # half a pixel would blur an image that is hardly reduced
        left, top = int(left), int(top)
    return image.resize((side, side), Image.Resampling.LANCZOS, box=(left, top, left + shorter, top + shorter))


def _check_size(width: int, height: int) -> None:
    if width * height > MAX_PIXELS:
        raise ValueError(f"has {width}x{height} pixels, more than {MAX_PIXELS // 10**6} million")
    if min(width, height) < MIN_SIDE:
        raise ValueError(f"has {width}x{height} pixels, less than {MIN_SIDE} on one side")
    if max(width, height) > MAX_ASPECT_RATIO * min(width, height):
        raise ValueError(f"has {width}x{height} pixels, a strip longer than {MAX_ASPECT_RATIO}:1")


def _check_sums(path: Path) -> None:
    """Check the checksums that PNG carries and that Pillow ignores when it decodes."""
    with Image.open(path, formats=("PNG",)) as image:
        image.verify()


def _orientation(image: Image.Image) -> int | None:
    """Return the EXIF orientation that is still to be obeyed (Pillow's TIFF reader has obeyed it already)."""
    try:
        orientation = image.getexif().get(EXIF_ORIENTATION)
    except Exception:  # damaged metadata says nothing about the pixels, which are whole
        return None
    return orientation if isinstance(orientation, int) else None


def _rgb(image: Image.Image, background: tuple[int, ...]) -> Image.Image:
    if image.mode == "F" or image.mode.startswith("I"):
        image = _eight_bits(image)
    if not image.has_transparency_data:
        return image.convert("RGB")
    canvas = Image.new("RGBA", image.size, background)
    canvas.alpha_composite(image.convert("RGBA"))
    return canvas.convert("RGB")


def _eight_bits(image: Image.Image) -> Image.Image:
    """Scale deep greyscale to 8 bits.

    16-bit integers are full scale. A 32-bit container does not say what it holds; the smallest usual range that holds
    its maximum is taken as full scale.
    """
    values = np.asarray(image)
    low, high = values.min(), values.max()
    if image.mode.startswith("I;16"):
        full_scale = 2**16 - 1
    elif not (np.isfinite(high) and low >= 0):
        raise ValueError("has negative or non-finite pixels")
    else:
        ranges = (1, 2**8 - 1, 2**16 - 1, 2**31 - 1) if image.mode == "F" else (2**8 - 1, 2**16 - 1, 2**31 - 1)
        full_scale = next((top for top in ranges if high <= top), int(high))
    grey = Image.fromarray(np.rint(values * (255 / full_scale)).astype(np.uint8))
    transparent = image.info.get("transparency")
    if isinstance(transparent, int):
        grey.putalpha(Image.fromarray(np.where(values == transparent, 0, 255).astype(np.uint8)))
    return grey


def _reason(error: Exception) -> str:
    """Say in one clause why decoding failed."""
    if isinstance(error, UnidentifiedImageError):
        return f"is no image of the formats {', '.join(FORMATS)}"
    if isinstance(error, FileNotFoundError):
        return "does not exist"
    if isinstance(error, Image.DecompressionBombError | Image.DecompressionBombWarning):
        return f"has more than {MAX_PIXELS // 10**6} million pixels"
    if isinstance(error, MemoryError):
        return "needs more memory than there is"
    text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return printable(" ".join(text.split()).rstrip(".")) or f"cannot be decoded ({type(error).__name__})"


def _colour(name: str) -> tuple[int, ...]:
    try:
        return ImageColor.getrgb(name)[:3]
    except ValueError:
        raise UsageError(
            f'background "{name}" is no colour{nearest(name, ImageColor.colormap)}. '
            'Use a name such as "white", or "#rrggbb".'
        ) from None
