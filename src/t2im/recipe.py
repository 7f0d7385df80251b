"""How is a run's tree of settings put together? From a recipe, changed in single places: later ones win.

    defaults  <  what a recipe extends  <  the recipe  <  --set group.name=value

A recipe is a TOML file with some of the settings of `config.py`: one that ships in `recipes/`, or the user's own. It may
say `extends = "small"`, or name a file beside itself, and then only what differs from that; and `schema = 2`, the number
of the tree that it was written for (see `migrate.py`). Where nothing is said, `nano` is meant: no recipe at all is
`nano`, and so is what a user's own recipe extends. The bare defaults are the textbook's.

Two settings may be "auto" here, for what is best follows from `objective.type`: `schedule.rescale_betas_zero_snr` is on
where the objective can take it, and `sampling.scheduler` is one that can run it.
"""

import ast
import tomllib
import warnings
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from importlib import resources
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any

from t2im.config import Config
from t2im.errors import ConfigError, nearest
from t2im.migrate import Tree, migrate_config, schema_without_number
from t2im.settings import parse_settings

LARGEST_RECIPE = 2**20  # bytes; the tree itself needs a few thousand
COMMAND_LINE = "command line"
DEFAULT_RECIPE = "nano"


@dataclass(frozen=True)
class Resolved:
    """A complete tree of settings, and who said what."""

    config: Config
    origins: Mapping[str, str]
    """Full name of a setting -> the recipe that gave it, or COMMAND_LINE; what is not here is a default."""


def recipe_names() -> list[str]:
    """Return the names of the recipes that ship with the package."""
    folder = resources.files("t2im") / "recipes"
    return sorted(entry.name.removesuffix(".toml") for entry in folder.iterdir() if entry.name.endswith(".toml"))


def load_config(recipe: str | None = None, *, settings: Iterable[str] = ()) -> Config:
    """Build the tree from a recipe (a name that ships with the package, or a TOML file) and `a.b=value` settings.

    Raises: ConfigError, naming every faulty setting with the nearest valid name.
    """
    return resolve(recipe, settings=settings).config


def resolve(recipe: str | None = None, *, settings: Iterable[str] = ()) -> Resolved:
    """Build the tree as `load_config` does, and remember where each setting comes from."""
    layers = _layers(recipe or DEFAULT_RECIPE, Path())
    given: Tree = {}
    for setting in settings:
        _apply(given, setting)
    layers.append((COMMAND_LINE, _today(given, None, COMMAND_LINE)))

    tree: Tree = {}
    origins: dict[str, str] = {}
    for origin, layer in layers:
        for group, values in layer.items():
            if isinstance(values, dict) and isinstance(tree.get(group, {}), dict):
                tree[group] = tree.get(group, {}) | values
                origins |= {f"{group}.{name}": origin for name in values}
            else:
                tree[group] = values  # no group, as the error will say
    return Resolved(parse_settings(Config, _decided(tree)), origins)


def _decided(tree: Tree) -> Tree:
    """Return the tree with "auto" replaced by what follows from the objective."""
    objective = tree.get("objective")
    kind = objective.get("type", "epsilon") if isinstance(objective, Mapping) else "epsilon"
    answers = {
        ("schedule", "rescale_betas_zero_snr"): kind in ("v_prediction", "sample"),
        ("sampling", "scheduler"): "dpm++2m" if kind == "flow" else "ddim",
    }
    for (group, name), answer in answers.items():
        values = tree.get(group)
        if isinstance(values, Mapping) and values.get(name) == "auto":
            tree = {**tree, group: {**values, name: answer}}
    return tree


def changed(config: Config, settings: Iterable[str]) -> Config:
    """Return a tree with some settings changed.

    Raises: ConfigError, naming every faulty setting with the nearest valid name.
    """
    tree = config.model_dump()
    for setting in settings:
        _apply(tree, setting)
    return parse_settings(Config, tree)


def _layers(recipe: str, beside: Path, extending: tuple[str, ...] = ()) -> list[tuple[str, Tree]]:
    """Read a recipe and all that it extends; the one that gives way to all others comes first.

    beside: the folder of the recipe that asks for it.
    """
    file = _find(recipe, beside)
    if str(file) in extending:
        raise ConfigError(f'{recipe}: extends itself, by way of {len(extending)} recipes. Leave one "extends" out.')
    tree = _read(file, recipe)
    schema, base = tree.pop("schema", None), tree.pop("extends", None if _ships(file) else DEFAULT_RECIPE)
    if base is not None and not isinstance(base, str):
        raise ConfigError(f"{recipe}: extends must be the name of one recipe, not {base!r}.")
    below = _layers(base, file.parent if isinstance(file, Path) else Path(), (*extending, str(file))) if base else []
    try:
        return [*below, (file.name, _today(tree, schema, recipe))]
    except ConfigError as error:
        raise ConfigError(f"{recipe}: {error}") from None


def _find(recipe: str, beside: Path) -> Traversable:
    """Return the file of a recipe: the user's own, or the one of that name that ships with the package."""
    name = recipe.removesuffix(".toml")
    own = beside / Path(recipe).expanduser()
    if recipe.endswith(".toml") and own.is_file():
        return own
    if name in recipe_names():
        return resources.files("t2im") / "recipes" / f"{name}.toml"
    there = [path.name for path in own.parent.glob("*.toml")]
    hint = nearest(name, recipe_names()) or nearest(own.name, there)
    raise ConfigError(
        f'recipe "{recipe}" is unknown{hint}. Valid: {", ".join(recipe_names())}, or the path of a .toml file.'
    )


def _ships(file: Traversable) -> bool:
    return file == resources.files("t2im") / "recipes" / file.name


def _read(file: Traversable, recipe: str) -> Tree:
    try:
        with file.open("rb") as handle:
            content = handle.read(LARGEST_RECIPE + 1)
        if len(content) > LARGEST_RECIPE:
            raise ConfigError(f"{recipe}: larger than {LARGEST_RECIPE // 2**10} KiB; this is no recipe.")
        return tomllib.loads(content.decode("utf-8-sig"))
    except OSError as error:
        raise ConfigError(f"{recipe}: cannot be read ({error.strerror}).") from None
    except UnicodeDecodeError as error:
        raise ConfigError(f"{recipe}: not UTF-8 text (byte {error.start}). Save it as UTF-8.") from None
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{recipe}: not valid TOML ({error}).") from None
    except RecursionError:
        raise ConfigError(f"{recipe}: nested too deeply; a recipe has groups, and settings in them.") from None


def _today(tree: Mapping[str, Any], schema: Any, where: str) -> Tree:
    """Return a tree in the newest schema; a hand-written one, without a number, is told about its old keys."""
    if schema is None:
        schema, old = schema_without_number(tree)
        for change in old:
            warnings.warn(f"{where}: {change}; the old name still works.", stacklevel=2)
    return migrate_config(tree, schema)


def _apply(tree: Tree, setting: str) -> None:
    path, separator, text = setting.partition("=")
    if not separator:
        raise ConfigError(f'setting "{setting}" has no "="; write it as group.name=value, e.g. training.seed=1')
    *groups, name = path.strip().split(".")
    for group in groups:
        tree = tree.setdefault(group, {})
        if not isinstance(tree, dict):
            raise ConfigError(f'setting "{path}": "{group}" is a value, not a group of settings')
    tree[name] = _value(text.strip())


def _value(text: str) -> Any:
    """Read a value as Python writes it; true and false as TOML does; and anything else as text."""
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        return {"true": True, "false": False}.get(text.lower(), text)
