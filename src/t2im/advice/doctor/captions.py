"""Will these captions teach anything? What a model cannot learn from them, however long it trains.

A model learns the difference between captions. Words that stand in every caption say nothing; words that stand in one
caption only cannot be learned; pictures that share a caption cannot be told apart by it; words beyond the text encoder's
context are never read; and "left" is a lie in a mirror image.
"""

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from torch.nn import functional as F

from t2im.advice.doctor.findings import Finding, Level
from t2im.config import Config
from t2im.data.captions import Example
from t2im.data.check import Report
from t2im.data.folder import printable
from t2im.data.images import read_images

TEMPLATE_SHARE = 0.5
"""A beginning that more captions than this have in common is a template."""
LONGEST_HEAD = 6
"""Words of a beginning that are compared."""
SHARED_SHARE = 0.2
"""Share of images without a caption of their own from which that is worth a look; one caption for all is wrong."""
RARE = 3
"""A word in fewer captions than this is hardly learned."""
RARE_SHARE = 0.25
"""Share of captions with such a word from which it is worth a look."""
SIDES = re.compile(r"\b(left|right|leftmost|rightmost|clockwise|counterclockwise|anticlockwise)\b", re.IGNORECASE)
WORD = re.compile(r"\w+")
COMPARED = 8000
"""Images that are compared with each other; the matrix of all pairs grows with the square."""
TINY, CONFIRMED = 8, 32
"""Pixels a side at which images are compared: all with all, and those that may be the same once more."""
SAME = 3 / 127.5
"""Root mean square difference in [-1, 1] below which two tiny images may be of one picture: 3 of 256 levels."""
SAME_PIXEL = 0.3
"""Largest difference of a pixel in [-1, 1] that saving or scaling a picture again explains."""


def caption_findings(report: Report, examples: Sequence[Example], config: Config) -> list[Finding]:
    """Judge the captions of a folder; report: what `data.check` found in it."""
    every = [caption for example in examples for caption in example.captions]
    return [
        *_broken(report),
        *_lengths(report, len(every)),
        *_empty(examples),
        *_shared(report, examples),
        *_templates(every),
        *_vocabulary(every),
        *_sides(report, examples, config),
    ]


def image_findings(report: Report, examples: Sequence[Example], config: Config) -> list[Finding]:
    """Find images that are there several times, as the same file or as nearly the same picture under other captions."""
    findings = []
    if report.repeated_images:
        copies = tuple(" = ".join(map(printable, twins.images)) for twins in report.repeated_images)
        what = f"{len(copies)} images are there more than once, byte for byte"
        findings.append(
            Finding("images", "look", what, "keep one of each, with all captions in a list, or accept it", copies)
        )
    alike = tuple(near_duplicates(examples[:COMPARED], config))
    if alike:
        what = f"{len(alike)} pairs of images look the same but are captioned differently"
        mend = "check the captions; if both are right, keep one image with both captions in a list"
        findings.append(Finding("images", "look", what, mend, alike))
    if not findings:
        more = "" if len(examples) <= COMPARED else f" (the first {COMPARED:,} were compared)"
        findings.append(Finding("images", "OK", f"no image is there twice{more}"))
    return findings


def near_duplicates(examples: Sequence[Example], config: Config) -> Iterator[str]:
    """Name pairs of images that look the same, though not pixel by pixel, and share no caption.

    Pairs that agree at 8x8 pixels are looked at again at 32x32: a smile and a frown differ only there.
    """
    small = []
    for start in range(0, len(examples), 256):
        paths = [example.path for example in examples[start : start + 256]]
        images = read_images(paths, resolution=CONFIRMED, background=config.data.background)
        small.append((images * 127.5).to(torch.int8))  # a byte for a pixel: thousands of images are kept
    pictures = torch.cat(small)
    tiny = F.avg_pool2d(pictures.float() / 127.5, CONFIRMED // TINY).flatten(1)
    for start in range(0, len(tiny), 512):
        distance = torch.cdist(tiny[start : start + 512], tiny) / tiny.shape[1] ** 0.5
        for row, column in torch.nonzero(distance < SAME).tolist():
            one, other = examples[start + row], examples[column]
            if start + row >= column or set(one.captions) & set(other.captions):
                continue
            apart = (pictures[start + row].int() - pictures[column].int()).abs().max().item() / 127.5
            if 0 < apart < SAME_PIXEL:
                yield f'{_shown(one)} "{printable(one.captions[0])}" | {_shown(other)} "{printable(other.captions[0])}"'


def head_of_template(captions: Sequence[str]) -> tuple[str, float] | None:
    """Return the longest beginning that more than half of the captions share, and their share; None if there is none.

    One word is no template: half of all captions may well begin with "a".
    """
    words = [WORD.findall(caption.lower()) for caption in captions]
    found = None
    for length in range(2, LONGEST_HEAD + 1):
        heads = Counter(" ".join(these[:length]) for these in words if len(these) >= length)
        head, count = max(heads.items(), key=lambda item: item[1], default=("", 0))
        if count <= TEMPLATE_SHARE * len(captions):
            break
        found = head, count / len(captions)
    return found


def _broken(report: Report) -> Iterator[Finding]:
    problems = report.problems()
    cases = (*report.faults, *report.missing, *report.unreadable)
    if problems:
        yield Finding("captions", "wrong", "; ".join(problems), "t2im data check lists them", cases)
    if report.orphans:
        yield Finding(
            "captions", "look", f"{len(report.orphans)} images have no caption and are not used", "", report.orphans
        )


def _lengths(report: Report, count: int) -> Iterator[Finding]:
    if not report.lengths:
        return
    ordered = sorted(report.lengths.items())
    spread = f"captions are {ordered[0][0]} to {ordered[-1][0]} {report.length_unit} long"
    if report.context_length is None:
        yield Finding("captions", "OK", spread)
        return
    read = f"{spread}, {report.context_length} are read"
    if report.too_long:
        share = len(report.too_long) / count
        what = f"{read}: of {len(report.too_long)} captions ({share:.1%}) the end is never seen"
        mend = "shorten them, put what matters first, or train a text encoder with a larger clip.context_length"
        yield Finding("captions", "wrong" if share > 0.5 else "look", what, mend, report.too_long)
    else:
        yield Finding("captions", "OK", f"{read}: none is cut")


def _empty(examples: Sequence[Example]) -> Iterator[Finding]:
    bare = tuple(_shown(example) for example in examples if not any(caption.strip() for caption in example.captions))
    if bare:
        level: Level = "wrong" if len(bare) > len(examples) / 2 else "look"
        what = f"{len(bare)} of {len(examples)} images have an empty caption: they teach no word"
        yield Finding("captions", level, what, "write what they show", bare)


def _shared(report: Report, examples: Sequence[Example]) -> Iterator[Finding]:
    count = Counter(caption for example in examples for caption in set(example.captions))
    lost = sum(all(count[caption] > 1 for caption in example.captions) for example in examples)
    share = lost / max(1, len(examples))
    largest = sorted(report.repeated_captions, key=lambda shared: -len(shared.images))
    cases = tuple(f'"{printable(shared.what)}": {len(shared.images)} images' for shared in largest)
    what = f"{lost:,} images ({share:.0%}) have no caption of their own"
    if share > SHARED_SHARE:
        level: Level = "wrong" if len(count) == 1 else "look"
        yield Finding("captions", level, f"{what}: no prompt can tell them from others", "add what differs", cases)
    else:
        yield Finding("captions", "OK", what)


def _templates(captions: Sequence[str]) -> Iterator[Finding]:
    template = head_of_template(captions)
    if template is None:
        yield Finding("captions", "OK", "no beginning is common to most captions")
        return
    head, share = template
    what = f'{share:.0%} of the captions begin with "{printable(head)}": these words teach nothing and take up room'
    mend = "leave them out, or write them in prompts as well, for the model will expect them"
    yield Finding("captions", "look", what, mend)


def _vocabulary(captions: Sequence[str]) -> Iterator[Finding]:
    words = [set(WORD.findall(caption.lower())) for caption in captions]
    counts = Counter(word for these in words for word in these)
    rare = {word for word, count in counts.items() if count < RARE}
    affected = sum(bool(these & rare) for these in words)
    share = affected / max(1, len(captions))
    what = (
        f"{len(counts):,} different words; {len(rare):,} of them are in fewer than {RARE} captions, "
        f"and {share:.0%} of the captions have such a word"
    )
    cases = tuple(sorted(rare))
    if share > RARE_SHARE:
        yield Finding(
            "captions",
            "look",
            what,
            "say the same thing in the same words; names that occur once are not learned",
            cases,
        )
    else:
        yield Finding("captions", "OK", what, "", cases)


def _sides(report: Report, examples: Sequence[Example], config: Config) -> Iterator[Finding]:
    cases = tuple(
        f'{_shown(example)}: "{printable(caption)}"'
        for example in examples
        for caption in example.captions
        if SIDES.search(caption)
    )
    if cases and config.data.horizontal_flip:
        what = f"{len(cases)} captions say left or right, and data.horizontal_flip shows their images mirrored"
        yield Finding("captions", "wrong", what, "--set data.horizontal_flip=false", cases)
    elif config.data.horizontal_flip:
        yield Finding("captions", "OK", "no caption says left or right, so mirror images contradict none")


def _shown(example: Example) -> str:
    return printable(Path(example.path).name)
