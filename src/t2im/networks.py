"""How large are the three networks? Their sizes as settings, under the names of diffusers and transformers."""

from typing import Annotated, Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from t2im.settings import Fraction, NotNegative, Positive, PositiveFloat, Settings

DownBlock = Literal["DownBlock2D", "CrossAttnDownBlock2D"]
UpBlock = Literal["UpBlock2D", "CrossAttnUpBlock2D"]


BEYOND_STOCK = ("qk_norm", "size_conditioning")
"""Options of the UNet that diffusers' does not have; where one is on, no stock pipeline can run the model."""
MOST_BLOCKS = 1000
"""Residual and transformer blocks on a UNet's way down; Stable Diffusion XL has 32."""
WIDEST = 2**16
"""Channels; Stable Diffusion has at most 1280."""


class UNetConfig(Settings):
    """The denoiser. Keys and meanings are those of diffusers' `UNet2DConditionModel`, so its config.json is ours.

    Ours alone are `zero_init_output`, which is about starting only, and the options in `BEYOND_STOCK`.
    """

    sample_size: Positive | tuple[Positive, Positive] | None = 16
    """Native size of the latents: one number for height and width, or both; None where it is not known."""
    in_channels: Positive = 4
    """Latent channels going in."""
    out_channels: Positive = 4
    """Latent channels coming out."""
    down_block_types: tuple[DownBlock, ...] = ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D")
    """One per level, from fine to coarse."""
    mid_block_type: Literal["UNetMidBlock2DCrossAttn"] = "UNetMidBlock2DCrossAttn"
    """The block at the coarsest level."""
    up_block_types: tuple[UpBlock, ...] = ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D")
    """One per level, from coarse to fine."""
    block_out_channels: Annotated[tuple[Positive, ...], Field(min_length=1)] = (64, 96, 128)
    """Channels of each level, from fine to coarse."""
    layers_per_block: Positive | tuple[Positive, ...] = 1
    """Residual blocks of each level on the way down (one more on the way up)."""
    transformer_layers_per_block: Positive | tuple[Positive, ...] = 1
    """Transformer blocks behind each residual block that has attention: a level's depth. A level that has none is a
    DownBlock2D and an UpBlock2D."""
    attention_head_dim: Positive | tuple[Positive, ...] = 4
    """The NUMBER of heads of each level: diffusers keeps this misnomer for its old files, and so must we."""
    cross_attention_dim: Positive = 256
    """Width of the text's hidden states."""
    use_linear_projection: bool = True
    """Project into a transformer by a linear layer (SD 2) or by a 1x1 convolution (SD 1)."""
    resnet_time_scale_shift: Literal["default", "scale_shift"] = "default"
    """Time enters a residual block by addition, or as scale and shift after the norm."""
    addition_embed_type: Literal["text"] | None = None
    """"text": the text's attention-pooled states are added to the time embedding."""
    size_conditioning: bool = False
    """Tell the UNet how large a picture was before it was scaled, and where it was cropped (Podell et al. 2023,
    arXiv 2307.01952, section 2.2): what is blurred and what is cut off then need not be learned as style."""
    qk_norm: bool = False
    """Normalise queries and keys in all attention, so that its scores stay bounded (Dehghani et al. 2023,
    arXiv 2302.05442, section 2.1)."""
    zero_init_output: bool = False
    """Start training with a last convolution of zeros: a fresh UNet predicts 0. A trained one is not changed by it."""
    addition_embed_type_num_heads: Positive = 64
    """Heads of that pooling; must divide cross_attention_dim."""
    norm_num_groups: Positive = 8
    """Groups of each GroupNorm; at least 8 channels per group run fast on a CPU."""
    norm_eps: PositiveFloat = 1e-5
    """Epsilon of the residual blocks' GroupNorm."""
    flip_sin_to_cos: bool = True
    """Order of the sinusoidal embedding: cosines first, as in Stable Diffusion."""
    freq_shift: NotNegative = 0
    """Shift in the sinusoid's frequency exponent."""
    dropout: Fraction = 0.0
    """Dropout inside residual blocks."""
    upcast_attention: bool = False
    """Compute attention scores in fp32 (SD 2.1 has it on); no change of weights."""

    @property
    def beyond_stock(self) -> tuple[str, ...]:
        """The options that are on although diffusers' UNet does not have them."""
        return tuple(name for name in BEYOND_STOCK if getattr(self, name))

    def per_level(self, value: int | tuple[int, ...]) -> tuple[int, ...]:
        """Spread a setting given once over all levels."""
        return value if isinstance(value, tuple) else (value,) * len(self.block_out_channels)

    @field_validator("transformer_layers_per_block", mode="before")
    @classmethod
    def _no_depth_of_zero(cls, depths: Any) -> Any:
        if 0 in (depths if isinstance(depths, list | tuple) else [depths]):
            raise ValueError("at least 1; a level without transformers is a DownBlock2D and an UpBlock2D")
        return depths

    @model_validator(mode="after")
    def _levels_agree(self) -> Self:
        levels = len(self.block_out_channels)
        for name in (
            "down_block_types",
            "up_block_types",
            "layers_per_block",
            "transformer_layers_per_block",
            "attention_head_dim",
        ):
            value = getattr(self, name)
            if isinstance(value, tuple) and len(value) != levels:
                raise ValueError(f"{name} has {len(value)} entries, but block_out_channels has {levels}")
        for channels in self.block_out_channels:
            if channels % self.norm_num_groups:
                raise ValueError(
                    f"block_out_channels {channels} is no multiple of norm_num_groups {self.norm_num_groups}"
                )
        heads = self.per_level(self.attention_head_dim)
        for level, channels in enumerate(self.block_out_channels):
            blocks = (self.down_block_types[level], self.up_block_types[levels - 1 - level])
            attends = level == levels - 1 or any(block.startswith("CrossAttn") for block in blocks)
            if attends and heads[level] > channels:
                raise ValueError(
                    f"attention_head_dim (heads) {heads[level]} is more than block_out_channels {channels}"
                )
        # These numbers come from files of strangers, too, and whoever builds a UNet of a billion layers never returns.
        depth = zip(
            self.per_level(self.layers_per_block), self.per_level(self.transformer_layers_per_block), strict=True
        )
        count = sum(layers * (1 + transformers) for layers, transformers in depth)
        if count > MOST_BLOCKS:
            raise ValueError(
                f"layers_per_block and transformer_layers_per_block ask for {count:,} blocks, more than {MOST_BLOCKS:,}"
            )
        widest = max(*self.block_out_channels, self.cross_attention_dim, self.in_channels, self.out_channels)
        if widest > WIDEST:
            raise ValueError(f"a width of {widest:,} channels is more than {WIDEST:,}")
        if self.addition_embed_type == "text" and self.cross_attention_dim % self.addition_embed_type_num_heads:
            raise ValueError(
                f"cross_attention_dim {self.cross_attention_dim} is no multiple of "
                f"addition_embed_type_num_heads {self.addition_embed_type_num_heads}"
            )
        return self


class VAEConfig(Settings):
    """The autoencoder trained here; keys are those of diffusers' `AutoencoderKL`."""

    latent_channels: Positive = 4
    """Channels of the latents."""
    block_out_channels: tuple[Positive, ...] = (16, 32, 64)
    """Channels of each level; every level but the last halves the side, so three levels make latents 4x smaller."""
    layers_per_block: Positive = 1
    """Residual blocks of each level."""
    norm_num_groups: Positive = 4
    """Groups of each GroupNorm."""
    mid_block_add_attention: bool = False
    """Self-attention at the coarsest level."""

    @property
    def downscale(self) -> int:
        """How many pixels one latent cell is wide."""
        return int(2 ** (len(self.block_out_channels) - 1))

    @model_validator(mode="after")
    def _groups_divide(self) -> Self:
        for channels in self.block_out_channels:
            if channels % self.norm_num_groups:
                raise ValueError(
                    f"block_out_channels {channels} is no multiple of norm_num_groups {self.norm_num_groups}"
                )
        return self


class CLIPConfig(Settings):
    """The text encoder trained here, with the vision tower that teaches it; sizes of transformers' `CLIPModel`."""

    vocab_size: Annotated[int, Field(ge=514)] = 4096
    """Pieces of the byte-pair vocabulary learned from the captions; 514 of them are bytes and marks."""
    context_length: Annotated[int, Field(ge=4)] = 32
    """Tokens of a prompt, with start and end."""
    width: Positive = 256
    """Width of the text's hidden states: the UNet's cross_attention_dim."""
    layers: Positive = 4
    """Transformer layers of the text tower."""
    heads: Positive = 4
    """Attention heads of the text tower."""
    vision_width: Positive = 192
    """Width of the vision tower."""
    vision_layers: Positive = 4
    """Transformer layers of the vision tower."""
    vision_heads: Positive = 3
    """Attention heads of the vision tower."""
    image_size: Positive = 64
    """Pixels the vision tower looks at."""
    patch_size: Positive = 8
    """Pixels of one vision token."""
    projection_dim: Positive = 256
    """Width of the space where captions and images meet."""

    @model_validator(mode="after")
    def _heads_divide(self) -> Self:
        for width, heads, name in ((self.width, self.heads, ""), (self.vision_width, self.vision_heads, "vision_")):
            if width % heads:
                raise ValueError(f"{name}width {width} is no multiple of {name}heads {heads}")
        if self.image_size % self.patch_size:
            raise ValueError(f"image_size {self.image_size} is no multiple of patch_size {self.patch_size}")
        return self
