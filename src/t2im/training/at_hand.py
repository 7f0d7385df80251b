"""Which encoders are good enough for these images and captions, without training any?

What is at hand (trained before into the same output, or built in) is measured on the user's own data. A run asks before
it trains one (`choice.py`); plan and doctor ask what a run would take.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from t2im.config import Config
from t2im.data.captions import Example
from t2im.data.images import read_images
from t2im.encoders.text import TextEncoder
from t2im.encoders.vae import VAE, psnr
from t2im.errors import ModelError
from t2im.model_folder import builtin_folder
from t2im.training.encoders import ENCODERS

JUDGED = 64
"""Images of a round trip; enough to tell good from poor."""
JUDGED_CAPTIONS = 2000
MOST_CUT = 0.01
"""Share of captions beyond the context up to which a text encoder is good enough."""


@dataclass(frozen=True)
class VAEAtHand:
    """A VAE with the reason why it is taken; without one, the reason why one is to be trained."""

    vae: VAE | None
    why: str
    whitened: bool = False
    """Whether its latents are whitened on this data already."""


@dataclass(frozen=True)
class TextEncoderAtHand:
    """A text encoder with the reason why it is taken; without one, the reason why one is to be trained."""

    encoder: TextEncoder | None
    why: str


def vae_at_hand(wanted: str, examples: Sequence[Example], config: Config, output: Path) -> VAEAtHand:
    """Find the VAE that `train` would take with these arguments, if it need not be trained first.

    Raises: ModelError if a VAE was named that cannot be used.
    """
    reasons = []
    for name, source in _candidates(wanted, output / ENCODERS / "vae", output / ENCODERS / "vae"):
        vae = VAE.load(source)
        quality = round_trip(vae, examples[:JUDGED], config)
        wish = config.vae_training.good_enough_psnr
        if quality is None and wanted != "auto":
            raise ModelError(
                f"{wanted}: this VAE makes latents {vae.downscale} times smaller, and data.resolution "
                f"{config.data.resolution} is no multiple of that."
            )
        if quality is not None and (wanted != "auto" or quality >= wish):
            whitened = source == output / ENCODERS / "vae"
            return VAEAtHand(vae, f"{name}; its round trip of your images keeps {quality:.1f} dB", whitened)
        fault = "cannot halve your resolution" if quality is None else f"keeps {quality:.1f} dB of {wish:g} wanted"
        reasons.append(f"{name} {fault}")
    return VAEAtHand(None, "to be trained" + (f": {', '.join(reasons)}" if reasons else ""))


def text_encoder_at_hand(wanted: str, examples: Sequence[Example], config: Config, output: Path) -> TextEncoderAtHand:
    """Find the text encoder that `train` would take; arguments as of `vae_at_hand`."""
    reasons = []
    for name, source in _candidates(wanted, output / ENCODERS / "text_encoder", output / ENCODERS):
        encoder = TextEncoder.load(source, padding=config.text.padding)
        pieces, cut = vocabulary_fit(encoder, examples)
        fits = f"{pieces:.2f} pieces for a word of your captions, cuts {cut:.1%} of them"
        if wanted != "auto" or (pieces <= config.clip_training.good_enough_pieces and cut <= MOST_CUT):
            return TextEncoderAtHand(encoder, f"{name}; {fits}")
        reasons.append(f"{name} needs {fits}")
    return TextEncoderAtHand(None, "to be trained" + (f": {', '.join(reasons)}" if reasons else ""))


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


def _candidates(wanted: str, proof: Path, here: Path) -> list[tuple[str, Path | str]]:
    """Return what is worth trying, in order, each with what to call it."""
    if wanted == "train":
        return []
    if wanted == "builtin":
        return [("the built-in one", builtin_folder())]
    if wanted != "auto":
        return [(wanted, wanted)]
    found: list[tuple[str, Path | str]] = [("the one in this output", here)] if proof.is_dir() else []
    try:
        return [*found, ("the built-in one", builtin_folder())]
    except ModelError:
        return found
