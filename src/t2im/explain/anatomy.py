"""What is this UNet made of? Its parts level by level, with their parameters, read from the live module tree.

Nothing here is computed from the configuration a second time: channels come from the convolutions, heads from the
attention layers, counts from the weights. Only the sizes of the feature maps are worked out, by halving the native size
as often as there are downsamplers.

On one level, the way down and the way up meet. Whatever the way down makes at a resolution (what comes in at its top,
then the output of each layer) goes over as a skip connection to one layer of the way up, in reverse order: so the rows
of a level, read from top to bottom on the way down, are read from bottom to top on the way up.
"""

from dataclasses import dataclass
from typing import Any, Literal

from torch import nn

from t2im.nn.attention import RMSNorm
from t2im.nn.blocks import layers
from t2im.nn.unet import ConditionalUNet

Hears = Literal["time", "text", "nothing"]


@dataclass(frozen=True)
class Part:
    """A module that is not divided further."""

    path: str
    """Its name in the module tree."""
    kind: str
    """Its class, or its name where the class says little."""
    detail: str
    parameters: int
    hears: Hears = "nothing"
    """What it is told besides the picture."""


@dataclass(frozen=True)
class Row:
    """What stands at one height of a level: one step of the way down, and the layer of the way up that recalls it."""

    down: tuple[Part, ...]
    up: tuple[Part, ...]
    skip_channels: int


@dataclass(frozen=True)
class Block:
    """A block of the UNet, whose layers are in the rows of a level."""

    path: str
    kind: str
    parameters: int


@dataclass(frozen=True)
class Level:
    """One resolution."""

    size: str
    """Height and width of the feature maps in cells."""
    channels: int
    down: Block
    up: Block
    rows: tuple[Row, ...]
    """From top to bottom; the first of the way down is what brings the picture here."""
    upsampler: Part | None
    """What brings the picture here on the way up; it belongs to the block below."""


@dataclass(frozen=True)
class Anatomy:
    """A whole UNet."""

    levels: tuple[Level, ...]
    mid: Block
    mid_parts: tuple[Part, ...]
    out: tuple[Part, ...]
    time: tuple[Part, ...]
    """What makes the time embedding of waves."""
    size: Part | None
    """What makes a vector of a picture's original size and crop that is added to it, in models that have this."""
    text: tuple[Part, ...]
    """What makes a vector of the text that is added to it, in models that have this."""
    waves: int
    """Sines and cosines that the time is written as."""
    text_channels: int
    latent_channels: tuple[int, int]
    """Of the latents going in and of the prediction coming out."""
    parameters: int


def anatomy(unet: ConditionalUNet) -> Anatomy:
    """Take a UNet apart."""
    module: Any = unet
    sizes = _sizes(unet)
    levels = []
    entry = _part("conv_in", module.conv_in, "conv_in", _channels(module.conv_in, module.conv_in))
    entry_channels = module.conv_in.out_channels
    for level, down in enumerate(module.down_blocks):
        place = len(module.up_blocks) - 1 - level
        up = module.up_blocks[place]
        ways_down = [(entry,), *_layers(f"down_blocks.{level}", down)]
        skips = [entry_channels, *(resnet.conv1.out_channels for resnet in down.resnets)]
        ways_up = reversed(_layers(f"up_blocks.{place}", up))
        below = module.up_blocks[place - 1].upsamplers if place else ()
        levels.append(
            Level(
                size=sizes[level],
                channels=skips[-1],
                down=_block(f"down_blocks.{level}", down),
                up=_block(f"up_blocks.{place}", up),
                rows=tuple(map(Row, ways_down, ways_up, skips)),
                upsampler=_resampler(f"up_blocks.{place - 1}.upsamplers.0", below[0], sizes[level + 1], sizes[level])
                if below
                else None,
            )
        )
        for sampler in down.downsamplers:
            entry = _resampler(f"down_blocks.{level}.downsamplers.0", sampler, sizes[level], sizes[level + 1])
            entry_channels = sampler.conv.out_channels

    embedding = module.time_embedding
    pooling = module.add_embedding
    return Anatomy(
        levels=tuple(levels),
        mid=_block("mid_block", module.mid_block),
        mid_parts=tuple(part for layer in _layers("mid_block", module.mid_block) for part in layer),
        out=(
            _part("conv_norm_out", module.conv_norm_out, "conv_norm_out", f"{module.conv_norm_out.num_groups} groups"),
            _part("conv_out", module.conv_out, "conv_out", _channels(module.conv_out, module.conv_out)),
        ),
        time=(_embedding("time_embedding", embedding, f"→ {embedding.linear_2.out_features}"),),
        size=None if module.size_embedding is None else _embedding("size_embedding", module.size_embedding, "→ time"),
        text=() if pooling is None else (_embedding("add_embedding", pooling, "joins the time"),),
        waves=embedding.linear_1.in_features,
        text_channels=unet.config.cross_attention_dim,
        latent_channels=(module.conv_in.in_channels, module.conv_out.out_channels),
        parameters=unet.num_parameters(),
    )


def _layers(path: str, block: Any) -> list[tuple[Part, ...]]:
    """Return each layer of a block: a residual block, and the transformer behind it, if any."""
    found: list[tuple[Part, ...]] = []
    for index, layer in enumerate(layers(block)):
        resnet: Any = layer.resnet
        channels = _channels(resnet.conv1, resnet.conv2)
        parts = [_part(f"{path}.resnets.{index}", resnet, type(resnet).__name__, channels, "time")]
        if layer.attention is not None:
            blocks: Any = layer.attention.transformer_blocks
            depth = f"{len(blocks)} × " if len(blocks) > 1 else ""
            attention = blocks[0].attn2
            detail = f"{depth}{attention.heads} {'QK-norm ' if isinstance(attention.norm_q, RMSNorm) else ''}heads"
            name = type(layer.attention).__name__
            parts.append(_part(f"{path}.attentions.{index}", layer.attention, name, detail, "text"))
        found.append(tuple(parts))
    return found


def _part(path: str, module: nn.Module, kind: str, detail: str, hears: Hears = "nothing") -> Part:
    return Part(path, kind, detail, _count(module), hears)


def _embedding(path: str, module: nn.Module, detail: str) -> Part:
    return _part(path, module, type(module).__name__, detail)


def _block(path: str, block: Any) -> Block:
    name = type(block).__name__
    attends = len(block.attentions) > 0 and "CrossAttn" not in name  # diffusers' name of such a block
    return Block(path, f"CrossAttn{name}" if attends else name, _count(block))


def _resampler(path: str, module: nn.Module, before: str, after: str) -> Part:
    return _part(path, module, type(module).__name__, f"{before} → {after}")


def _channels(first: nn.Conv2d, last: nn.Conv2d) -> str:
    return f"{first.in_channels} → {last.out_channels}"


def _count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def _sizes(unet: ConditionalUNet) -> list[str]:
    """Return height and width at each level; a convolution of stride 2 rounds up."""
    halvings = range(len(unet.config.block_out_channels))
    if unet.config.sample_size is None:
        return ["H × W" if level == 0 else f"H/{2**level} × W/{2**level}" for level in halvings]
    _, height, width = unet.latent_shape
    return [f"{-(-height // 2**level)} × {-(-width // 2**level)}" for level in halvings]
