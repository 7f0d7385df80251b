"""What will this run cost, and what will it see? Answered before it starts, by trying a little of everything.

A forecast comes from a rehearsal on this machine: the real encoders on a few of the images, a real cache of them, some
real steps of the real networks. What was measured and what was only multiplied is said with each number. Nothing is
written but into a temporary folder.
"""

import functools
import math
import shutil
import tempfile
import time
import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from t2im import cache
from t2im.advice.copying import risk_of_copying
from t2im.advice.forecast import Forecast, Stage
from t2im.advice.probe import Memory, Trial, available_memory, flops_per_sample, trial
from t2im.batches import Store, split
from t2im.config import Config
from t2im.content import hashes_of_files
from t2im.data import captions
from t2im.data.captions import Example
from t2im.devices import available_device
from t2im.encoders.text import TextEncoder, new_clip, text_part, train_tokenizer
from t2im.encoders.vae import VAE, new_vae
from t2im.recipe import load_config
from t2im.training.at_hand import text_encoder_at_hand, vae_at_hand
from t2im.training.denoiser import DenoiserTask
from t2im.training.run import fitted, with_length
from t2im.training.split import heldout_share
from t2im.training.tasks import CLIPTask, VAETask
from t2im.training.trainer import Compute

PIXELS_TRIED = 2**18
"""How much of the images is encoded as a rehearsal: 64 images of 64x64, 4 of 256x256."""
CAPTIONS_TRIED = 2000
SECONDS_OF_STEPS = 8.0
"""Time for the real steps of the UNet; the encoders' get half of it."""
READ_BYTES = 2**30
"""Images of this size together are read in seconds."""
SLOW = 40.0
"""Samples per second below which one evaluation would take too long for a rehearsal."""
RECORD, FILE, SIZE = 40, 96, 8
"""Bytes in the cache of a record's key (32) and place (8), of a file's name, date and content, of an image's size."""


def plan(
    folder: str | Path,
    *,
    output: str | Path = "output",
    recipe: str | None = None,
    settings: Sequence[str] = (),
    epochs: int | None = None,
    steps: int | None = None,
    minutes: float | None = None,
    vae: str = "auto",
    text_encoder: str = "auto",
    device: str = "auto",
) -> Forecast:
    """Say what `train` with the same arguments would cost; writes nothing but into a temporary folder.

    Raises: what `train` would raise for settings, captions and encoders that cannot be used.
    """
    config = with_length(load_config(recipe, settings=settings), epochs, steps, minutes)
    where, output = available_device(device), Path(output)
    compute = Compute(str(where), config.training.mixed_precision, channels_last=config.training.channels_last)
    examples = captions.read(folder, skip_missing=config.data.skip_missing)
    some = spread(examples, max(4, PIXELS_TRIED // config.data.resolution**2))
    few = spread(examples, CAPTIONS_TRIED)
    with tempfile.TemporaryDirectory() as temporary:
        training_images = images_to_train_on(examples, config, Path(temporary))
    different = sorted({caption for example in examples for caption in example.captions} | {""})

    found_vae = vae_at_hand(vae, some, config, output)
    found_text = text_encoder_at_hand(text_encoder, few, config, output)
    stages = []
    if found_vae.vae is None:
        stages.append(_vae_stage(some, training_images, config, compute))
    if found_text.encoder is None:
        stages.append(_clip_stage(some, few, training_images, config, compute))
    tried_vae = found_vae.vae or VAE(new_vae(config.vae, config.data.resolution).eval().requires_grad_(False))
    tried_text = found_text.encoder or untrained_text_encoder(few, config)
    config = fitted(config, tried_vae, tried_text)

    with tempfile.TemporaryDirectory() as temporary:
        store, encoding = _encode(some, tried_vae.to(where), tried_text.to(where), Path(temporary), config)
        per_image, per_caption = encoding
        stages.append(
            Stage(
                "encode once",
                per_image * len(examples) * (2 if config.data.horizontal_flip else 1) + per_caption * len(different),
                f"{1 / per_image:,.0f} images/s and {1 / per_caption:,.0f} captions/s, measured",
            )
        )
        rows = np.arange(len(store), dtype=np.int64)
        task = DenoiserTask(store, rows, rows, tried_vae, tried_text, config, {})
        task.model.to(where)
        flops = flops_per_sample(task)
        tried, memory = rehearse(task, config, compute)
        evaluation = _evaluation_seconds(task, tried, Path(temporary))
        latent_shape = store.latent_shape

    evaluating = config.training.evaluations * (evaluation or 0.0)
    samples = run_length(config, training_images, tried.samples_per_second, evaluating)
    how = "not counted: too slow to try" if evaluation is None else f"{config.training.evaluations} times, measured"
    stages += [
        Stage("train the UNet", samples / tried.samples_per_second, f"{samples:,} samples at the measured speed"),
        Stage("evaluate and draw", evaluating, how),
    ]
    cache_bytes = {
        "latents": latents_bytes(len(examples), latent_shape, mirrored=config.data.horizontal_flip),
        "text states": text_bytes(different, tried_text),
        "names and sizes": len(examples) * (FILE + SIZE + RECORD),
    }
    available = available_memory(where)
    return Forecast(
        folder=str(folder),
        device=str(where),
        images=len(examples),
        training_images=training_images,
        captions=len(different) - 1,
        resolution=config.data.resolution,
        latent_shape=latent_shape,
        parameters={
            "UNet": _count_parameters(task.model),
            "VAE": _count_parameters(tried_vae.module),
            "text encoder": _count_parameters(tried_text.module),
        },
        encoders={"VAE": found_vae.why, "text encoder": found_text.why},
        flops_per_sample=flops,
        batch_size=config.training.batch_size,
        samples_at_once=config.training.batch_size // config.training.gradient_accumulation_steps,
        tried=tried,
        memory=memory,
        memory_available=available,
        largest_batch=memory.largest_batch(available) if memory is not None and available is not None else None,
        cache_bytes=cache_bytes,
        steps=samples // config.training.batch_size,
        epochs=samples / training_images,
        samples=samples,
        stages=tuple(stages),
        checkpoint_bytes=tried.checkpoint_bytes,
        disk_needed=sum(cache_bytes.values()) + (config.training.keep_checkpoints + 1) * tried.checkpoint_bytes,
        disk_free=shutil.disk_usage(_existing(output)).free,
        copying=risk_of_copying(samples, training_images, mirrored=config.data.horizontal_flip),
    )


def run_length(config: Config, images: int, samples_per_second: float, evaluating: float) -> int:
    """Return how many samples a run shows: by its steps, its minutes (less those of evaluations) or its epochs."""
    training = config.training
    steps = training.steps
    if steps is None and training.minutes is not None:
        steps = math.ceil(max(0.0, 60 * training.minutes - evaluating) * samples_per_second / training.batch_size)
    if steps is None:
        steps = -(-training.epochs * images // training.batch_size)
    return max(1, steps) * training.batch_size


def images_to_train_on(examples: Sequence[Example], config: Config, folder: Path) -> int:
    """Return how many images are not held out; exactly, by their content, or about, where reading it all takes long.

    folder: where an index of the contents may be written.
    """
    share = heldout_share(config.data.heldout, len(examples))
    if not share:
        return len(examples)
    if sum(example.path.stat().st_size for example in examples) > READ_BYTES:
        return round(len(examples) * (1 - share))
    content = hashes_of_files([example.path for example in examples], folder / "files")
    return len(split(content, share)[0])


def latents_bytes(images: int, latent_shape: tuple[int, int, int], *, mirrored: bool) -> int:
    """Return what the cache holds of images: mean and log-variance in half precision, and a key and a place for each.

        bytes = images * views * (2 moments * channels * height * width * 2 + 40)

    Copies of an image are held once, so this is the most that it can be.
    """
    return images * (2 if mirrored else 1) * (2 * math.prod(latent_shape) * 2 + RECORD)


def text_bytes(different: Sequence[str], encoder: TextEncoder) -> int:
    """Return what the cache holds of different captions: a state in half precision for each piece, as many as are kept.

    With padding "attend" every caption has its full context; with "mask" only its own pieces, which are counted on a
    sample of the captions.
    """
    pieces = float(encoder.context_length)
    if encoder.padding == "mask":
        counted = different[:: max(1, len(different) // CAPTIONS_TRIED)]
        pieces = sum(min(len(encoder.tokenize(caption)), encoder.context_length) for caption in counted) / len(counted)
    return round(len(different) * (pieces * encoder.width * 2 + RECORD))


def rehearse(task: DenoiserTask, config: Config, compute: Compute) -> tuple[Trial, Memory | None]:
    """Take real steps: of one sample, of a few, and of as much of the real batch as time and memory allow."""
    settings, seconds = config.training, SECONDS_OF_STEPS / 4
    try_ = functools.partial(trial, task, settings, compute, ema_sigmas=settings.ema_sigmas)
    at_once = settings.batch_size // settings.gradient_accumulation_steps
    one = try_(batch_size=1, steps=3, seconds=seconds)
    affordable = max(1, int(one.samples_per_second * seconds))
    few = min(4, at_once, affordable)
    if few == 1:
        return one, None
    some = try_(batch_size=few, steps=3, seconds=seconds)
    affordable = int(some.samples_per_second * seconds)
    memory, available = Memory.through(one, some), available_memory(torch.device(compute.device))
    if memory is not None and available is not None:
        affordable = min(affordable, memory.largest_batch(available))
    if affordable <= few:
        return some, memory
    whole = affordable >= at_once
    size = settings.batch_size if whole else affordable
    parts = settings.gradient_accumulation_steps if whole else 1
    last = try_(batch_size=size, accumulation=parts, steps=8, seconds=2 * seconds)
    return last, Memory.through(one, last) or memory


def spread(examples: Sequence[Example], count: int) -> list[Example]:
    """Take so many examples at most, evenly spread over all."""
    shown = min(len(examples), count)
    return [examples[index * len(examples) // shown] for index in range(shown)]


def untrained_text_encoder(examples: Sequence[Example], config: Config) -> TextEncoder:
    """Build the text encoder that would be trained, with its vocabulary, before it has learned anything."""
    tokenizer = train_tokenizer(
        [caption for example in examples for caption in example.captions],
        config.clip.vocab_size,
        config.clip.context_length,
    )
    return text_part(new_clip(config.clip, tokenizer).eval().requires_grad_(False), tokenizer, config.text.padding)


def _encode(
    examples: Sequence[Example], vae: VAE, text_encoder: TextEncoder, folder: Path, config: Config
) -> tuple[Store, tuple[float, float]]:
    """Make a real cache of a few examples; return it with the seconds per image and per caption."""
    ended: dict[str, tuple[float, int]] = {}

    def note(what: str, done: int, total: int) -> None:
        ended[what] = time.perf_counter(), done

    with warnings.catch_warnings():
        warnings.simplefilter(
            "ignore"
        )  # of captions that are too long and images that are bad, `check` and `doctor` tell
        started = time.perf_counter()
        skipping = config.data.model_copy(update={"skip_bad": True, "horizontal_flip": False})
        store = cache.build(examples, vae, text_encoder, folder, skipping, progress=note)
    images, captions_ = ended["images"], ended["captions"]
    return store, ((images[0] - started) / images[1], (captions_[0] - images[0]) / captions_[1])


def _vae_stage(examples: Sequence[Example], images: int, config: Config, compute: Compute) -> Stage:
    settings = config.vae_training
    batch_size = min(settings.batch_size, images)
    task = VAETask(examples, examples[:1], config.data, config.vae, settings, config.training.seed)
    tried = trial(
        task,
        settings,
        compute,
        batch_size=min(batch_size, len(examples)),
        seconds=SECONDS_OF_STEPS / 2,
    )
    seconds = settings.steps * batch_size / tried.samples_per_second
    return Stage("train a VAE", seconds, f"{settings.steps} steps at {tried.samples_per_second:.1f} images/s, measured")


def _clip_stage(
    some: Sequence[Example], few: Sequence[Example], images: int, config: Config, compute: Compute
) -> Stage:
    settings = config.clip_training
    batch_size = min(settings.batch_size, images)
    steps = max(1, min(settings.steps, settings.epochs * images // batch_size))
    tokenizer = untrained_text_encoder(few, config).tokenizer
    task = CLIPTask(some, some[:1], config.data, config.clip, tokenizer, config.training.seed)
    tried = trial(
        task,
        settings,
        compute,
        batch_size=min(batch_size, len(some)),
        seconds=SECONDS_OF_STEPS / 2,
    )
    seconds = steps * batch_size / tried.samples_per_second
    return Stage("train a text encoder", seconds, f"{steps} steps at {tried.samples_per_second:.1f} pairs/s, measured")


def _evaluation_seconds(task: DenoiserTask, tried: Trial, folder: Path) -> float | None:
    """Evaluate and draw once, where that takes seconds; weights and their average are both measured."""
    if tried.samples_per_second < SLOW:
        return None
    model = task.model.eval()
    started = time.perf_counter()
    with torch.no_grad():
        task.evaluate(model)
        once = time.perf_counter() - started
        task.preview(model, folder / "preview.png")
    return time.perf_counter() - started + once


def _count_parameters(module: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def _existing(path: Path) -> Path:
    """Return the folder itself, or the first one above it that exists."""
    path = path.absolute()
    return path if path.is_dir() else _existing(path.parent)
