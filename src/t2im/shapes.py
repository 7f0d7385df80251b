"""What do the names mean? The glossary of everything that flows through the house.

Shapes and ranges drift when they live in prose, so they are type aliases here and are checked while the tests run.
Each name means one thing from the caption to the picture:

    images    [-1, 1] floats, never uint8 (uint8 exists only inside the image reader and the picture writer)
    latents   always scaled to about unit variance; raw VAE output never leaves `encoders/vae.py`
    timesteps whole numbers in [0, T); 0 is the least noise, T - 1 the most
    text      one hidden state for each token of a prompt
"""

from dataclasses import dataclass
from typing import Self

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

Images = Float[Tensor, "batch 3 image_height image_width"]
"""RGB in [-1, 1]."""

Latents = Float[Tensor, "batch channels height width"]
"""Scaled latents, about N(0, 1) per channel."""

Timesteps = Int[Tensor, "batch"]
"""int64 in [0, num_train_timesteps)."""

HiddenStates = Float[Tensor, "batch tokens text_width"]
"""The text encoder's last hidden states: one vector for each token."""

TokenMask = Bool[Tensor, "batch tokens"]
"""True where a token may be attended to."""

PerSample = Float[Tensor, "batch"]
"""One number for each sample, such as a loss weight."""


@dataclass(frozen=True)
class TextStates:
    """Prompts as the UNet reads them. Without a mask every position counts, padding included, as in Stable Diffusion."""

    hidden_states: HiddenStates
    mask: TokenMask | None = None

    def __len__(self) -> int:
        """Return the number of prompts."""
        return self.hidden_states.shape[0]

    def __getitem__(self, rows: slice | Int[Tensor, "rows"] | list[int]) -> Self:
        """Take some of the prompts."""
        return type(self)(self.hidden_states[rows], None if self.mask is None else self.mask[rows])

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> Self:
        """Move the states; the mask stays boolean."""
        mask = None if self.mask is None else self.mask.to(device)
        return type(self)(self.hidden_states.to(device, dtype), mask)

    @classmethod
    def stack(cls, *parts: Self) -> Self:
        """Join prompts along the batch, padding shorter token axes with masked-out zeros."""
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
        return cls(torch.cat(states), torch.cat(masks) if ragged else None)
