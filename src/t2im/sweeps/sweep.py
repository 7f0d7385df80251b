"""Which settings are better? Train them all for the same time, over the same seeds, and compare.

A sweep is a grid: every combination of the values given, trained once with each seed, one run after the other. The runs
share their encoders and their encodings, so that nothing is encoded twice. The order is seed by seed: when a sweep is
cut short, every setting has had as many runs as any other, give or take one.

    OUTPUT/shared/          encoders and cache of all runs
    OUTPUT/runs/NAME/seed_0 a run like any other
    OUTPUT/sweep.json       which runs are done; the same command goes on with the others
    OUTPUT/results.md, .json  the table so far
"""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from t2im.config import Config
from t2im.devices import available_device
from t2im.errors import CANCELLED, Diverged, UsageError
from t2im.files import alone_in, require_writable, write_json, write_text
from t2im.sweeps.grid import Variant, budget_settings, grid, require_comparable
from t2im.sweeps.sweep_table import Row, as_json, as_markdown, read_outcome, rows_of
from t2im.training.choice import text_encoder_for, vae_for
from t2im.training.encoders import ENCODERS, keep_encoders
from t2im.training.report import Report
from t2im.training.run import train
from t2im.training.split import read_split

FORMAT = "t2im-sweep"


@dataclass(frozen=True)
class Sweep:
    """What a sweep found out."""

    rows: list[Row]
    table: str
    """The rows as Markdown."""
    exit_code: int = 0
    """What a command should end with: 0, or the code of the signal that stopped the sweep."""


def sweep(
    folder: str | Path,
    bases: Sequence[str] = (),
    *,
    settings: Sequence[str] = (),
    budget: str,
    seeds: int = 3,
    output: str | Path = "sweep",
    vae: str = "auto",
    text_encoder: str = "auto",
    device: str = "auto",
    quiet: bool = False,
) -> Sweep:
    """Train every combination of bases and values with every seed, for the same budget each, and compare them.

    bases: recipes, by name or file; the first one with the first values is what the others are compared with.
    settings: as for `train`, but a value may be a list: "objective.type=epsilon,v_prediction". budget: "20m", "90s",
    "2h", "500steps" or "3epochs" of each run. output: where all of it lives; runs that are finished there are not
    repeated. vae, text_encoder: as for `train`.

    Raises: ConfigError, UsageError for settings that cannot be run or compared, before anything is trained; DataError,
    ModelError as `train` does. A run whose numbers do not stay finite is counted as such, and the others go on.
    """
    if seeds < 1:
        raise UsageError(f"--seeds {seeds}: at least one is needed; three or more tell how sure the result is.")
    variants = grid(bases, settings, budget_settings(budget))
    require_comparable(variants)
    output = require_writable(output)
    with alone_in(output, "sweeping there"), Report(output, name="sweep", quiet=quiet) as report:
        runs = [(variant, seed) for seed in range(seeds) for variant in variants]
        state = _State(output)
        state.require_same(variants)
        shared = output / "shared"
        common: dict[str, Any] = {"device": device, "quiet": quiet}
        if not _choose_encoders(folder, variants[0].config, shared, vae, text_encoder, report.say, **common):
            return Sweep([], "", CANCELLED)
        exit_code = 0
        for number, (variant, seed) in enumerate(runs, 1):
            if state.done(variant, seed):
                continue
            report.say(f"run {number} of {len(runs)}: {variant.name}, seed {seed}")
            if exit_code := _run(variant, seed, folder, state, shared, **common):
                report.say("stopped; the same command goes on")
                break
            _write_results(output, variants, seeds, state, budget)
        rows, table = _write_results(output, variants, seeds, state, budget)
        return Sweep(rows, table, exit_code)


def _choose_encoders(
    folder: str | Path,
    config: Config,
    shared: Path,
    vae: str,
    text_encoder: str,
    say: Callable[[str], None],
    *,
    device: str,
    quiet: bool,
) -> bool:
    """Choose or train both encoders, once; returns False if the user stopped it."""
    if (shared / ENCODERS / "vae").is_dir() and (shared / ENCODERS / "text_encoder").is_dir():
        return True
    data = read_split(folder, config, require_writable(shared), say, check_images=True)
    examples = data.for_training, data.held_out
    run: dict[str, Any] = {"device": available_device(device), "seed": 0, "resume": True, "quiet": quiet}
    chosen = vae_for(vae, *examples, config, shared, say, **run)
    text = text_encoder_for(text_encoder, *examples, config, shared, say, **run) if chosen else None
    if chosen is None or text is None:
        return False
    keep_encoders(chosen, text, shared)
    return True


def _run(
    variant: Variant, seed: int, folder: str | Path, state: "_State", shared: Path, *, device: str, quiet: bool
) -> int:
    """Train one run to its end, or on from where it was stopped; returns an exit code if the user stopped it."""
    output = state.folder_of(variant, seed)
    _share_cache(output, shared / "cache")
    encoders = str((shared / ENCODERS).resolve())
    fault = None
    try:
        result = train(
            folder,
            output=output,
            recipe=variant.recipe,
            settings=variant.settings,
            seed=seed,
            vae=encoders,
            text_encoder=encoders,
            resume=True,
            device=device,
            quiet=quiet,
        )
        if not result.finished:
            return result.exit_code or CANCELLED
        _keep_one_checkpoint(output, result.checkpoint)
    except Diverged as error:
        fault = str(error)
    state.finish(variant, seed, fault)
    return 0


def _keep_one_checkpoint(output: Path, newest: Path | None) -> None:
    """Remove the others of a run that is over: a sweep has many runs, and a checkpoint is four times its model."""
    for path in (path for path in output.glob("*.pt") if path != newest):
        path.unlink()
        path.with_name(f"{path.name}.sha256").unlink(missing_ok=True)


def _share_cache(output: Path, cache: Path) -> None:
    """Let a run find all encodings in one folder; where the system makes no links, the run makes its own."""
    cache.mkdir(parents=True, exist_ok=True)
    output.mkdir(parents=True, exist_ok=True)
    if not (output / "cache").exists():
        try:
            (output / "cache").symlink_to(Path("..", "..", "..", "shared", "cache"), target_is_directory=True)
        except OSError:
            return


def _write_results(
    output: Path, variants: Sequence[Variant], seeds: int, state: "_State", budget: str
) -> tuple[list[Row], str]:
    outcomes = [
        read_outcome(state.folder_of(variant, seed) / "metrics.jsonl", variant.name, seed, state.fault(variant, seed))
        for variant in variants
        for seed in range(seeds)
        if state.done(variant, seed)
    ]
    rows = rows_of(outcomes)
    table = as_markdown(rows, first=variants[0].name, budget=budget) if rows else ""
    write_text(output / "results.md", table)
    write_json(output / "results.json", as_json(rows, outcomes))
    return rows, table


class _State:
    """Which runs are done, in `sweep.json`: written whole after each of them."""

    def __init__(self, output: Path) -> None:
        self._output, self._path = output, output / "sweep.json"
        self._runs: dict[str, dict[str, Any]] = {}
        if self._path.is_file():
            saved = json.loads(self._path.read_text(encoding="utf-8"))
            if saved.get("format") != FORMAT:
                raise UsageError(f"{self._path}: not a sweep of t2im. Name another --output.")
            self._runs = saved["runs"]

    def folder_of(self, variant: Variant, seed: int) -> Path:
        """Return where a run lives."""
        return self._output / "runs" / variant.slug / f"seed_{seed}"

    def done(self, variant: Variant, seed: int) -> bool:
        """Whether a run came to its end, good or bad."""
        return self._key(variant, seed) in self._runs

    def fault(self, variant: Variant, seed: int) -> str | None:
        """Return why a run could not be finished, if so."""
        fault: str | None = self._runs[self._key(variant, seed)]["fault"]
        return fault

    def finish(self, variant: Variant, seed: int, fault: str | None) -> None:
        """Take note that a run came to its end."""
        self._runs[self._key(variant, seed)] = {"fault": fault, "settings": _not_default(variant.config)}
        write_json(self._path, {"format": FORMAT, "runs": self._runs})

    def require_same(self, variants: Sequence[Variant]) -> None:
        """Refuse to put runs of other settings or another length beside those that are done."""
        for variant in variants:
            now = _not_default(variant.config)
            for key, run in self._runs.items():
                if Path(key).parent.name == variant.slug and run["settings"] != now:
                    before = run["settings"]
                    changed = sorted(path for path in {*before, *now} if before.get(path) != now.get(path))
                    raise UsageError(
                        f"{self._output}: its run {key} had other settings ({', '.join(changed)}). Name another --output."
                    )

    @staticmethod
    def _key(variant: Variant, seed: int) -> str:
        return f"{variant.slug}/seed_{seed}"


def _not_default(config: Config) -> Mapping[str, Any]:
    return dict(_differences(config.model_dump(mode="json"), Config().model_dump(mode="json")))


def _differences(tree: Mapping[str, Any], other: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    for group, fields in tree.items():
        for name, value in fields.items():
            if value != other[group][name]:
                yield f"{group}.{name}", value
