"""Which setting won, and is that certain? What the runs of a sweep measured, as one table.

Every run's `metrics.jsonl` holds its evaluations; the last one says how good the run became, all of them how soon. A
setting's row is the mean over its seeds with a 95 % interval (see `intervals.py`), and its difference from the first
setting, seed by seed.
"""

import json
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from t2im.sweeps.intervals import Interval, interval, time_to_reach

SIGN = {"heldout_x0": 1, "text_gain": -1, "heldout_loss": 1}
"""What is measured of each run, and whether little (1) or much (-1) of it is good."""


@dataclass(frozen=True)
class Outcome:
    """What one run measured."""

    variant: str
    seed: int
    steps: int = 0
    samples_per_second: float | None = None
    seconds: tuple[float, ...] = ()
    """Of training, at each evaluation."""
    curves: Mapping[str, tuple[float, ...]] = field(default_factory=dict)
    """Each measure at each evaluation."""
    fault: str | None = None
    """Why the run could not be finished, if so."""

    def last(self, measure: str) -> float | None:
        """Return a measure at the end of the run."""
        return self.curves[measure][-1] if self.curves.get(measure) else None


def read_outcome(metrics: Path, variant: str, seed: int, fault: str | None = None) -> Outcome:
    """Read what a run wrote into its `metrics.jsonl`; what a resumed run did twice counts once, the second time."""
    steps: list[dict[str, Any]] = []
    evaluations: list[dict[str, Any]] = []
    for line in metrics.read_text(encoding="utf-8").splitlines() if metrics.is_file() else ():
        event = json.loads(line)
        kept = {"step": steps, "evaluation": evaluations}.get(event["event"])
        if kept is None:
            continue
        while kept and kept[-1]["step"] >= event["step"]:
            kept.pop()
        kept.append(event)
    measures = [name for name in SIGN if evaluations and all(event.get(name) is not None for event in evaluations)]
    rates = [event["samples_per_second"] for event in steps]
    return Outcome(
        variant,
        seed,
        steps=max((event["step"] for event in (*steps, *evaluations)), default=0),
        samples_per_second=statistics.median(rates) if rates else None,
        seconds=tuple(event["training_seconds"] for event in evaluations),
        curves={name: tuple(event[name] for event in evaluations) for name in measures},
        fault=fault,
    )


@dataclass(frozen=True)
class Row:
    """One setting over all its seeds."""

    variant: str
    runs: int
    measures: Mapping[str, Interval]
    differences: Mapping[str, Interval]
    """From the first setting, over the seeds that both have."""
    steps: float | None
    samples_per_second: float | None
    seconds_to_reach: tuple[float | None, ...]
    """Per seed: when it was as good as the first setting became in the end; None: never."""
    time_ratio: float | None
    """The median over the seeds of that time, as a share of the first setting's; None where most never get there."""
    faults: tuple[str, ...]


def rows_of(outcomes: Sequence[Outcome]) -> list[Row]:
    """Return a row for each setting, the best first; the first setting among the outcomes is the one to compare with."""
    variants = list(dict.fromkeys(outcome.variant for outcome in outcomes))
    by_seed = {name: {run.seed: run for run in outcomes if run.variant == name} for name in variants}
    baseline = by_seed[variants[0]] if variants else {}
    rows = [_row(name, by_seed[name], baseline) for name in variants]
    measure = ranking(rows)
    return sorted(rows, key=lambda row: row.measures[measure].mean if measure in row.measures else float("inf"))


def ranking(rows: Iterable[Row]) -> str:
    """Return the measure that orders the rows: in x0-space all objectives compare, in their own losses they do not."""
    return "heldout_x0" if any("heldout_x0" in row.measures for row in rows) else "heldout_loss"


def _row(variant: str, runs: Mapping[int, Outcome], baseline: Mapping[int, Outcome]) -> Row:
    sound = {seed: run for seed, run in runs.items() if run.fault is None}
    measures, differences = {}, {}
    for measure in SIGN:
        values = {seed: value for seed, run in sound.items() if (value := run.last(measure)) is not None}
        others = {seed: value for seed, run in baseline.items() if (value := run.last(measure)) is not None}
        if values:
            measures[measure] = interval(list(values.values()))
        if (pairs := [values[seed] - others[seed] for seed in values if seed in others]) and runs is not baseline:
            differences[measure] = interval(pairs)
    pairs_of_runs = [(run, baseline[seed]) for seed, run in sound.items() if seed in baseline]
    reached = [seconds_to_reach(run, other) for run, other in pairs_of_runs]
    own = [seconds_to_reach(other, other) for _, other in pairs_of_runs]
    ratios = [
        mine / theirs if mine is not None else float("inf")
        for mine, theirs in zip(reached, own, strict=True)
        if theirs  # a first setting without measures has no time of its own
    ]
    ratio = statistics.median(ratios) if ratios else float("inf")
    rates = [run.samples_per_second for run in sound.values() if run.samples_per_second is not None]
    return Row(
        variant,
        runs=len(sound),
        measures=measures,
        differences=differences,
        steps=statistics.fmean(run.steps for run in sound.values()) if sound else None,
        samples_per_second=statistics.fmean(rates) if rates else None,
        seconds_to_reach=tuple(reached),
        time_ratio=ratio if ratio < float("inf") else None,
        faults=tuple(f"seed {run.seed}: {run.fault}" for run in runs.values() if run.fault is not None),
    )


def seconds_to_reach(run: Outcome, goal: Outcome) -> float | None:
    """Return after how many seconds of training a run is as good as another one became: in x0 error and text gain both.

    None: it never is, or there is nothing to compare by.
    """
    times = []
    for measure in ("heldout_x0", "text_gain"):
        target = goal.last(measure)
        if target is None or measure not in run.curves:
            continue
        falling = [SIGN[measure] * value for value in run.curves[measure]]
        reached = time_to_reach(run.seconds, falling, SIGN[measure] * target)
        if reached is None:
            return None
        times.append(reached)
    return max(times, default=None)


def as_markdown(rows: Sequence[Row], *, first: str, budget: str) -> str:
    """Return the table as Markdown that is aligned for a terminal, with what it means below it."""
    measure = ranking(rows)
    shown = [name for name in SIGN if any(name in row.measures for row in rows)]
    lines = [["setting", "runs", *shown, f"{measure} - first", "samples/s", "steps", "time to reach", "share"]]
    best = next((row.variant for row in rows if measure in row.measures), None)
    for row in rows:
        lines.append(
            [
                f"**{row.variant}**" if row.variant == best else row.variant,
                str(row.runs),
                *(_number(row.measures.get(name)) for name in shown),
                "first" if row.variant == first else _difference(row.differences.get(measure)),
                f"{row.samples_per_second:.1f}" if row.samples_per_second is not None else "",
                f"{row.steps:.0f}" if row.steps is not None else "",
                _times(row.seconds_to_reach),
                f"{row.time_ratio:.2f}" if row.time_ratio is not None else "",
            ]
        )
    widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
    rule = ["-" * width for width in widths]
    text = [
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) + " |"
        for line in (lines[0], rule, *lines[1:])
    ]
    notes = [
        f"Every run had {budget}; the best setting is bold. Means over the seeds with 95 % intervals (Student's t).",
        f'"{measure} - first" is the mean difference from "{first}" within each seed; * marks an interval without 0. '
        "Each row is compared by itself: of twenty equal settings, one gets a * by chance.",
        '"time to reach": seconds of training until a run is as good as the first setting at its end, in x0 error and '
        'in text gain (median over the seeds); "share": of the time that the first setting itself took.',
    ]
    if "heldout_loss" in shown:
        notes.append(
            "heldout_loss is a loss of the objective itself: compare it between rows of one objective and one schedule only."
        )
    notes += [f"{row.variant}, {fault}" for row in rows for fault in row.faults]
    return "\n".join([*text, "", *(f"- {note}" for note in notes)]) + "\n"


def as_json(rows: Sequence[Row], outcomes: Sequence[Outcome]) -> dict[str, Any]:
    """Return all numbers, those of every single run too."""
    return {"settings": [asdict(row) for row in rows], "runs": [asdict(outcome) for outcome in outcomes]}


def _number(value: Interval | None) -> str:
    if value is None:
        return ""
    return f"{value.mean:.4f}" + (f" ± {value.half_width:.4f}" if value.half_width is not None else " (n=1)")


def _difference(value: Interval | None) -> str:
    if value is None:
        return ""
    if value.half_width is None:
        return f"{value.mean:+.4f} (n=1)"
    return f"{value.mean:+.4f} ± {value.half_width:.4f}" + " *" * value.differs_from_zero


def _times(times: Sequence[float | None]) -> str:
    if not times:
        return ""
    middle = statistics.median(float("inf") if time is None else time for time in times)
    share = f" ({sum(time is not None for time in times)}/{len(times)})" if None in times else ""
    return (f"{middle:.0f} s" if middle < float("inf") else "not reached") + share
