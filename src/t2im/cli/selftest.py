"""`t2im selftest`: does this machine keep what this package promises?"""

from typing import Annotated

import typer

from t2im.errors import TrainingError

app = typer.Typer(no_args_is_help=True, help="Try on this machine what this package promises.")


@app.callback()
def _group() -> None:
    pass


@app.command()
def resume(
    folder: Annotated[
        str | None,
        typer.Argument(metavar="[FOLDER]", help="Captioned images, some of which are used.  [default: drawn here]"),
    ] = None,
    recipe: Annotated[str | None, typer.Option(help="A recipe's name, or a TOML file.")] = None,
    settings: Annotated[
        list[str] | None, typer.Option("--set", metavar="GROUP.NAME=VALUE", help="Any other setting; may be repeated.")
    ] = None,
    steps: Annotated[int, typer.Option(min=2, help="Optimizer steps of the whole run.")] = 8,
    device: Annotated[str, typer.Option(help="auto, cuda, cuda:1, mps or cpu.")] = "auto",
) -> None:
    """Train, train again with a kill -9 halfway and --resume, and compare the two to the bit; exit code 5 if they differ.

    Works in a temporary folder; your own runs are not touched.
    """
    from t2im.training.selftest import prove_resume

    proof = prove_resume(folder, recipe=recipe, settings=settings or (), steps=steps, device=device)
    for part, difference in proof.differences.items():
        print(f"{part:<14} largest difference {difference:g}")
    if not proof.equal:
        raise TrainingError(
            f"the run that was killed went on at step {proof.resumed_at} of {proof.steps} and ended elsewhere. On a GPU some "
            "kernels sum in another order each time: try --device cpu, where it must be equal."
        )
    print(f"equal to the bit: killed, went on at step {proof.resumed_at} of {proof.steps} ({proof.seconds:.0f} s)")
