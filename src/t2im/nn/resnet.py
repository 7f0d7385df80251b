"""How does a UNet look at a picture, and how does time get in?

By 3x3 convolutions in residual blocks: each block computes a correction and adds it to what came in, so that gradients
have a straight way back through dozens of blocks (He et al. 2015). At every timestep the same weights must do different
work (find outlines in much noise, polish texture in little), so each block is told the time, in its own words: a linear
layer turns the time embedding into one number for each of the block's channels.
"""

from typing import Literal

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from t2im.nn.embeddings import TimeEmbedding

FeatureMaps = Float[Tensor, "batch _channels _height _width"]
"""What flows between blocks: one map per channel. (Underscores: blocks may change these on the way.)"""

TimeProjection = Float[Tensor, "*batch time_channels"]
"""Time in one residual block's own words: a shift for each channel, or a scale and a shift."""


class ResnetBlock2D(nn.Module):
    """Two convolutions, told the time in between, added to what came in.

        h = conv1(silu(norm1(x)))
        h = norm2(h + shift(t))                        time_scale_shift = "default"     (Ho et al. 2020)
        h = norm2(h) * (1 + scale(t)) + shift(t)       time_scale_shift = "scale_shift" (Dhariwal & Nichol 2021)
        y = shortcut(x) + conv2(dropout(silu(h)))

    The norms are GroupNorms, so a sample never depends on its neighbours in the batch. The shortcut is the identity
    where the channels allow it, else a 1x1 convolution.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        time_embed_dim: int,
        groups: int,
        eps: float,
        dropout: float,
        time_scale_shift: Literal["default", "scale_shift"],
    ) -> None:
        super().__init__()
        self.scales = time_scale_shift == "scale_shift"
        self.norm1 = nn.GroupNorm(groups, in_channels, eps)
        self.conv1 = nn.Conv2d(in_channels, out_channels, kernel_size=3, padding=1)
        self.time_emb_proj = nn.Linear(time_embed_dim, out_channels * (2 if self.scales else 1))
        self.norm2 = nn.GroupNorm(groups, out_channels, eps)
        self.dropout = nn.Dropout(dropout)
        self.conv2 = nn.Conv2d(out_channels, out_channels, kernel_size=3, padding=1)
        self.conv_shortcut = (
            nn.Conv2d(in_channels, out_channels, kernel_size=1) if in_channels != out_channels else None
        )

    def project_time(self, embedding: TimeEmbedding) -> TimeProjection:
        """Translate the time embedding for this block; it depends on no picture, so it can be prepared."""
        projection: Tensor = self.time_emb_proj(F.silu(embedding))
        return projection

    def forward(self, maps: FeatureMaps, time: TimeProjection) -> FeatureMaps:
        """Correct the maps at a time given by this block's own `project_time`."""
        time = time[:, :, None, None]
        hidden = self.conv1(F.silu(self.norm1(maps)))
        if self.scales:
            scale, shift = time.chunk(2, dim=1)
            hidden = self.norm2(hidden) * (1 + scale) + shift
        else:
            hidden = self.norm2(hidden + time)
        hidden = self.conv2(self.dropout(F.silu(hidden)))
        shortcut = maps if self.conv_shortcut is None else self.conv_shortcut(maps)
        corrected: Tensor = shortcut + hidden
        return corrected


class Downsample2D(nn.Module):
    """Halve height and width (rounding up) by a convolution with stride 2, which learns what to keep."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, kernel_size=3, stride=2, padding=1)

    def forward(self, maps: FeatureMaps) -> FeatureMaps:
        """Return ceil(height / 2) x ceil(width / 2) maps."""
        halved: Tensor = self.conv(maps)
        return halved


class Upsample2D(nn.Module):
    """Repeat cells up to the size of the skip connection that follows, then smooth by a convolution.

    Taking the size from the skip, instead of doubling, makes odd sizes work: 7 went down to 4, and comes back to 7.
    Repeating before convolving avoids the checkerboard of transposed convolutions (Odena et al. 2016).
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, kernel_size=3, padding=1)

    def forward(self, maps: FeatureMaps, size: tuple[int, int]) -> FeatureMaps:
        """Return maps of that (height, width)."""
        enlarged: Tensor = self.conv(F.interpolate(maps, size=size, mode="nearest"))
        return enlarged
