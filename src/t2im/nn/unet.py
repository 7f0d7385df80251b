"""What is the network that removes the noise?

A UNet (Ronneberger et al. 2015) that is told the time and the text. On the way down it trades resolution for channels,
until one cell knows of the whole picture; on the way up it trades back. The details which that would cost come back
over skip connections: all that is made on the way down goes on a pile, and the way up takes it off, last in, first out.

    latents - conv_in - down 0 ------------------ skips ------------------ up 2 - conv_out - prediction
                           `--- down 1 ---------- skips ---------- up 1 ---'
                                   `--- down 2 -- skips -- up 0 ---'
                                           `----- mid -----'

Blocks are made of layers. A layer is a residual block, which hears the time, and (on levels that attend) a transformer,
which reads the text. What it hears and reads depends on no picture: `forward` works it out for one call, `prepare` once
for all steps of a sampler.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import zip_longest
from pathlib import Path
from typing import Self

import torch
import torch.nn.functional as F
from jaxtyping import Num
from torch import Tensor, nn

from t2im.config import UNetConfig
from t2im.errors import UsageError
from t2im.nn.attention import AttentionBias, KeysValues, Transformer2DModel, attention_bias
from t2im.nn.embeddings import TextTimeEmbedding, TimeEmbedding, TimestepEmbedding, sinusoidal_embedding
from t2im.nn.folder import read_unet, require_same_weights, write_unet
from t2im.nn.resnet import Downsample2D, FeatureMaps, ResnetBlock2D, TimeProjection, Upsample2D
from t2im.shapes import HiddenStates, Latents, TextStates


@dataclass(frozen=True)
class LayerContext:
    """What one layer is told besides the picture: the time in its own words, and keys and values of the text."""

    time: TimeProjection
    text: tuple[KeysValues, ...]
    bias: AttentionBias | None


BlockContext = tuple[LayerContext, ...]


@dataclass(frozen=True)
class Context:
    """What the whole UNet is told, in the structure of the UNet."""

    down_blocks: tuple[BlockContext, ...]
    mid_block: BlockContext
    up_blocks: tuple[BlockContext, ...]


@dataclass(frozen=True)
class PreparedContext:
    """A context for each of some timesteps: its time projections are (timesteps, 1 or prompts, channels).

    It belongs to the prompts, the weights and the device it was made with.
    """

    timesteps: tuple[float, ...]
    prompts: int
    context: Context

    def at(self, timesteps: Num[Tensor, "batch"]) -> Context:
        """Look up the context of one call; each sample may be at another timestep.

        Raises: UsageError for a timestep that was not prepared.
        """
        steps = timesteps.float().tolist()
        missing = set(steps).difference(self.timesteps)
        if missing:
            raise UsageError(
                f"timestep {min(missing):g} was not prepared (prepared: {', '.join(f'{t:g}' for t in self.timesteps)}). "
                "Give prepare() all timesteps of the sampler."
            )
        index = torch.tensor([self.timesteps.index(step) for step in steps])

        def block_at(block: BlockContext) -> BlockContext:
            # One row serves all prompts, unless the text is part of the time embedding.
            return tuple(
                replace(layer, time=layer.time[index, torch.arange(self.prompts) if layer.time.shape[1] > 1 else 0])
                for layer in block
            )

        return Context(
            down_blocks=tuple(map(block_at, self.context.down_blocks)),
            mid_block=block_at(self.context.mid_block),
            up_blocks=tuple(map(block_at, self.context.up_blocks)),
        )


@dataclass(frozen=True)
class Layer:
    """A residual block and the transformer behind it, if any; the parameters belong to the block that lists both."""

    resnet: ResnetBlock2D
    attention: Transformer2DModel | None

    def tell(self, embedding: TimeEmbedding, states: HiddenStates, bias: AttentionBias | None) -> LayerContext:
        text = () if self.attention is None else self.attention.keys_values(states)
        return LayerContext(self.resnet.project_time(embedding), text, bias)

    def __call__(self, maps: FeatureMaps, told: LayerContext) -> FeatureMaps:
        maps = self.resnet(maps, told.time)
        return maps if self.attention is None else self.attention(maps, told.text, told.bias)


def layers(block: nn.Module) -> Iterator[Layer]:
    """Pair a block's residual blocks and transformers, in the order in which the picture meets them."""
    return (Layer(*pair) for pair in zip_longest(block.resnets, block.attentions))


class DownBlock2D(nn.Module):
    """A level on the way down: its layers, then half the size. With transformers it is a `CrossAttnDownBlock2D`."""

    def __init__(self, resnets: list[ResnetBlock2D], attentions: list[Transformer2DModel], downsample: bool) -> None:
        super().__init__()
        self.attentions = nn.ModuleList(attentions)
        self.resnets = nn.ModuleList(resnets)
        channels = resnets[-1].conv2.out_channels
        self.downsamplers = nn.ModuleList([Downsample2D(channels)] if downsample else [])

    def forward(self, maps: FeatureMaps, context: BlockContext) -> list[FeatureMaps]:
        """Return the picture after each layer and after the halving: the skips, of which the last goes on down."""
        skips = []
        for layer, told in zip(layers(self), context, strict=True):
            maps = layer(maps, told)
            skips.append(maps)
        for downsampler in self.downsamplers:
            skips.append(downsampler(maps))
        return skips


class UNetMidBlock2DCrossAttn(nn.Module):
    """The coarsest place: a residual block, a transformer, a residual block."""

    def __init__(self, resnets: list[ResnetBlock2D], attentions: list[Transformer2DModel]) -> None:
        super().__init__()
        self.attentions = nn.ModuleList(attentions)
        self.resnets = nn.ModuleList(resnets)

    def forward(self, maps: FeatureMaps, context: BlockContext) -> FeatureMaps:
        for layer, told in zip(layers(self), context, strict=True):
            maps = layer(maps, told)
        return maps


class UpBlock2D(nn.Module):
    """A level on the way up: its layers, each with a skip taken back first, then the size of the next skip.

    With transformers it is a `CrossAttnUpBlock2D`.
    """

    def __init__(self, resnets: list[ResnetBlock2D], attentions: list[Transformer2DModel], upsample: bool) -> None:
        super().__init__()
        self.attentions = nn.ModuleList(attentions)
        self.resnets = nn.ModuleList(resnets)
        channels = resnets[-1].conv2.out_channels
        self.upsamplers = nn.ModuleList([Upsample2D(channels)] if upsample else [])

    def forward(self, maps: FeatureMaps, skips: list[FeatureMaps], context: BlockContext) -> FeatureMaps:
        """Use up this level's skips, from the end of the list."""
        for layer, told in zip(layers(self), context, strict=True):
            maps = layer(torch.cat([maps, skips.pop()], dim=1), told)
        for upsampler in self.upsamplers:
            maps = upsampler(maps, size=skips[-1].shape[-2:])
        return maps


class ConditionalUNet(nn.Module):
    """The denoiser: noisy latents, timesteps and text in; a prediction of the latents' shape out.

    Keys, parameter names and arithmetic are those of diffusers' `UNet2DConditionModel` (Rombach et al. 2022,
    arXiv:2112.10752), so weights move both ways unchanged.
    """

    def __init__(self, config: UNetConfig) -> None:
        super().__init__()
        self.config = config
        channels = config.block_out_channels
        heads, depths, counts = map(
            config.per_level,
            (config.attention_head_dim, config.transformer_layers_per_block, config.layers_per_block),
        )
        coarsest = len(channels) - 1
        time_embed_dim = 4 * channels[0]

        def resnet(in_channels: int, level: int) -> ResnetBlock2D:
            return ResnetBlock2D(
                in_channels,
                channels[level],
                time_embed_dim=time_embed_dim,
                groups=config.norm_num_groups,
                eps=config.norm_eps,
                dropout=config.dropout,
                time_scale_shift=config.resnet_time_scale_shift,
            )

        def transformers(kind: str, level: int, count: int) -> list[Transformer2DModel]:
            return [
                Transformer2DModel(
                    channels[level],
                    heads[level],
                    depths[level],
                    cross_attention_dim=config.cross_attention_dim,
                    groups=config.norm_num_groups,
                    use_linear_projection=config.use_linear_projection,
                    upcast_attention=config.upcast_attention,
                )
                for _ in range(count if "CrossAttn" in kind else 0)
            ]

        self.conv_in = nn.Conv2d(config.in_channels, channels[0], kernel_size=3, padding=1)
        self.time_embedding = TimestepEmbedding(channels[0], time_embed_dim)
        self.add_embedding = (
            TextTimeEmbedding(config.cross_attention_dim, time_embed_dim, config.addition_embed_type_num_heads)
            if config.addition_embed_type == "text"
            else None
        )
        # Building goes the way of `forward`: what it puts on the pile of skips, the way up finds there.
        self.down_blocks, self.up_blocks = nn.ModuleList(), nn.ModuleList()
        skips = [channels[0]]
        for level, kind in enumerate(config.down_block_types):
            inputs = [skips[-1]] + [channels[level]] * (counts[level] - 1)
            block = DownBlock2D(
                [resnet(width, level) for width in inputs],
                transformers(kind, level, counts[level]),
                downsample=level < coarsest,
            )
            skips += [channels[level]] * (counts[level] + len(block.downsamplers))
            self.down_blocks.append(block)

        width = channels[coarsest]
        self.mid_block = UNetMidBlock2DCrossAttn(
            [resnet(width, coarsest) for _ in range(2)], transformers(config.mid_block_type, coarsest, 1)
        )

        for kind, level in zip(config.up_block_types, reversed(range(len(channels))), strict=True):
            resnets = []
            for _ in range(counts[level] + 1):
                resnets.append(resnet(width + skips.pop(), level))
                width = channels[level]
            self.up_blocks.append(UpBlock2D(resnets, transformers(kind, level, counts[level] + 1), upsample=level > 0))

        self.conv_norm_out = nn.GroupNorm(config.norm_num_groups, channels[0], config.norm_eps)
        self.conv_out = nn.Conv2d(channels[0], config.out_channels, kernel_size=3, padding=1)

    def forward(
        self, latents: Latents, timesteps: Num[Tensor, "..."] | int, text: HiddenStates | TextStates | PreparedContext
    ) -> Latents:
        """Predict what the model was trained to predict (the noise, the velocity or the clean latents).

        Args:
            latents: (batch, in_channels, height, width); every size works, odd ones too.
            timesteps: one for all samples, or (batch,).
            text: hidden states (batch, tokens, cross_attention_dim), with or without a mask, or what `prepare` made.
        """
        # 1. Condition: what every layer is told about time and text.
        timesteps = torch.as_tensor(timesteps, device=latents.device).expand(len(latents))
        context = text.at(timesteps) if isinstance(text, PreparedContext) else self._tell(timesteps, text)

        # 2. In: from latent channels to feature maps.
        skips = [self.conv_in(latents)]

        # 3. Down: refine, remember, halve.
        for block, told in zip(self.down_blocks, context.down_blocks, strict=True):
            skips += block(skips[-1], told)

        # 4. Mid: the whole picture at once.
        maps = self.mid_block(skips[-1], context.mid_block)

        # 5. Up: recall, refine, double.
        for block, told in zip(self.up_blocks, context.up_blocks, strict=True):
            maps = block(maps, skips, told)

        # 6. Out: from feature maps to latent channels.
        prediction: Tensor = self.conv_out(F.silu(self.conv_norm_out(maps)))
        return prediction

    def prepare(self, text: HiddenStates | TextStates, timesteps: Num[Tensor, "steps"]) -> PreparedContext:
        """Work out, once for all steps of a sampler, everything that does not depend on the latents.

        `unet(latents, t, unet.prepare(text, timesteps))` equals `unet(latents, t, text)` for each t in timesteps. Made
        under autograd it carries gradients; it is stale as soon as the weights change.
        """
        # (steps, 1), so that time embeddings are (steps, 1, channels) and broadcast against prompts.
        context = self._tell(timesteps[:, None].to(self.conv_in.weight.device), text)
        return PreparedContext(tuple(timesteps.float().tolist()), len(text), context)

    def _tell(self, timesteps: Num[Tensor, "*batch"], text: HiddenStates | TextStates) -> Context:
        text = TextStates(text) if isinstance(text, Tensor) else text
        states = text.hidden_states
        bias = None if text.mask is None else attention_bias(text.mask, states.dtype)
        waves = sinusoidal_embedding(
            timesteps,
            self.config.block_out_channels[0],
            flip_sin_to_cos=self.config.flip_sin_to_cos,
            freq_shift=self.config.freq_shift,
        )
        embedding = self.time_embedding(waves.to(states.dtype))
        if self.add_embedding is not None:
            embedding = embedding + self.add_embedding(states)

        def tell(block: nn.Module) -> BlockContext:
            return tuple(layer.tell(embedding, states, bias) for layer in layers(block))

        return Context(
            down_blocks=tuple(map(tell, self.down_blocks)),
            mid_block=tell(self.mid_block),
            up_blocks=tuple(map(tell, self.up_blocks)),
        )

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """(channels, height, width) of the latents this model is made for; others work, but look worse."""
        size = self.config.sample_size
        return self.config.in_channels, size, size

    def num_parameters(self) -> int:
        """Count the weights."""
        return sum(parameter.numel() for parameter in self.parameters())

    @classmethod
    def load(cls, folder: str | Path) -> Self:
        """Read a model from a folder in diffusers' layout, ready for use (`.train()` to go on training)."""
        config, state_dict = read_unet(folder)
        with torch.device("meta"):  # no time for random weights that are thrown away
            unet = cls(config)
        require_same_weights(folder, unet.state_dict(), state_dict)
        unet.load_state_dict({name: weight.float() for name, weight in state_dict.items()}, assign=True)
        return unet.eval()

    def save(self, folder: str | Path) -> None:
        """Write the model to a folder which diffusers' `UNet2DConditionModel.from_pretrained` opens."""
        write_unet(folder, self.config, self.state_dict())
