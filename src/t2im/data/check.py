"""What is wrong with my folder? Everything that training would stumble over, found before training and said kindly.

Training pairs words with pixels, and each mistake in the pairs teaches something false. So every caption without an
image, every image without a caption and every file that cannot be decoded is listed by name, with the reason and, for a
slip of the pen, the name that was probably meant. Two more things are worth knowing: an image that is there twice can be
trained on and held out at once, which flatters the held-out loss; and words beyond the text encoder's context are never
seen.
"""

import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from t2im.data.captions import Example, Found, find
from t2im.data.folder import printable
from t2im.data.images import FIX, decode
from t2im.errors import BadImage
from t2im.files import sha256_of_file

SHAPES = {
    "json dict": "{file: caption}",
    "json list": "a list of objects",
    "jsonl": "an object per line",
    "csv": "a table",
    "txt": "a .txt file beside each image",
}
AT_ONCE = 64  # images handed to the threads together, so that a million of them do not queue up in memory
ROWS = 10  # of the histogram
BAR = 40  # characters

Progress = Callable[[int, int], None]
"""Called with how many images were looked at and how many there are."""


@dataclass(frozen=True)
class Ruler:
    """How the length of a caption is measured: in tokens of the text encoder to come, or else in words."""

    unit: str
    count: Callable[[str], int]
    context_length: int | None = None
    """The most that a text encoder reads; None: unknown."""


WORDS = Ruler("words", lambda caption: len(caption.split()))


@dataclass(frozen=True)
class Repeated:
    """Something that several images share: their content (its SHA-256), or a caption."""

    what: str
    images: tuple[str, ...]


@dataclass(frozen=True)
class Report:
    """What a folder holds and what is wrong with it. Images are named relative to the folder."""

    folder: str
    source: str
    format: str
    usable: int
    """Images that are captioned and whole."""
    captions: int
    """How many captions they have together."""
    samples: tuple[str, ...]
    faults: tuple[str, ...]
    missing: tuple[str, ...]
    unreadable: tuple[str, ...]
    orphans: tuple[str, ...]
    nested: tuple[str, ...]
    """Sub-folders with captions of their own: other data sets."""
    never_opened: tuple[str, ...]
    other_files: dict[str, int]
    """Files that are neither images nor captions, counted by their ending."""
    animated: tuple[str, ...]
    repeated_images: tuple[Repeated, ...]
    repeated_captions: tuple[Repeated, ...]
    smallest: tuple[int, int] | None
    """Width and height in pixels."""
    largest: tuple[int, int] | None
    length_unit: str
    lengths: dict[int, int]
    """How many captions have which length."""
    context_length: int | None
    too_long: tuple[str, ...]
    """Captions that the text encoder reads in part only."""

    def problems(self, *, skip_bad: bool = False, skip_missing: bool = False) -> list[str]:
        """Name what would stop a training run with these options; nothing means that it would start."""
        problems = []
        if self.faults:
            problems.append(f"{_count(self.faults, 'entry', 'entries')} of {self.source} cannot be used: correct them")
        if self.missing and not skip_missing:
            count = _count(self.missing, "caption has", "captions have")
            problems.append(f"{count} no usable image: fix the names or pass --skip-missing")
        if self.unreadable and not skip_bad:
            count = _count(self.unreadable, "image", "images")
            problems.append(f"{count} cannot be read: replace them or pass --skip-bad")
        if not self.usable:
            problems.append("no image is left to train on")
        return problems

    def as_dict(self) -> dict[str, Any]:
        """Return the complete report for JSON."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class _Look:
    """What one image file turned out to be."""

    sha256: str
    size: tuple[int, int]
    animated: bool


def check(
    folder: str | Path, *, background: str = "white", ruler: Ruler = WORDS, progress: Progress = lambda done, of: None
) -> tuple[Report, list[Example]]:
    """Read all captions and decode all images of a folder (or of one captions file); return what was found.

    The list holds the usable examples, for a contact sheet or for training.

    Raises: CaptionError if there are no captions, two sources of them, or a file that cannot be parsed at all.
    """
    found = find(folder)
    root = found.listing.root
    usable: list[Example] = []
    unreadable: list[str] = []
    animated: list[str] = []
    sizes: list[tuple[int, int]] = []
    twins: dict[str, list[str]] = {}
    for done, (example, look) in enumerate(_look_at(found.examples, background), 1):
        name = _name(root, example.path)
        if isinstance(look, str):
            unreadable.append(f"{name}: {look}")
        else:
            usable.append(example)
            sizes.append(look.size)
            twins.setdefault(look.sha256, []).append(name)
            if look.animated:
                animated.append(name)
        progress(done, len(found.examples))
    lengths, too_long, sharing = _read_captions(root, usable, ruler)
    report = Report(
        folder=printable(root),
        source=printable(found.source),
        format=found.format,
        usable=len(usable),
        captions=sum(lengths.values()),
        samples=tuple(f'{_name(root, example.path)}: "{printable(example.captions[0])}"' for example in usable[:3]),
        faults=found.faults,
        missing=tuple(
            f'"{printable(missing.name)}" {missing.reason}{hint}'
            for missing, hint in zip(found.missing, found.suggestions(), strict=True)
        ),
        unreadable=tuple(unreadable),
        orphans=tuple(map(printable, found.orphans)),
        nested=tuple(map(printable, found.listing.nested)),
        never_opened=tuple(f"{printable(name)} {reason}" for name, reason in sorted(found.listing.refused.items())),
        other_files=_other_files(found),
        animated=tuple(animated),
        repeated_images=_repeated(twins),
        repeated_captions=_repeated(sharing),
        smallest=min(sizes, key=lambda size: size[0] * size[1], default=None),
        largest=max(sizes, key=lambda size: size[0] * size[1], default=None),
        length_unit=ruler.unit,
        lengths=dict(sorted(lengths.items())),
        context_length=ruler.context_length,
        too_long=tuple(too_long),
    )
    return report, usable


def _look_at(examples: Sequence[Example], background: str) -> Iterator[tuple[Example, _Look | str]]:
    """Decode images in several threads and yield them in order, each with what it is or why it cannot be used."""

    def look(example: Example) -> _Look | str:
        try:
            image = decode(example.path, background=background, at_least=1)
            return _Look(sha256_of_file(example.path), image.info["size"], image.info["animated"])
        except BadImage as error:
            return str(error).removeprefix(f"{printable(example.path)}: ").removesuffix(FIX)
        except OSError as error:
            return f"cannot be read ({error.strerror})"

    with ThreadPoolExecutor(os.cpu_count()) as threads:
        for start in range(0, len(examples), AT_ONCE):
            part = examples[start : start + AT_ONCE]
            yield from zip(part, threads.map(look, part), strict=True)


def _read_captions(
    root: Path, examples: Iterable[Example], ruler: Ruler
) -> tuple[Counter[int], list[str], dict[str, list[str]]]:
    """Measure all captions, and note which images share one."""
    lengths: Counter[int] = Counter()
    too_long: list[str] = []
    sharing: dict[str, list[str]] = {}
    for example in examples:
        name = _name(root, example.path)
        for caption in example.captions:
            length = ruler.count(caption)
            lengths[length] += 1
            if ruler.context_length is not None and length > ruler.context_length:
                too_long.append(f'{name}: {length} {ruler.unit}: "{printable(caption)}"')
            sharing.setdefault(caption, []).append(name)
    return lengths, too_long, sharing


def _repeated(groups: dict[str, list[str]]) -> tuple[Repeated, ...]:
    return tuple(Repeated(what, tuple(images)) for what, images in groups.items() if len(images) > 1)


def _other_files(found: Found) -> dict[str, int]:
    listing = found.listing
    known = {*listing.images(), *(example.path.relative_to(listing.root).as_posix() for example in found.examples)}
    others = (name for name in listing.files - known if not name.startswith(listing.nested))
    paths = [PurePosixPath(name) for name in others if listing.root / name != found.source]
    if found.format == "txt":
        paths = [path for path in paths if path.suffix.lower() != ".txt"]
    kinds = ("hidden" if path.name.startswith(".") else printable(path.suffix.lower()) or "no ending" for path in paths)
    return dict(Counter(kinds).most_common())


def _name(root: Path, path: Path) -> str:
    return printable(path.relative_to(root).as_posix())


def lines(report: Report, *, limit: int = 10) -> Iterator[str]:
    """Write a report for a terminal; a list longer than the limit is cut, and says how much of it is not shown."""
    yield f"{report.source}: captions as {report.format} ({SHAPES[report.format]})"
    for sample in report.samples:
        yield f"  {sample}"
    yield (
        f"{report.usable} usable images with {report.captions} captions"
        + (f", from {_size(report.smallest)} to {_size(report.largest)} pixels" if report.smallest else "")
    )
    for title, items in (
        ("entries that cannot be used", report.faults),
        ("captions without a usable image", report.missing),
        ("unreadable images", report.unreadable),
        ("images without a caption, not used", report.orphans),
        ("folders with captions of their own, not part of this data set", report.nested),
        ("never opened", report.never_opened),
        ("animated images, of which the first frame is used", report.animated),
        ("images that are there more than once", [" = ".join(twins.images) for twins in report.repeated_images]),
        (
            "captions shared by several images",
            [f'"{printable(shared.what)}": {len(shared.images)} images' for shared in report.repeated_captions],
        ),
        ("other files, not used", [f"{count} {ending}" for ending, count in report.other_files.items()]),
        (f"captions longer than the {report.context_length} {report.length_unit} that are read", report.too_long),
    ):
        yield from _section(title, items, limit)
    yield from _histogram(report)


def _section(title: str, items: Sequence[str], limit: int) -> Iterator[str]:
    if items:
        yield f"{title}: {len(items)}"
        yield from (f"  {item}" for item in items[:limit])
        if len(items) > limit:
            yield f"  ... and {len(items) - limit} more (--json lists all)"


def _histogram(report: Report) -> Iterator[str]:
    if not report.lengths:
        return
    hint = "" if report.context_length else " (--text-encoder counts tokens)"
    yield f"caption length in {report.length_unit}{hint}:"
    low, high = min(report.lengths), max(report.lengths)
    step = -(-(high - low + 1) // ROWS)
    rows: Counter[int] = Counter()
    for length, count in report.lengths.items():
        rows[(length - low) // step] += count
    for row in range(max(rows) + 1):
        first, last = low + row * step, min(high, low + (row + 1) * step - 1)
        span = f"{first}" if first == last else f"{first}-{last}"
        yield f"  {span:>9} {rows[row]:>8} {'#' * round(BAR * rows[row] / max(rows.values()))}"


def _size(size: tuple[int, int] | None) -> str:
    return "x".join(map(str, size or ()))


def _count(things: Sequence[str], one: str, many: str) -> str:
    return f"{len(things):,} {one if len(things) == 1 else many}"
