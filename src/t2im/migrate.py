"""What becomes of a file of settings that an older version wrote? Step by step, its tree is made into today's.

Recipes, run folders and checkpoints carry the number of the schema that their tree of settings follows. Each step below
leads from one schema to the next and is never changed again, so a file of any age is read by walking all the steps from
its own number on: 1 -> 2 -> ... -> CONFIG_SCHEMA. A tree without any number was written by hand; it is of the newest
schema, unless a key in it says otherwise.
"""

import copy
from collections.abc import Callable, Mapping
from typing import Any

from t2im.errors import ConfigError

Tree = dict[str, Any]

CONFIG_SCHEMA = 2
"""Number of the tree of settings in `config.py`; it grows by one with every change that older files do not survive."""

MOVED: dict[int, dict[str, str]] = {2: {"schedule.prediction_type": "objective.type"}}
"""What each schema calls by another name than the one before it: old key -> new key."""


def migrate_config(tree: Mapping[str, Any], schema: Any) -> Tree:
    """Return a tree of settings as CONFIG_SCHEMA wants it; the given one is not touched.

    tree: groups of settings, as a recipe or a checkpoint holds them; it need not be complete.
    schema: the number that stands in its file, whatever stands there.

    >>> migrate_config({"schedule": {"prediction_type": "v_prediction", "beta_end": 0.02}}, schema=1)
    {'schedule': {'beta_end': 0.02}, 'objective': {'type': 'v_prediction'}}

    Raises: ConfigError for a number that is no schema, or one of a newer version of this package.
    """
    if isinstance(schema, bool) or not isinstance(schema, int) or schema < 1:
        raise ConfigError(f"schema {schema!r} is not the number of a schema; valid are 1 to {CONFIG_SCHEMA}.")
    if schema > CONFIG_SCHEMA:
        raise ConfigError(
            f"these settings have schema {schema}, and this version knows schemas up to {CONFIG_SCHEMA}: update t2im."
        )
    migrated: Tree = copy.deepcopy(dict(tree))
    for number in range(schema, CONFIG_SCHEMA):
        STEPS[number](migrated)
    return migrated


def schema_without_number(tree: Mapping[str, Any]) -> tuple[int, list[str]]:
    """Return the schema of a tree that carries no number, and its old keys, each with its new name.

    >>> schema_without_number({"schedule": {"prediction_type": "epsilon"}})
    (1, ['"schedule.prediction_type" is now "objective.type"'])
    >>> schema_without_number({"objective": {"type": "epsilon"}})
    (2, [])
    """
    old = [
        (schema - 1, f'"{before}" is now "{after}"')
        for schema, moved in MOVED.items()
        for before, after in moved.items()
        if _find(tree, before)
    ]
    return min((schema for schema, _ in old), default=CONFIG_SCHEMA), [text for _, text in old]


def _to_2(tree: Tree) -> None:
    """Schema 2 has a group for what the UNet learns; before it, the noise schedule said so, as diffusers' do."""
    for before, after in MOVED[2].items():
        _move(tree, before, after)


STEPS: dict[int, Callable[[Tree], None]] = {1: _to_2}
"""From each schema to the next one, in place."""


def _find(tree: Mapping[str, Any], path: str) -> bool:
    group, name = path.split(".")
    return isinstance(tree.get(group), Mapping) and name in tree[group]


def _move(tree: Tree, before: str, after: str) -> None:
    """Give a setting its new name; where both names are there, the file contradicts itself."""
    if not _find(tree, before):
        return
    if _find(tree, after):
        raise ConfigError(f'"{before}" is the old name of "{after}", and both are given. Leave the old one out.')
    (old_group, old_name), (group, name) = before.split("."), after.split(".")
    if isinstance(target := tree.setdefault(group, {}), dict):  # else the tree is none, and its reader will say so
        target[name] = tree[old_group].pop(old_name)
