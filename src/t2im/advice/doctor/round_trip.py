"""What does the VAE lose? The best picture that a model can ever draw is a round trip through its VAE.

Latents are what diffusion works on, so what the VAE cannot keep no training brings back. Here a sample of the images goes
there and back; the worst are laid beside their originals for the eye, which judges text and faces better than decibels.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from t2im.advice.doctor.findings import Finding, Level
from t2im.config import Config
from t2im.data.captions import Example
from t2im.data.images import read_images
from t2im.encoders.vae import VAE, latent_statistics, psnr
from t2im.files import atomic_path
from t2im.picture import grid, to_pil
from t2im.shapes import Images, PerSample

SAMPLED = 256
WORST = 16
SHOWN_SIDE = 160
"""Pixels a side on the sheet, at least: tiny pictures are enlarged."""
SPREAD = (0.5, 2.0)
"""Standard deviation of latents that a UNet can be trained on; 1 is right."""
FAR = 1.0
"""Mean of a channel, in either direction, from which it is off the middle."""


@dataclass(frozen=True)
class RoundTrip:
    """What became of a sample of the images."""

    names: tuple[str, ...]
    psnr: PerSample
    """In dB, of each."""
    sharpness: PerSample
    """Share of each image's edges that is left, 1 for all: sum |grad x'| / sum |grad x|."""
    latent_mean: tuple[float, ...]
    """Of each channel."""
    latent_std: tuple[float, ...]


def examine(vae: VAE, examples: Sequence[Example], config: Config, sheet: Path) -> RoundTrip:
    """Send a sample of the images through the VAE, and draw the worst beside their originals into a file."""
    chosen = examples[:: max(1, len(examples) // SAMPLED)][:SAMPLED]
    pairs, posteriors = [], []
    for start in range(0, len(chosen), 16):
        images = read_images(
            [example.path for example in chosen[start : start + 16]],
            resolution=config.data.resolution,
            background=config.data.background,
        )
        posteriors.append(vae.encode(images))
        pairs.append((images, vae.decode(posteriors[-1].mean).cpu()))
    originals, redrawn = (torch.cat(part) for part in zip(*pairs, strict=True))
    quality = psnr(originals, redrawn)
    worst = quality.argsort()[:WORST]
    _draw(originals[worst], redrawn[worst], quality[worst], sheet)
    statistics = latent_statistics(posteriors)
    return RoundTrip(
        tuple(example.path.name for example in chosen),
        quality,
        _edges(redrawn) / _edges(originals).clamp(min=1e-6),
        tuple(statistics.mean.tolist()),
        tuple(statistics.std.tolist()),
    )


def vae_findings(trip: RoundTrip, sheet: Path) -> list[Finding]:
    """Say in plain words what will survive, and whether the latents are of the size that noise is made for."""
    median = trip.psnr.median().item()
    low, high = (trip.psnr.quantile(share).item() for share in (0.05, 0.95))
    kept = trip.sharpness.median().item()
    numbers = (
        f"its round trip keeps {median:.1f} dB (5 % below {low:.1f}, 5 % above {high:.1f}) and {kept:.0%} of edges"
    )
    worst = trip.psnr.argsort()[:WORST].tolist()
    cases = tuple(f"{trip.names[index]}: {trip.psnr[index]:.1f} dB" for index in worst)
    level, verdict = judge(median)
    mend = f"look at {sheet.name}: the worst images, each beside its round trip"
    if level != "OK":
        mend += (
            "; train a VAE on your images (t2im train vae FOLDER), with more latent_channels, or at a higher resolution"
        )
    return [Finding("vae", level, f"{numbers}: {verdict}", mend, cases), _latents(trip)]


def judge(decibels: float) -> tuple[Level, str]:
    """Turn a median PSNR into a level and a sentence.

    We saw emoji at 29 dB keep shapes and colours, and photographs at 17 dB keep coarse shapes only. The bounds between are
    a guess: look at the sheet.
    """
    if decibels >= 32:
        return "OK", "hardly any difference is seen"
    if decibels >= 27:
        return "OK", "shapes and colours survive, the finest texture and small text do not"
    if decibels >= 22:
        return "look", "text and thin lines will not survive"
    return "wrong", "only coarse shapes survive; text, thin lines, faces and texture will not"


def _latents(trip: RoundTrip) -> Finding:
    channels = ", ".join(f"{m:+.2f}±{s:.2f}" for m, s in zip(trip.latent_mean, trip.latent_std, strict=True))
    bad = any(not SPREAD[0] <= s <= SPREAD[1] for s in trip.latent_std) or any(abs(m) > FAR for m in trip.latent_mean)
    if bad:
        what = f"latents should be near 0±1 per channel, but are {channels}: noise levels do not fit them"
        return Finding(
            "vae", "wrong", what, "remove OUTPUT/encoders/vae so that they are measured anew, or use --vae auto"
        )
    return Finding("vae", "OK", f"latents are near 0±1, as the noise schedule expects: {channels}")


def _edges(images: Images) -> PerSample:
    return images.diff(dim=-1).abs().flatten(1).mean(1) + images.diff(dim=-2).abs().flatten(1).mean(1)


def _draw(originals: Images, redrawn: Images, quality: PerSample, sheet: Path) -> None:
    """Draw pairs, original left, round trip right, four pairs to a row."""
    larger = max(1, SHOWN_SIDE // originals.shape[-1])
    rows = (
        torch.stack([originals, redrawn], dim=1)
        .flatten(0, 1)
        .repeat_interleave(larger, -1)
        .repeat_interleave(larger, -2)
    )
    captions = [text for decibels in quality.tolist() for text in ("original", f"{decibels:.1f} dB")]
    with atomic_path(sheet) as temporary:
        grid(to_pil(rows), columns=8, captions=captions).save(temporary)
