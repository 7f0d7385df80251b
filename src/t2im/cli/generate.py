"""`t2im generate`: prompts in, pictures out."""

import json
import sys
from contextlib import nullcontext
from datetime import date
from pathlib import Path
from typing import Annotated

import typer

from t2im.errors import UsageError
from t2im.files import numbered_path, require_writable


def generate(
    prompt: Annotated[str, typer.Argument(help='What to draw; "-" reads one prompt a line from standard input.')],
    num_images: Annotated[int, typer.Option("--num-images", "-n", help="Pictures of each prompt.")] = 1,
    steps: Annotated[int | None, typer.Option(help="Denoising steps.", show_default="the model's")] = None,
    cfg_scale: Annotated[
        float | None,
        typer.Option("--cfg-scale", "--guidance-scale", help="Guidance; 1 is off.", show_default="the model's"),
    ] = None,
    seed: Annotated[
        int, typer.Option("--seed", "-s", help="Of the first picture, the next has seed + 1; -1 draws one.")
    ] = -1,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            help="A folder, or the name of one .png file.",
            show_default="outputs/DATE",
            metavar="PATH",
        ),
    ] = None,
    model: Annotated[
        str | None,
        typer.Option("--model", "-m", help="A model folder or a checkpoint.", show_default="built in", metavar="PATH"),
    ] = None,
    negative_prompt: Annotated[str, typer.Option(help="What to move away from.")] = "",
    sampler: Annotated[
        str | None, typer.Option("--sampler", "--scheduler", help="ddim, ddpm, euler, ...", show_default="the model's")
    ] = None,
    width: Annotated[int | None, typer.Option("--width", "-W", help="Pixels.", show_default="the model's")] = None,
    height: Annotated[int | None, typer.Option("--height", "-H", help="Pixels.", show_default="the model's")] = None,
    device: Annotated[str, typer.Option(help="cuda, mps, cpu, or auto.")] = "auto",
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one JSON object for each picture: path, settings.")
    ] = False,
) -> None:
    """Draw pictures of a prompt. No file is ever overwritten; each remembers its settings (`t2im info`)."""
    prompts = [line.strip() for line in sys.stdin if line.strip()] if prompt == "-" else [prompt]
    if not prompts:
        raise UsageError('no prompts on standard input; "-" expects one a line.')
    folder = output or Path("outputs") / date.today().isoformat()
    single = folder if folder.suffix.lower() == ".png" else None
    if single and len(prompts) * num_images > 1:
        raise UsageError(f"{single}: one file cannot hold {len(prompts) * num_images} pictures. Name a folder.")
    if single and single.exists():
        raise UsageError(f"{single}: exists already. Choose another name.")
    require_writable(single.parent if single else folder)

    from rich.console import Console
    from rich.progress import MofNCompleteColumn, Progress, TimeRemainingColumn

    from t2im import __version__
    from t2im.devices import available_device
    from t2im.diffusion.sample import Step
    from t2im.model import TextToImage
    from t2im.request import Request
    from t2im.settings import parse_settings

    values = {
        "prompts": tuple(prompts),
        "negative_prompt": negative_prompt,
        "num_images": num_images,
        "seed": seed,
        "num_inference_steps": steps,
        "guidance_scale": cfg_scale,
        "scheduler": sampler,
        "width": width,
        "height": height,
    }
    request = parse_settings(Request, values)
    chosen = available_device(device)
    loaded = TextToImage.load(model).to(chosen)
    order = loaded.resolve(request)
    print(
        f"t2im {__version__} · {loaded.facts.name}, {loaded.unet.num_parameters() / 1e6:.1f} M parameters · {chosen} · "
        f"{order.scheduler}, {order.num_inference_steps} steps, guidance {order.guidance_scale:g}",
        file=sys.stderr,
    )
    columns = *Progress.get_default_columns()[:3], MofNCompleteColumn(), TimeRemainingColumn()
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        drawing = progress.add_task("drawing")

        def advance(step: Step) -> None:
            progress.update(drawing, advance=len(step.latents), total=step.total * order.count)

        for picture in loaded.draw(order, advance):
            place = nullcontext(single) if single else numbered_path(folder, f"{picture.seed}.png")
            with place as final:
                path = picture.save(final)
            if as_json:
                print(json.dumps({"path": str(path), **picture.settings}))
            else:
                print(f"{path}  {picture.image.width}x{picture.image.height}  seed {picture.seed}")
