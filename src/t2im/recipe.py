"""How is a run's tree of settings put together? From a recipe, changed in single places: later ones win.

    defaults  <  recipe  <  --set group.name=value

A recipe is a TOML file with some of the settings of `config.py`: one that ships in `recipes/`, or the user's own.
"""

import ast
import tomllib
from collections.abc import Iterable
from importlib import resources
from pathlib import Path
from typing import Any

from t2im.config import Config
from t2im.errors import ConfigError, nearest
from t2im.settings import parse_settings


def recipe_names() -> list[str]:
    """Return the names of the recipes that ship with the package."""
    folder = resources.files("t2im") / "recipes"
    return sorted(entry.name.removesuffix(".toml") for entry in folder.iterdir() if entry.name.endswith(".toml"))


def load_config(recipe: str | None = None, *, settings: Iterable[str] = ()) -> Config:
    """Build the tree from a recipe (a name that ships with the package, or a TOML file) and `a.b=value` settings.

    Raises: ConfigError, naming every faulty setting with the nearest valid name.
    """
    tree = _read_recipe(recipe) if recipe else {}
    for setting in settings:
        _apply(tree, setting)
    return parse_settings(Config, tree)


def _read_recipe(recipe: str) -> dict[str, Any]:
    if recipe in recipe_names():
        text = (resources.files("t2im") / "recipes" / f"{recipe}.toml").read_text(encoding="utf-8")
    elif recipe.endswith(".toml") and Path(recipe).is_file():
        text = Path(recipe).read_text(encoding="utf-8")
    else:
        raise ConfigError(
            f'recipe "{recipe}" is unknown{nearest(recipe, recipe_names())}. '
            f"Valid: {', '.join(recipe_names())}, or the path of a .toml file."
        )
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{recipe}: not valid TOML ({error}).") from None


def _apply(tree: dict[str, Any], setting: str) -> None:
    path, separator, text = setting.partition("=")
    if not separator:
        raise ConfigError(f'setting "{setting}" has no "="; write it as group.name=value, e.g. training.seed=1')
    value: Any
    try:
        value = ast.literal_eval(text)
    except (ValueError, SyntaxError):
        value = {"true": True, "false": False}.get(text.lower(), text)
    *groups, name = path.strip().split(".")
    for group in groups:
        tree = tree.setdefault(group, {})
        if not isinstance(tree, dict):
            raise ConfigError(f'setting "{path}": "{group}" is a value, not a group of settings')
    tree[name] = value
