"""How does computed data stay on the disk so that it is whole, checked, and found by what it was computed from?

As an append-only table of records with content hashes as keys. It grows by blocks: folders of .npy files and their
SHA-256 sums that appear by one rename, so that a crash leaves all blocks before it. A block is never changed. One that
does not match its sums is removed with a warning, and its records are simply absent again.
"""

import json
import shutil
import time
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from t2im.errors import ModelError, T2IMError
from t2im.files import atomic_folder, sha256_of_file, sync_directory, write_json

Keys = NDArray[Any]
"""(n,) content hashes: SHA-256 digests as dtype S32."""

Rows = NDArray[np.int64]
"""(n,) record numbers in the order of the table."""

Array = NDArray[Any]
SUMS = "sha256.json"
BLOCK_BYTES = 2**26
BLOCK_SECONDS = 20.0  # how much work a crash may cost


class CacheRebuilt(UserWarning):
    """Something in a cache was damaged or made by other encoders; it is not used, and is computed again."""


def write_arrays(folder: Path, arrays: Mapping[str, Array]) -> None:
    """Write arrays as .npy files with their checksums into a folder that appears whole or not at all.

    Raises: T2IMError, if the disk refuses, for example because it is full.
    """
    try:
        with atomic_folder(folder) as temporary:
            for name, array in arrays.items():
                with open(temporary / f"{name}.npy", "wb") as handle:
                    np.save(handle, array, allow_pickle=False)
            write_json(temporary / SUMS, {name: sha256_of_file(temporary / f"{name}.npy") for name in arrays})
            sync_directory(temporary)
    except OSError as error:
        raise T2IMError(
            f"{folder}: cannot be written ({error.strerror}). Free space, or choose another folder."
        ) from error


def read_arrays(folder: Path, names: Sequence[str]) -> list[Array] | None:
    """Map arrays written by `write_arrays` into memory, read-only; None if one is missing or differs from its checksum."""
    try:
        sums = json.loads((folder / SUMS).read_text(encoding="utf-8"))
        if any(sums[name] != sha256_of_file(folder / f"{name}.npy") for name in names):
            return None
        # np.asarray strips the memmap class, whose indexing is several times slower.
        return [np.asarray(np.load(folder / f"{name}.npy", mmap_mode="r", allow_pickle=False)) for name in names]
    except (OSError, ValueError, KeyError, TypeError):
        return None


@dataclass(frozen=True)
class _Index:
    """Where each record is: its block, its first line there and its number of lines; and all keys in sorted order."""

    block: NDArray[np.int64]
    first: NDArray[np.int64]
    count: NDArray[np.int64]
    sorted_keys: Keys
    sorted_rows: Rows


class Table:
    """Records of one kind in a folder; a record is an array (lines, ...) whose number of lines may differ."""

    def __init__(self, folder: Path) -> None:
        """Open a table, made if absent, and check every block; the caller holds the folder's lock."""
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        self._blocks: list[tuple[Keys, NDArray[np.int64], Array]] = []
        for entry in sorted(folder.iterdir()):
            if entry.name.startswith(".") and entry.is_dir():  # the remains of a crash
                shutil.rmtree(entry)
            elif entry.is_dir():
                arrays = read_arrays(entry, ("keys", "offsets", "data"))
                if arrays is None:
                    warnings.warn(f"{entry}: damaged; it is removed and computed again", CacheRebuilt, stacklevel=3)
                    shutil.rmtree(entry)
                else:
                    self._blocks.append((np.array(arrays[0]), np.array(arrays[1]), arrays[2]))
        self._index: _Index | None = None

    def __len__(self) -> int:
        """Return the number of records."""
        return sum(len(keys) for keys, _, _ in self._blocks)

    def append(self, keys: Keys, records: Sequence[Array]) -> None:
        """Add records as one new block, on the disk when this returns. They share a dtype: the widest of them."""
        numbers = [int(entry.name) for entry in self.folder.iterdir() if entry.name.isdecimal()]
        folder = self.folder / f"{max(numbers, default=-1) + 1:06d}"
        offsets = np.cumsum([0] + [len(record) for record in records], dtype=np.int64)
        write_arrays(folder, {"keys": keys, "offsets": offsets, "data": np.concatenate(records)})
        data = np.asarray(np.load(folder / "data.npy", mmap_mode="r", allow_pickle=False))
        self._blocks.append((keys, offsets, data))
        self._index = None

    def find(self, keys: Keys) -> Rows:
        """Return the row of each key, -1 where it is absent."""
        index = self._indexed()
        if not len(index.sorted_keys):
            return np.full(len(keys), -1, dtype=np.int64)
        place = np.minimum(np.searchsorted(index.sorted_keys, keys), len(index.sorted_keys) - 1)
        return np.where(index.sorted_keys[place] == keys, index.sorted_rows[place], -1)

    def take(self, rows: Rows) -> list[Array]:
        """Return the records of some rows as read-only views of the mapped files, without copying."""
        index = self._indexed()
        places = zip(index.block[rows].tolist(), index.first[rows].tolist(), index.count[rows].tolist(), strict=True)
        return [self._blocks[block][2][first : first + count] for block, first, count in places]

    def _indexed(self) -> _Index:
        if self._index is None:
            keys = np.concatenate([np.empty(0, "S32"), *(block[0] for block in self._blocks)])
            order = np.argsort(keys, kind="stable")
            self._index = _Index(
                block=np.repeat(np.arange(len(self._blocks)), [len(block[0]) for block in self._blocks]),
                first=np.concatenate([np.empty(0, np.int64), *(block[1][:-1] for block in self._blocks)]),
                count=np.concatenate([np.empty(0, np.int64), *(np.diff(block[1]) for block in self._blocks)]),
                sorted_keys=keys[order],
                sorted_rows=order.astype(np.int64),
            )
        return self._index


class Writer:
    """Collects records for a table and commits them as blocks, by size and by time, and at the end, however it comes."""

    def __init__(self, table: Table) -> None:
        self._table = table
        self._clear()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.flush()

    def add(self, key: Keys, record: Array, what: str) -> None:
        """Take one float32 record; it is kept as float16 unless it holds numbers that are too large for it.

        Raises: ModelError naming `what`, if it is not finite.
        """
        if not np.isfinite(record).all():
            raise ModelError(f"{what}: the encoder's answer is not finite. Check its weights, or use another encoder.")
        fits = np.abs(record).max(initial=0) <= np.finfo(np.float16).max
        self._keys.append(key)
        self._records.append(record.astype(np.float16 if fits else np.float32))
        self._bytes += self._records[-1].nbytes
        if self._bytes >= BLOCK_BYTES or time.monotonic() - self._since >= BLOCK_SECONDS:
            self.flush()

    def flush(self) -> None:
        """Commit what was collected."""
        keys, records = self._keys, self._records
        self._clear()  # first: what the disk refuses once is not tried again on the way out
        if keys:
            self._table.append(np.concatenate(keys), records)

    def _clear(self) -> None:
        self._keys: list[Keys] = []
        self._records: list[Array] = []
        self._bytes = 0
        self._since = time.monotonic()
