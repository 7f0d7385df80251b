"""How is a run saved while it goes on? Its tensors are copied in a moment, and a thread writes the copies.

To write a checkpoint, sync it to the disk and read it back takes tens of times as long as to copy it. So training
waits for the copy only. The copies lie in buffers that are used again: a run that saves needs the memory of its state
twice, never three times.
"""

from collections.abc import Callable, Mapping
from concurrent.futures import Future
from threading import Thread
from typing import Any, TypeVar

import torch
from torch import Tensor

Result = TypeVar("Result")


class Snapshot:
    """Copies of a state on the CPU; the next one overwrites the one before."""

    def __init__(self) -> None:
        self._buffers: dict[tuple[Any, ...], Tensor] = {}

    def take(self, state: Mapping[str, Any]) -> dict[str, Any]:
        """Return a state that no later training step can change."""
        used: dict[tuple[Any, ...], Tensor] = {}
        copy: dict[str, Any] = self._copied(state, (), used)
        if any(buffer.is_pinned() for buffer in used.values()):
            torch.cuda.synchronize()  # copies from a GPU into pinned memory were only asked for so far
        self._buffers = used
        return copy

    def _copied(self, value: Any, where: tuple[Any, ...], used: dict[tuple[Any, ...], Tensor]) -> Any:
        if isinstance(value, Tensor):
            used[where] = self._buffer(value, where).copy_(value.detach(), non_blocking=value.is_cuda)
            return used[where]
        if isinstance(value, Mapping):
            return {key: self._copied(entry, (*where, key), used) for key, entry in value.items()}
        if isinstance(value, list | tuple):
            return type(value)(self._copied(entry, (*where, index), used) for index, entry in enumerate(value))
        return value

    def _buffer(self, like: Tensor, where: tuple[Any, ...]) -> Tensor:
        old = self._buffers.get(where)
        if old is not None and old.shape == like.shape and old.dtype == like.dtype:
            return old
        # Only pinned memory can be filled while the GPU computes on.
        return torch.empty_like(like, device="cpu", pin_memory=like.is_cuda)


def in_background(work: Callable[[], Result]) -> "Future[Result]":
    """Start some work on a thread of its own, and return its promise.

    The interpreter waits for the thread when it ends, so a file that is being written is finished.
    """
    promise: Future[Result] = Future()

    def run() -> None:
        try:
            promise.set_result(work())
        except BaseException as error:  # whatever it is, it belongs to whoever waits
            promise.set_exception(error)

    Thread(target=run, name="checkpoint").start()
    return promise


def bytes_of(state: Any) -> int:
    """Return the size of all tensors of a state in bytes: what a file of it needs, but for some kilobytes of names."""
    if isinstance(state, Tensor):
        return state.numel() * state.element_size()
    if isinstance(state, Mapping):
        return sum(bytes_of(entry) for entry in state.values())
    if isinstance(state, list | tuple):
        return sum(bytes_of(entry) for entry in state)
    return 0
