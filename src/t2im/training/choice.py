"""Which VAE and which text encoder should a run use? What was asked for, or, by "auto", what proves good enough.

"auto" measures what is at hand (trained before into the same output, or built in) on the user's own data, and trains
when that is not good enough; it always says which it took and why.
"""

import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from t2im.config import Config
from t2im.data.captions import Example
from t2im.data.images import read_images
from t2im.encoders.text import TextEncoder
from t2im.encoders.vae import VAE, psnr
from t2im.errors import ModelError
from t2im.model_folder import builtin_folder
from t2im.training.encoders import ENCODERS, train_clip, train_vae, whitened_on

JUDGED = 64
"""Images of a round trip; enough to tell good from poor."""
JUDGED_CAPTIONS = 2000

Say = Callable[[str], None]


def vae_for(
    wanted: str,
    train: Sequence[Example],
    heldout: Sequence[Example],
    config: Config,
    output: Path,
    say: Say,
    **run: Any,
) -> VAE | None:
    """Return the VAE of a run, its latents whitened on the data; None if its training was stopped.

    wanted: "auto", "train", "builtin", a folder or a hub id. run: device, seed, resume and quiet of a training.
    """
    here = output / ENCODERS / "vae"
    if wanted == "auto":
        candidates = [("the one in this output", here)] if here.is_dir() else []
        candidates += [("the built-in one", folder) for folder in _builtin()]
        for name, folder in candidates:
            vae = VAE.load(folder)
            quality = round_trip(vae, (*heldout, *train)[:JUDGED], config)
            if quality is not None and quality >= config.vae_training.good_enough_psnr:
                say(f"VAE: {name}; its round trip of your images keeps {quality:.1f} dB")
                return vae if folder == here else whitened_on(vae, train, config)
            reason = (
                "cannot halve your resolution" if quality is None else f"keeps only {quality:.1f} dB of your images"
            )
            say(f"VAE: {name} {reason} (at least {config.vae_training.good_enough_psnr:g} is wanted)")
        wanted = "train"
    if wanted == "train":
        say(f"VAE: training one, {config.vae_training.steps} steps")
        return train_vae(train, heldout, config, output, **run)
    vae = VAE.load(builtin_folder() if wanted == "builtin" else wanted)
    quality = round_trip(vae, (*heldout, *train)[:JUDGED], config)
    if quality is None:
        raise ModelError(
            f"{wanted}: this VAE makes latents {vae.downscale} times smaller, and data.resolution "
            f"{config.data.resolution} is no multiple of that."
        )
    say(f"VAE: {wanted}; its round trip of your images keeps {quality:.1f} dB")
    return whitened_on(vae, train, config)


def text_encoder_for(
    wanted: str,
    train: Sequence[Example],
    heldout: Sequence[Example],
    config: Config,
    output: Path,
    say: Say,
    **run: Any,
) -> TextEncoder | None:
    """Return the text encoder of a run; None if its training was stopped. Arguments as of `vae_for`."""
    here, padding = output / ENCODERS, config.text.padding
    if wanted == "auto":
        candidates = [("the one in this output", here)] if (here / "text_encoder").is_dir() else []
        candidates += [("the built-in one", folder) for folder in _builtin()]
        for name, folder in candidates:
            encoder = TextEncoder.load(folder, padding=padding)
            pieces, cut = vocabulary_fit(encoder, train)
            words = f"needs {pieces:.2f} pieces for a word of your captions and cuts {cut:.1%} of them"
            if pieces <= config.clip_training.good_enough_pieces and cut <= 0.01:
                say(f"text encoder: {name}; it {words}")
                return encoder
            say(f"text encoder: {name} {words} (at most {config.clip_training.good_enough_pieces:g} and 1% are wanted)")
        wanted = "train"
    if wanted == "train":
        say(f"text encoder: training one, at most {config.clip_training.steps} steps")
        return train_clip(train, heldout, config, output, **run)
    encoder = TextEncoder.load(builtin_folder() if wanted == "builtin" else wanted, padding=padding)
    say(f"text encoder: {wanted}")
    return encoder


def round_trip(vae: VAE, examples: Sequence[Example], config: Config) -> float | None:
    """Return the mean PSNR in dB of images encoded and decoded; None if the VAE cannot take their size."""
    if config.data.resolution % vae.downscale:
        return None
    images = read_images(
        [example.path for example in examples], resolution=config.data.resolution, background=config.data.background
    )
    qualities = [psnr(batch, vae.decode(vae.encode(batch).mean).cpu()) for batch in torch.split(images, 16)]
    return torch.cat(qualities).mean().item()


def vocabulary_fit(encoder: TextEncoder, examples: Sequence[Example]) -> tuple[float, float]:
    """Return (pieces per word, share of captions longer than the context) over a sample of the captions."""
    captions = [caption for example in examples for caption in example.captions]
    captions = captions[:: max(1, len(captions) // JUDGED_CAPTIONS)]
    lengths = [len(encoder.tokenize(caption)) for caption in captions]
    words = sum(len(re.findall(r"\w+|[^\w\s]", caption)) for caption in captions)
    return (sum(lengths) - 2 * len(lengths)) / max(1, words), sum(n > encoder.context_length for n in lengths) / len(
        lengths
    )


def _builtin() -> list[Path]:
    try:
        return [builtin_folder()]
    except ModelError:
        return []
