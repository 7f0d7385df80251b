"""How does a network know what time it is?

A timestep is one whole number, and a network is bad at reading whole numbers. So the number is written as a chord of
slow and fast waves (like the hands of a clock, each turning slower than the last), and a small network turns the chord
into the vector that every residual block of the UNet receives. With `addition_embed_type="text"` a summary of the
prompt is added to that vector, so that the text also acts everywhere at once and not only through cross-attention;
with `size_conditioning=True` so is the size that the picture had before it was scaled and cropped.
"""

import math

import torch
import torch.nn.functional as F
from jaxtyping import Float, Num
from torch import Tensor, nn

from t2im.shapes import HiddenStates, ImageSizes, TokenMask

TimeEmbedding = Float[Tensor, "*batch time_embed_dim"]
"""Time (and perhaps a summary of the text) as a vector."""

LONGEST_PERIOD = 10_000


def sinusoidal_embedding(
    timesteps: Num[Tensor, "*batch"], channels: int, *, flip_sin_to_cos: bool = True, freq_shift: int = 0
) -> Float[Tensor, "*batch channels"]:
    """Write each timestep as sines and cosines of geometrically falling frequency.

        e(t) = [cos(w_0 t), ..., cos(w_{h-1} t), sin(w_0 t), ..., sin(w_{h-1} t)],   w_i = 10000^(-i / (h - freq_shift))

    with h = channels / 2: Vaswani et al. 2017 (arXiv:1706.03762), section 3.5, with the cosines first as in Stable
    Diffusion; `flip_sin_to_cos=False` puts the sines first. An odd last channel stays 0. Always fp32.
    """
    half = channels // 2
    # A frequency's rounding error is multiplied by the timestep, so the operations come in diffusers' order.
    exponents = -math.log(LONGEST_PERIOD) * torch.arange(half, dtype=torch.float32, device=timesteps.device)
    angles = timesteps[..., None].float() * torch.exp(exponents / (half - freq_shift))
    waves = (angles.cos(), angles.sin()) if flip_sin_to_cos else (angles.sin(), angles.cos())
    return F.pad(torch.cat(waves, dim=-1), (0, channels % 2))


class TimestepEmbedding(nn.Module):
    """Turn waves into the time embedding: linear, SiLU, linear."""

    def __init__(self, in_channels: int, time_embed_dim: int) -> None:
        super().__init__()
        self.linear_1 = nn.Linear(in_channels, time_embed_dim)
        self.linear_2 = nn.Linear(time_embed_dim, time_embed_dim)

    def forward(self, waves: Float[Tensor, "*batch in_channels"]) -> TimeEmbedding:
        """Mix the waves."""
        embedding: Tensor = self.linear_2(F.silu(self.linear_1(waves)))
        return embedding


class AttentionPooling(nn.Module):
    """Summarise a prompt: its mean, plus a learned offset, asks all of its tokens one question (one query).

    From DeepFloyd IF, which has it from CLIP's image tower (Radford et al. 2021, arXiv:2103.00020).
    """

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.positional_embedding = nn.Parameter(torch.randn(1, width) / width**0.5)
        self.k_proj = nn.Linear(width, width)
        self.q_proj = nn.Linear(width, width)
        self.v_proj = nn.Linear(width, width)

    def forward(self, states: HiddenStates, mask: TokenMask | None = None) -> Float[Tensor, "batch text_width"]:
        """Return one vector for each prompt, which hears its visible tokens only."""
        asker = _mean(states, mask) + self.positional_embedding
        answers = torch.cat([asker, states], dim=1)
        query, key, value = (
            projected.unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for projected in (self.q_proj(asker), self.k_proj(answers), self.v_proj(answers))
        )
        scale = query.shape[-1] ** -0.25  # on both sides: a large sum scaled afterwards could overflow in fp16
        scores = (query * scale) @ (key * scale).mT
        if mask is not None:  # the one who asks hears itself, so that no row is without a voice
            scores = scores.masked_fill(~F.pad(mask, (1, 0), value=True)[:, None, None], -math.inf)
        weights = scores.softmax(dim=-1, dtype=torch.promote_types(scores.dtype, torch.float32))
        answer: Tensor = weights.to(value.dtype) @ value
        return answer.flatten(1)


def _mean(states: HiddenStates, mask: TokenMask | None) -> Float[Tensor, "batch 1 text_width"]:
    """Return the mean of the visible tokens; 0 where there are none."""
    if mask is None:
        return states.mean(dim=1, keepdim=True)
    visible = mask[..., None].to(states.dtype)
    total: Tensor = (states * visible).sum(dim=1, keepdim=True)
    return total / visible.sum(dim=1, keepdim=True).clamp(min=1)


class TextTimeEmbedding(nn.Module):
    """Turn a prompt into a vector that is added to the time embedding.

    Without a mask it pools over every position, exactly as diffusers' module of this name does. Theirs knows no mask; a
    masked prompt gives here what the prompt gives there when its masked tokens are cut off.
    """

    def __init__(self, width: int, time_embed_dim: int, heads: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width)
        self.pool = AttentionPooling(width, heads)
        self.proj = nn.Linear(width, time_embed_dim)
        self.norm2 = nn.LayerNorm(time_embed_dim)

    def forward(self, states: HiddenStates, mask: TokenMask | None = None) -> Float[Tensor, "batch time_embed_dim"]:
        """Return what to add to the time embedding."""
        embedding: Tensor = self.norm2(self.proj(self.pool(self.norm1(states), mask)))
        return embedding


class SizeEmbedding(nn.Module):
    """Turn what is known of a picture's making into a vector that is added to the time embedding.

    Each of the four numbers is written as waves, like the time, and a small network mixes them (Podell et al. 2023,
    arXiv:2307.01952, section 2.2). What is unknown adds nothing, and training leaves it unknown for a share of the
    samples; so a sampler may leave it out, too.
    """

    def __init__(self, waves: int, time_embed_dim: int) -> None:
        super().__init__()
        self.waves = waves
        self.embedding = TimestepEmbedding(4 * waves, time_embed_dim)

    def forward(self, sizes: ImageSizes) -> Float[Tensor, "batch time_embed_dim"]:
        """Return what to add to the time embedding: 0 for a row of zeros."""
        waves = sinusoidal_embedding(sizes, self.waves).flatten(1)
        embedding: Tensor = self.embedding(waves.to(self.embedding.linear_1.weight.dtype))
        return embedding * sizes.any(dim=1, keepdim=True)
