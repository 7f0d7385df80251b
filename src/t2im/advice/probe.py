"""How fast is this machine at this, and how much memory does it take? Not computed from a data sheet: tried.

A few real steps of the real loop are taken, with the real network, optimizer, precision and batch. The first is thrown
away (memory is fetched, kernels are chosen), the median of the others counts, for a single slow step says nothing.
"""

import statistics
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from t2im.config import OptimizationConfig
from t2im.training.loop import Task
from t2im.training.trainer import Compute, Trainer

WARM_UP = 1
"""First steps that do not count."""
ROOM = 0.9
"""Share of the free memory that may be planned with: fragments and other programs need some, too."""


@dataclass(frozen=True)
class Trial:
    """What some steps took."""

    batch_size: int
    samples_at_once: int
    """The batch, divided by gradient_accumulation_steps: what memory depends on."""
    samples_per_second: float
    steps: int
    """How many of them were timed."""
    peak_memory: int | None
    """Bytes, of the device (CUDA) or of the whole process (CPU on Linux); None where that cannot be known."""
    checkpoint_bytes: int
    """What a checkpoint of this training holds."""


@dataclass(frozen=True)
class Memory:
    """Peak memory as a straight line over the samples computed at once: fixed + samples * per_sample, in bytes."""

    fixed: float
    per_sample: float

    @classmethod
    def through(cls, one: Trial, other: Trial) -> "Memory | None":
        """Draw the line through two trials; None where memory was not measured, or did not grow with the batch."""
        samples = other.samples_at_once - one.samples_at_once
        if one.peak_memory is None or other.peak_memory is None or not samples:
            return None
        per_sample = (other.peak_memory - one.peak_memory) / samples
        return cls(one.peak_memory - one.samples_at_once * per_sample, per_sample) if per_sample > 0 else None

    def largest_batch(self, available: float) -> int:
        """Return how many samples fit into so many bytes."""
        return max(0, int((ROOM * available - self.fixed) / self.per_sample))


class PeakMemory:
    """Measures the most memory that was used within a `with` block."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self.peak: int | None = None

    def __enter__(self) -> "PeakMemory":
        """Forget older peaks."""
        self._known = self._device.type == "cuda"
        if self._known:
            torch.cuda.reset_peak_memory_stats(self._device)
        elif self._device.type == "cpu":
            try:  # Linux keeps a process's highest resident size; writing 5 starts it anew (proc_pid_clear_refs(5))
                Path("/proc/self/clear_refs").write_text("5")
                self._known = True
            except OSError:
                pass
        return self

    def __exit__(self, *_: object) -> None:
        """Read the peak."""
        if self._known:
            cuda = self._device.type == "cuda"
            self.peak = torch.cuda.max_memory_allocated(self._device) if cuda else _status("VmHWM")


def available_memory(device: torch.device) -> int | None:
    """Return the bytes that this process could use in all: what it has, and what is free; None where unknown."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0] + torch.cuda.memory_reserved(device)
    try:
        meminfo = Path("/proc/meminfo").read_text().splitlines()
        free = next(int(line.split()[1]) * 1024 for line in meminfo if line.startswith("MemAvailable:"))
        return int(min(free, _allowed_by_container())) + _status("VmRSS")
    except (OSError, StopIteration):
        return None


def flops_per_sample(task: Task) -> int:
    """Count the floating-point operations of one sample's forward and backward pass, while both really run.

    Counted are matrix products, convolutions and attention, a multiplication and an addition being two; norms,
    activations and the optimizer are not, for they cost memory traffic rather than arithmetic. Attention is computed as
    two plain matrix products here, because PyTorch's counter does not know the fused kernels of every device.
    """
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        torch.autograd.backward(task.loss(task.model.train(), range(1))[0])
    task.model.zero_grad(set_to_none=True)
    return int(counter.get_total_flops())


def trial(
    task: Task,
    settings: OptimizationConfig,
    compute: Compute,
    *,
    batch_size: int,
    accumulation: int = 1,
    steps: int = 5,
    seconds: float = 10.0,
    ema_sigmas: tuple[float, ...] = (),
) -> Trial:
    """Take real steps, at least one and else at most so many or for about so many seconds, and say what they took."""
    changed = {"batch_size": batch_size, "gradient_accumulation_steps": accumulation}
    settings = settings.model_copy(update=changed)
    device = torch.device(compute.device)
    durations: list[float] = []
    with PeakMemory(device) as memory:
        trainer = Trainer(task.model, settings, seed=0, compute=compute, ema_sigmas=ema_sigmas, say=lambda text: None)
        while not durations or (len(durations) < WARM_UP + steps and sum(durations) < seconds):
            started = time.perf_counter()
            first = len(durations) * batch_size
            trainer.step(task.loss, range(first, first + batch_size), settings.learning_rate)
            trainer.forget_gradients()
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            durations.append(time.perf_counter() - started)
        held = _bytes_in(trainer.state_dict())
    counted = durations[WARM_UP:] or durations
    return Trial(
        batch_size, batch_size // accumulation, batch_size / statistics.median(counted), len(counted), memory.peak, held
    )


def _bytes_in(value: Any) -> int:
    if isinstance(value, Tensor):
        return value.nbytes
    if isinstance(value, Mapping):
        return sum(map(_bytes_in, value.values()))
    return sum(map(_bytes_in, value)) if isinstance(value, list | tuple) else 0


def _status(name: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{name}:"))


def _allowed_by_container() -> float:
    """Return the bytes that a memory limit on this process's container (cgroup v2) leaves; infinite without one."""
    folder = Path("/sys/fs/cgroup")
    try:
        limit = (folder / "memory.max").read_text().strip()
        return float("inf") if limit == "max" else int(limit) - int((folder / "memory.current").read_text())
    except OSError:
        return float("inf")
