"""Which files are in this folder, and which of them may be opened?

A captions file is input from a stranger: it can name `../../secrets`, a pipe that never ends, or a link to another
disk. So no name is ever joined to a path and opened. The folder is listed once, and a name counts only if it is in the
list: what is not listed cannot be read.
"""

import os
import unicodedata
from bisect import bisect
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from functools import cached_property
from pathlib import Path, PurePosixPath, PureWindowsPath

from t2im.errors import DataError

IMAGE_SUFFIXES = (".png", ".apng", ".jpg", ".jpeg", ".jpe", ".jfif", ".webp", ".bmp", ".tif", ".tiff", ".gif")
SOURCES = ("captions.json", "metadata.jsonl", "metadata.csv")
IMAGES = "images/"  # names in a captions file may be written with or without this folder
WINDOW = 1000  # how many neighbours in the alphabet a misspelt name is compared with
SPELLED = 100  # how many misspelt names are compared at all: the comparison costs milliseconds


@dataclass(frozen=True)
class Listing:
    """The regular files below a folder, as `/`-separated names relative to it."""

    root: Path
    files: frozenset[str]
    refused: dict[str, str]
    """Entries that are never opened, with the reason."""

    @cached_property
    def _by_composed_name(self) -> dict[str, str]:
        """Names that Unicode can write in two ways: macOS stores "é" as two characters, captions as one."""
        return {unicodedata.normalize("NFC", name): name for name in self.files if not name.isascii()}

    def locate(self, name: str) -> str | None:
        """Find the file that a name in a captions file means: below the folder itself, or else below `images/`."""
        for candidate in (name, IMAGES + name):
            if candidate in self.files:
                return candidate
        # The same name in another spelling: "./a.png", "images\\a.png" from Windows, decomposed accents.
        plain = str(PurePosixPath(unicodedata.normalize("NFC", name.replace("\\", "/"))))
        for candidate in (plain, IMAGES + plain):
            if candidate in self.files:
                return candidate
            if candidate in self._by_composed_name:
                return self._by_composed_name[candidate]
        return None

    def why_not(self, name: str) -> str:
        """Say why `locate` found nothing."""
        reasons = (self.refused.get(candidate) for candidate in (name, IMAGES + name))
        return next((reason for reason in reasons if reason), "does not exist")

    @cached_property
    def nested(self) -> tuple[str, ...]:
        """Sub-folders, as "name/", that have a captions file of their own: other data sets, such as a held-out one."""
        folders = {name.rpartition("/")[0] + "/" for name in self.files if name.endswith(SOURCES)}
        return tuple(sorted(folders - {"/", IMAGES}))

    def images(self, *, besides: Collection[str] = ()) -> list[str]:
        """List the names that look like images of this data set; hidden ones (as the "._x.png" of macOS) do not."""
        names = (name for name in self.files.difference(besides) if is_image(name) and not name.startswith(self.nested))
        return sorted(name for name in names if not name.rpartition("/")[2].startswith("."))


def scan(folder: Path) -> Listing:
    """List a folder with its sub-folders; hidden folders are left out, links that leave the folder are refused.

    Raises: DataError if the folder or one of its sub-folders cannot be listed.
    """
    inside = folder.resolve()
    files: set[str] = set()
    refused: dict[str, str] = {}
    waiting = [""]
    while waiting:
        prefix = waiting.pop()
        try:
            with os.scandir(folder / prefix) as entries:
                for entry in entries:
                    name = prefix + entry.name
                    if entry.is_file(follow_symlinks=False):
                        files.add(name)
                    elif entry.is_dir(follow_symlinks=False):
                        if is_image(name):
                            refused[name] = "is a folder"
                        if not entry.name.startswith("."):
                            waiting.append(name + "/")
                    elif entry.is_file() and Path(entry.path).resolve().is_relative_to(inside):
                        files.add(name)
                    else:
                        refused[name] = _why_refused(entry)
        except OSError as error:
            raise DataError(f"{printable(folder / prefix)}: cannot be listed ({error.strerror}).") from None
    return Listing(folder, frozenset(files), refused)


def unsafe(name: str) -> str | None:
    """Say why a name in a captions file is refused whatever the folder holds, or None if it may be looked up."""
    if "\0" in name:
        return "holds a NUL character"
    windows = PureWindowsPath(name)  # understands both separators and drive letters
    if name.startswith("/") or windows.drive or windows.root:
        return "is an absolute path; write it relative to the folder"
    if ".." in windows.parts:
        return 'leads out of the folder with ".."'
    return None


def is_image(name: str) -> bool:
    """Tell by its ending whether a file should be an image that can be read."""
    return name.lower().endswith(IMAGE_SUFFIXES)


def printable(name: str | Path) -> str:
    r"""Write a name so that it stays on its line and cannot steer a terminal.

    >>> printable("a\nb.png"), printable("é.png")
    ('a\\nb.png', 'é.png')
    """
    text = str(name)
    return text if text.isprintable() else ascii(text)[1:-1]


def suggestions(names: Sequence[str], candidates: Collection[str]) -> list[str]:
    """Give ` (did you mean "X"?)` for each name that looks like a slip for one of the candidates, else nothing.

    Another ending or another folder is always found; spelling slips are looked for in the first 100 names only.
    """
    by_stem = {_stem(candidate): candidate.removeprefix(IMAGES) for candidate in sorted(candidates)}
    stems = sorted(by_stem)
    hints = []
    for number, name in enumerate(names):
        stem = _stem(name)
        if stem not in by_stem and number < SPELLED:
            middle = bisect(stems, stem)
            neighbours = stems[max(0, middle - WINDOW) : middle + WINDOW]
            stem = next(iter(get_close_matches(stem, neighbours, n=1)), stem)
        hints.append(f' (did you mean "{printable(by_stem[stem])}"?)' if stem in by_stem else "")
    return hints


def _stem(name: str) -> str:
    return PurePosixPath(name.replace("\\", "/")).stem.casefold()


def _why_refused(entry: os.DirEntry[str]) -> str:
    if not entry.is_symlink():
        return "is no regular file"
    if not Path(entry.path).exists():
        return "is a broken symbolic link"
    return "is a symbolic link to a folder" if entry.is_dir() else "is a symbolic link out of the folder"
