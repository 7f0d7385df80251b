"""Which runs does a sweep consist of? Every combination of the values given: a grid.

    nano, small  x  objective.type=epsilon,v_prediction  x  training.betas=(0.9,0.99),(0.9,0.999)      eight settings

All of them are checked before the first one is trained: that they can be run, and that their results can be compared.
"""

import itertools
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from t2im.config import Config
from t2im.errors import ConfigError, UsageError
from t2im.recipe import load_config

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
    """What is varied: "objective.type=epsilon", or the recipe's name."""
    recipe: str | None
    settings: tuple[str, ...]
    config: Config

    @property
    def slug(self) -> str:
        """The name of its folder: the values only, for their paths are long."""
        return re.sub(r"[^\w.+-]+", "_", re.sub(r"[\w.]+=", "", self.name)).strip("_")


def grid(bases: Sequence[str], settings: Sequence[str], fixed: Sequence[str]) -> list[Variant]:
    """Return all combinations of bases and values, the last value changing fastest; `fixed` is set in all of them.

    Raises: ConfigError, naming every combination that is impossible and why.
    """
    axes = [(path.strip(), values_of(text)) for path, text in map(_parts, settings)]
    for path, _ in axes:
        if path in TAKEN:
            raise UsageError(f'"{path}" is what {TAKEN[path]} sets for every run of a sweep. Use {TAKEN[path]}.')
    varies = [len(values) > 1 for _, values in axes]
    variants: list[Variant] = []
    faults: dict[str, list[str]] = {}
    for base, *values in itertools.product(bases or [""], *(values for _, values in axes)):
        chosen = [f"{path}={value}" for (path, _), value in zip(axes, values, strict=True)]
        varied = list(itertools.compress(chosen, varies))
        if len(bases) > 1 or not varied:
            varied = [Path(base).stem or "defaults", *varied]
        name, given = ", ".join(varied), (*chosen, *fixed)
        try:
            variants.append(Variant(name, base or None, given, load_config(base or None, settings=given)))
        except ConfigError as error:
            faults.setdefault(str(error), []).append(name)
    if faults:
        everywhere = len(faults) == 1 and not variants
        raise ConfigError(
            "; ".join(error if everywhere else f"{' and '.join(names)}: {error}" for error, names in faults.items())
        )
    twice = sorted(name for name, count in Counter(variant.slug for variant in variants).items() if count > 1)
    if twice:
        raise UsageError(f"two settings of the sweep would both be called {', '.join(twice)}. Leave one of them out.")
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


def budget_settings(text: str) -> tuple[str, ...]:
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


def require_comparable(variants: Sequence[Variant]) -> None:
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
