"""How does a folder become a model? The whole way: read, split, encoders, cache, UNet, model folder."""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from t2im import cache
from t2im.batches import Store
from t2im.card import ModelFacts
from t2im.config import Config
from t2im.devices import available_device
from t2im.encoders.text import TextEncoder
from t2im.encoders.vae import VAE
from t2im.errors import ModelError, UsageError, nearest
from t2im.files import alone_in, require_writable, write_json
from t2im.model import TextToImage
from t2im.recipe import changed, load_config
from t2im.settings import parse_settings
from t2im.toml import write_config
from t2im.training.checkpoint import Checkpoints
from t2im.training.choice import text_encoder_for, vae_for
from t2im.training.denoiser import DenoiserTask, known_captions, read_unet_checkpoint, write_unet_checkpoint
from t2im.training.ema_choice import RUN_FILE
from t2im.training.encoders import ENCODERS, keep_encoders, train_clip, train_vae
from t2im.training.facts import card_training, data_facts, start_facts
from t2im.training.loop import fit
from t2im.training.report import Report
from t2im.training.report_page import write_report
from t2im.training.rhythm import Budget, Plan, Progress
from t2im.training.split import Split, read_split
from t2im.training.trackers import require_trackers
from t2im.training.trainer import Compute

Say = Callable[[str], None]


@dataclass(frozen=True)
class Run:
    """What a run leaves behind."""

    output: Path
    checkpoint: Path | None
    """The newest checkpoint of the UNet; None if the run was stopped before its turn."""
    model: Path | None
    """The model folder; None if the run was stopped before its end."""
    heldout_loss: float | None
    """Of the averaged weights, at the last evaluation."""
    steps: int
    epochs: int
    finished: bool
    exit_code: int = 0
    """What a command should end with: 0, or the code of the signal that stopped the run."""


def train(
    folder: str | Path,
    *,
    output: str | Path = "output",
    recipe: str | None = None,
    settings: Sequence[str] = (),
    epochs: int | None = None,
    steps: int | None = None,
    minutes: float | None = None,
    seed: int | None = None,
    vae: str = "auto",
    text_encoder: str = "auto",
    resume: bool = False,
    device: str = "auto",
    quiet: bool = False,
) -> Run:
    """Train a text-to-image model on a folder of captioned images.

    folder: images and captions, in any layout that `t2im data check` knows; it is only read. output: where the run
    lives. epochs, steps, minutes: how long the UNet trains, at most one of them. vae, text_encoder: "auto", "train",
    "builtin", a folder or a hub id. resume: go on from the newest checkpoint in output.

    Raises: DataError for captions or images that cannot be used; ConfigError, UsageError for settings; ModelError for
    encoders or checkpoints; TrainingError if the numbers do not stay finite.
    """
    output = require_writable(output)
    with alone_in(output, "training there"), Report(output, name="t2im", quiet=quiet) as report:
        checkpoints = _checkpoints(output)
        newest = _newest(checkpoints, resume)
        if newest is None or recipe is not None:
            config = load_config(recipe, settings=settings)
        else:
            config = changed(_config_of(newest), settings)
        config = with_length(config, epochs, steps, minutes)
        if seed is not None:
            config = _changed(config, "training", seed=seed)
        where = available_device(device)
        require_trackers(config.training.trackers)

        data = read_split(folder, config, output, report.say, check_images=newest is None or config.data.skip_bad)
        if newest is None:
            run: dict[str, Any] = {"device": where, "seed": config.training.seed, "resume": resume, "quiet": quiet}
            examples = data.for_training, data.held_out
            chosen_vae = vae_for(vae, *examples, config, output, report.say, **run)
            text = text_encoder_for(text_encoder, *examples, config, output, report.say, **run) if chosen_vae else None
            if chosen_vae is None or text is None:
                return Run(output, None, None, None, steps=0, epochs=0, finished=False)
            encoders = keep_encoders(chosen_vae, text, output)
        else:
            chosen_vae, text, encoders = _encoders_of(newest, output, config)

        config = fitted(config, chosen_vae, text)
        if newest is not None:
            _refuse_changes(_config_of(newest), config)
        store = cache.build(
            data.examples,
            chosen_vae.to(where),
            text.to(where),
            output / "cache",
            config.data,
            progress=lambda what, done, total: report.progress(done / max(1, total), f"encoding {what}"),
        )
        write_config(config, output / "config.toml")
        write_json(output / RUN_FILE, {"folder": str(Path(folder).resolve())})
        about = {"encoders": encoders, **_about(folder, store, data, newest, report.say)}
        task = DenoiserTask(store, data.train, data.heldout, chosen_vae, text, config, about)
        seen = data_facts(Path(folder).resolve().name, data, store, text, config)
        report.event("start", **start_facts(config, task.schedule, seen))
        checkpoints = _checkpoints(output, keep=config.training.keep_checkpoints)
        progress = _fit_unet(task, config, checkpoints, where, resume=newest is not None, quiet=quiet)
        if progress.step > progress.skipped_steps:
            report.say(f"report: {write_report(output)}")
        model = None
        if progress.finished:
            model = _save_model(task, chosen_vae, text, config, output, progress, about, where)
            report.say(f'model: {model}   (t2im generate "{about["data"]["captions"][0]}" --model {model})')
        else:
            report.say("stopped; the same command with --resume goes on")
        return Run(
            output,
            checkpoints.paths()[-1],
            model,
            progress.evaluation.get("heldout_loss"),
            progress.step,
            progress.epoch,
            progress.finished,
            progress.exit_code,
        )


def train_part(
    part: str,
    folder: str | Path,
    *,
    output: str | Path = "output",
    recipe: str | None = None,
    settings: Sequence[str] = (),
    seed: int | None = None,
    resume: bool = False,
    device: str = "auto",
    quiet: bool = False,
) -> Path | None:
    """Train only the "vae" or only the text encoder ("clip"); returns its folder, or None if the user stopped it.

    The next `train` over the same output finds it there.
    """
    parts = {"vae": (train_vae, "vae"), "clip": (train_clip, "text_encoder")}
    if part not in parts:
        raise UsageError(f'"{part}" cannot be trained by itself{nearest(part, parts)}. Valid: {", ".join(parts)}.')
    function, name = parts[part]
    output = require_writable(output)
    config = load_config(recipe, settings=settings)
    if seed is not None:
        config = _changed(config, "training", seed=seed)
    with Report(output, name="t2im", quiet=quiet) as report:
        data = read_split(folder, config, output, report.say, check_images=True)
    trained = function(
        data.for_training,
        data.held_out,
        config,
        output,
        device=available_device(device),
        seed=config.training.seed,
        resume=resume,
        quiet=quiet,
    )
    return output / ENCODERS / name if trained else None


def fitted(config: Config, vae: VAE, text_encoder: TextEncoder) -> Config:
    """Return the settings with those of the UNet that its encoders decide: latent size and channels, text width.

    Raises: ModelError if the VAE's latents cannot be halved as often as the UNet does.
    """
    side, rest = divmod(config.data.resolution, vae.downscale)
    if rest or side % 2 ** (len(config.unet.block_out_channels) - 1):
        raise ModelError(
            f"data.resolution {config.data.resolution}: latents would have {config.data.resolution / vae.downscale:g} "
            f"cells a side, which {len(config.unet.block_out_channels)} UNet levels cannot halve. Take a multiple of "
            f"{vae.downscale * 2 ** (len(config.unet.block_out_channels) - 1)}."
        )
    return _changed(
        config,
        "unet",
        sample_size=side,
        in_channels=vae.latent_channels,
        out_channels=vae.latent_channels,
        cross_attention_dim=text_encoder.width,
    )


def with_length(config: Config, epochs: int | None, steps: int | None, minutes: float | None) -> Config:
    """Return the settings with another length of the UNet's training, if one is given; it replaces the recipe's.

    Raises: UsageError if it is said twice.
    """
    given = {"epochs": epochs, "steps": steps, "minutes": minutes}
    given = {name: value for name, value in given.items() if value is not None}
    if len(given) > 1:
        raise UsageError(f"{' and '.join(given)} both say how long to train: give one of them.")
    if not given:
        return config
    return _changed(config, "training", **{"steps": None, "minutes": None, **given})


def _fit_unet(
    task: DenoiserTask, config: Config, checkpoints: Checkpoints, device: torch.device, *, resume: bool, quiet: bool
) -> Progress:
    settings = config.training
    steps = settings.steps
    if steps is None and settings.minutes is None:
        steps = -(-settings.epochs * task.examples // settings.batch_size)
    epochs = (steps or 0) * settings.batch_size // task.examples
    plan = Plan(
        evaluations=settings.evaluations,
        preview_minutes=settings.preview_minutes,
        snapshots=settings.ema_snapshots if settings.ema_sigmas else 0,
        checkpoint_steps=settings.checkpoint_steps,
        checkpoint_minutes=settings.checkpoint_minutes,
        checkpoint_epochs=settings.checkpoint_epochs or max(1, epochs // 10),
    )
    tree = config.model_dump(mode="json")
    with Report(checkpoints.folder, name="unet", quiet=quiet, trackers=settings.trackers, config=tree) as report:
        return fit(
            task,
            settings,
            Budget(steps=steps, minutes=settings.minutes),
            plan,
            checkpoints,
            report,
            seed=settings.seed,
            compute=Compute(str(device), settings.mixed_precision, settings.compile, settings.channels_last),
            ema_sigmas=settings.ema_sigmas,
            resume=resume,
        )


def _save_model(
    task: DenoiserTask,
    vae: VAE,
    text_encoder: TextEncoder,
    config: Config,
    output: Path,
    progress: Progress,
    about: Mapping[str, Any],
    device: torch.device,
) -> Path:
    unet = task.model.eval().requires_grad_(False)
    data = {key: value for key, value in about["data"].items() if key not in ("captions", "latents")}
    facts = ModelFacts(
        name=output.resolve().name,
        training=card_training(config, progress, device),
        data=data,
        latents=about["data"]["latents"],
        captions=tuple(about["data"]["captions"]),
    )
    return TextToImage(unet, vae, text_encoder, task.schedule, config.sampling, facts).save(output / "model")


def _about(
    folder: str | Path, store: Store, data: Split, newest: Mapping[str, Any] | None, say: Say
) -> dict[str, dict[str, Any]]:
    """Return what checkpoints and the model card tell of the data."""
    digest = hashlib.sha256(store.content.tobytes())
    for example in data.examples:
        digest.update("\n".join(example.captions).encode())
    statistics = store.statistics
    if newest is not None and newest["data"]["sha256"] != digest.hexdigest():
        say("data: images or captions have changed since the checkpoint; going on with what is there now")
    return {
        "data": {
            "name": Path(folder).resolve().name,
            "images": len(data.examples),
            "train": len(data.train),
            "heldout": len(data.heldout),
            "sha256": digest.hexdigest(),
            "captions": list(known_captions(store, data.train)),
            "latents": {"mean": statistics.mean.tolist(), "std": statistics.std.tolist()},
        },
        "summary": {},
    }


def _checkpoints(output: Path, keep: int = 2) -> Checkpoints:
    return Checkpoints(output, write_unet_checkpoint, read_unet_checkpoint, keep=keep, best_by="heldout_loss")


def _newest(checkpoints: Checkpoints, resume: bool) -> dict[str, Any] | None:
    there = checkpoints.paths()
    if there and not resume:
        raise UsageError(
            f"{checkpoints.folder}: holds a run ({there[-1].name}). Add --resume to go on with it, or name "
            "another --output."
        )
    return checkpoints.read_newest()[1] if there else None


def _encoders_of(
    checkpoint: Mapping[str, Any], output: Path, config: Config
) -> tuple[VAE, TextEncoder, dict[str, Any]]:
    identities = dict(checkpoint["encoders"])
    vae = VAE.load(output / identities["vae"]["folder"], local_files_only=True)
    text = TextEncoder.load(
        output / identities["text_encoder"]["folder"], padding=config.text.padding, local_files_only=True
    )
    for name, encoder in (("vae", vae), ("text_encoder", text)):
        if encoder.sha256 != identities[name]["sha256"]:
            raise ModelError(f"{output / ENCODERS}: its {name} is not the one this run began with. Put that one back.")
    return vae, text, identities


def _config_of(checkpoint: Mapping[str, Any]) -> Config:
    return parse_settings(Config, checkpoint["config"])


def _refuse_changes(old: Config, new: Config) -> None:
    """A run's length and rhythm may change between its parts; whatever shapes the model or its data may not."""
    length = {"epochs", "steps", "minutes"}
    looks = {"evaluations", "preview_minutes", "preview_prompts", "trackers"}
    saves = {"checkpoint_steps", "checkpoint_epochs", "checkpoint_minutes", "keep_checkpoints"}
    free = length | looks | saves
    before, after = old.model_dump(), new.model_dump()
    different = [
        f"{group}.{name} (was {before[group][name]}, now {value})"
        for group, fields in after.items()
        for name, value in fields.items()
        if before[group][name] != value and not (group == "training" and name in free) and group != "sampling"
    ]
    if different:
        raise UsageError(f"--resume keeps a run's settings, but these differ: {', '.join(different)}. Leave them out.")


def _changed(config: Config, group: str, **values: Any) -> Config:
    tree = config.model_dump()
    tree[group] = {**tree[group], **values}
    return parse_settings(Config, tree)
