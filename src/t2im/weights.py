"""How are weights read that a stranger may have written? Never by running them, and only after asking how large they are.

A pickled file is a program: `torch.load` runs it in a cage (`weights_only=True`), which has had holes before. So the cage
is the second fence here. The first is the form: what is let in must be the plain zip file that `torch.save` writes, with
nothing compressed, nothing but data in it, and few enough entries. A safetensors file is no program, but its header can
still ask for gigabytes, or hide values that are no numbers. What comes out of either file is checked before anyone uses
it: dense tensors of ordinary types, and no more of them than the file has bytes for.
"""

import struct
import warnings
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from t2im.errors import ModelError

MAX_HEADER = 10_000_000
"""Bytes of a safetensors header; Stable Diffusion's UNet needs 80,000."""
MAX_TENSORS = 20_000
"""Tensors of one safetensors file."""
MAX_PICKLE = 20_000_000
"""Bytes of names and numbers beside the tensors of a pickled file."""
MAX_VALUES = 200_000
"""Values of a pickled file, a tensor counting as one."""
MAX_DEPTH = 64
"""Of mappings and lists in each other."""
NUMBERS = {torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.int32, torch.int16}
NUMBERS |= {torch.int8, torch.uint8, torch.bool}


def read_safetensors(path: Path) -> dict[str, Tensor]:
    """Read all weights of a safetensors file: dense, of ordinary types, and finite.

    Raises: ModelError if the file is missing, damaged or unreasonable.
    """
    from safetensors.torch import load_file

    require_modest(path)
    try:
        weights: dict[str, Tensor] = load_file(path)
    except Exception as error:  # a type that this torch does not know is a KeyError, an overflow an OverflowError, ...
        raise _unreadable(path, error) from None
    for name, weight in weights.items():
        if not name.isprintable():
            raise ModelError(f"{path}: the name of a weight, {name!a}, cannot be printed. Copy the file again.")
        _require_numbers(name, weight, path)
        if not is_finite(weight):
            raise ModelError(f'{path}: weight "{name}" is not finite; the file is damaged. Copy it again.')
    return weights


def read_metadata(path: Path) -> dict[str, str]:
    """Read what is written beside the weights of a safetensors file, and none of the weights.

    Raises: ModelError as `read_safetensors`.
    """
    from safetensors import safe_open

    require_modest(path)
    try:
        with safe_open(path, framework="pt") as file:
            return dict(file.metadata() or {})
    except Exception as error:
        raise _unreadable(path, error) from None


def require_modest(path: Path) -> None:
    """Refuse a safetensors file whose header is larger than any model needs, before anything parses it.

    Raises: ModelError for that, and for a file that cannot be read.
    """
    try:
        if not path.is_file():  # a pipe would be waited for
            raise FileNotFoundError("there is no such file")
        with open(path, "rb") as file:
            start = file.read(8)
            size = struct.unpack("<Q", start)[0] if len(start) == 8 else 0
            header = file.read(min(size, MAX_HEADER + 1))
    except OSError as error:
        raise _unreadable(path, error) from None
    if size > MAX_HEADER:
        raise ModelError(f"{path}: cannot be read (a header of {size:,} bytes, more than {MAX_HEADER:,}).")
    # Each tensor opens a brace of its own; counting them costs nothing, parsing a million entries gigabytes.
    if (braces := header.count(b"{")) > MAX_TENSORS + 2:
        raise ModelError(f"{path}: cannot be read (a header of {braces:,} entries, more than {MAX_TENSORS:,}).")


def read_pickled(path: Path, *, mmap: bool = False) -> Any:
    """Read what `torch.save` wrote onto the CPU: mappings, lists, plain values and dense tensors. It can run no code.

    mmap: leave the tensors on the disk until somebody looks at them.

    Raises: ModelError if the file is damaged, of another form, or unreasonable.
    """
    _require_plain_archive(path)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about kinds of tensors that are refused below
            value = torch.load(path, map_location="cpu", weights_only=True, mmap=mmap)
    except Exception as error:  # damaged bytes make an unpickler raise anything: IndexError, AssertionError, ...
        raise _not_ours(path, error) from None
    _require_plain(value, path)
    return value


def tensors_in(value: Any, where: str = "") -> Iterator[tuple[str, Tensor]]:
    """Yield all tensors of a state, each with its place in it."""
    if isinstance(value, Tensor):
        yield where, value
    elif isinstance(value, Mapping):
        for name, entry in value.items():
            yield from tensors_in(entry, f"{where}.{name}".lstrip("."))
    elif isinstance(value, list | tuple):
        for index, entry in enumerate(value):
            yield from tensors_in(entry, f"{where}[{index}]")


def is_finite(tensor: Tensor) -> bool:
    """Say whether all values of a tensor are numbers."""
    return not tensor.is_floating_point() or bool(torch.isfinite(tensor).all())


def _require_plain_archive(path: Path) -> None:
    """Refuse every file that `torch.save` would not write today, by its table of contents."""
    try:
        with open(path, "rb") as file:
            if file.read(4) != b"PK\3\4":  # else torch tries the older forms, which are one long pickle
                raise ValueError("no zip file")
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
    except Exception as error:  # as above
        raise _not_ours(path, error) from None
    names = {entry.filename.partition("/")[2] for entry in entries}
    pickles = [entry for entry in entries if entry.filename.endswith(".pkl")]
    if "data.pkl" not in names or len(pickles) != 1:
        raise _not_ours(path, "a program or a model of another kind")
    if pickles[0].file_size > MAX_PICKLE or len(entries) > MAX_VALUES:
        raise _not_ours(path, f"more than {MAX_PICKLE:,} bytes beside its tensors")
    if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries):
        raise _not_ours(path, "compressed, so nobody knows how large it is")
    if sum(entry.file_size for entry in entries) > path.stat().st_size:
        raise _not_ours(path, "it claims to hold more than it does")


def _require_plain(value: Any, path: Path) -> None:
    """Refuse what no checkpoint holds, without trusting its size or its shape."""
    waiting, values, room = [("", 0, value)], 1, path.stat().st_size
    while waiting:
        where, depth, entry = waiting.pop()
        if isinstance(entry, Tensor):
            _require_numbers(where, entry, path)
            room -= entry.numel() * entry.element_size()
            if room < 0:
                raise ModelError(f'{path}: "{where}" and others are larger than the file. It is no checkpoint of ours.')
        elif isinstance(entry, Mapping | list | tuple):
            values += len(entry)
            if values > MAX_VALUES or depth > MAX_DEPTH:
                raise _not_ours(path, f"more than {MAX_VALUES:,} values, or nested deeper than {MAX_DEPTH} levels")
            inside = entry.items() if isinstance(entry, Mapping) else enumerate(entry)
            waiting += ((f"{where}.{name}".lstrip("."), depth + 1, each) for name, each in inside)


def _require_numbers(where: str, tensor: Tensor, path: Path) -> None:
    plain = tensor.layout is torch.strided and not tensor.is_quantized and tensor.device.type == "cpu"
    if not plain or tensor.dtype not in NUMBERS:
        raise ModelError(
            f'{path}: "{where}" is no dense tensor of ordinary numbers ({tensor.layout}, {tensor.dtype}, {tensor.device}).'
        )


def _unreadable(path: Path, error: Exception) -> ModelError:
    return ModelError(f"{path}: cannot be read ({_first_line(error)}). Copy it again from its source.")


def _not_ours(path: Path, error: Exception | str) -> ModelError:
    return ModelError(f"{path}: not a checkpoint, or a damaged one ({_first_line(error)}).")


def _first_line(error: Exception | str) -> str:
    words = (str(error) or repr(error)).strip().splitlines()[0].rstrip(".")
    return words if words.isprintable() else ascii(words)
