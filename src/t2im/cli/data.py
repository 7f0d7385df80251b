"""`t2im data`: build and inspect folders of captioned images."""

from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(no_args_is_help=True, help="Build and inspect folders of captioned images.")


@app.command()
def emoji(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="A new folder, or one that was interrupted.")],
    size: Annotated[int, typer.Option(help="Height and width of the pictures in pixels.")] = 64,
) -> None:
    """Build a data set of 7,000 captioned emoji in four styles: something to train on at once.

    The openly licensed artwork is fetched with npm and drawn here. DIR/heldout gets the concepts that are kept for
    evaluation.
    """
    from rich.console import Console
    from rich.progress import MofNCompleteColumn, Progress

    from t2im.data.emoji import build

    with Progress(*Progress.get_default_columns(), MofNCompleteColumn(), console=Console(stderr=True)) as progress:
        drawing = progress.add_task("drawing", total=None)
        built = build(
            folder, size=size, progress=lambda done, total: progress.update(drawing, completed=done, total=total)
        )
    styles = ", ".join(f"{count} in {style} style" for style, count in built.images.items())
    print(f"{folder}: {sum(built.images.values())} pictures ({styles}) with {built.captions} captions.")
    print(f"{folder / 'heldout'}: {built.heldout} of them, of concepts that the others do not show.")
