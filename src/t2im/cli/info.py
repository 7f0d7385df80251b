"""`t2im info`: how was this picture made?"""

import json
from pathlib import Path
from typing import Annotated

import typer


def info(
    picture: Annotated[Path, typer.Argument(help="A PNG file of t2im, or of a tool that writes the same text.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print everything as one JSON object.")] = False,
) -> None:
    """Print the settings that a picture carries."""
    from t2im.infotext import read_settings

    settings = read_settings(picture)
    if as_json:
        print(json.dumps(settings))
        return
    seed = {"seed": settings["resolved_seed"]} if settings.get("resolved_seed") is not None else {}
    model = {f"model {name}": value for name, value in settings.get("model", {}).items()}
    for name, value in {**settings.get("request", {}), **seed, **model, **settings.get("versions", {})}.items():
        print(f"{name.replace('_', ' '):<20} {value}".rstrip())
