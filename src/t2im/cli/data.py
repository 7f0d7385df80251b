"""`t2im data`: build and inspect folders of captioned images."""

import io
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from t2im.errors import DataError, ModelError

if TYPE_CHECKING:
    from t2im.data.check import Ruler

DEFAULT_SHEET = Path("contact-sheet.png")

app = typer.Typer(no_args_is_help=True, help="Build and inspect folders of captioned images.")


@app.command()
def check(
    folder: Annotated[
        Path, typer.Argument(metavar="FOLDER", help="A folder of captioned images, or the captions file in it.")
    ],
    contact_sheet: Annotated[
        Path | None,
        typer.Option(help=f"Where to draw some images with their captions.  [default: {DEFAULT_SHEET}]"),
    ] = None,
    text_encoder: Annotated[
        str | None, typer.Option(help="Count tokens as this one does: a folder or hub id.  [default: built in]")
    ] = None,
    background: Annotated[str, typer.Option(help="The colour behind transparent pixels.")] = "white",
    skip_bad: Annotated[bool, typer.Option("--skip-bad", help="Unreadable images are no problem.")] = False,
    skip_missing: Annotated[
        bool, typer.Option("--skip-missing", help="Captions without image are no problem.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the complete report as JSON.")] = False,
) -> None:
    """Say what is in a folder of captioned images, and what would stop training (then the exit code is 3).

    Nothing is written into FOLDER.
    """
    from rich.console import Console
    from rich.progress import MofNCompleteColumn, Progress

    from t2im.data import contact_sheet as sheets
    from t2im.data.check import check, lines

    root = folder if folder.is_dir() else folder.parent
    sheet = sheets.require_free(contact_sheet, root) if contact_sheet else sheets.free_beside(DEFAULT_SHEET, root)
    ruler = _ruler(text_encoder)
    with Progress(
        *Progress.get_default_columns(), MofNCompleteColumn(), console=Console(stderr=True), transient=True
    ) as bar:
        task = bar.add_task("reading images", total=None)
        report, usable = check(
            folder,
            background=background,
            ruler=ruler,
            progress=lambda done, of: bar.update(task, completed=done, total=of),
        )
    if usable and sheet:
        sheets.write(usable, sheet, background=background)
    problems = report.problems(skip_bad=skip_bad, skip_missing=skip_missing)
    written = str(sheet) if usable and sheet else None
    if as_json:
        print(json.dumps({**report.as_dict(), "problems": problems, "contact_sheet": written}, indent=2))
    else:
        # A name may hold what the terminal cannot show; that must not hide the rest of the report.
        if isinstance(sys.stdout, io.TextIOWrapper):
            sys.stdout.reconfigure(errors="backslashreplace")
        for line in lines(report):
            print(line)
        print(f"contact sheet: {written}" if written else "contact sheet: none; say where with --contact-sheet")
        print("training would stop: " + "; ".join(problems) + "." if problems else "ready for training.")
    if problems:
        raise typer.Exit(DataError.exit_code)


def _ruler(text_encoder: str | None) -> "Ruler":
    """Measure captions with a text encoder's tokenizer: the one asked for, the built-in one, or by words."""
    from t2im.data.check import WORDS, Ruler
    from t2im.encoders.text import TextEncoder

    if text_encoder is None:
        from t2im.model_folder import builtin_folder

        try:
            text_encoder = str(builtin_folder())
        except ModelError:
            return WORDS
    encoder = TextEncoder.load(text_encoder)
    return Ruler("tokens", lambda caption: len(encoder.tokenize(caption)), encoder.context_length)


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
