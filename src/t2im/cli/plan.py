"""`t2im plan`: what would this run cost?"""

import json
from pathlib import Path
from typing import Annotated

import typer


def plan(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="The folder of images and captions.")],
    output: Annotated[
        Path, typer.Option("--output", "-o", help="Where the run would live; it is only looked at.")
    ] = Path("output"),
    recipe: Annotated[str | None, typer.Option(help="A recipe's name, or a TOML file.")] = None,
    epochs: Annotated[int | None, typer.Option(help="Passes over the images.")] = None,
    steps: Annotated[int | None, typer.Option(help="Optimizer steps.")] = None,
    minutes: Annotated[float | None, typer.Option(help="Minutes of training.")] = None,
    vae: Annotated[str, typer.Option(help="auto, train, builtin, a folder or a hub id.")] = "auto",
    text_encoder: Annotated[str, typer.Option(help="auto, train, builtin, a folder or a hub id.")] = "auto",
    settings: Annotated[
        list[str] | None, typer.Option("--set", metavar="GROUP.NAME=VALUE", help="Any other setting; may be repeated.")
    ] = None,
    device: Annotated[str, typer.Option(help="auto, cuda, cuda:1, mps or cpu.")] = "auto",
    as_json: Annotated[bool, typer.Option("--json", help="Print every number as one JSON object.")] = False,
) -> None:
    """Say what `t2im train` with the same options would cost: time, memory, disk, and the risk of copying.

    Some real steps are tried, which takes half a minute; it asks nothing and writes nothing.
    """
    from rich.console import Console

    from t2im.advice.forecast import as_dict, lines
    from t2im.advice.plan import plan

    with Console(stderr=True).status("trying some steps"):
        forecast = plan(
            folder,
            output=output,
            recipe=recipe,
            settings=settings or (),
            epochs=epochs,
            steps=steps,
            minutes=minutes,
            vae=vae,
            text_encoder=text_encoder,
            device=device,
        )
    if as_json:
        print(json.dumps(as_dict(forecast), indent=2))
    else:
        for line in lines(forecast):
            print(line)
