"""`t2im train`: from a folder of captioned images to a model."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

import typer

from t2im.errors import CANCELLED, UsageError

DECIDED_BY_ENCODERS = ("unet.sample_size", "unet.in_channels", "unet.out_channels", "unet.cross_attention_dim")
"""Settings that a run takes from its VAE and its text encoder, whatever recipes say."""


def train(
    what: Annotated[
        str,
        typer.Argument(
            metavar="[vae|clip] FOLDER", help="The folder of images and captions; before it, the one part to train."
        ),
    ],
    folder: Annotated[str | None, typer.Argument(hidden=True)] = None,
    output: Annotated[Path, typer.Option("--output", "-o", help="Where the run lives.")] = Path("output"),
    recipe: Annotated[str | None, typer.Option(help="A recipe's name, or a TOML file.")] = None,
    epochs: Annotated[int | None, typer.Option(help="Passes over the images.")] = None,
    steps: Annotated[int | None, typer.Option(help="Optimizer steps.")] = None,
    minutes: Annotated[float | None, typer.Option(help="Minutes of training.")] = None,
    seed: Annotated[int | None, typer.Option(help="All randomness derives from it.")] = None,
    vae: Annotated[str, typer.Option(help="auto, train, builtin, a folder or a hub id.")] = "auto",
    text_encoder: Annotated[str, typer.Option(help="auto, train, builtin, a folder or a hub id.")] = "auto",
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the newest checkpoint.")] = False,
    skip_bad: Annotated[bool, typer.Option("--skip-bad", help="Leave unreadable images out.")] = False,
    skip_missing: Annotated[bool, typer.Option("--skip-missing", help="Leave captions without an image out.")] = False,
    settings: Annotated[
        list[str] | None, typer.Option("--set", metavar="GROUP.NAME=VALUE", help="Any other setting; may be repeated.")
    ] = None,
    device: Annotated[str, typer.Option(help="auto, cuda, cuda:1, mps or cpu.")] = "auto",
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print all settings and where they come from, and do nothing else.")
    ] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Say nothing; metrics.jsonl says it all.")] = False,
) -> None:
    """Train a model from scratch: check, encoders, cache, UNet. Ctrl-C saves; --resume goes on."""
    chosen = list(settings or [])
    chosen += ["data.skip_bad=true"] * skip_bad + ["data.skip_missing=true"] * skip_missing
    if dry_run:
        length = {"epochs": epochs, "steps": steps, "minutes": minutes}
        print(_all_settings(recipe, chosen, length, seed, resume=resume), end="")
        return
    from t2im.training import run

    if folder is not None:
        part = run.train_part(
            what,
            folder,
            output=output,
            recipe=recipe,
            settings=chosen,
            seed=seed,
            resume=resume,
            device=device,
            quiet=quiet,
        )
        if part is None:
            raise typer.Exit(CANCELLED)
        print(part)
        return
    result = run.train(
        what,
        output=output,
        recipe=recipe,
        settings=chosen,
        epochs=epochs,
        steps=steps,
        minutes=minutes,
        seed=seed,
        vae=vae,
        text_encoder=text_encoder,
        resume=resume,
        device=device,
        quiet=quiet,
    )
    if not result.finished:
        raise typer.Exit(result.exit_code or CANCELLED)
    print(result.model)


def _all_settings(
    recipe: str | None, settings: list[str], length: Mapping[str, float | None], seed: int | None, *, resume: bool
) -> str:
    """Return the tree that a run would have, as its config.toml will hold it."""
    from t2im.recipe import resolve
    from t2im.toml import dump_toml

    if resume:
        raise UsageError(
            "--dry-run tells the settings of a new run; those of a run that exists are in its config.toml."
        )
    given = {name: value for name, value in length.items() if value is not None}
    if len(given) > 1:
        raise UsageError(f"{' and '.join(given)} both say how long to train: give one of them.")
    for name, value in ({"steps": None, "minutes": None, **given} if given else {}).items():
        settings = [*settings, f"training.{name}={value}"]
    if seed is not None:
        settings = [*settings, f"training.seed={seed}"]
    resolved = resolve(recipe, settings=settings)
    decided = dict.fromkeys(DECIDED_BY_ENCODERS, "decided by the encoders")
    return dump_toml(resolved.config, {**resolved.origins, **decided})
