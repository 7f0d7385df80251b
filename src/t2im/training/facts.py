"""What will somebody want to know of a run, years later? What it was started with, on what, and what came out.

Three readers, one source: the first line of the metrics file (and so the page `report.html`), the model card, and the
person who has to repeat it.
"""

import shlex
import statistics
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch

from t2im.batches import Store
from t2im.config import Config
from t2im.diffusion.schedule import Schedule
from t2im.encoders.text import TextEncoder
from t2im.toml import dump_toml
from t2im.training.environment import environment
from t2im.training.expected import expected
from t2im.training.precision import precision_for
from t2im.training.rhythm import Progress
from t2im.training.split import Split

MEASURED_CAPTIONS = 2000
"""Captions whose tokens are counted; of more, evenly chosen ones."""
SHOWN_CAPTIONS = 12
OFTEN = 0.05
"""Share of all captions from which the same one is worth a word."""
ON_CARD = ("heldout_loss", "heldout_x0", "text_gain", "text_gain_empty")
"""The numbers of the last evaluation that a model card shows."""


def start_facts(config: Config, schedule: Schedule, data: Mapping[str, Any]) -> dict[str, Any]:
    """Return what the event "start" holds: the command, the machine, all settings, and what losses are normal.

    data: of `data_facts`.
    """
    return {
        "command": command(sys.argv),
        "environment": environment(),
        "settings": dump_toml(config),
        "expected": asdict(expected(schedule)),
        "data": dict(data),
    }


def command(arguments: Sequence[str]) -> str:
    """Return a command line that can be pasted back, without the folder of the program.

    >>> command(["bin/t2im", "train", "my photos/", "--steps", "10"])
    "t2im train 'my photos/' --steps 10"
    """
    program, *rest = arguments
    return shlex.join([Path(program).name, *rest])


def data_facts(name: str, data: Split, store: Store, encoder: TextEncoder, config: Config) -> dict[str, Any]:
    """Return what a person should know of the data: how much there is, what captions look like, what looks wrong."""
    captions = [caption for example in data.examples for caption in example.captions]
    chosen = captions[:: max(1, len(captions) // MEASURED_CAPTIONS)]
    lengths = [len(encoder.tokenize(caption)) for caption in chosen]
    cut = sum(length > encoder.context_length for length in lengths) / len(lengths)
    return {
        "name": name,
        "images": len(data.examples),
        "held out": f"{len(data.heldout)} ({len(data.heldout) / len(data.examples):.1%})",
        "resolution": config.data.resolution,
        "captions per image": round(len(captions) / len(data.examples), 2),
        "different captions": len(set(captions)),
        "tokens of a caption": (
            f"{statistics.median(lengths):.0f} (median), {max(lengths)} at most; the text encoder reads "
            f"{encoder.context_length}"
        ),
        "captions": [captions[round(place)] for place in np.linspace(0, len(captions) - 1, SHOWN_CAPTIONS)],
        "findings": _findings(captions, cut, store),
    }


def card_training(config: Config, progress: Progress, device: torch.device) -> dict[str, Any]:
    """Return the training section of a model card."""
    training, objective, here = config.training, config.objective, environment()
    numbers = {name: round(progress.evaluation[name], 5) for name in ON_CARD if name in progress.evaluation}
    return {
        **numbers,
        "steps": progress.step,
        "epochs": progress.epoch,
        "samples": progress.samples,
        "minutes": round(progress.seconds / 60, 1),
        "prediction_type": objective.type,
        "timesteps": objective.timestep_sampling,
        "loss_weighting": objective.loss_weighting,
        "optimizer": f"{training.optimizer}, learning rate {training.learning_rate:g}, {training.schedule}",
        "batch_size": training.batch_size,
        "precision": {"no": "fp32"}.get(wanted := precision_for(training.mixed_precision, device), wanted),
        "ema_decay": training.ema_decay,
        "seed": training.seed,
        "skipped_steps": progress.skipped_steps,
        "hardware": here["gpu"] if device.type == "cuda" else f"{here['processor']}, {here['threads']} threads",
        "versions": f"t2im {here['t2im']}, torch {here['torch']}",
    }


def _findings(captions: Sequence[str], cut: float, store: Store) -> list[str]:
    """Return what looks wrong, a line each; whatever needs more than a look at the captions is for `t2im data check`."""
    found = []
    caption, times = Counter(captions).most_common(1)[0]
    if times > max(1, OFTEN * len(captions)):
        found.append(f'{times} captions of {len(captions)} are the same: "{caption}"')
    if empty := sum(not caption.strip() for caption in captions):
        found.append(f"{empty} captions are empty")
    if copies := len(store.content) - len(np.unique(store.content)):
        found.append(f"{copies} images are copies of others")
    if cut:
        found.append(f"{cut:.1%} of the captions are longer than the text encoder reads; their ends are never seen")
    return found
