"""Is this file still the one that was seen before?

What a file holds is named by the SHA-256 of its bytes. Reading a terabyte again only to learn that nothing changed would
take hours, so an index remembers size, times and inode with each hash, as git's does: where these are equal, the file
is not read.
"""

import hashlib
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from t2im.blocks import Keys, read_arrays, write_arrays
from t2im.errors import DataError
from t2im.files import sha256_of_file

SETTLED = 2_000_000_000  # nanoseconds; many file systems cannot tell changes apart that are closer in time


def digests(values: Sequence[bytes]) -> Keys:
    """Return the SHA-256 of each value."""
    return np.frombuffer(b"".join(hashlib.sha256(value).digest() for value in values), dtype="S32")


def hashes_of_files(paths: Sequence[Path], index: Path) -> Keys:
    """Return the SHA-256 of each file's bytes, helped by the index in a folder, which is brought up to date.

    A file that changed moments ago is read again the next time too, as it could change once more within one tick of its
    time stamp. An index that is damaged is not used.

    Raises: DataError naming a file that cannot be read.
    """
    names = digests([str(path.absolute()).encode("utf-8", "surrogateescape") for path in paths])
    content = np.empty(len(paths), dtype="S32")
    known = np.zeros(len(paths), dtype=bool)
    now = time.time_ns()
    try:
        stamps = np.array([_stamp(path) for path in paths], dtype=np.int64)
        older = read_arrays(index, ("names", "stamps", "content"))
        if older is not None and len(older[0]):
            place = np.minimum(np.searchsorted(older[0], names), len(older[0]) - 1)
            known = (older[0][place] == names) & (older[1][place] == stamps).all(axis=1)
            content[known] = older[2][place][known]
        for changed in np.flatnonzero(~known).tolist():
            content[changed : changed + 1] = np.frombuffer(bytes.fromhex(sha256_of_file(paths[changed])), "S32")
    except OSError as error:
        raise DataError(f"{error.filename}: cannot be read ({error.strerror}). Repair it or take it out.") from error
    if not known.all():
        settled = np.flatnonzero(stamps[:, 1:3].max(axis=1) < now - SETTLED)
        order = settled[np.unique(names[settled], return_index=True)[1]]
        write_arrays(index, {"names": names[order], "stamps": stamps[order], "content": content[order]})
    return content


def _stamp(path: Path) -> tuple[int, int, int, int]:
    status = path.stat()
    return status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino
