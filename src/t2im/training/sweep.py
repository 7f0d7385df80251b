"""Which settings are better? Train them all for the same time, over the same seeds, and compare.

A sweep is a grid: every combination of the values given, trained once with each seed, one run after the other. The runs
share their encoders and their encodings, so that nothing is encoded twice. The order is seed by seed: when a sweep is
cut short, every setting has had as many runs as any other, give or take one.

    OUTPUT/shared/          encoders and cache of all runs
    OUTPUT/runs/NAME/seed_0 a run like any other
    OUTPUT/sweep.json       which runs are done; the same command goes on with the others
    OUTPUT/results.md, .json  the table so far
"""

import itertools
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from t2im.config import Config
from t2im.devices import available_device
from t2im.errors import ConfigError, TrainingError, UsageError
from t2im.files import alone_in, require_writable, write_json, write_text
from t2im.recipe import load_config
from t2im.training.choice import text_encoder_for, vae_for
from t2im.training.encoders import ENCODERS, keep_encoders
from t2im.training.report import Report
from t2im.training.run import train
from t2im.training.split import read_split
from t2im.training.sweep_table import Row, as_json, as_markdown, read_outcome, rows_of

FORMAT = "t2im-sweep"
UNITS = {
    "s": ("minutes", 1 / 60),
    "m": ("minutes", 1),
    "h": ("minutes", 60),
    "steps": ("steps", 1),
    "epochs": ("epochs", 1),
}
ENCODED = ("vae", "vae_training", "clip", "clip_training")
"""Groups that shape the encoders, which all runs share."""
MAY_VARY = ("horizontal_flip",)
"""What of the data may vary: it changes neither the latents nor the held-out images, so errors stay comparable."""
TAKEN = {"training.seed": "--seeds", **{f"training.{name}": "--budget" for name in ("epochs", "steps", "minutes")}}
"""Settings that the sweep sets itself, and by which of its options."""


@dataclass(frozen=True)
class Variant:
    """One point of the grid: a base and the settings changed in it."""

    name: str
    recipe: str | None
    settings: tuple[str, ...]
    config: Config


@dataclass(frozen=True)
class Sweep:
    """What a sweep found out."""

    rows: list[Row]
    table: str
    """The rows as Markdown."""
    finished: bool


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
    variants = grid(bases, settings, _budget(budget))
    _require_comparable(variants)
    output = require_writable(output)
    with alone_in(output, "sweeping there"), Report(output, name="sweep", quiet=quiet) as report:
        runs = [(variant, seed) for seed in range(seeds) for variant in variants]
        state = _State(output)
        state.require_same(variants)
        shared = output / "shared"
        common: dict[str, Any] = {"device": device, "quiet": quiet}
        if not _choose_encoders(folder, variants[0].config, shared, vae, text_encoder, report.say, **common):
            return Sweep([], "", finished=False)
        finished = True
        for number, (variant, seed) in enumerate(runs, 1):
            if state.done(variant, seed):
                continue
            report.say(f"run {number} of {len(runs)}: {variant.name}, seed {seed}")
            if not (finished := _run(variant, seed, folder, state, shared, **common)):
                break
            _write_results(output, variants, seeds, state, budget)
        rows, table = _write_results(output, variants, seeds, state, budget)
        if not finished:
            report.say("stopped; the same command goes on")
        return Sweep(rows, table, finished)


def grid(bases: Sequence[str], settings: Sequence[str], fixed: Sequence[str]) -> list[Variant]:
    """Return all combinations of bases and values, the last value changing fastest; `fixed` is set in all of them.

    Raises: ConfigError, naming every combination that is impossible and why.
    """
    axes = [(path.strip(), values_of(text)) for path, text in map(_parts, settings)]
    for path, _ in axes:
        if path in TAKEN:
            raise UsageError(f'"{path}" is what {TAKEN[path]} sets for every run of a sweep. Use {TAKEN[path]}.')
    variants, faults = [], []
    for base, *values in itertools.product(bases or [""], *(values for _, values in axes)):
        chosen = [(path, value) for (path, _), value in zip(axes, values, strict=True)]
        varied = [
            f"{path}={value}"
            for (path, value), (_, all_values) in zip(chosen, axes, strict=True)
            if len(all_values) > 1
        ]
        name = (
            ", ".join([*([Path(base).stem] if len(bases) > 1 or (bases and not varied) else []), *varied]) or "defaults"
        )
        given = (*(f"{path}={value}" for path, value in chosen), *fixed)
        try:
            variants.append(Variant(name, base or None, given, load_config(base or None, settings=given)))
        except ConfigError as error:
            faults.append(f"{name}: {error}")
    if faults:
        raise ConfigError("; ".join(faults))
    return variants


def values_of(text: str) -> list[str]:
    """Split a list of values at its commas, but not at those inside brackets or quotes.

    >>> values_of("epsilon,v_prediction")
    ['epsilon', 'v_prediction']
    >>> values_of("(0.9,0.99), (0.9,0.999)")
    ['(0.9,0.99)', '(0.9,0.999)']

    Raises: ConfigError where brackets or quotes are not closed, or a value is missing.
    """
    values, depth, quote = [""], 0, ""
    for character in text:
        if quote:
            quote = "" if character == quote else quote
        elif character in "\"'":
            quote = character
        else:
            depth += (character in "([{") - (character in ")]}")
        if character == "," and not depth and not quote:
            values.append("")
        else:
            values[-1] += character
    values = [value.strip() for value in values]
    if depth or quote or not all(values):
        raise ConfigError(f'"{text}" is no list of values; write it as A,B with brackets and quotes closed.')
    return values


def _parts(setting: str) -> tuple[str, str]:
    path, separator, text = setting.partition("=")
    if not separator:
        raise ConfigError(f'setting "{setting}" has no "="; write it as group.name=value,value')
    return path, text


def _budget(text: str) -> tuple[str, ...]:
    """Return the settings that make a run as long as "20m" or "500steps" say."""
    match = re.fullmatch(rf"(\d+(?:\.\d+)?) ?({'|'.join(UNITS)})", text.strip())
    if match is None or not float(match[1]):
        raise UsageError(f'--budget "{text}" is no length of a run. Write it as 20m, 90s, 2h, 500steps or 3epochs.')
    name, scale = UNITS[match[2]]
    amount = float(match[1]) * scale
    if name != "minutes" and not amount.is_integer():
        raise UsageError(f'--budget "{text}": steps and epochs are whole numbers.')
    others = {"steps": "None", "minutes": "None"} | {name: f"{amount if name == 'minutes' else int(amount)}"}
    return tuple(f"training.{key}={value}" for key, value in others.items())


def _require_comparable(variants: Sequence[Variant]) -> None:
    """Held-out errors are measured in latents, so all runs must see the same images through the same encoders."""

    def shared(config: Config) -> dict[str, Any]:
        tree = {group: getattr(config, group).model_dump() for group in (*ENCODED, "data")}
        return {
            f"{group}.{name}": value
            for group, fields in tree.items()
            for name, value in fields.items()
            if group != "data" or name not in MAY_VARY
        }

    first = shared(variants[0].config)
    different = sorted(
        {path for variant in variants for path, value in shared(variant.config).items() if value != first[path]}
    )
    if different:
        raise UsageError(
            f"the runs of a sweep share their images and encoders, or their errors could not be compared, but these "
            f"differ: {', '.join(different)}. Give them one value."
        )


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
) -> bool:
    """Train one run to its end, or on from where it was stopped; returns False if the user stopped it."""
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
            return False
        for path in output.glob("checkpoint_*.pt*"):  # the model is complete, and a sweep has many of them
            path.unlink()
    except TrainingError as error:
        fault = str(error)
    state.finish(variant, seed, fault)
    return True


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
        return self._output / "runs" / _slug(variant.name) / f"seed_{seed}"

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
                if Path(key).parent.name == _slug(variant.name) and run["settings"] != now:
                    before = run["settings"]
                    changed = sorted(path for path in {*before, *now} if before.get(path) != now.get(path))
                    raise UsageError(
                        f"{self._output}: its run {key} had other settings ({', '.join(changed)}). Name another --output."
                    )

    @staticmethod
    def _key(variant: Variant, seed: int) -> str:
        return f"{_slug(variant.name)}/seed_{seed}"


def _slug(name: str) -> str:
    """Return a name of a folder: the values only, for their paths are long."""
    return re.sub(r"[^\w.+-]+", "_", re.sub(r"[\w.]+=", "", name)).strip("_")


def _not_default(config: Config) -> Mapping[str, Any]:
    return dict(_differences(config.model_dump(mode="json"), Config().model_dump(mode="json")))


def _differences(tree: Mapping[str, Any], other: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    for group, fields in tree.items():
        for name, value in fields.items():
            if value != other[group][name]:
                yield f"{group}.{name}", value
