"""How does a file get to its place whole, or not at all?

Every file of this package is written under a temporary name beside its final path, flushed to the disk, and renamed.
A crash leaves the old file or the new one, never half of one (rename is atomic within one directory).
"""

import hashlib
import json
import os
import re
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from t2im.errors import T2IMError


def sync_directory(folder: Path) -> None:
    """Flush a directory entry to the disk, so that a rename inside it survives a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def atomic_path(path: str | Path) -> Iterator[Path]:
    """Give a temporary path to write to; on success it is synced and renamed to `path`, on failure it is removed.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     with atomic_path(f"{folder}/note.txt") as temporary:
    ...         _ = temporary.write_text("whole")
    ...     print(Path(f"{folder}/note.txt").read_text())
    whole
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    # The suffix stays last: writers that look at the extension (Pillow, safetensors) must see the real one.
    descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.stem}.", suffix=f".tmp{path.suffix}")
    os.close(descriptor)
    temporary = Path(name)
    try:
        yield temporary
        with open(temporary, "rb+") as handle:
            os.fsync(handle.fileno())
        os.chmod(temporary, 0o666 & ~_umask())
        os.replace(temporary, path)
        sync_directory(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def atomic_folder(path: str | Path) -> Iterator[Path]:
    """Give a temporary folder to fill; on success it takes the place of `path`, on failure it is removed.

    An older folder at `path` is moved aside first and removed last, so that one whole folder always exists.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp"))
    os.chmod(temporary, 0o777 & ~_umask())
    try:
        yield temporary
        older = None
        if path.exists():
            older = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}.", suffix=".old"))
            os.replace(path, older / path.name)
        os.replace(temporary, path)
        sync_directory(path.parent)
        if older is not None:
            shutil.rmtree(older)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def add_name(path: Path, name: Path) -> None:
    """Give a file that has a checksum beside it a second name, and a checksum by that name; replaces an older one.

    The two share their bytes on the disk, so either may be removed; where the file system cannot do that, it is a copy.
    """
    checksum = name.with_name(f"{name.name}.sha256")
    digest = path.with_name(f"{path.name}.sha256").read_text(encoding="utf-8").split()[0]
    with atomic_path(name) as temporary:
        temporary.unlink()
        try:
            os.link(path, temporary)
        except OSError:
            shutil.copyfile(path, temporary)
        checksum.unlink(missing_ok=True)
    write_text(checksum, f"{digest}  {name.name}\n")


def remove_strays(folder: Path, names: str, seconds: float = 3600) -> list[Path]:
    """Remove temporary files whose names match a pattern and that nobody has touched for an hour; return them.

    A process that was killed leaves them behind; a living one writes to its own all the time.
    """
    strays = [
        path
        for path in folder.glob(".*")
        if re.fullmatch(names, path.name) and path.is_file() and path.stat().st_mtime < time.time() - seconds
    ]
    for path in strays:
        path.unlink(missing_ok=True)
    return strays


def write_text(path: str | Path, text: str) -> None:
    """Write a whole UTF-8 text file, atomically."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: str | Path, value: Any) -> None:
    """Write a value as readable UTF-8 JSON, atomically."""
    write_text(path, json.dumps(value, ensure_ascii=False, indent=2) + "\n")


def sha256_of_file(path: str | Path) -> str:
    """Return the SHA-256 of a file's bytes in hexadecimal."""
    with open(path, "rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def sha256_of_folder(folder: str | Path) -> str:
    """Return one SHA-256 over the names and bytes of all files below a folder, independent of dates and order."""
    folder = Path(folder)
    digest = hashlib.sha256()
    for path in sorted(entry for entry in folder.rglob("*") if entry.is_file()):
        digest.update(f"{path.relative_to(folder).as_posix()}\0{sha256_of_file(path)}\n".encode())
    return digest.hexdigest()


@contextmanager
def numbered_path(folder: str | Path, suffix: str) -> Iterator[Path]:
    """Lend `folder/00001-SUFFIX` with the first number above all that are taken, so that nothing is overwritten.

    While it is lent, the number is reserved by an empty file `.00001`, which only one process can create.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    number = max(_numbers(folder), default=0)
    while True:
        number += 1
        reservation = folder / f".{number:05d}"
        try:
            os.close(os.open(reservation, os.O_CREAT | os.O_EXCL | os.O_WRONLY))
        except FileExistsError:
            continue
        try:
            if number not in _numbers(folder):  # or another process was done with it before we looked
                yield folder / f"{number:05d}-{suffix}"
                return
        finally:
            reservation.unlink(missing_ok=True)


def _numbers(folder: Path) -> set[int]:
    """Return the numbers in use: those at the beginning of names."""
    matches = (re.match(r"(\d{5,})-", entry.name) for entry in folder.iterdir())
    return {int(match[1]) for match in matches if match}


def require_writable(folder: str | Path) -> Path:
    """Create a folder if needed and prove that a file can be written in it.

    Raises: T2IMError, before any work is done, if it cannot.
    """
    folder = Path(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise T2IMError(f"{folder}: cannot write there ({error.strerror}). Choose another folder.") from error
    return folder


@contextmanager
def alone_in(folder: str | Path, doing: str) -> Iterator[None]:
    """Let one process at a time work in a folder; the system drops the lock when the process ends, however it ends.

    doing: what the error of the second one says of the first, such as "filling this cache".

    Raises: T2IMError, naming the process that is there already.
    """
    with open(Path(folder) / ".lock", "a+", encoding="utf-8") as handle:
        if sys.platform != "win32":
            import fcntl

            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                handle.seek(0)
                process = f"process {handle.read().strip() or '(unknown)'}"
                raise T2IMError(f"{folder}: {process} is {doing}. Wait for it, or choose another folder.") from None
        handle.truncate(0)
        handle.write(str(os.getpid()))
        handle.flush()
        yield


def _umask() -> int:
    current = os.umask(0)
    os.umask(current)
    return current
