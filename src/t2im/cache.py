"""How do images and captions become tensors once, instead of in every step?

The encoders are frozen, so what they say about an image or a caption never changes. `build` asks them once for each and
keeps the answers: of an image its posterior's mean and log-variance, so that its latents can still be drawn anew in
every epoch (the moments, not one sample); of a caption its hidden states. Keys are content hashes, folders are named by
encoder and transform: what is found is right, what has changed is simply not found and is computed again. Beside them
stays how large each image was, for networks that are told of it.
"""

import hashlib
import json
import os
import shutil
import warnings
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch

from t2im.batches import Store
from t2im.blocks import CacheRebuilt, Keys, Table, Writer
from t2im.config import DataConfig
from t2im.content import digests, hashes_of_files
from t2im.data.captions import Example
from t2im.data.images import centre_square, original_size, read_image
from t2im.encoders.text import PromptTooLong, TextEncoder
from t2im.encoders.vae import VAE
from t2im.errors import BadImage, DataError, T2IMError
from t2im.files import alone_in, require_writable, sha256_of_file, write_json

SIZES_FORMAT = 1
FORMAT = 1  # raised when the meaning of the files, or what data/images.py does to an image, changes
PIXELS_AT_ONCE = 2**18  # the size of an encoder's batch: 64 images of 64x64
PROMPTS_AT_ONCE = 64

Progress = Callable[[str, int, int], None]
"""Called with ("images" or "captions", how many are encoded, how many there are to encode)."""


class ImageSkipped(UserWarning):
    """An unreadable image was left out, as skip_bad asks."""


def build(
    examples: Sequence[Example],
    vae: VAE,
    text_encoder: TextEncoder,
    folder: str | Path,
    config: DataConfig,
    *,
    progress: Progress | None = None,
) -> Store:
    """Encode whatever of the examples the cache folder does not hold yet, and return them all as a Store.

    It may be interrupted at any time, and goes on where it was. Everything read back is checked by SHA-256. What is
    encoded again, in a batch of other neighbours, may differ in its last bit: runs repeat bit for bit on one cache.

    Raises: BadImage for an unreadable image (left out with a warning if config.skip_bad); DataError, if there are no
    examples; ModelError, if an encoder answers with non-finite numbers; T2IMError, if the folder cannot be written or
    another process is filling it.
    """
    if not examples:
        raise DataError("there are no examples to encode. Check the folder with: t2im data check FOLDER")
    folder = require_writable(folder)
    report = progress or (lambda what, done, total: None)
    with alone_in(folder, "filling this cache"):
        content = hashes_of_files([example.path for example in examples], folder / "files")
        latents = _table(folder, "latents", _transform(config) | {"vae": vae.sha256})
        bad = _encode_images(examples, content, latents, vae, config, report)
        text = _table(folder, "text", {"text_encoder": text_encoder.sha256})
        captions = [caption for example in examples for caption in example.captions] + [""]
        _encode_captions(captions, text, text_encoder, report)
        if bad:
            kept = [index for index in range(len(examples)) if index not in bad]
            if not kept:
                raise DataError(
                    f"none of the {len(examples)} images can be read. Check them with: t2im data check FOLDER"
                )
            examples, content = [examples[index] for index in kept], content[kept]
        originals = _measure_images(examples, content, _table(folder, "sizes", {"format": SIZES_FORMAT}))

    rows = text.find(_caption_keys([caption for example in examples for caption in example.captions] + [""]))
    views = np.stack([latents.find(keys) for keys in _views(content, config)], axis=1)
    return Store(
        examples,
        content,
        latents,
        views,
        text,
        rows[:-1],
        int(rows[-1]),
        masked=text_encoder.padding == "mask",
        sizes=np.array([_told_size(height, width, config.resolution) for height, width in originals], dtype=np.int32),
    )


def _measure_images(examples: Sequence[Example], content: Keys, table: Table) -> list[list[int]]:
    """Return height and width of each file's image, read from the header unless it is known already."""
    keys, first = np.unique(content, return_index=True)
    todo = first[table.find(keys) < 0]
    if len(todo):
        with ThreadPoolExecutor(max_workers=min(8, os.cpu_count() or 1)) as pool:
            measured = pool.map(lambda index: original_size(examples[index].path), todo.tolist())
            table.append(content[todo], [np.array([size], dtype=np.int32) for size in measured])
    return [size[0].tolist() for size in table.take(table.find(content))]


def _told_size(height: int, width: int, resolution: int) -> tuple[int, ...]:
    """Return what is told of an image: its height and width, and top and left of its centre square.

    All in pixels of the training resolution: an image that is larger counts as if its shorter side were just as long,
    for nothing is lost by reducing it, and a UNet asked for its native size shall know what is meant.
    """
    side, top, left = centre_square(height, width)
    scale = min(1.0, resolution / side)
    return tuple(round(number * scale) for number in (height, width, top, left))


def _encode_images(
    examples: Sequence[Example], content: Keys, table: Table, vae: VAE, config: DataConfig, report: Progress
) -> set[int]:
    """Add the missing posteriors, those of copies once; return the examples whose images cannot be read."""
    views = _views(content, config)
    missing = [table.find(keys) < 0 for keys in views]
    _, first = np.unique(content, return_index=True)
    todo = np.sort(first[np.any(missing, axis=0)[first]]).tolist()
    cells = vae.latent_channels * (config.resolution // vae.downscale) ** 2
    _require_space(table.folder, len(todo) * len(views) * 2 * cells * 2)

    unreadable: dict[bytes, BadImage] = {}
    at_once = max(1, min(64, PIXELS_AT_ONCE // config.resolution**2))
    with ThreadPoolExecutor(max_workers=min(8, os.cpu_count() or 1)) as pool, Writer(table) as writer:
        for start in range(0, len(todo), at_once):
            part = todo[start : start + at_once]
            read = pool.map(lambda index: _read(examples[index].path, content[index : index + 1], config), part)
            images = {}
            for index, image in zip(part, read, strict=True):
                if not isinstance(image, BadImage):
                    images[index] = image
                elif config.skip_bad:
                    unreadable[content[index : index + 1].tobytes()] = image
                else:
                    raise image
            for mirrored, (keys, absent) in enumerate(zip(views, missing, strict=True)):
                chosen = [index for index in images if absent[index]]
                if chosen:
                    pixels = torch.stack([images[index] for index in chosen])
                    posterior = vae.encode(pixels.flip(-1) if mirrored else pixels)
                    moments = torch.stack([posterior.mean, posterior.logvar], dim=1).cpu().numpy()
                    for index, moment in zip(chosen, moments, strict=True):
                        writer.add(keys[index : index + 1], moment, str(examples[index].path))
            report("images", start + len(part), len(todo))

    bad = set()
    for index in np.flatnonzero(np.any(missing, axis=0)).tolist() if unreadable else ():
        if (error := unreadable.get(content[index : index + 1].tobytes())) is not None:
            warnings.warn(f"{examples[index].path} is left out: {error}", ImageSkipped, stacklevel=3)
            bad.add(index)
    return bad


def _encode_captions(captions: Sequence[str], table: Table, encoder: TextEncoder, report: Progress) -> None:
    """Add the missing hidden states, each different caption once."""
    keys = _caption_keys(captions)
    _, first = np.unique(keys, return_index=True)
    todo = first[table.find(keys[first]) < 0]
    todo.sort()
    if encoder.padding == "attend":
        _require_space(table.folder, len(todo) * encoder.context_length * encoder.width * 2)
    with warnings.catch_warnings(record=True) as caught, Writer(table) as writer:
        warnings.simplefilter("always")
        for start in range(0, len(todo), PROMPTS_AT_ONCE):
            part = todo[start : start + PROMPTS_AT_ONCE].tolist()
            answer = encoder([captions[index] for index in part])
            states = answer.hidden_states.cpu().numpy()
            lengths = [states.shape[1]] * len(part) if answer.mask is None else answer.mask.sum(dim=1).tolist()
            for index, state, length in zip(part, states, lengths, strict=True):
                writer.add(keys[index : index + 1], state[:length], f'caption "{captions[index]}"')
            report("captions", start + len(part), len(todo))
    _summarize(caught, len(todo))


def _read(path: Path, key: Keys, config: DataConfig) -> torch.Tensor | BadImage:
    """Read an image, and make sure that it still is the file whose content the key names."""
    try:
        image: torch.Tensor = read_image(path, resolution=config.resolution, background=config.background)
        read = sha256_of_file(path)
    except BadImage as error:
        return error
    except OSError:  # it has been deleted since
        return BadImage(f"{path}: does not exist. Put it back, or leave it out with --skip-bad.")
    if bytes.fromhex(read) != key.tobytes():
        raise DataError(f"{path}: changed while it was read. Start again when nothing writes to the images.")
    return image


def _transform(config: DataConfig) -> dict[str, Any]:
    return {"format": FORMAT, "resolution": config.resolution, "background": config.background}


def _views(content: Keys, config: DataConfig) -> list[Keys]:
    """Return the keys of the images, and of their mirror images: the same with the last bit turned."""
    if not config.horizontal_flip:
        return [content]
    mirrored = content.view(np.uint8).reshape(-1, 32).copy()
    mirrored[:, -1] ^= 1
    return [content, mirrored.view("S32")[:, 0]]


def _caption_keys(captions: Sequence[str]) -> Keys:
    return digests([caption.encode("utf-8", "surrogatepass") for caption in captions])


def _table(folder: Path, kind: str, made_by: dict[str, Any]) -> Table:
    """Open the table of one encoder and transform; its folder is named by their hash, and about.json says them."""
    name = hashlib.sha256(json.dumps(made_by, sort_keys=True).encode()).hexdigest()[:16]
    path = folder / f"{kind}-{name}"
    if not path.exists():
        others = sorted(entry.name for entry in folder.glob(f"{kind}-*"))
        if others:
            warnings.warn(
                f"{folder}: what it holds was made by other encoders or settings and is not used; the {kind} are made anew. "
                f"When nothing needs them any more, delete: {', '.join(others)}",
                CacheRebuilt,
                stacklevel=3,
            )
        path.mkdir()
        write_json(path / "about.json", made_by)
    return Table(path)


def _require_space(folder: Path, needed: int) -> None:
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise T2IMError(
            f"{folder}: the cache needs {needed / 1e9:.1f} GB more, but {free / 1e9:.1f} GB are free. "
            f"Choose a folder on a larger disk."
        )


def _summarize(caught: Sequence[warnings.WarningMessage], total: int) -> None:
    """Pass warnings on; of captions that are too long one only, with their number."""
    too_long = [warning for warning in caught if issubclass(warning.category, PromptTooLong)]
    for warning in caught:
        if warning not in too_long:
            warnings.warn_explicit(warning.message, warning.category, warning.filename, warning.lineno)
    if too_long:
        message = f"{len(too_long)} of {total} new captions are too long; the first: {too_long[0].message}"
        warnings.warn(message, PromptTooLong, stacklevel=4)
