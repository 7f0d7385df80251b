"""`t2im plot`: pictures that explain a model."""

from pathlib import Path
from typing import Annotated

import typer

from t2im.errors import UsageError

app = typer.Typer(no_args_is_help=True, help="Draw pictures that explain a model.")


@app.command()
def architecture(
    output: Annotated[Path, typer.Option("--output", "-o", metavar="FILE.svg", help="Where to write the drawing.")],
    model: Annotated[
        str | None, typer.Option(help="A model folder or a checkpoint.  [default: the built-in model]")
    ] = None,
    recipe: Annotated[
        str | None, typer.Option(help="Draw what a recipe would train instead: its name, or a TOML file.")
    ] = None,
) -> None:
    """Draw a model's UNet: levels, blocks, channels, parameters, and where time and text enter."""
    if output.suffix.lower() != ".svg":
        raise UsageError(f"{output}: the drawing is an SVG; name it {output.with_suffix('.svg').name}.")
    if model is not None and recipe is not None:
        raise UsageError("--model and --recipe both say what to draw; give one of them.")
    from t2im.explain.architecture import architecture_svg
    from t2im.files import write_text

    if recipe is not None:
        import torch

        from t2im.nn.unet import ConditionalUNet
        from t2im.recipe import load_config

        with torch.device("meta"):  # shapes without weights: a drawing needs no more
            unet = ConditionalUNet(load_config(recipe).unet)
    else:
        from t2im.model import TextToImage

        unet = TextToImage.load(model).unet
    write_text(output, architecture_svg(unet))
    print(output)
