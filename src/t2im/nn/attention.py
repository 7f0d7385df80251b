"""How do words reach the picture?

By attention: every cell of the picture asks a question (query), every token of the prompt offers a topic (key) and a
content (value), and the cell receives a mixture of contents, weighted by how well topics fit its question. Where the
tokens come from the text this is cross-attention; where they are the other cells of the picture it is self-attention,
which lets a left eye agree with a right one. Keys and values of the text depend on no picture and no timestep, so they
are computed once for a whole picture (`Attention.keys_values`).
"""

from contextlib import nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from t2im.nn.resnet import FeatureMaps
from t2im.shapes import HiddenStates, TokenMask

Tokens = Float[Tensor, "batch _tokens _channels"]
"""Feature maps in reading order: one token for each cell."""

Headed = Float[Tensor, "batch heads _tokens head_width"]
"""Queries, keys or values, split into heads that attend independently."""

Offered = Float[Tensor, "batch heads context head_width"]
"""Keys or values of those that are looked at, as many as they are."""

KeysValues = tuple[Offered, Offered]
"""What an attention layer needs to know of those it looks at."""

AttentionBias = Float[Tensor, "batch 1 1 context"]
"""Added to attention scores: 0 where a token may be seen, -10000 (e to the power of that is 0) where not."""


def attention_bias(mask: TokenMask, dtype: torch.dtype) -> AttentionBias:
    """Turn a mask (True: may be seen) into a bias.

    A prompt whose tokens are all masked out is seen evenly, since equal biases cancel in the softmax; minus infinity
    would make it NaN.
    """
    return (1 - mask.to(dtype))[:, None, None, :] * -10000.0


class RMSNorm(nn.Module):
    """Bring vectors to mean square 1 and weigh their components: y = w x / sqrt(mean(x^2) + eps).

    Zhang and Sennrich 2019, arXiv:1910.07467, equation 4.
    """

    def __init__(self, width: int, eps: float = 1e-6) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.eps = eps

    def forward(self, headed: Headed) -> Headed:
        """Normalise queries or keys in the precision they come in; torch sums squares in fp32."""
        weight = self.weight.to(headed.dtype)  # autocast leaves it in fp32, for which there is no fused kernel
        return F.rms_norm(headed, weight.shape, weight, self.eps).to(headed.dtype)


class Attention(nn.Module):
    """Multi-head attention: softmax(Q K^T / sqrt(head width)) V (Vaswani et al. 2017, equation 1).

    With qk_norm, each head's queries and keys are normalised first (Dehghani et al. 2023, arXiv:2302.05442, section
    2.1). They have length sqrt(head width) then, so by Cauchy and Schwarz no score exceeds sqrt(head width) max|w_q|
    max|w_k|, however the projections grow. Without it scores may grow until attention sees one token only, and training
    is unstable.
    """

    def __init__(
        self, channels: int, context_channels: int, heads: int, *, upcast: bool, qk_norm: bool = False
    ) -> None:
        super().__init__()
        self.heads = heads
        self.upcast = upcast
        self.norm_q = RMSNorm(channels // heads) if qk_norm else nn.Identity()
        self.norm_k = RMSNorm(channels // heads) if qk_norm else nn.Identity()
        self.to_q = nn.Linear(channels, channels, bias=False)
        self.to_k = nn.Linear(context_channels, channels, bias=False)
        self.to_v = nn.Linear(context_channels, channels, bias=False)
        self.to_out = nn.ModuleList([nn.Linear(channels, channels)])  # a list of one, for diffusers' name to_out.0

    def keys_values(self, context: Float[Tensor, "batch tokens context_channels"]) -> KeysValues:
        """Compute what the tokens of a context offer: the text's (cross-attention), or the picture's own."""
        return self.norm_k(self._split(self.to_k(context))), self._split(self.to_v(context))

    def forward(self, tokens: Tokens, keys_values: KeysValues, bias: AttentionBias | None = None) -> Tokens:
        """Let the tokens look at a context, given by its keys and values."""
        mixture = self._attend(self.norm_q(self._split(self.to_q(tokens))), *keys_values, bias)
        output: Tensor = self.to_out[0](mixture.transpose(1, 2).flatten(2))
        return output

    def _split(self, projected: Tokens) -> Headed:
        batch, tokens, channels = projected.shape
        return projected.reshape(batch, tokens, self.heads, channels // self.heads).transpose(1, 2)

    def _attend(self, query: Headed, key: Offered, value: Offered, bias: AttentionBias | None) -> Headed:
        if not self.upcast:
            return F.scaled_dot_product_attention(query, key, value, bias)
        # SD 2.1 wants scores in fp32, since its own overflow in fp16; autocast would cast them back.
        kind, dtype = query.device.type, torch.promote_types(query.dtype, torch.float32)
        with torch.autocast(kind, enabled=False) if torch.amp.is_autocast_available(kind) else nullcontext():
            bias = None if bias is None else bias.to(dtype)
            mixture = F.scaled_dot_product_attention(query.to(dtype), key.to(dtype), value.to(dtype), bias)
        return mixture.to(query.dtype)


class GEGLU(nn.Module):
    """A gated linear unit: (W_1 x) * gelu(W_2 x) (Shazeer 2020, arXiv:2002.05202), both from one matrix."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.proj = nn.Linear(in_channels, 2 * out_channels)

    def forward(self, tokens: Tokens) -> Float[Tensor, "batch tokens hidden"]:
        """Widen or narrow each token to out_channels."""
        content, gate = self.proj(tokens).chunk(2, dim=-1)
        gated: Tensor = content * F.gelu(gate)
        return gated


class FeedForward(nn.Module):
    """Let each token think on its own about what it has gathered: four times wider, gated, and back."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        # The identity keeps the place of a dropout which Stable Diffusion never switches on: names are net.0 and net.2.
        self.net = nn.Sequential(GEGLU(channels, 4 * channels), nn.Identity(), nn.Linear(4 * channels, channels))

    def forward(self, tokens: Tokens) -> Tokens:
        """Treat each token alone."""
        output: Tensor = self.net(tokens)
        return output


class BasicTransformerBlock(nn.Module):
    """Look at the picture, look at the text, think; each time normalised first, and added to what was there.

    x = x + self-attention(norm1(x));  x = x + cross-attention(norm2(x), text);  x = x + feed-forward(norm3(x))
    """

    def __init__(
        self, channels: int, heads: int, cross_attention_dim: int, *, upcast_attention: bool, qk_norm: bool = False
    ) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(channels)
        self.attn1 = Attention(channels, channels, heads, upcast=upcast_attention, qk_norm=qk_norm)
        self.norm2 = nn.LayerNorm(channels)
        self.attn2 = Attention(channels, cross_attention_dim, heads, upcast=upcast_attention, qk_norm=qk_norm)
        self.norm3 = nn.LayerNorm(channels)
        self.ff = FeedForward(channels)

    def forward(self, tokens: Tokens, text: KeysValues, bias: AttentionBias | None) -> Tokens:
        """Refine the tokens, given keys and values of the text."""
        normed = self.norm1(tokens)
        tokens = tokens + self.attn1(normed, self.attn1.keys_values(normed))
        tokens = tokens + self.attn2(self.norm2(tokens), text, bias)
        thought: Tensor = self.ff(self.norm3(tokens))
        return tokens + thought


class Transformer2DModel(nn.Module):
    """Feature maps to tokens, transformer blocks, and back, added to what came in (Rombach et al. 2022, appendix E).

    The projections at both ends are linear layers (SD 2) or 1x1 convolutions (SD 1): the same arithmetic, but weights
    of another shape.
    """

    def __init__(
        self,
        channels: int,
        heads: int,
        depth: int,
        *,
        cross_attention_dim: int,
        groups: int,
        use_linear_projection: bool,
        upcast_attention: bool,
        qk_norm: bool = False,
    ) -> None:
        super().__init__()
        self.use_linear_projection = use_linear_projection
        inner = heads * (channels // heads)  # the same as channels, unless the heads do not divide them
        self.norm = nn.GroupNorm(groups, channels, eps=1e-6)
        self.proj_in = nn.Linear(channels, inner) if use_linear_projection else nn.Conv2d(channels, inner, 1)
        self.transformer_blocks = nn.ModuleList(
            BasicTransformerBlock(inner, heads, cross_attention_dim, upcast_attention=upcast_attention, qk_norm=qk_norm)
            for _ in range(depth)
        )
        self.proj_out = nn.Linear(inner, channels) if use_linear_projection else nn.Conv2d(inner, channels, 1)

    def keys_values(self, states: HiddenStates) -> tuple[KeysValues, ...]:
        """Compute what the text offers to each transformer block."""
        blocks: Any = self.transformer_blocks
        return tuple(block.attn2.keys_values(states) for block in blocks)

    def forward(
        self, maps: FeatureMaps, text: tuple[KeysValues, ...], bias: AttentionBias | None = None
    ) -> FeatureMaps:
        """Refine the picture, given keys and values of the text for each block."""
        height, width = maps.shape[-2:]
        hidden = self.norm(maps)
        # To tokens and back: (batch, channels, height, width) <-> (batch, height * width, channels). In channels_last
        # memory these are views; otherwise the copy is made here, once, since every layer norm would make its own.
        if self.use_linear_projection:
            tokens = self.proj_in(hidden.flatten(2).mT.contiguous())
        else:
            tokens = self.proj_in(hidden).flatten(2).mT.contiguous()
        for block, keys_values in zip(self.transformer_blocks, text, strict=True):
            tokens = block(tokens, keys_values, bias)
        correction: Tensor
        if self.use_linear_projection:
            correction = self.proj_out(tokens).mT.unflatten(2, (height, width))
        else:
            correction = self.proj_out(tokens.mT.unflatten(2, (height, width)))
        return maps + correction
