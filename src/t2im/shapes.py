"""What do the names mean? The glossary of everything that flows through the house.

Shapes and ranges drift when they live in prose, so they are type aliases here and are checked while the tests run.
Each name means one thing from the caption to the picture:

    images    [-1, 1] floats, never uint8 (uint8 exists only inside the image reader and the picture writer)
    latents   always scaled to about unit variance; raw VAE output never leaves `encoders/vae.py`
    timesteps from the least noise, 0, to the most, T - 1 (rectified flow: 1 to T)
    text      one hidden state for each token of a prompt
"""

from dataclasses import dataclass, replace
from typing import Self

import torch
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor

Images = Float[Tensor, "batch 3 image_height image_width"]
"""RGB in [-1, 1]."""

Latents = Float[Tensor, "batch channels height width"]
"""Scaled latents, about N(0, 1) per channel."""

Timesteps = Int[Tensor, "batch"]
"""int64 in [0, num_train_timesteps), for rectified flow in [1, num_train_timesteps]."""

Times = Shaped[Tensor, "batch"]
"""Timesteps as a sampler visits them: int64, but float where it stands between two of them."""

HiddenStates = Float[Tensor, "batch tokens text_width"]
"""The text encoder's last hidden states: one vector for each token."""

TokenMask = Bool[Tensor, "batch tokens"]
"""True where a token may be attended to."""

ImageSizes = Int[Tensor, "batch 4"]
"""How an image came to its size: its height and width before, then how much was cropped off its top and its left.

In pixels of the training resolution, see `TextStates.sized`. A row of zeros where nothing is known.
"""

PerSample = Float[Tensor, "batch"]
"""One number for each sample, such as a loss weight."""


@dataclass(frozen=True)
class TextStates:
    """Prompts as the UNet reads them. Without a mask every position counts, padding included, as in Stable Diffusion."""

    hidden_states: HiddenStates
    mask: TokenMask | None = None
    sizes: ImageSizes | None = None
    """What is said of the pictures beside the prompts, to a UNet with `size_conditioning`; None: nothing is."""

    def __len__(self) -> int:
        """Return the number of prompts."""
        return self.hidden_states.shape[0]

    def __getitem__(self, rows: slice | Int[Tensor, "rows"] | list[int]) -> Self:
        """Take some of the prompts."""
        mask, sizes = (None if part is None else part[rows] for part in (self.mask, self.sizes))
        return type(self)(self.hidden_states[rows], mask, sizes)

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> Self:
        """Move the states; mask and sizes keep their types."""
        mask, sizes = (None if part is None else part.to(device) for part in (self.mask, self.sizes))
        return type(self)(self.hidden_states.to(device, dtype), mask, sizes)

    def sized(self, height: int, width: int) -> Self:
        """Ask for pictures that were never scaled nor cropped, of so many pixels.

        In training, an image larger than the training resolution counts as if its shorter side were just as long,
        since nothing is lost by reducing it: so the native size asks for what most training images were.
        """
        told = torch.tensor([height, width, 0, 0], device=self.hidden_states.device)
        return replace(self, sizes=told.expand(len(self), 4))

    @classmethod
    def stack(cls, *parts: Self) -> Self:
        """Join prompts along the batch, padding shorter token axes with masked-out zeros, absent sizes with unknown."""
        longest = max(part.hidden_states.shape[1] for part in parts)
        ragged = any(part.mask is not None or part.hidden_states.shape[1] != longest for part in parts)
        states, masks = [], []
        for part in parts:
            missing = longest - part.hidden_states.shape[1]
            mask = part.mask
            if mask is None:
                mask = torch.ones(part.hidden_states.shape[:2], dtype=torch.bool, device=part.hidden_states.device)
            states.append(torch.nn.functional.pad(part.hidden_states, (0, 0, 0, missing)))
            masks.append(torch.nn.functional.pad(mask, (0, missing)))
        sizes = None
        if any(part.sizes is not None for part in parts):
            told = (part.sized(0, 0).sizes if part.sizes is None else part.sizes for part in parts)
            sizes = torch.cat([each for each in told if each is not None])
        return cls(torch.cat(states), torch.cat(masks) if ragged else None, sizes)
