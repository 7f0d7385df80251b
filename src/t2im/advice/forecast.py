"""How is a forecast read? The record of what a run will cost, and the table that a person sees."""

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

from t2im.advice.copying import Copying
from t2im.advice.probe import Memory, Trial


@dataclass(frozen=True)
class Stage:
    """One stage of the run and its seconds."""

    name: str
    seconds: float
    how: str
    """What was measured and how it was multiplied."""


@dataclass(frozen=True)
class Forecast:
    """What a run will cost. Sizes are in bytes, times in seconds."""

    folder: str
    device: str
    images: int
    training_images: int
    """Images to train on: all but those that are held out."""
    captions: int
    """Different ones."""
    resolution: int
    latent_shape: tuple[int, int, int]
    parameters: dict[str, int]
    encoders: dict[str, str]
    """Which VAE and text encoder the run would take, or why it would train one."""
    flops_per_sample: int
    """Of the UNet, forward and backward; see `probe.flops_per_sample` for what counts."""
    batch_size: int
    samples_at_once: int
    """The batch, divided by gradient_accumulation_steps."""
    tried: Trial
    """The UNet's real steps."""
    memory: Memory | None
    memory_available: int | None
    largest_batch: int | None
    """Samples at once that fit into it; None where that cannot be known."""
    cache_bytes: dict[str, int]
    steps: int
    epochs: float
    samples: int
    stages: tuple[Stage, ...]
    checkpoint_bytes: int
    disk_needed: int
    """For the cache and as many checkpoints as are kept, and one more while it is written."""
    disk_free: int
    copying: Copying

    @property
    def flops_per_step(self) -> int:
        """Floating-point operations of one optimizer step of the UNet."""
        return self.flops_per_sample * self.batch_size

    @property
    def seconds(self) -> float:
        """Of the whole run."""
        return sum(stage.seconds for stage in self.stages)

    @property
    def fits(self) -> bool | None:
        """Whether the batch fits into the memory; None where that cannot be known."""
        return None if self.largest_batch is None else self.samples_at_once <= self.largest_batch


def as_dict(forecast: Forecast) -> dict[str, Any]:
    """Return every number for JSON."""
    derived = {"flops_per_step": forecast.flops_per_step, "seconds": forecast.seconds, "fits": forecast.fits}
    return {**asdict(forecast), **derived}


def lines(forecast: Forecast) -> Iterator[str]:
    """Write a forecast for a terminal."""
    channels, height, width = forecast.latent_shape
    yield _row(
        "data",
        f"{forecast.images:,} images, {forecast.training_images:,} to train on, "
        f"{forecast.captions:,} different captions",
    )
    yield _row("latents", f"{channels} x {height} x {width} for {forecast.resolution} x {forecast.resolution} pixels")
    for name, why in forecast.encoders.items():
        yield _row(name, f"{forecast.parameters[name]:,} parameters; {why}")
    yield _row("UNet", f"{forecast.parameters['UNet']:,} parameters")
    yield _row(
        "work",
        f"{_scaled(forecast.flops_per_step, 'FLOPs')} a step of {forecast.batch_size} samples (matrix products, "
        "convolutions, attention; forward and backward)",
    )
    yield _row("speed", _speed(forecast))
    yield _row("memory", _memory(forecast))
    parts = " + ".join(f"{size_of(size)} {name}" for name, size in forecast.cache_bytes.items())
    yield _row("cache", f"{size_of(sum(forecast.cache_bytes.values()))} ({parts})")
    yield _row(
        "disk",
        f"{size_of(forecast.disk_needed)} for the cache and checkpoints of {size_of(forecast.checkpoint_bytes)}; "
        f"{size_of(forecast.disk_free)} free" + ("" if forecast.disk_needed < forecast.disk_free else ": TOO LITTLE"),
    )
    for stage in forecast.stages:
        yield _row("time", f"{duration(stage.seconds)} to {stage.name} ({stage.how})")
    yield _row("time in all", f"{duration(forecast.seconds)}, {forecast.steps:,} steps")
    yield _row("copying", f"{forecast.copying.risk}: {forecast.copying.why}")
    yield _row("", forecast.copying.how_sure)


def _speed(forecast: Forecast) -> str:
    tried = forecast.tried
    rate = f"{tried.samples_per_second:.3g} samples/s on {forecast.device}, median of {tried.steps} tried steps"
    if tried.batch_size == forecast.batch_size:
        return rate
    return f"{rate} of {tried.batch_size} samples instead of {forecast.batch_size}, for larger ones took too long"


def _memory(forecast: Forecast) -> str:
    peak, memory = forecast.tried.peak_memory, forecast.memory
    if peak is None:
        return "cannot be measured here"
    who = "of the GPU" if forecast.device.startswith("cuda") else "of the whole process"
    said = f"{size_of(peak)} {who} at its peak"
    if forecast.tried.batch_size < forecast.samples_at_once and memory is not None:
        needed = memory.fixed + forecast.samples_at_once * memory.per_sample
        said += f"; about {size_of(needed)} with {forecast.samples_at_once} samples at once"
    if forecast.memory_available is not None:
        said += f", {size_of(forecast.memory_available)} available"
    if forecast.largest_batch is not None:
        said += f"; at most about {forecast.largest_batch:,} samples at once fit"
    if forecast.fits is False:
        said += (
            f": TOO LITTLE for {forecast.samples_at_once}; raise training.gradient_accumulation_steps, or set "
            "training.gradient_checkpointing"
        )
    return said


def size_of(count: float) -> str:
    """Write bytes for a person.

    >>> size_of(23_400_000)
    '23.4 MB'
    """
    return _scaled(count, "B")


def duration(seconds: float) -> str:
    """Write seconds for a person.

    >>> duration(59), duration(600), duration(8000)
    ('59 s', '10 min', '2.2 h')
    """
    units = ((86400, "days"), (3600, "h"), (60, "min"), (1, "s"))
    length, unit = next(((length, unit) for length, unit in units if seconds >= 2 * length), units[-1])
    number = seconds / length
    return f"{number:.0f} {unit}" if number >= 10 else f"{number:.2g} {unit}"


def _scaled(count: float, unit: str) -> str:
    prefixes = ("", "k", "M", "G", "T", "P", "E")
    power = 0
    while count >= 1000 and power < len(prefixes) - 1:
        count, power = count / 1000, power + 1
    return f"{count:.0f} {prefixes[power]}{unit}" if count >= 100 else f"{count:.3g} {prefixes[power]}{unit}"


def _row(name: str, text: str) -> str:
    return f"{name:<13} {text}".rstrip()
