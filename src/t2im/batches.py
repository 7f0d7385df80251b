"""Which examples make the next training batch, and with which chances?

Nothing here has a state. Sample number i of a run (0, 1, 2, ... over all epochs) names its example by a permutation of
its epoch, and its flip, caption, dropouts and latent noise by hashes of (seed, i, purpose). So a run that goes on
at sample k is the run that never stopped.
"""

import functools
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Int
from numpy.typing import NDArray
from torch import Tensor

from t2im.blocks import Array, Keys, Rows, Table
from t2im.data.captions import Example
from t2im.diffusion.objective import draw_noise
from t2im.encoders.vae import LatentStatistics, Posterior, latent_statistics
from t2im.errors import DataError, UsageError
from t2im.seeds import LARGEST_SEED, seed_for
from t2im.shapes import Latents, TextStates

Indices = NDArray[np.int64]


@dataclass(frozen=True)
class Batch:
    """What one training step eats."""

    latents: Latents
    text: TextStates
    sample_indices: Int[Tensor, "batch"]
    """Counted from the start of the run."""
    example_indices: Int[Tensor, "batch"]
    """Into the store's examples."""


@functools.lru_cache(maxsize=2)
def permutation(count: int, seed: int, epoch: int) -> Indices:
    """Return the order of `count` examples in one epoch."""
    high, low = divmod(seed_for(seed, epoch, "order"), 2**32)
    # RandomState, because its stream is frozen for good (NEP 19), and a run may be resumed by another numpy.
    order = np.random.RandomState([high, low]).permutation(count).astype(np.int64)
    order.flags.writeable = False
    return order


def examples_at(sample_indices: Indices, count: int, seed: int) -> Indices:
    """Return which of `count` examples the samples show: position i % count in the order of epoch i // count."""
    epochs, positions = np.divmod(sample_indices, count)
    chosen = np.empty_like(positions)
    for epoch in np.unique(epochs).tolist():
        here = epochs == epoch
        chosen[here] = permutation(count, seed, epoch)[positions[here]]
    return chosen


def split(content: Keys, fraction: float) -> tuple[Indices, Indices]:
    """Divide examples by the content of their images: (for training, held out), each in order.

    An image's side depends on its own bytes alone: copies never straddle, and adding images moves no other. With a
    positive fraction and at least two different images, neither side is empty.
    """
    # The digest's first bytes are uniform; S32 items lose trailing zeros only, so the view is of whole digests.
    draw = np.ascontiguousarray(content).view(">u8").reshape(-1, 4)[:, 0] / 2.0**64
    heldout = draw < fraction
    if fraction > 0 and draw.min(initial=1.0) < draw.max(initial=0.0):
        heldout |= draw == draw.min()
        heldout &= draw != draw.max()
    return np.flatnonzero(~heldout), np.flatnonzero(heldout)


def _dropped(samples: list[int], seed: int, purpose: str, share: float) -> NDArray[np.bool_]:
    """Draw for each sample whether it goes without something."""
    draws = np.array([seed_for(seed, sample, purpose) for sample in samples], dtype=np.int64)
    return draws < share * LARGEST_SEED


class Store:
    """The cached examples: posteriors of their images, states of their captions; made by `cache.build`."""

    def __init__(
        self,
        examples: Sequence[Example],
        content: Keys,
        latents: Table,
        views: NDArray[np.int64],
        text: Table,
        caption_rows: Rows,
        empty_row: int,
        *,
        masked: bool,
        sizes: NDArray[np.int32],
    ) -> None:
        """Tie examples to rows of two tables.

        content: (n,) the images' hashes. views: (n, 1 or 2) rows of an image's posterior and of its mirror image's.
        caption_rows: the rows of all captions of all examples in turn. masked: states are of the captions' own pieces.
        sizes: (n, 4) how each image came to its size, as `ImageSizes`.
        """
        bare = next((example.path for example in examples if not example.captions), None)
        if bare is not None:
            raise DataError(f'{bare} has no caption. Give it one, which may be "".')
        self.examples = examples
        self.content = content
        self._latents, self._views = latents, views
        self._text, self._caption_rows, self._empty_row = text, caption_rows, empty_row
        self._first_caption = np.cumsum([0] + [len(example.captions) for example in examples], dtype=np.int64)
        self._masked = masked
        self.sizes = sizes

    def __len__(self) -> int:
        """Return the number of examples."""
        return len(self.examples)

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """(channels, height, width) of an image's latents."""
        _, channels, height, width = self._latents.take(self._views[0, :1])[0].shape
        return channels, height, width

    @property
    def text_width(self) -> int:
        """Width of the text's hidden states."""
        return int(self._text.take(np.array([self._empty_row]))[0].shape[1])

    @functools.cached_property
    def statistics(self) -> LatentStatistics:
        """Mean and standard deviation of each channel of the sampled latents of all examples."""
        return latent_statistics(
            self._posterior(self._views[start : start + 256, 0]) for start in range(0, len(self), 256)
        )

    def captions(self, example_index: int) -> tuple[str, ...]:
        """Return the captions of an example."""
        return self.examples[example_index].captions

    def batches(
        self,
        *,
        batch_size: int,
        seed: int,
        start: int = 0,
        caption_dropout: float = 0.0,
        size_dropout: float = 0.0,
        examples: Indices | None = None,
    ) -> Iterator[Batch]:
        """Yield batches without end, from sample number `start` of the run on; epochs follow each other without a gap.

        examples: the indices to train on, all if not given. The dropouts are those of `batch`.

        Raises: UsageError, if there are no examples or batch_size is not positive.
        """
        chosen = np.arange(len(self), dtype=np.int64) if examples is None else np.asarray(examples, dtype=np.int64)
        if not len(chosen) or batch_size < 1 or start < 0:
            raise UsageError(
                f"batches of {batch_size} from {len(chosen)} examples, start {start}: all must be positive."
            )
        return self._batches(chosen, batch_size, seed, start, caption_dropout, size_dropout)

    def batch(
        self,
        example_indices: Indices,
        sample_indices: Indices,
        seed: int,
        caption_dropout: float = 0.0,
        size_dropout: float = 0.0,
    ) -> Batch:
        """Return given examples under the chances of given sample numbers; equal arguments give equal batches.

        caption_dropout: share of samples with the empty caption. size_dropout: share of samples of whose image's
        original size nothing is said (only a UNet with `size_conditioning` listens to it).
        """
        example_indices, sample_indices = np.asarray(example_indices), np.asarray(sample_indices)
        samples = sample_indices.tolist()
        views = self._views[example_indices]
        if views.shape[1] == 2:
            mirrored = np.array([seed_for(seed, sample, "flip") % 2 for sample in samples], dtype=np.int64)
            views = np.take_along_axis(views, mirrored[:, None], axis=1)
        posterior = self._posterior(views[:, 0])
        text = self._states(self._caption_choice(example_indices, samples, seed, caption_dropout))
        sizes = self.sizes[example_indices]
        if size_dropout:
            sizes[_dropped(samples, seed, "size_dropout", size_dropout)] = 0
        return Batch(
            latents=posterior.sample(draw_noise(posterior.mean.shape[1:], samples, seed, "posterior")),
            text=replace(text, sizes=torch.from_numpy(sizes)),
            sample_indices=torch.from_numpy(sample_indices.astype(np.int64)),
            example_indices=torch.from_numpy(example_indices.astype(np.int64)),
        )

    def _batches(
        self, chosen: Indices, batch_size: int, seed: int, start: int, caption_dropout: float, size_dropout: float
    ) -> Iterator[Batch]:
        for first in itertools.count(start, batch_size):
            sample_indices = np.arange(first, first + batch_size, dtype=np.int64)
            shown = chosen[examples_at(sample_indices, len(chosen), seed)]
            yield self.batch(shown, sample_indices, seed, caption_dropout, size_dropout)

    def _posterior(self, rows: Rows) -> Posterior:
        moments = torch.from_numpy(np.stack(self._latents.take(rows))).float()
        return Posterior(moments[:, 0], moments[:, 1])

    def _caption_choice(self, example_indices: Indices, samples: list[int], seed: int, dropout: float) -> Rows:
        first = self._first_caption[example_indices]
        count = self._first_caption[example_indices + 1] - first
        draws = np.array([seed_for(seed, sample, "caption") for sample in samples], dtype=np.int64)
        rows = self._caption_rows[first + draws % count]
        if dropout:
            rows = np.where(_dropped(samples, seed, "caption_dropout", dropout), self._empty_row, rows)
        return rows

    def _states(self, rows: Rows) -> TextStates:
        records: list[Array] = self._text.take(rows)
        if not self._masked:
            return TextStates(torch.from_numpy(np.stack(records)).float())
        lengths = torch.tensor([len(record) for record in records])
        states = torch.zeros(len(records), int(lengths.max()), records[0].shape[1])
        for state, record in zip(states, records, strict=True):
            state[: len(record)] = torch.from_numpy(np.array(record))
        return TextStates(states, torch.arange(states.shape[1]) < lengths[:, None])
