"""What is one level of the UNet made of?

Of layers. A layer is a residual block, which hears the time, and (on levels that attend) a transformer behind it, which
reads the text. What a layer hears and reads depends on no picture; it is the layer's context, and whoever owns the
blocks works it out beforehand, once for a training step or once for all steps of a sampler. So a block itself is told
two things only: the picture and its context.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import zip_longest
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from t2im.nn.attention import AttentionBias, KeysValues, Transformer2DModel
from t2im.nn.embeddings import TimeEmbedding
from t2im.nn.resnet import Downsample2D, FeatureMaps, ResnetBlock2D, TimeProjection, Upsample2D
from t2im.shapes import HiddenStates


@dataclass(frozen=True)
class LayerContext:
    """What one layer is told besides the picture: the time in its own words, and keys and values of the text."""

    time: TimeProjection
    text: tuple[KeysValues, ...]
    bias: AttentionBias | None


BlockContext = tuple[LayerContext, ...]


@dataclass(frozen=True)
class Layer:
    """A residual block and the transformer behind it, if any; their parameters belong to the block that lists both."""

    resnet: ResnetBlock2D
    attention: Transformer2DModel | None
    checkpointed: bool = False
    """Keep what comes in and goes out for the gradient, and work out all between them once more when it is wanted (Chen
    et al. 2016, arXiv:1604.06174)."""

    def context(self, embedding: TimeEmbedding, states: HiddenStates, bias: AttentionBias | None) -> LayerContext:
        """Work out all that this layer needs of time and text."""
        text = () if self.attention is None else self.attention.keys_values(states)
        return LayerContext(self.resnet.project_time(embedding), text, bias)

    def refine(self, maps: FeatureMaps, context: LayerContext) -> FeatureMaps:
        """Send the picture through."""
        if not self.checkpointed:
            return self._refine(maps, context)
        refined: FeatureMaps = checkpoint(self._refine, maps, context, use_reentrant=False)
        return refined

    def _refine(self, maps: FeatureMaps, context: LayerContext) -> FeatureMaps:
        maps = self.resnet(maps, context.time)
        return maps if self.attention is None else self.attention(maps, context.text, context.bias)


def layers(block: Any) -> Iterator[Layer]:
    """Pair a block's residual blocks with its transformers, in the order in which the picture meets them."""
    checkpointed = block.training and block.gradient_checkpointing
    return (
        Layer(resnet, attention, checkpointed) for resnet, attention in zip_longest(block.resnets, block.attentions)
    )


def checkpoint_gradients(model: nn.Module) -> None:
    """Have all blocks of a model train with gradient checkpointing: less memory, and about a third more time."""
    for block in model.modules():
        if isinstance(block, DownBlock2D | UNetMidBlock2DCrossAttn | UpBlock2D):
            block.gradient_checkpointing = True


class DownBlock2D(nn.Module):
    """A level on the way down: its layers, then half the size. With transformers, it is a `CrossAttnDownBlock2D`."""

    gradient_checkpointing = False

    def __init__(self, resnets: list[ResnetBlock2D], attentions: list[Transformer2DModel], *, downsample: bool) -> None:
        super().__init__()
        self.attentions = nn.ModuleList(attentions)
        self.resnets = nn.ModuleList(resnets)
        channels = resnets[-1].conv2.out_channels
        self.downsamplers = nn.ModuleList([Downsample2D(channels)] if downsample else [])

    def forward(self, maps: FeatureMaps, context: BlockContext) -> list[FeatureMaps]:
        """Return the picture after each layer and after the halving: the skips, of which the last goes on down."""
        skips = []
        for layer, told in zip(layers(self), context, strict=True):
            maps = layer.refine(maps, told)
            skips.append(maps)
        for downsampler in self.downsamplers:
            skips.append(downsampler(maps))
        return skips


class UNetMidBlock2DCrossAttn(nn.Module):
    """The coarsest place: a residual block, a transformer, a residual block."""

    gradient_checkpointing = False

    def __init__(self, resnets: list[ResnetBlock2D], attentions: list[Transformer2DModel]) -> None:
        super().__init__()
        self.attentions = nn.ModuleList(attentions)
        self.resnets = nn.ModuleList(resnets)

    def forward(self, maps: FeatureMaps, context: BlockContext) -> FeatureMaps:
        """Send the picture through all layers."""
        for layer, told in zip(layers(self), context, strict=True):
            maps = layer.refine(maps, told)
        return maps


class UpBlock2D(nn.Module):
    """A level on the way up: its layers, each after taking back a skip, then the size of the skip that comes next.

    With transformers, it is a `CrossAttnUpBlock2D`.
    """

    gradient_checkpointing = False

    def __init__(self, resnets: list[ResnetBlock2D], attentions: list[Transformer2DModel], *, upsample: bool) -> None:
        super().__init__()
        self.attentions = nn.ModuleList(attentions)
        self.resnets = nn.ModuleList(resnets)
        channels = resnets[-1].conv2.out_channels
        self.upsamplers = nn.ModuleList([Upsample2D(channels)] if upsample else [])

    def forward(self, maps: FeatureMaps, skips: list[FeatureMaps], context: BlockContext) -> FeatureMaps:
        """Take this level's skips off the end of the list."""
        for layer, told in zip(layers(self), context, strict=True):
            maps = layer.refine(torch.cat([maps, skips.pop()], dim=1), told)
        for upsampler in self.upsamplers:
            maps = upsampler(maps, size=skips[-1].shape[-2:])
        return maps
