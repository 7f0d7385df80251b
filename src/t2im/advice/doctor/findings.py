"""What does the doctor say? One line for each thing looked at: fine, worth a look, or wrong, and how to mend it."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Literal

Level = Literal["OK", "look", "wrong"]
SHOWN = 3
"""Details of a finding on the terminal; the report holds them all."""


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at."""

    topic: Literal["captions", "images", "vae", "training"]
    level: Level
    what: str
    mend: str = ""
    """How to mend it; empty where nothing is to be mended."""
    details: tuple[str, ...] = ()
    """Every single case, such as the files that are meant."""


def worst(findings: Iterable[Finding], topics: Iterable[str]) -> Level:
    """Return the worst level among the findings of some topics."""
    order: tuple[Level, ...] = ("OK", "look", "wrong")
    chosen = set(topics)
    return max((finding.level for finding in findings if finding.topic in chosen), key=order.index, default="OK")


def lines(findings: Iterable[Finding], *, shown: int | None = SHOWN) -> Iterator[str]:
    """Write findings for a person; shown: how many details of each, all if None."""
    for finding in findings:
        yield f"{finding.level:<6} {finding.topic:<9} {finding.what}"
        if finding.mend:
            yield f"{'':<16} -> {finding.mend}"
        yield from (f"{'':<19} {detail}" for detail in finding.details[:shown])
        if shown is not None and len(finding.details) > shown:
            yield f"{'':<19} ... and {len(finding.details) - shown} more in the report"
