"""The command `t2im`. This file and its neighbours import no torch: `t2im --help` must be instant."""

import sys
import warnings
from typing import Annotated, TextIO

import typer

from t2im import __version__
from t2im.cli import data, doctor, ema, generate, info, plan, plot, report, selftest, sweep, train
from t2im.errors import CANCELLED, T2IMError

app = typer.Typer(
    name="t2im",
    no_args_is_help=True,
    add_completion=True,
    pretty_exceptions_enable=False,
    help="A mini Stable Diffusion: train it from scratch on your own captioned images, run it, understand it.",
)
app.add_typer(data.app, name="data")
app.command()(generate.generate)
app.command()(train.train)
app.command()(sweep.sweep)
app.command()(ema.ema)
app.command()(plan.plan)
app.command()(doctor.doctor)
app.command()(report.report)
app.command()(info.info)
app.add_typer(plot.app, name="plot")
app.add_typer(selftest.app, name="selftest")


def _print_version(wanted: bool) -> bool:
    if wanted:
        print(f"t2im {__version__}")
        raise typer.Exit
    return wanted


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    pass


def _print_warning(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: TextIO | None = None,
    line: str | None = None,
) -> None:
    """Print a warning of ours as one line: the place in the code helps nobody at a command line."""
    about = "t2im" if issubclass(category, UserWarning) else f"{filename}:{lineno}"
    print(f"{about}: {message}", file=sys.stderr)


def main() -> None:
    """Run the command line; an error of ours becomes one line and an exit code."""
    warnings.showwarning = _print_warning
    try:
        app()
    except T2IMError as error:
        print(f"t2im: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        print("t2im: cancelled", file=sys.stderr)
        sys.exit(CANCELLED)
