"""How is a tree of settings written down, so that people can read it and a run can be repeated from it?

As a recipe that leaves nothing out. It carries its schema number, so that a later version can still read it.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from t2im.config import Config
from t2im.files import write_text
from t2im.migrate import CONFIG_SCHEMA

HEAD = "# All settings of this run. To repeat it: t2im train FOLDER --recipe THIS_FILE"


def write_config(config: Config, path: str | Path) -> None:
    """Write all settings to a TOML file, atomically; `load_config` reads it back as the same tree."""
    write_text(path, f"{HEAD}\n\n{dump_toml(config)}")


def dump_toml(config: Config, notes: Mapping[str, str] | None = None) -> str:
    """Return all settings as TOML.

    notes: comments to put behind settings, by their full names.

    >>> print(dump_toml(Config(), {"text.padding": "why not"}).partition("[text]")[2].splitlines()[1])
    padding = "attend"  # why not
    """
    lines = [f"schema = {CONFIG_SCHEMA}"]
    for group, settings in config.model_dump().items():
        lines += ["", f"[{group}]"]
        for name, value in settings.items():
            note = (notes or {}).get(f"{group}.{name}")
            lines.append(f"{name} = {_literal(value)}" + (f"  # {note}" if note else ""))
    return "\n".join(lines) + "\n"


def _literal(value: Any) -> str:
    """Return a value as TOML writes it: nearly as JSON does, but TOML has no null and quotes the delete character."""
    if value is None:
        return '"none"'
    if isinstance(value, tuple):
        return f"[{', '.join(map(_literal, value))}]"
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
