"""`t2im ema`: choose the average of a run's weights after the run."""

import math
import sys
from pathlib import Path
from typing import Annotated

import typer

from t2im.errors import UsageError

LARGEST = 0.29


def ema(
    run: Annotated[Path, typer.Argument(help="The output folder of t2im train.", metavar="RUN")],
    sigma: Annotated[
        str, typer.Option(help="Widths of the average as shares of the run: a range FROM..TO, or a list A,B,C.")
    ] = "0.03..0.2",
    candidates: Annotated[int, typer.Option(min=1, help="How many widths of a range are compared.")] = 8,
    data: Annotated[
        Path | None, typer.Option(help="The run's images, if they have been moved.", metavar="FOLDER")
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="Where the best model goes.", show_default="RUN/model_ema"),
    ] = None,
    device: Annotated[str, typer.Option(help="auto, cuda, cuda:1, mps or cpu.")] = "auto",
) -> None:
    """Compare averages of a run's weights by held-out loss and by eye; write the best as a model."""
    widths = parse_sigmas(sigma, candidates)

    from rich.console import Console
    from rich.table import Table

    from t2im.training.ema_choice import choose

    console = Console(stderr=True, highlight=False)
    choice = choose(
        run,
        widths,
        folder=data,
        output=output,
        device=device,
        say=lambda text: console.print(text, markup=False, soft_wrap=True),
    )
    table = Table("weights", "off by", "held-out loss", "x0 error", "text gain", "")
    for each in choice.candidates:
        off = "" if each.error is None else f"{each.error:.1%}"
        numbers = [f"{each.loss:.5f}", f"{each.measured['heldout_x0']:.5f}", f"{each.measured['text_gain']:.1%}"]
        table.add_row(each.name, off, *numbers, "best" if each is choice.best else "")
    Console(highlight=False).print(table)
    lowest = min(choice.candidates, key=lambda each: each.loss)
    if lowest is not choice.best:
        print(f"none of these widths does better than {lowest.name}", file=sys.stderr)
    print(f"pictures: {choice.strip}", file=sys.stderr)
    print(choice.model)


def parse_sigmas(text: str, count: int) -> list[float]:
    """Return the widths that "0.03..0.2" (count of them, evenly spread by ratio) or "0.05,0.08" ask for, rising.

    Raises: UsageError for anything else, or a width outside (0, 0.29).
    """
    try:
        first, dots, last = text.partition("..")
        sigmas = [float(first), float(last)] if dots else [float(word) for word in text.split(",")]
    except ValueError:
        raise UsageError(f'--sigma "{text}": give a range such as 0.03..0.2, or a list such as 0.05,0.08.') from None
    for sigma in sigmas:
        if not 0 < sigma < LARGEST:
            raise UsageError(f"--sigma {sigma:g}: a width is a share of the run above 0 and below {LARGEST}.")
    if dots and count > 1:
        low, high = sigmas
        if low >= high:
            raise UsageError(f'--sigma "{text}": the range is empty; write the smaller width first.')
        sigmas = [math.exp(math.log(low) + (math.log(high) - math.log(low)) * i / (count - 1)) for i in range(count)]
    elif dots:
        sigmas = [math.sqrt(sigmas[0] * sigmas[1])]
    return sorted(set(sigmas))
