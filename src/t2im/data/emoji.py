"""Where does a first data set come from, when I have no captioned pictures of my own?

From emoji: thousands of small clean drawings, each with a name and keywords that people chose, in the styles of several
artists, under open licences. `build` fetches four sets of vector art and their English labels as pinned packages, draws
every icon on a transparent background, and writes the layout of any other data set of this project:

    DIR/images/*.png      DIR/captions.json           {file: [captions]}
    DIR/heldout/images/   DIR/heldout/captions.json   concepts that no picture above shows, in any style
    DIR/ATTRIBUTION.md    DIR/emoji.json              who drew it, under which licence; what was asked for

The same call gives the same bytes. An interrupted call is finished by the next one.
"""

import hashlib
import importlib.util
import json
import os
import re
import shutil
import signal
import subprocess
import tarfile
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from t2im.data.emoji_words import bare, concept, keywords, phrase_for, plain, slug, words_of
from t2im.errors import DataError, UsageError
from t2im.files import atomic_path, require_writable, sha256_of_file, write_json, write_text

HELDOUT_SHARE = 0.02  # of the concepts
TONES = ("light", "medium-light", "medium", "medium-dark", "dark")  # Emojibase counts them from 1
LARGEST_SIZE = 2048  # pixels
COMPONENTS, SYMBOLS, FLAGS = 2, 8, 9  # groups of Emojibase
LETTERS, COUNTRY_FLAGS, REGION_FLAGS = 95, 98, 99  # its subgroups

Label = dict[str, Any]
"""One entry of Emojibase: label, hexcode, tags, group, subgroup, skins."""


@dataclass(frozen=True)
class Package:
    """One published archive, pinned by version and content."""

    name: str
    version: str
    sha256: str

    @property
    def filename(self) -> str:
        """The name that `npm pack` gives the archive."""
        return f"{self.name.removeprefix('@').replace('/', '-')}-{self.version}.tgz"


@dataclass(frozen=True)
class ArtSet:
    """One artist's drawings, and the word that names their style in captions."""

    style: str
    package: Package
    flags: bool = False
    """Whether the 260 flags are taken from this set: all sets draw the same flags."""


LABELS = Package("emojibase-data", "17.0.0", "d01d0e2ca4e22cb402679532155342c71e2e871f25c32223c013b8b166ebdf5a")
NOTO = Package("@iconify-json/noto", "1.2.9", "3e918d88fc945c0bb3d468dbace6f88caef67f01c9f0e7bcae0915a042e8f1ad")
FLUENT = Package(
    "@iconify-json/fluent-emoji", "1.2.7", "8044210dbf11e016d4de85f15d01a243423bd832457e7e2491df1b751c0e272b"
)
FLUENT_FLAT = Package(
    "@iconify-json/fluent-emoji-flat", "1.2.6", "7d064769dee690815f823bc5bcc511d957198caf9f5edd8dd9c1aa48a6aeb175"
)
TWEMOJI = Package("@iconify-json/twemoji", "1.2.5", "19046dff7d8707ce96212ec86468b36ac5f8e60409629dd13f809265c6d0ebb7")
SETS = (
    ArtSet("cartoon", NOTO),
    ArtSet("3d", FLUENT),
    ArtSet("flat", FLUENT_FLAT),
    ArtSet("icon", TWEMOJI, flags=True),
)


@dataclass(frozen=True)
class Icons:
    """What an archive of an Iconify set holds."""

    art: ArtSet
    icons: dict[str, Any]
    """`icons` and `aliases` by name; `width` and `height` where an icon does not say otherwise."""
    names: dict[str, str]
    """Code points to names."""
    info: dict[str, Any]

    @classmethod
    def read(cls, art: ArtSet, archive: Path) -> "Icons":
        """Read the three JSON files of a set."""
        characters = read_json(archive, "chars.json")
        names = {_code(hexcode): name for hexcode, name in characters.items()}
        return cls(art, read_json(archive, "icons.json"), names, read_json(archive, "info.json"))

    def __contains__(self, name: str) -> bool:
        return name in self.icons["icons"] or name in self.icons.get("aliases", {})

    def svg(self, name: str, size: int) -> str:
        """Return an icon as a square SVG document of `size` pixels; aliases, mirrored ones too, are followed."""
        alias = self.icons.get("aliases", {}).get(name, {})
        icon = self.icons["icons"][alias.get("parent", name)]
        width, height = (icon.get(side, self.icons.get(side, 16)) for side in ("width", "height"))
        body = icon["body"]
        if alias.get("hFlip"):
            body = f'<g transform="translate({width} 0) scale(-1 1)">{body}</g>'
        # A viewBox that is not square is centred on the canvas: that is the default of preserveAspectRatio.
        return (
            '<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink"'
            f' width="{size}" height="{size}" viewBox="0 0 {width} {height}">{body}</svg>'
        )


@dataclass(frozen=True)
class Drawing:
    """One picture to be made: where it goes below the folder, what is said about it, and the vector art."""

    path: str
    captions: tuple[str, ...]
    style: str
    svg: str = field(repr=False)


@dataclass(frozen=True)
class Built:
    """What stands in the folder after a build."""

    folder: Path
    images: dict[str, int]
    """Pictures of each style, held-out ones included."""
    heldout: int
    captions: int
    drawn: int
    """Pictures made by this call; the others were there already."""


def build(
    folder: str | Path,
    *,
    size: int = 64,
    cache: str | Path | None = None,
    workers: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Built:
    """Build the data set in a folder that is new, empty, or left by an earlier call with the same arguments.

    size is in pixels, of both sides; the archives are kept in cache (by default in the user's own cache folder);
    progress is called with the pictures made so far and to be made; workers=1 draws in this process.

    Raises: UsageError for an impossible size; DataError if the packages cannot be had, the folder holds something else,
    or resvg-py is not installed.
    """
    if not 1 <= size <= LARGEST_SIZE:
        raise UsageError(f"size {size}: must be between 1 and {LARGEST_SIZE} pixels.")
    if importlib.util.find_spec("resvg_py") is None:
        raise DataError("resvg-py is not installed, and nothing else here draws SVG. Run: pip install 't2im[emoji]'")
    folder, cache = Path(folder), Path(cache) if cache else _default_cache()
    sets = [Icons.read(art, fetch(art.package, cache)) for art in SETS]
    drawings = plan(sets, read_json(fetch(LABELS, cache), "en/data.json"), size)
    _claim(folder, size, drawings)
    write_text(folder / "ATTRIBUTION.md", _attribution(sets))
    # Every image was renamed into its place, so one that exists is whole.
    missing = [drawing for drawing in drawings if not (folder / drawing.path).exists()]
    _draw_all(missing, folder, workers, progress or (lambda done, total: None))
    for images in (folder / "images", folder / "heldout/images"):
        inside = [drawing for drawing in drawings if (folder / drawing.path).parent == images]
        write_json(images.parent / "captions.json", {Path(d.path).name: d.captions for d in inside})
    heldout = sum(drawing.path.startswith("heldout/") for drawing in drawings)
    styles = Counter(drawing.style for drawing in drawings)
    return Built(folder, dict(styles), heldout, sum(len(drawing.captions) for drawing in drawings), len(missing))


def fetch(package: Package, cache: Path) -> Path:
    """Return the package's archive in the cache folder, fetched with `npm pack` unless it is there and whole.

    Raises: DataError if npm is missing, cannot have the package, or brings something else than what is pinned.
    """
    archive = cache / package.filename
    if archive.exists() and sha256_of_file(archive) == package.sha256:
        return archive
    wanted = f"{package.name}@{package.version}"
    npm = shutil.which("npm")
    if npm is None:
        raise DataError(f"npm was not found, and {wanted} is fetched with it. Install Node.js, which brings npm.")
    with tempfile.TemporaryDirectory(dir=require_writable(cache)) as temporary:
        command = [npm, "pack", wanted, "--pack-destination", temporary, "--ignore-scripts"]
        done = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL, check=False)
        fetched = Path(temporary) / package.filename
        if done.returncode != 0 or not fetched.exists():
            reason = next(iter(done.stderr.strip().splitlines()), "no reason given")
            raise DataError(
                f"npm pack {wanted} failed: {reason}. Check the network, or put {archive.name} into {cache}."
            )
        if sha256_of_file(fetched) != package.sha256:
            raise DataError(
                f"npm pack {wanted} brought other content than is pinned. Check the registry npm is set to."
            )
        os.replace(fetched, archive)
    return archive


def read_json(archive: Path, member: str) -> Any:
    """Return one JSON file of a package's archive."""
    with tarfile.open(archive) as tar:
        handle = tar.extractfile(f"package/{member}")
        assert handle is not None  # the content is pinned
        return json.load(handle)


def plan(sets: Sequence[Icons], labels: Sequence[Label], size: int) -> list[Drawing]:
    """List the drawings of the data set, without drawing them: set by set, in Emojibase's order.

    Near-duplicates are limited: flags come from one set, people in one skin tone besides the default, no name and no
    icon of a set twice.
    """
    uses = Counter(plain(tag) for label in labels for tag in set(label.get("tags", [])))
    labels = [label for label in labels if is_wanted(label)]
    heldout = heldout_concepts(labels)
    neutral = {concept(label["label"]) for label in labels if not _is_gendered(label["label"])}
    drawings: dict[str, Drawing] = {}
    for icons in sets:
        style, drawn = icons.art.style, set[str]()
        for label in labels:
            if label["subgroup"] in (COUNTRY_FLAGS, REGION_FLAGS) and not icons.art.flags:
                continue
            name = label["label"]
            phrase = phrase_for(name)
            tags = keywords(phrase, label.get("tags", []), uses)
            both = not (_is_gendered(name) and concept(name) in neutral)
            for hexcode, skin in _variants(label, style, default=both):
                icon = _icon(hexcode, icons, sets)
                if icon is None or icon in drawn:
                    continue
                subject, looks = f"{phrase}{skin}", f"{style} style"
                folder = "heldout/images" if concept(name) in heldout else "images"
                path = f"{folder}/{slug(f'{bare(subject)} {looks}')}.png"
                if path not in drawings:
                    drawn.add(icon)
                    said = (f"{subject}, {looks}", subject, ", ".join([bare(subject), *tags, looks]))
                    drawings[path] = Drawing(path, tuple(dict.fromkeys(said)), style, icons.svg(icon, size))
    return list(drawings.values())


def is_wanted(label: Label) -> bool:
    """Say whether an emoji belongs in the data set.

    Left out: letters, tone swatches and buttons of Japanese text (writing, not pictures), and near-duplicates: half
    hours (the full hours show the same clocks), mirrored walkers, families (one pictogram), squares of middle size.
    """
    near_duplicate = r"-thirty$|facing right$|^family: |medium(-small)? square$"
    if label.get("group") in (None, COMPONENTS) or label["subgroup"] == LETTERS:
        return False
    return re.search(near_duplicate, label["label"]) is None


def heldout_concepts(labels: Iterable[Label]) -> frozenset[str]:
    """Return the concepts that no training picture shows: a fixed share, in the order of their hashes.

    A model that never read "penguin" cannot draw one, and holding penguins out would measure nothing. Held out are
    names of two words or more ("crying cat"), each word of which stays in the phrase of a concept that is not.
    """
    phrases: dict[str, set[str]] = {}
    for label in labels:
        if label["group"] not in (SYMBOLS, FLAGS):
            phrases.setdefault(concept(label["label"]), set()).update(words_of(phrase_for(label["label"])))
    teachers = Counter(word for words in phrases.values() for word in words)
    heldout: set[str] = set()
    for name in sorted(phrases, key=lambda name: _number(f"heldout/{name}")):
        if len(heldout) >= HELDOUT_SHARE * len(phrases):
            break
        if len(words_of(name)) >= 2 and min(teachers[word] for word in phrases[name]) >= 2:
            heldout.add(name)
            teachers.subtract(phrases[name])
    return frozenset(heldout)


def _variants(label: Label, style: str, *, default: bool) -> Iterator[tuple[str, str]]:
    """Yield code points and skin phrase: the default yellow, and one tone, which differs from set to set."""
    tone = 1 + _number(f"{style}/{label['label']}") % len(TONES)
    toned = [skin["hexcode"] for skin in label.get("skins", []) if skin.get("tone") == tone]
    if default or not toned:
        yield label["hexcode"], ""
    for hexcode in toned:
        yield hexcode, f", {TONES[tone - 1]} skin"


def _icon(hexcode: str, icons: Icons, sets: Sequence[Icons]) -> str | None:
    """Return an icon's name in one set; a set without a table of its own uses the names of its neighbours."""
    names = (other.names.get(_code(hexcode)) for other in (icons, *sets))
    return next((name for name in names if name is not None and name in icons), None)


def _is_gendered(label: str) -> bool:
    return re.match(r"(?:man|woman|men|women) ", label) is not None


def _code(hexcode: str) -> str:
    return "-".join(part for part in hexcode.lower().split("-") if part != "fe0f")  # a request for colour, no more


def _number(text: str) -> int:
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big")


def _default_cache() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "t2im" / "emoji"


def _claim(folder: Path, size: int, drawings: Sequence[Drawing]) -> None:
    """Take a new or empty folder, or come back to one that was taken for exactly these drawings."""
    digest = hashlib.sha256()
    for drawing in drawings:
        digest.update(json.dumps([drawing.path, drawing.captions, drawing.svg]).encode())
    packages = {package.name: package.version for package in (LABELS, *(art.package for art in SETS))}
    claim = {"size": size, "packages": packages, "drawings": digest.hexdigest()}
    path = require_writable(folder) / "emoji.json"
    if not any(folder.iterdir()):
        write_json(path, claim)
    elif not path.exists() or json.loads(path.read_text(encoding="utf-8")) != claim:
        raise DataError(f"{folder}: holds something else than this data set at {size} pixels. Choose a new folder.")


def _draw_all(
    drawings: Sequence[Drawing], folder: Path, workers: int | None, progress: Callable[[int, int], None]
) -> None:
    svgs, paths = [drawing.svg for drawing in drawings], [folder / drawing.path for drawing in drawings]
    if workers == 1 or not drawings:
        for done, _ in enumerate(map(_draw, svgs, paths), start=1):
            progress(done, len(drawings))
        return
    # Processes, because resvg holds the interpreter's lock. Ctrl-C is for the parent, which then cancels the rest.
    pool = ProcessPoolExecutor(
        workers, get_context("spawn"), initializer=signal.signal, initargs=(signal.SIGINT, signal.SIG_IGN)
    )
    try:
        for done, _ in enumerate(pool.map(_draw, svgs, paths, chunksize=16), start=1):
            progress(done, len(drawings))
    finally:
        pool.shutdown(cancel_futures=True)


def _draw(svg: str, path: Path) -> None:
    from resvg_py import svg_to_bytes

    try:
        png = svg_to_bytes(svg_string=svg, skip_system_fonts=True)
    except ValueError as error:
        raise DataError(f"{path.name}: the icon cannot be drawn ({error}). Delete the cached packages.") from error
    with atomic_path(path) as temporary:
        temporary.write_bytes(png)


def _attribution(sets: Sequence[Icons]) -> str:
    lines = [
        "# Attribution",
        "",
        "The pictures are emoji of the sets below, drawn as PNG files at one size and not changed otherwise.",
        "Keep this file with the pictures.",
        "",
    ]
    for icons in sets:
        info, package = icons.info, icons.art.package
        author, licence = info["author"], info["license"]
        lines += [
            f'- **{info["name"]}** ("{icons.art.style} style"), by {author["name"]} ({author["url"]}),'
            f" {licence['spdx']} ({licence['url']}); from {package.name} {package.version}"
        ]
    lines += [
        "- Captions are made from the labels of **Emojibase**, by Miles Johnson (https://github.com/milesj/emojibase),"
        f" MIT; from {LABELS.name} {LABELS.version}",
        "",
    ]
    return "\n".join(lines)
