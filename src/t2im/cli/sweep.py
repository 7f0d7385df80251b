"""`t2im sweep`: which settings are better?"""

from pathlib import Path
from typing import Annotated

import typer


def sweep(
    folder: Annotated[str, typer.Argument(metavar="FOLDER", help="The folder of images and captions.")],
    budget: Annotated[
        str, typer.Option(metavar="LENGTH", help="How long each run trains: 20m, 90s, 2h, 500steps or 3epochs.")
    ],
    bases: Annotated[
        list[str] | None,
        typer.Argument(metavar="[RECIPE]...", help="Recipes, by name or TOML file; the first is compared with."),
    ] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="GROUP.NAME=VALUE,...", help="Values to try; may be repeated, for a grid."),
    ] = None,
    seeds: Annotated[int, typer.Option(help="Runs of each setting; the intervals come from them.")] = 3,
    output: Annotated[Path, typer.Option("--output", "-o", help="Where the sweep lives.")] = Path("sweep"),
    vae: Annotated[str, typer.Option(help="auto, train, builtin, a folder or a hub id.")] = "auto",
    text_encoder: Annotated[str, typer.Option(help="auto, train, builtin, a folder or a hub id.")] = "auto",
    device: Annotated[str, typer.Option(help="auto, cuda, cuda:1, mps or cpu.")] = "auto",
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Print nothing but the table.")] = False,
) -> None:
    """Train settings for the same time each, one after the other, and compare them. Ctrl-C saves; the same goes on."""
    from t2im.sweeps import sweep as job

    result = job.sweep(
        folder,
        bases or (),
        settings=settings or (),
        budget=budget,
        seeds=seeds,
        output=output,
        vae=vae,
        text_encoder=text_encoder,
        device=device,
        quiet=quiet,
    )
    print(result.table)
    if result.exit_code:
        raise typer.Exit(result.exit_code)
