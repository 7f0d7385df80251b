"""Which VAE and which text encoder should a run use? What was asked for, or, by "auto", what proves good enough.

Where nothing at hand is good enough (see `at_hand.py`), one is trained; the run always says which it took and why.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from t2im.config import Config
from t2im.data.captions import Example
from t2im.encoders.text import TextEncoder
from t2im.encoders.vae import VAE
from t2im.training.at_hand import JUDGED, text_encoder_at_hand, vae_at_hand
from t2im.training.encoders import train_clip, train_vae, whitened_on

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
    found = vae_at_hand(wanted, (*heldout, *train)[:JUDGED], config, output)
    if found.vae is None:
        say(f"VAE: {found.why}; {config.vae_training.steps} steps")
        return train_vae(train, heldout, config, output, **run)
    say(f"VAE: {found.why}")
    return found.vae if found.whitened else whitened_on(found.vae, train, config)


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
    found = text_encoder_at_hand(wanted, train, config, output)
    if found.encoder is None:
        say(f"text encoder: {found.why}; at most {config.clip_training.steps} steps")
        return train_clip(train, heldout, config, output, **run)
    say(f"text encoder: {found.why}")
    return found.encoder
