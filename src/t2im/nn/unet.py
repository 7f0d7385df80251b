"""What is the network that removes the noise?

A UNet (Ronneberger et al. 2015) that is told the time and the text. On the way down it trades resolution for channels,
until one cell knows of the whole picture; on the way up it trades back. The details which that would cost come back
over skip connections: all that is made on the way down goes on a pile, and the way up takes it off, last in, first out.

    latents - conv_in - down 0 ------------------ skips ------------------ up 2 - conv_out - prediction
                           `--- down 1 ---------- skips ---------- up 1 ---'
                                   `--- down 2 -- skips -- up 0 ---'
                                           `----- mid -----'

A sampler calls the UNet dozens of times with one prompt, and only the latents change. So all that the layers are told
about time and text is worked out apart from the picture: by `forward` for one call, by `prepare` once for all steps.
"""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Self

import torch
import torch.nn.functional as F
from jaxtyping import Float, Num
from torch import Tensor, nn

from t2im.errors import ConfigError, UsageError
from t2im.networks import UNetConfig
from t2im.nn.attention import Transformer2DModel, attention_bias
from t2im.nn.blocks import BlockContext, DownBlock2D, UNetMidBlock2DCrossAttn, UpBlock2D, layers
from t2im.nn.embeddings import SizeEmbedding, TextTimeEmbedding, TimestepEmbedding, sinusoidal_embedding
from t2im.nn.folder import read_unet, require_same_weights, write_unet
from t2im.nn.resnet import ResnetBlock2D
from t2im.shapes import HiddenStates, Latents, TextStates


@dataclass(frozen=True)
class Context:
    """What the whole UNet is told about time and text, in the structure of the UNet."""

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

    def __len__(self) -> int:
        """Return the number of prompts."""
        return self.prompts

    def at(self, timesteps: Num[Tensor, "batch"]) -> Context:
        """Look up the context of one call; each sample may be at another timestep.

        Raises: UsageError for a timestep that was not prepared.
        """
        wanted = timesteps.float().tolist()
        unknown = set(wanted).difference(self.timesteps)
        if unknown:
            prepared = ", ".join(f"{timestep:g}" for timestep in self.timesteps)
            raise UsageError(
                f"timestep {min(unknown):g} was not prepared (prepared: {prepared}). "
                "Give prepare() every timestep of the sampler."
            )
        positions = [self.timesteps.index(timestep) for timestep in wanted]

        def look_up(time: Num[Tensor, "steps _ channels"]) -> Num[Tensor, "_ channels"]:
            if len(set(positions)) == 1:
                return time[positions[0]]  # a view: a sampler's usual case costs nothing
            return time[positions, list(range(self.prompts)) if time.shape[1] > 1 else [0]]

        def block_at(block: BlockContext) -> BlockContext:
            return tuple(replace(layer, time=look_up(layer.time)) for layer in block)

        return Context(
            down_blocks=tuple(map(block_at, self.context.down_blocks)),
            mid_block=block_at(self.context.mid_block),
            up_blocks=tuple(map(block_at, self.context.up_blocks)),
        )


class ConditionalUNet(nn.Module):
    """The denoiser: noisy latents, timesteps and text in; a prediction of the latents' size out.

    Settings, parameter names and arithmetic are those of diffusers' `UNet2DConditionModel` as Stable Diffusion uses it
    (Rombach et al. 2022, arXiv:2112.10752), so weights move both ways unchanged; unless an option is on that theirs
    does not have (`networks.BEYOND_STOCK`).
    """

    def __init__(self, config: UNetConfig) -> None:
        super().__init__()
        self.config = config
        channels = config.block_out_channels
        counts = config.per_level(config.layers_per_block)
        heads = config.per_level(config.attention_head_dim)
        depths = config.per_level(config.transformer_layers_per_block)
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

        def transformers(count: int, level: int, block_type: str) -> list[Transformer2DModel]:
            return [
                Transformer2DModel(
                    channels[level],
                    heads=heads[level],
                    depth=depths[level],
                    cross_attention_dim=config.cross_attention_dim,
                    groups=config.norm_num_groups,
                    use_linear_projection=config.use_linear_projection,
                    upcast_attention=config.upcast_attention,
                    qk_norm=config.qk_norm,
                )
                for _ in range(count if "CrossAttn" in block_type else 0)
            ]

        self.conv_in = nn.Conv2d(config.in_channels, channels[0], kernel_size=3, padding=1)
        self.time_embedding = TimestepEmbedding(channels[0], time_embed_dim)
        self.add_embedding = (
            TextTimeEmbedding(config.cross_attention_dim, time_embed_dim, config.addition_embed_type_num_heads)
            if config.addition_embed_type == "text"
            else None
        )
        self.size_embedding = SizeEmbedding(channels[0], time_embed_dim) if config.size_conditioning else None
        # The building goes the way of `forward`, with a pile of the skips' channels instead of the skips.
        self.down_blocks, self.up_blocks = nn.ModuleList(), nn.ModuleList()
        coarsest = len(channels) - 1
        skips = [channels[0]]
        for level, block_type in enumerate(config.down_block_types):
            down_resnets = []
            for _ in range(counts[level]):
                down_resnets.append(resnet(skips[-1], level))
                skips.append(channels[level])
            attentions = transformers(counts[level], level, block_type)
            self.down_blocks.append(DownBlock2D(down_resnets, attentions, downsample=level < coarsest))
            if level < coarsest:
                skips.append(channels[level])

        width = channels[coarsest]
        mid_resnets = [resnet(width, coarsest), resnet(width, coarsest)]
        self.mid_block = UNetMidBlock2DCrossAttn(mid_resnets, transformers(1, coarsest, config.mid_block_type))

        for level, up_type in zip(reversed(range(len(channels))), config.up_block_types, strict=True):
            up_resnets = []
            for _ in range(counts[level] + 1):  # one more than on the way down, for the skip that came from above
                up_resnets.append(resnet(width + skips.pop(), level))
                width = channels[level]
            attentions = transformers(counts[level] + 1, level, up_type)
            self.up_blocks.append(UpBlock2D(up_resnets, attentions, upsample=level > 0))

        self.conv_norm_out = nn.GroupNorm(config.norm_num_groups, channels[0], config.norm_eps)
        self.conv_out = nn.Conv2d(channels[0], config.out_channels, kernel_size=3, padding=1)
        if config.zero_init_output:
            for parameter in self.conv_out.parameters():
                nn.init.zeros_(parameter)

    def forward(
        self,
        latents: Latents,
        timesteps: Num[Tensor, "..."] | int | float,
        text: HiddenStates | TextStates | PreparedContext,
    ) -> Float[Tensor, "batch out_channels height width"]:
        """Predict what the model was trained to predict: the noise, the velocity or the clean latents.

        Args:
            latents: (batch, in_channels, height, width), of any height and width.
            timesteps: one for all samples, or (batch,).
            text: hidden states (batch, tokens, cross_attention_dim), with a mask or without; or what `prepare` made.
        """
        # 1. Context: what every layer is told about time and text.
        timesteps = torch.as_tensor(timesteps, device=latents.device)
        self._require_fit(latents, timesteps, text)
        timesteps = timesteps.expand(len(latents))
        context = text.at(timesteps) if isinstance(text, PreparedContext) else self._context(timesteps, text)

        # 2. In: from latent channels to feature maps.
        skips = [self.conv_in(latents)]

        # 3. Down: refine, remember, halve.
        for block, told in zip(self.down_blocks, context.down_blocks, strict=True):
            skips += block(skips[-1], told)

        # 4. Mid: refine where every cell sees everything.
        maps = self.mid_block(skips[-1], context.mid_block)

        # 5. Up: recall, refine, double.
        for block, told in zip(self.up_blocks, context.up_blocks, strict=True):
            maps = block(maps, skips, told)

        # 6. Out: from feature maps to latent channels.
        prediction: Tensor = self.conv_out(F.silu(self.conv_norm_out(maps)))
        return prediction

    def prepare(self, text: HiddenStates | TextStates, timesteps: Num[Tensor, "steps"]) -> PreparedContext:
        """Work out, once for all steps of a sampler, everything that does not depend on the latents.

        `unet(latents, t, unet.prepare(text, timesteps))` equals `unet(latents, t, text)` for each t in timesteps. It is
        stale as soon as the weights change.
        """
        # As (steps, 1) they give time embeddings (steps, 1, channels), which broadcast against prompts.
        context = self._context(timesteps[:, None].to(self.conv_in.weight.device), text)
        return PreparedContext(tuple(timesteps.float().tolist()), len(text), context)

    def _context(self, timesteps: Num[Tensor, "*batch"], text: HiddenStates | TextStates) -> Context:
        text = TextStates(text) if isinstance(text, Tensor) else text
        states = text.hidden_states
        if states.shape[-1] != self.config.cross_attention_dim:
            raise UsageError(
                f"text states are {states.shape[-1]} wide, but the UNet's cross_attention_dim is "
                f"{self.config.cross_attention_dim}; use the text encoder it was trained with."
            )
        bias = None if text.mask is None else attention_bias(text.mask, states.dtype)
        waves = sinusoidal_embedding(
            timesteps,
            self.config.block_out_channels[0],
            flip_sin_to_cos=self.config.flip_sin_to_cos,
            freq_shift=self.config.freq_shift,
        )
        embedding = self.time_embedding(waves.to(self.conv_in.weight.dtype))
        if self.add_embedding is not None:
            embedding = embedding + self.add_embedding(states, text.mask)
        if self.size_embedding is not None and text.sizes is not None:
            embedding = embedding + self.size_embedding(text.sizes)

        def block_context(block: nn.Module) -> BlockContext:
            return tuple(layer.context(embedding, states, bias) for layer in layers(block))

        return Context(
            down_blocks=tuple(map(block_context, self.down_blocks)),
            mid_block=block_context(self.mid_block),
            up_blocks=tuple(map(block_context, self.up_blocks)),
        )

    def _require_fit(self, latents: Tensor, timesteps: Tensor, text: Tensor | TextStates | PreparedContext) -> None:
        """Refuse what torch would broadcast into something unwanted, or explain in terms of matrices."""
        batch, channels = latents.shape[:2]
        if channels != self.config.in_channels:
            raise UsageError(f"latents have {channels} channels, but the UNet takes {self.config.in_channels}.")
        if timesteps.shape not in ((), (1,), (batch,)):
            shape = tuple(timesteps.shape)
            raise UsageError(f"timesteps of shape {shape} for {batch} latents; give one for all, or one for each.")
        if len(text) != batch:
            raise UsageError(f"{len(text)} prompts for {batch} latents; give as many prompts as latents.")

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """(channels, height, width) of the latents this model is made for; other sizes work, but look worse.

        Raises: ConfigError if the configuration names no size.
        """
        size = self.config.sample_size
        if size is None:
            raise ConfigError("unet.sample_size is not set, so this UNet has no native size; give height and width.")
        height, width = size if isinstance(size, tuple) else (size, size)
        return self.config.in_channels, height, width

    def num_parameters(self) -> int:
        """Count the weights."""
        return sum(parameter.numel() for parameter in self.parameters())

    @classmethod
    def load(cls, folder: str | Path) -> Self:
        """Read a model from a folder in diffusers' layout, in fp32 and ready for use (`.train()` goes on training it).

        Raises: ModelError for files that are missing, damaged or do not fit; ConfigError for a UNet of another family.
        """
        config, state_dict = read_unet(folder)
        with torch.device("meta"):  # no time for random weights that are thrown away
            unet = cls(config)
        require_same_weights(folder, unet.state_dict(), state_dict)
        unet.load_state_dict({name: weight.float() for name, weight in state_dict.items()}, assign=True)
        return unet.eval()

    def save(self, folder: str | Path) -> None:
        """Write the model to a folder which diffusers' `UNet2DConditionModel.from_pretrained` opens."""
        write_unet(folder, self.config, self.state_dict())
