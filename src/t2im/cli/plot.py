"""`t2im plot`: pictures that explain a model."""

from pathlib import Path
from typing import Annotated

import typer

from t2im.errors import UsageError

app = typer.Typer(no_args_is_help=True, help="Draw pictures that explain a model.")

Output = Annotated[
    Path,
    typer.Option("--output", "-o", metavar="FILE.svg", help="Where to write the drawing; never over another file."),
]


@app.command()
def architecture(
    output: Output,
    model: Annotated[
        str | None, typer.Option(help="A model folder or a checkpoint.  [default: the built-in model]")
    ] = None,
    recipe: Annotated[
        str | None, typer.Option(help="Draw what a recipe would train instead: its name, or a TOML file.")
    ] = None,
) -> None:
    """Draw a model's UNet: levels, blocks, channels, parameters, and where time and text enter."""
    _require_new_svg(output)
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


@app.command()
def schedule(
    output: Output,
    recipe: Annotated[
        str | None, typer.Option(help="A recipe's name, or a TOML file.  [default: the default settings]")
    ] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="GROUP.NAME=VALUE", help="A setting of schedule or objective; may be repeated."),
    ] = None,
    model: Annotated[str | None, typer.Option(help="Draw a checkpoint's, or a model folder's, instead.")] = None,
) -> None:
    """Draw the noise levels: how much noise is at each, how often training visits it, how much an error counts there.

    A model folder does not keep how it was trained, so only the noise itself is drawn of it.
    """
    _require_new_svg(output)
    if model is not None and (recipe is not None or settings):
        raise UsageError("--model says what to draw, and so do --recipe and --set; give the one or the others.")
    from t2im.diffusion.schedule import Schedule
    from t2im.explain.noise_levels import noise_levels_svg
    from t2im.files import write_text

    if model is not None and not model.endswith(".pt"):
        from t2im.model import TextToImage

        drawing = noise_levels_svg(TextToImage.load(model).schedule, None)
    else:
        if model is not None:
            from t2im.checkpoint import config_of, read_checkpoint

            config = config_of(read_checkpoint(Path(model)), Path(model))
        else:
            from t2im.recipe import load_config

            config = load_config(recipe, settings=settings or ())
        drawing = noise_levels_svg(Schedule(config.schedule, config.objective.type), config.objective)
    write_text(output, drawing)
    print(output)


def _require_new_svg(output: Path) -> None:
    if output.suffix.lower() != ".svg":
        raise UsageError(f"{output}: the drawing is an SVG; name it {output.with_suffix('.svg').name}.")
    if output.exists():
        raise UsageError(f"{output}: exists already. Name another file, or delete this one first.")
