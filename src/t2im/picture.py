"""What comes out at the end? Tensors in [-1, 1] become pixels here, and a picture keeps the settings that made it."""

import io
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image, ImageDraw, ImageFont
from PIL.PngImagePlugin import PngInfo

from t2im.errors import SamplingError, UsageError
from t2im.files import atomic_path
from t2im.infotext import parameters_text
from t2im.shapes import Images


@dataclass(frozen=True, repr=False)
class Picture:
    """An image with its settings, which travel inside the PNG (see `infotext.py`)."""

    image: Image.Image
    settings: Mapping[str, Any]
    """{"schema", "request": {"prompt", ...}, "resolved_seed", "model": {"name", "sha256"}, "versions"}; plain JSON."""

    @property
    def prompt(self) -> str:
        """What was asked for."""
        return str(self.settings["request"]["prompt"])

    @property
    def seed(self) -> int:
        """The number that makes the same picture again."""
        return int(self.settings["resolved_seed"])

    def save(self, path: str | Path, *, overwrite: bool = False) -> Path:
        """Write a PNG with the settings inside, whole or not at all, and return its path.

        Raises: UsageError if the file exists and may not be overwritten, or if the name is no PNG's.
        """
        path = Path(path)
        if path.suffix.lower() != ".png":
            raise UsageError(f"{path}: the settings travel in PNG files only. Name it {path.with_suffix('.png').name}.")
        if path.exists() and not overwrite:
            raise UsageError(f"{path}: exists already. Choose another name or pass overwrite=True.")
        with atomic_path(path) as temporary:
            temporary.write_bytes(self._repr_png_())
        return path

    def _repr_png_(self) -> bytes:
        """Show in a notebook; also the very bytes of the file."""
        texts = PngInfo()
        # Lone surrogates cannot be stored as UTF-8; the JSON keeps them as escapes.
        texts.add_text("parameters", parameters_text(self.settings).encode("utf-8", "replace").decode("utf-8"))
        texts.add_text("t2im", json.dumps(self.settings, allow_nan=False))
        buffer = io.BytesIO()
        self.image.save(buffer, format="PNG", pnginfo=texts)
        return buffer.getvalue()

    def __repr__(self) -> str:
        return f"Picture({self.prompt!r}, {self.image.width}x{self.image.height} pixels, seed={self.seed})"


def to_pil(images: Images) -> list[Image.Image]:
    """Turn [-1, 1] into 8-bit RGB, clipping what lies outside.

    Raises: SamplingError if a value is not finite: it would become a black picture without a word.
    """
    if not torch.isfinite(images).all():
        raise SamplingError("the decoded images are not finite: the VAE overflowed. Run it in fp32.")
    pixels = ((images.float().clamp(-1, 1) + 1) * 127.5).round().to("cpu", torch.uint8)
    return [Image.fromarray(picture.numpy()) for picture in pixels.permute(0, 2, 3, 1).contiguous()]


def grid(
    images: Sequence[Image.Image], columns: int | None = None, captions: Sequence[str] | None = None
) -> Image.Image:
    """Lay pictures of equal size out row by row, each over its caption; columns: about square if None.

    Raises: UsageError if there is nothing to show or the captions do not match.
    """
    if not images or (captions is not None and len(captions) != len(images)):
        raise UsageError(
            f"a grid needs pictures and one caption for each; got {len(images)} and {len(captions or ())}."
        )
    columns = min(columns or math.ceil(math.sqrt(len(images))), len(images))
    width, height, gap = images[0].width, images[0].height, 2
    strip = 0 if captions is None else 14
    rows = math.ceil(len(images) / columns)
    sheet = Image.new("RGB", (columns * (width + gap) - gap, rows * (height + strip + gap) - gap), "white")
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(size=10)
    for index, image in enumerate(images):
        row, column = divmod(index, columns)
        corner = (column * (width + gap), row * (height + strip + gap))
        sheet.paste(image, corner)
        if captions is not None:
            text = captions[index].replace("\n", " ")
            while text and draw.textlength(text, font=font) > width:
                text = text[:-2].rstrip() + "…" if len(text) > 2 else ""
            draw.text((corner[0], corner[1] + height), text, font=font, fill="black")
    return sheet
