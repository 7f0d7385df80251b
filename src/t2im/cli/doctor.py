"""`t2im doctor`: is anything wrong with this folder and these settings?"""

from pathlib import Path
from typing import Annotated

import typer


def doctor(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="The folder of images and captions.")],
    recipe: Annotated[str | None, typer.Option(help="A recipe's name, or a TOML file.")] = None,
    settings: Annotated[
        list[str] | None, typer.Option("--set", metavar="GROUP.NAME=VALUE", help="Any other setting; may be repeated.")
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="A new folder for the report.  [default: outputs/doctor/00001-findings]"),
    ] = None,
    run: Annotated[Path, typer.Option(help="A run's folder, whose encoders are taken if it has some.")] = Path(
        "output"
    ),
    vae: Annotated[str, typer.Option(help="auto, train, builtin, a folder or a hub id.")] = "auto",
    text_encoder: Annotated[str, typer.Option(help="auto, train, builtin, a folder or a hub id.")] = "auto",
    minutes: Annotated[float, typer.Option(min=0, help="Time to learn eight images by heart; 0: do not.")] = 3.0,
    device: Annotated[str, typer.Option(help="auto, cuda, cuda:1, mps or cpu.")] = "auto",
) -> None:
    """Look for what is wrong before a long run: captions, VAE, and whether the settings can learn eight images.

    The exit code is 3 if captions or images are wrong, 5 if training would fail. Nothing is written into FOLDER.
    """
    from rich.console import Console

    from t2im.advice.doctor.examine import doctor
    from t2im.advice.doctor.findings import lines

    with Console(stderr=True).status("examining") as status:
        diagnosis = doctor(
            folder,
            output=output,
            run=run,
            recipe=recipe,
            settings=settings or (),
            vae=vae,
            text_encoder=text_encoder,
            minutes=minutes,
            device=device,
            say=lambda text: status.update(text),
        )
    for line in lines(diagnosis.findings):
        print(line)
    print(f"report: {diagnosis.report}")
    if diagnosis.exit_code:
        raise typer.Exit(diagnosis.exit_code)
