"""How do images and captions become tensors once, instead of in every step?

The encoders are frozen, so what they say about an image or a caption never changes. `build` asks them once for each and
keeps the answers: of an image its posterior's mean and log-variance, so that its latents can still be drawn anew in
every epoch (the moments, not one sample); of a caption its hidden states. Keys are content hashes, folders are named by
encoder and transform: what is found is right, what has changed is simply not found and is computed again.
"""

import hashlib
import json
import os
import shutil
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch

from t2im.batches import Store
from t2im.blocks import Array, CacheRebuilt, Keys, Table, read_arrays, write_arrays
from t2im.config import DataConfig
from t2im.data.captions import Example
from t2im.data.images import read_image
from t2im.encoders.text import PromptTooLong, TextEncoder
from t2im.encoders.vae import VAE
from t2im.errors import BadImage, DataError, ModelError, T2IMError
from t2im.files import require_writable, sha256_of_file, write_json

FORMAT = 1  # raised when the meaning of the files, or what data/images.py does to an image, changes
PIXELS_AT_ONCE = 2**18  # the size of an encoder's batch: 64 images of 64x64
PROMPTS_AT_ONCE = 64
BLOCK_BYTES = 2**26
BLOCK_SECONDS = 20.0  # how much work a crash may cost
SETTLED = 2_000_000_000  # nanoseconds after which a file's time stamps can be told from those of a later change

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

    It may be interrupted at any time, and goes on where it was. Everything read back is checked by SHA-256.

    Raises: BadImage for an unreadable image (left out with a warning if config.skip_bad); DataError, if there are no
    examples; ModelError, if an encoder answers with non-finite numbers; T2IMError, if the folder cannot be written or
    another process is filling it.
    """
    if not examples:
        raise DataError("there are no examples to encode. Check the folder with: t2im data check FOLDER")
    folder = require_writable(folder)
    report = progress or (lambda what, done, total: None)
    with _locked(folder):
        content = _content_hashes([example.path for example in examples], folder / "files")
        latents = _table(folder, "latents", _transform(config) | {"vae": vae.sha256})
        bad = _encode_images(examples, content, latents, vae, config, report)
        text = _table(folder, "text", {"text_encoder": text_encoder.sha256})
        captions = [caption for example in examples for caption in example.captions] + [""]
        _encode_captions(captions, text, text_encoder, report)

    if bad:
        kept = [index for index in range(len(examples)) if index not in bad]
        if not kept:
            raise DataError(f"none of the {len(examples)} images can be read. Check them with: t2im data check FOLDER")
        examples, content = [examples[index] for index in kept], content[kept]
    rows = text.find(_caption_keys([caption for example in examples for caption in example.captions] + [""]))
    views = np.stack([latents.find(keys) for keys in _views(content, config)], axis=1)
    return Store(
        examples, content, latents, views, text, rows[:-1], int(rows[-1]), masked=text_encoder.padding == "mask"
    )


def _encode_images(
    examples: Sequence[Example], content: Keys, table: Table, vae: VAE, config: DataConfig, report: Progress
) -> set[int]:
    """Add the missing posteriors; return the examples whose images cannot be read."""
    views = _views(content, config)
    missing = np.logical_or.reduce([table.find(keys) < 0 for keys in views])
    _, first = np.unique(content, return_index=True)  # copies of an image are encoded once
    todo = [index for index in sorted(first.tolist()) if missing[index]]
    cells = vae.latent_channels * (config.resolution // vae.downscale) ** 2
    _require_space(table.folder, len(todo) * len(views) * 2 * cells * 2)

    unreadable: dict[bytes, BadImage] = {}
    writer = _Writer(table)
    at_once = max(1, min(64, PIXELS_AT_ONCE // config.resolution**2))
    with ThreadPoolExecutor(max_workers=min(8, os.cpu_count() or 1)) as pool:
        for start in range(0, len(todo), at_once):
            part = todo[start : start + at_once]
            read = list(pool.map(lambda index: _read(examples[index].path, content[index : index + 1], config), part))
            for index, image in zip(part, read, strict=True):
                if isinstance(image, BadImage):
                    if not config.skip_bad:
                        writer.flush()
                        raise image
                    unreadable[content[index : index + 1].tobytes()] = image
            good = [index for index, image in zip(part, read, strict=True) if not isinstance(image, BadImage)]
            if good:
                images = torch.stack([image for image in read if not isinstance(image, BadImage)])
                for keys, mirrored in zip(views, (images, images.flip(-1)), strict=False):
                    posterior = vae.encode(mirrored)
                    moments = torch.stack([posterior.mean, posterior.logvar], dim=1).cpu().numpy()
                    for index, moment in zip(good, moments, strict=True):
                        writer.add(keys[index : index + 1], moment, str(examples[index].path))
            report("images", start + len(part), len(todo))
    writer.flush()
    bad = set()
    for index in np.flatnonzero(missing).tolist() if unreadable else ():
        if (error := unreadable.get(content[index : index + 1].tobytes())) is not None:
            warnings.warn(f"left out: {examples[index].path} ({error})", ImageSkipped, stacklevel=3)
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
    writer = _Writer(table)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for start in range(0, len(todo), PROMPTS_AT_ONCE):
            part = todo[start : start + PROMPTS_AT_ONCE].tolist()
            states = encoder([captions[index] for index in part])
            lengths = (
                [states.hidden_states.shape[1]] * len(part) if states.mask is None else states.mask.sum(1).tolist()
            )
            for index, state, length in zip(part, states.hidden_states.cpu().numpy(), lengths, strict=True):
                writer.add(keys[index : index + 1], state[:length], f'caption "{captions[index]}"')
            report("captions", start + len(part), len(todo))
        writer.flush()
    _summarize(caught, len(todo))


class _Writer:
    """Collects records and commits them as blocks, by size and by time."""

    def __init__(self, table: Table) -> None:
        self._table = table
        self._clear()

    def add(self, key: Keys, record: Array, what: str) -> None:
        """Take one float32 record; it is kept as float16 unless it holds numbers that are too large for it."""
        if not np.isfinite(record).all():
            raise ModelError(f"{what}: the encoder's answer is not finite. Check its weights, or use another encoder.")
        if np.abs(record).max(initial=0) <= np.finfo(np.float16).max:
            record = record.astype(np.float16)
        self._keys.append(key)
        self._records.append(np.array(record))
        self._bytes += record.nbytes
        if self._bytes >= BLOCK_BYTES or time.monotonic() - self._since >= BLOCK_SECONDS:
            self.flush()

    def flush(self) -> None:
        """Commit what was collected."""
        if self._keys:
            self._table.append(np.concatenate(self._keys), self._records)
        self._clear()

    def _clear(self) -> None:
        self._keys: list[Keys] = []
        self._records: list[Array] = []
        self._bytes = 0
        self._since = time.monotonic()


def _read(path: Path, key: Keys, config: DataConfig) -> torch.Tensor | BadImage:
    """Read an image, and make sure that it still is the file whose content the key names."""
    try:
        image: torch.Tensor = read_image(path, resolution=config.resolution, background=config.background)
    except BadImage as error:
        return error
    if bytes.fromhex(sha256_of_file(path)) != key.tobytes():
        raise DataError(f"{path}: changed while it was read. Start again when nothing writes to the images.")
    return image


def _content_hashes(paths: Sequence[Path], index: Path) -> Keys:
    """Return the SHA-256 of each file, read again only where its size, times or inode differ from the index's."""
    names = _digests([str(path.absolute()).encode("utf-8", "surrogateescape") for path in paths])
    stamps = np.array([_stamp(path) for path in paths], dtype=np.int64)
    content = np.empty(len(paths), dtype="S32")
    known = np.zeros(len(paths), dtype=bool)
    older = read_arrays(index, ("names", "stamps", "content"))
    if older is not None and len(older[0]):
        place = np.minimum(np.searchsorted(older[0], names), len(older[0]) - 1)
        known = (older[0][place] == names) & (older[1][place] == stamps).all(axis=1)
        content[known] = older[2][place][known]
    unknown = np.flatnonzero(~known).tolist()
    if unknown:
        now = time.time_ns()
        content[unknown] = np.frombuffer(
            b"".join(bytes.fromhex(sha256_of_file(paths[index])) for index in unknown), "S32"
        )
        # A file written just now could change again within the same tick of its time stamp: it is not trusted yet.
        settled = np.flatnonzero(stamps[:, 1:3].max(axis=1) < now - SETTLED)
        order = settled[np.unique(names[settled], return_index=True)[1]]
        write_arrays(index, {"names": names[order], "stamps": stamps[order], "content": content[order]})
    return content


def _stamp(path: Path) -> tuple[int, int, int, int]:
    try:
        status = path.stat()
    except OSError as error:
        raise BadImage(f"{path}: cannot be read ({error.strerror}).") from error
    return status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino


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
    return _digests([caption.encode("utf-8", "surrogatepass") for caption in captions])


def _digests(values: Sequence[bytes]) -> Keys:
    return np.frombuffer(b"".join(hashlib.sha256(value).digest() for value in values), dtype="S32")


def _table(folder: Path, kind: str, made_by: dict[str, Any]) -> Table:
    """Open the table of one encoder and transform; its folder is named by their hash, and about.json says them."""
    name = hashlib.sha256(json.dumps(made_by, sort_keys=True).encode()).hexdigest()[:16]
    path = folder / f"{kind}-{name}"
    if not path.exists():
        others = sorted(entry.name for entry in folder.glob(f"{kind}-*"))
        if others:
            warnings.warn(
                f"{folder}: its {kind} are of other encoders or settings ({', '.join(others)}) and are not used; "
                f"encoding again. Delete those folders when nothing needs them.",
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


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Hold the folder's lock, which the system gives back even after a crash."""
    with open(folder / ".lock", "a+", encoding="utf-8") as handle:
        if sys.platform != "win32":
            import fcntl

            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                handle.seek(0)
                holder = handle.read().strip() or "unknown"
                raise T2IMError(
                    f"{folder}: process {holder} is filling this cache. Wait for it, or choose another folder."
                ) from None
        handle.truncate(0)
        handle.write(str(os.getpid()))
        handle.flush()
        yield
