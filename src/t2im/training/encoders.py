"""Where do the VAE and the text encoder come from? From a hub, a folder, the built-in model, or from training here.

An encoder that is trained here ends in `OUTPUT/encoders/`, in the layout of any model folder, and is found there by the
next command over the same output.
"""

import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch

from t2im.config import CLIPTrainingConfig, Config
from t2im.data.captions import Example
from t2im.data.images import read_images
from t2im.encoders.text import TextEncoder, text_part, train_tokenizer
from t2im.encoders.vae import VAE, latent_statistics, whitened
from t2im.files import atomic_folder, require_writable
from t2im.training.checkpoint import Checkpoints, read_state, write_state
from t2im.training.loop import fit
from t2im.training.report import Report
from t2im.training.rhythm import Budget, Plan, Progress
from t2im.training.tasks import CLIPTask, VAETask
from t2im.training.trainer import Compute

ENCODERS = "encoders"
SAMPLED_IMAGES = 2048
"""Images whose latents are measured; their mean is then known to about 2 % of a standard deviation."""


def train_vae(
    train: Sequence[Example],
    heldout: Sequence[Example],
    config: Config,
    output: Path,
    *,
    device: torch.device,
    seed: int,
    resume: bool,
    quiet: bool = False,
) -> VAE | None:
    """Train an autoencoder on images, whiten its latents and save it; returns None if the user stopped it."""
    task = VAETask(train, heldout, config.data, config.vae, config.vae_training, seed)
    progress = _fit(task, config, output / "vae_training", device=device, seed=seed, resume=resume, quiet=quiet)
    if not progress.finished:
        return None
    vae = whitened_on(VAE(task.model.vae.eval().requires_grad_(False)), train, config)
    save_vae(vae, output)
    previews = sorted((output / "vae_training" / "previews").glob("*.png"))
    if previews:
        shutil.copyfile(previews[-1], output / "vae_training" / "side_by_side.png")
    return vae


def whitened_on(vae: VAE, examples: Sequence[Example], config: Config) -> VAE:
    """Measure the latents of (a sample of) the examples and return the VAE with latents of mean 0 and variance 1."""
    chosen = np.random.RandomState(0).permutation(len(examples))[:SAMPLED_IMAGES]
    paths = [examples[index].path for index in chosen.tolist()]
    posteriors = (
        vae.encode(
            read_images(paths[start : start + 32], resolution=config.data.resolution, background=config.data.background)
        )
        for start in range(0, len(paths), 32)
    )
    statistics = latent_statistics(posteriors)
    return whitened(vae, statistics.mean, statistics.std)


def train_clip(
    train: Sequence[Example],
    heldout: Sequence[Example],
    config: Config,
    output: Path,
    *,
    device: torch.device,
    seed: int,
    resume: bool,
    quiet: bool = False,
) -> TextEncoder | None:
    """Learn a vocabulary from the captions, train a CLIP with it and save it; returns None if the user stopped it.

    The text tower goes to `OUTPUT/encoders/`, the whole CLIP with its vision tower stays in `OUTPUT/clip_training/clip`.
    """
    captions = [caption for example in train for caption in example.captions]
    tokenizer = train_tokenizer(captions, config.clip.vocab_size, config.clip.context_length)
    task = CLIPTask(train, heldout, config.data, config.clip, tokenizer, seed)
    folder = output / "clip_training"
    progress = _fit(task, config, folder, device=device, seed=seed, resume=resume, quiet=quiet)
    if not progress.finished:
        return None
    from transformers.utils import logging

    logging.disable_progress_bar()  # of one small file; the run has its own report
    clip = task.model.eval().requires_grad_(False)
    with atomic_folder(folder / "clip") as temporary, _without_bars():
        clip.save_pretrained(temporary)
        tokenizer.save_pretrained(temporary)
    encoder = text_part(clip, tokenizer, config.text.padding)
    save_text_encoder(encoder, output)
    return encoder


def keep_encoders(vae: VAE, text_encoder: TextEncoder, output: Path) -> dict[str, dict[str, str]]:
    """Save both encoders in `OUTPUT/encoders/`, unless they are there, and return their identities for checkpoints."""
    folder = output / ENCODERS
    if not (folder / "vae").is_dir() or VAE.load(folder / "vae").sha256 != vae.sha256:
        save_vae(vae, output)
    if (
        not (folder / "text_encoder").is_dir()
        or TextEncoder.load(folder, padding=text_encoder.padding).sha256 != text_encoder.sha256
    ):
        save_text_encoder(text_encoder, output)
    return {
        "vae": {"folder": f"{ENCODERS}/vae", "sha256": vae.sha256},
        "text_encoder": {"folder": ENCODERS, "sha256": text_encoder.sha256},
    }


def save_vae(vae: VAE, output: Path) -> None:
    """Write the run's VAE."""
    with atomic_folder(output / ENCODERS / "vae") as temporary:
        vae.save(temporary)


def save_text_encoder(encoder: TextEncoder, output: Path) -> None:
    """Write the run's text encoder and tokenizer."""
    with tempfile.TemporaryDirectory(dir=require_writable(output / ENCODERS)) as whole:
        encoder.save(whole)
        for part in ("tokenizer", "text_encoder"):
            with atomic_folder(output / ENCODERS / part) as temporary:
                shutil.copytree(Path(whole) / part, temporary, dirs_exist_ok=True)


@contextmanager
def _without_bars() -> Iterator[None]:
    """Let transformers write weights without a progress bar of its own, which would break into ours or into silence."""
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


def _fit(
    task: VAETask | CLIPTask,
    config: Config,
    folder: Path,
    *,
    device: torch.device,
    seed: int,
    resume: bool,
    quiet: bool,
) -> Progress:
    settings = config.vae_training if isinstance(task, VAETask) else config.clip_training
    settings = settings.model_copy(update={"batch_size": min(settings.batch_size, task.examples)})
    steps = settings.steps
    if isinstance(settings, CLIPTrainingConfig):
        steps = max(1, min(steps, settings.epochs * task.examples // settings.batch_size))
    checkpoints = Checkpoints(folder, write_state, read_state, name=task.name, keep=config.training.keep_checkpoints)
    with Report(folder, name=task.name, quiet=quiet) as report:
        return fit(
            task,
            settings,
            Budget(steps=steps),
            Plan(evaluations=10),
            checkpoints,
            report,
            seed=seed,
            compute=Compute(str(device), config.training.mixed_precision),
            resume=resume and bool(checkpoints.paths()),
        )
