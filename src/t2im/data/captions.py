"""Which words belong to which picture? The first station: a folder becomes a list of `Example`s.

People write captions down in many ways. These are read, in `FOLDER` or in `FOLDER/images`, and none is preferred: two
of them at once is an error, because nobody can know which one is up to date.

    captions.json    {"cat.png": "a cat"}  or  {"cat.png": ["a cat", "a small cat"]}
                     [{"image": "cat.png", "caption": "a cat"}, ...]   (keys: NAME_KEYS and CAPTION_KEYS below)
    metadata.jsonl   one such object per line, as in the imagefolder convention
    metadata.csv     a header with such names, then one image per line
    cat.txt          beside cat.png; every line that is not empty is one caption

Instead of a folder, the path of one captions file may be given: so any file name works, and one of two is chosen.
"""

import csv
import io
import json
import logging
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from t2im.data.folder import IMAGES, SOURCES, Listing, printable, scan, suggestions, unsafe
from t2im.errors import CaptionError, nearest

NAME_KEYS = ("image", "file_name", "file", "path")
CAPTION_KEYS = ("caption", "text", "captions")
MAX_CHARACTERS = 10_000  # of one caption; text encoders read a hundredth of this
MAX_DEPTH = 100  # of brackets in brackets; the formats need two
NO_CAPTIONS = frozenset({"readme", "license", "licence", "copying", "notice", "attribution", "requirements"})

Format = Literal["json dict", "json list", "jsonl", "csv", "txt"]
Row = tuple[str, Any]
"""Where it stands, and what stands there, not yet checked: (name, captions), or an object with both, or a fault."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Example:
    """One image and everything that is said about it; a million of these must fit into memory."""

    path: Path
    captions: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Missing:
    """A caption without a usable image: the name as written, and why there is no such image."""

    name: str
    reason: str


@dataclass(frozen=True)
class Found:
    """Everything a folder says, with what is wrong about it. `examples` keeps the order of the captions file."""

    listing: Listing
    format: Format
    source: Path
    """The captions file, or the folder with the .txt files."""
    examples: tuple[Example, ...]
    missing: tuple[Missing, ...]
    """Captions without a usable image."""
    orphans: tuple[str, ...]
    """Images without a caption, relative to the folder; they take no part in training."""
    faults: tuple[str, ...]
    """Entries that cannot be understood, one sentence each."""

    def suggestions(self) -> list[str]:
        """Give for each missing image ` (did you mean "X"?)`, among the images without a caption, or nothing."""
        return suggestions([missing.name for missing in self.missing], self.orphans)


class _Fault(Exception):
    """What is wrong with one entry."""


def read(folder: str | Path, *, skip_missing: bool = False) -> list[Example]:
    """Read the captions of a folder (or of one captions file) into examples.

    skip_missing leaves out captions without an image; that, and images without a caption, is logged with a count.

    Raises: CaptionError if an entry cannot be understood, an image is missing, or nothing is left.
    """
    found = find(folder)
    source = printable(found.source)
    if found.faults:
        shown = "; ".join(found.faults[:3])
        raise CaptionError(f"{source}: {_count(found.faults, 'entry', 'entries')} cannot be used: {shown}.")
    if found.missing:
        first, hint = found.missing[0], found.suggestions()[0]
        count = _count(found.missing, "caption names", "captions name")
        what = f'{count} no usable image (first: "{printable(first.name)}" {first.reason}{hint})'
        if not skip_missing:
            raise CaptionError(f"{source}: {what}. Fix the names or pass --skip-missing.")
        logger.warning("%s: %s; left out.", source, what)
    if not found.examples:
        raise CaptionError(f"{source}: no caption has an image. Images are looked for in {found.listing.root}.")
    if found.orphans:
        images = _count(found.orphans, "image has", "images have")
        logger.warning('%s: %s no caption (first: "%s"); left out.', source, images, printable(found.orphans[0]))
    return list(found.examples)


def find(folder: str | Path) -> Found:
    """Find out how a folder is captioned and match its captions with its images, without opening an image.

    Raises: CaptionError if there is no captions file, more than one, or one that cannot be read at all.
    """
    root, source = _root_and_source(Path(folder))
    listing = scan(root)
    name = source or _only_source(listing)
    if name is None:
        return _match(listing, "txt", root, _text_rows(listing))
    if name not in listing.files:
        raise CaptionError(f"{printable(root / name)}: {listing.refused.get(name, 'does not exist')}.")
    format_, rows = _rows(root / name)
    return _match(listing, format_, root / name, rows)


def _root_and_source(path: Path) -> tuple[Path, str | None]:
    if path.is_dir():
        return path, None
    if path.exists():
        return path.parent, path.name
    siblings = [entry.name for entry in path.parent.iterdir()] if path.parent.is_dir() else []
    raise CaptionError(f"{printable(path)}: no such folder or captions file{nearest(path.name, siblings)}.")


def _only_source(listing: Listing) -> str | None:
    """Return the one captions file of a folder, or None if its captions are .txt files."""
    candidates = [place + name for name in SOURCES for place in ("", IMAGES)]
    sources = [name for name in candidates if name in listing.files or name in listing.refused]
    texts = {name[:-4] for name in listing.files if name.lower().endswith(".txt")}
    captioned = next((name for name in listing.images() if _without_suffix(name) in texts), None) if texts else None
    if captioned:
        sources.append(f"{_without_suffix(captioned)}.txt")
    where = printable(listing.root)
    if len(sources) > 1:
        shown = " and ".join(f'"{printable(source)}"' for source in sources)
        raise CaptionError(
            f"{where}: captions in more than one place: {shown}. Keep one, or give the path of the captions file to use "
            "instead of the folder."
        )
    if not sources:
        others = sorted(name for name in listing.files if name.endswith((".json", ".jsonl", ".csv")))
        hint = f' If it is "{printable(others[0])}", give that path instead of the folder.' if others else ""
        raise CaptionError(
            f"{where}: {len(listing.images())} images, but no captions: expected captions.json, "
            f"metadata.jsonl, metadata.csv, or a .txt beside each image.{hint}"
        )
    return None if captioned else sources[0]


def _rows(path: Path) -> tuple[Format, Iterable[Row]]:
    match path.suffix.lower():
        case ".json":
            return _json_rows(path)
        case ".jsonl":
            return "jsonl", _jsonl_rows(path)
        case ".csv":
            return "csv", _csv_rows(path)
    raise CaptionError(f"{printable(path)}: captions are read from .json, .jsonl and .csv files, or from a folder.")


def _json_rows(path: Path) -> tuple[Format, Iterable[Row]]:
    tree = _parse(path, _text_of(path))
    if isinstance(tree, dict) and tree:
        return "json dict", ((f'"{name}"', (name, value)) for name, value in tree.items())
    if isinstance(tree, list) and tree:
        return "json list", ((f"entry {number}", entry) for number, entry in enumerate(tree, 1))
    raise CaptionError(
        f"{printable(path)}: got {_kind(tree)}, expected {{file: caption}} or a list of objects such as "
        '{"image": "cat.png", "caption": "a cat"}.'
    )


def _jsonl_rows(path: Path) -> Iterator[Row]:
    for number, line in enumerate(io.StringIO(_text_of(path)), 1):
        if not line.isspace():
            yield f"line {number}", _parse(path, line.rstrip(), first_line=number)


def _csv_rows(path: Path) -> Iterator[Row]:
    lines = csv.reader(io.StringIO(_text_of(path), newline=""), strict=True)
    try:
        header = next(lines, [])
        if repeated := [column for column in header if header.count(column) > 1]:
            raise CaptionError(f'{printable(path)}:1: the column "{printable(repeated[0])}" appears more than once.')
        for cells in lines:
            if len(cells) == len(header):
                yield f"line {lines.line_num}", dict(zip(header, cells, strict=True))
            elif cells:
                fault = _Fault(f"got {len(cells)} values, expected {len(header)} as in the header")
                yield f"line {lines.line_num}", fault
    except csv.Error as error:
        raise CaptionError(f"{printable(path)}:{lines.line_num}: not valid CSV ({error}).") from None


def _text_rows(listing: Listing) -> Iterator[Row]:
    images: dict[str, list[str]] = {}
    for name in listing.images():
        images.setdefault(_without_suffix(name), []).append(name)
    for name in sorted(name for name in listing.files if name.lower().endswith(".txt")):
        stem = name[:-4]
        if stem in images or stem.rpartition("/")[2].lower() not in NO_CAPTIONS:
            lines = [line for line in _text_of(listing.root / name).splitlines() if line.strip()]
            for image in images.get(stem, [stem]):
                yield name, (image, lines or "")


def _text_of(path: Path) -> str:
    """Read a file as UTF-8, with or without a byte order mark."""
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise CaptionError(f"{printable(path)}: cannot be read ({error.strerror}).") from None
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        guess = " It looks like UTF-16." if raw[:2] in (b"\xff\xfe", b"\xfe\xff") else ""
        line = raw.count(b"\n", 0, error.start) + 1
        raise CaptionError(
            f"{printable(path)}:{line}: byte 0x{raw[error.start]:02x} at offset {error.start} is not UTF-8.{guess} "
            "Save the file as UTF-8."
        ) from None


def _parse(path: Path, text: str, *, first_line: int = 1) -> Any:
    """Parse JSON; whatever is wrong with it becomes one line with its place."""

    def place(position: int) -> str:
        line = first_line + text.count("\n", 0, position)
        return f"{printable(path)}:{line}:{position - text.rfind(chr(10), 0, position)}"

    def without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        entries = dict(pairs)
        if len(entries) < len(pairs):
            count = Counter(key for key, _ in pairs)
            repeated = [key for key in entries if count[key] > 1]
            raise CaptionError(
                f'{printable(path)}: the key "{printable(repeated[0])}" appears {count[repeated[0]]} times in one object'
                f"{f', as do {len(repeated) - 1} other keys' if len(repeated) > 1 else ''}. Give each image one entry; "
                "several captions are a list."
            )
        return entries

    try:
        # Numbers are never captions, so they need no precision: float takes any count of digits, int refuses 5,000.
        return json.loads(text, object_pairs_hook=without_repeats, parse_int=float)
    except json.JSONDecodeError as error:
        raise CaptionError(f"{place(error.pos)}: not valid JSON ({error.msg}).") from None
    except RecursionError:
        raise CaptionError(f"{place(_too_deep(text))}: nested deeper than {MAX_DEPTH} levels.") from None


def _too_deep(text: str) -> int:
    """Return the position where JSON opens one bracket too many."""
    depth = 0
    for token in re.finditer(r'"(?:\\.|[^"\\])*"|[\[\]{}]', text):
        depth += {"[": 1, "{": 1, "]": -1, "}": -1}.get(token[0], 0)
        if depth > MAX_DEPTH:
            return token.start()
    return len(text)


def _match(listing: Listing, format_: Format, source: Path, rows: Iterable[Row]) -> Found:
    """Check every row and look up its image."""
    captions: dict[str, tuple[str, ...]] = {}
    missing: list[Missing] = []
    faults: list[str] = []
    for where, entry in rows:
        try:
            name, value = _name_and_captions(entry)
            texts = _texts(value)
            located = listing.locate(name)
            if located is None and (reason := unsafe(name)):
                raise _Fault(f'the name "{printable(name)}" {reason}')
            if located in captions and format_ == "json dict":
                raise _Fault(f'the image "{printable(located)}" already has an entry under another spelling')
        except _Fault as fault:
            faults.append(f"{printable(where)}: {fault}")
            continue
        if located is None:
            missing.append(Missing(name, listing.why_not(name)))
        else:  # a list may name an image several times: that is how it gives it several captions
            captions[located] = captions.get(located, ()) + texts
    return Found(
        listing,
        format_,
        source,
        tuple(Example(listing.root / name, texts) for name, texts in captions.items()),
        tuple(missing),
        tuple(listing.images(besides=captions)),
        tuple(faults),
    )


def _name_and_captions(entry: Any) -> tuple[str, Any]:
    """Take the image's name and its captions out of a row."""
    if isinstance(entry, _Fault):
        raise entry
    if not isinstance(entry, tuple | dict):
        raise _Fault(f'got {_kind(entry)}, expected an object such as {{"image": "cat.png", "caption": "a cat"}}')
    name, value = entry if isinstance(entry, tuple) else (_one(entry, NAME_KEYS), _one(entry, CAPTION_KEYS))
    if not isinstance(name, str) or not name:
        raise _Fault(f"the image's name is {_kind(name)}, expected text")
    return name, value


def _one(entry: dict[str, Any], keys: tuple[str, ...]) -> Any:
    """Return the value of the only one of these keys that an object has."""
    present = [key for key in keys if key in entry]
    if len(present) == 1:
        return entry[present[0]]
    if present:
        raise _Fault(f'has both "{present[0]}" and "{present[1]}"; keep one')
    close = next((hint for key in entry if (hint := nearest(key, keys))), "")
    raise _Fault(f"has none of the keys {', '.join(keys)}{close}")


def _texts(value: Any) -> tuple[str, ...]:
    """Check and trim the captions of one image."""
    texts = value if isinstance(value, list) else [value]
    if not texts:
        raise _Fault("got an empty list, expected a caption or a list of captions")
    for text in texts:
        if not isinstance(text, str) or not text.strip():
            inside = "a list with " if isinstance(value, list) else ""
            raise _Fault(f"got {inside}{_kind(text)}, expected a caption or a list of captions")
        if len(text) > MAX_CHARACTERS:
            raise _Fault(f"got a caption of {len(text):,} characters, expected at most {MAX_CHARACTERS:,}")
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise _Fault(f"got half a character (a lone surrogate) at position {error.start}, expected text") from None
    return tuple(text.strip() for text in texts)


def _kind(value: Any) -> str:
    """Name a JSON value for an error message."""
    match value:
        case None | True | False:
            return {None: "null", True: "true", False: "false"}[value]
        case float():
            return f"the number {value:g}"
        case str():
            return "text" if value.strip() else "an empty text"
        case dict():
            return "an object" if value else "an empty object"
    return "a list" if value else "an empty list"


def _without_suffix(name: str) -> str:
    return name.rpartition(".")[0]


def _count(things: Sequence[Any], one: str, many: str) -> str:
    return f"{len(things):,} {one if len(things) == 1 else many}"
