"""Which knobs are there? The one tree of settings, and the only place where defaults live.

The same tree has three spellings: Python (`UNetConfig(block_out_channels=(64, 128))`), a TOML recipe (`[unet]`,
`block_out_channels = [64, 128]`) and the command line (`--set unet.block_out_channels=[64,128]`); `recipe.py` puts them
together. The resolved tree travels in every checkpoint.
"""

from collections.abc import Iterable, Mapping
from typing import Annotated, Any, Literal, Self, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from t2im.errors import ConfigError, nearest

Positive = Annotated[int, Field(gt=0)]
NotNegative = Annotated[int, Field(ge=0)]
Fraction = Annotated[float, Field(ge=0, le=1)]
PositiveFloat = Annotated[float, Field(gt=0, allow_inf_nan=False)]
PredictionType = Literal["epsilon", "v_prediction", "sample"]
DownBlock = Literal["DownBlock2D", "CrossAttnDownBlock2D"]
UpBlock = Literal["UpBlock2D", "CrossAttnUpBlock2D"]
Group = TypeVar("Group", bound="Settings")


class Settings(BaseModel):
    """What all groups share: frozen, strict about unknown names, documented by the text under each field."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True, validate_default=True)


class UNetConfig(Settings):
    """The denoiser. Keys and meanings are those of diffusers' `UNet2DConditionModel`, so its config.json is ours."""

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
    """Transformer blocks behind each residual block that has attention."""
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

    def per_level(self, value: int | tuple[int, ...]) -> tuple[int, ...]:
        """Spread a setting given once over all levels."""
        return value if isinstance(value, tuple) else (value,) * len(self.block_out_channels)

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
        if self.addition_embed_type == "text" and self.cross_attention_dim % self.addition_embed_type_num_heads:
            raise ValueError(
                f"cross_attention_dim {self.cross_attention_dim} is no multiple of "
                f"addition_embed_type_num_heads {self.addition_embed_type_num_heads}"
            )
        return self


class ScheduleConfig(Settings):
    """The noise schedule; the keys are those of diffusers' schedulers."""

    num_train_timesteps: Positive = 1000
    """T: how many noise levels there are."""
    beta_schedule: Literal["scaled_linear", "linear", "squaredcos_cap_v2"] = "scaled_linear"
    """How beta grows with t."""
    beta_start: PositiveFloat = 0.00085
    """beta at t = 0."""
    beta_end: Annotated[float, Field(gt=0, lt=1)] = 0.012
    """beta at t = T - 1."""
    prediction_type: PredictionType = "epsilon"
    """What the UNet predicts: the noise, the velocity, or the clean latents."""
    rescale_betas_zero_snr: bool = False
    """Make the last timestep pure noise (Lin et al. 2023); impossible with epsilon."""
    timestep_spacing: Literal["leading", "trailing", "linspace"] = "trailing"
    """Which timesteps a sampler visits. "trailing" begins at the very last one, where sampling's pure noise belongs;
    "leading", as in Stable Diffusion, begins a little before it."""

    @model_validator(mode="after")
    def _combination_is_possible(self) -> Self:
        if self.beta_end <= self.beta_start:
            raise ValueError(f"beta_end {self.beta_end} must be larger than beta_start {self.beta_start}")
        if self.rescale_betas_zero_snr and self.prediction_type == "epsilon":
            raise ValueError(
                "epsilon cannot be combined with rescale_betas_zero_snr: at the last timestep the input is "
                "pure noise, so the noise tells nothing about the picture; use v_prediction"
            )
        if self.rescale_betas_zero_snr and self.timestep_spacing != "trailing":
            raise ValueError(
                'rescale_betas_zero_snr needs timestep_spacing = "trailing", or sampling would never '
                "visit the last timestep it was made for"
            )
        if self.rescale_betas_zero_snr and self.num_train_timesteps < 2:
            raise ValueError("rescale_betas_zero_snr needs at least two timesteps")
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


class TextConfig(Settings):
    """How prompts reach the UNet."""

    padding: Literal["attend", "mask"] = "attend"
    """"attend": the UNet sees padded prompts, as the stock Stable Diffusion pipeline does. "mask": it sees the prompt's
    own tokens only; smaller caches, but no stock pipeline can do it, so such a model is not exported."""


class DataConfig(Settings):
    """From files to tensors."""

    resolution: Positive = 64
    """Side of the square training images in pixels."""
    horizontal_flip: bool = False
    """Also train on mirrored images; wrong where captions say left or right, or images hold text."""
    background: str = "white"
    """The colour behind transparent pixels: a name or "#rrggbb"."""
    heldout: Annotated[float, Field(ge=0, lt=1)] = 0.02
    """Share of the images kept out of training, chosen by content, to measure the held-out loss; of small folders more:
    about 24 images, or a tenth. 0 keeps none."""
    skip_bad: bool = False
    """Leave unreadable images out (each is named) instead of stopping."""
    skip_missing: bool = False
    """Leave captions without an image out (each is counted) instead of stopping."""


class OptimizationConfig(Settings):
    """How one part is trained."""

    batch_size: Positive = 64
    """Samples of one optimizer step."""
    learning_rate: PositiveFloat = 1e-3
    """Peak learning rate of AdamW."""
    warmup_steps: NotNegative = 100
    """Steps over which the learning rate rises from 0."""
    schedule: Literal["constant", "cosine", "linear"] = "cosine"
    """What the learning rate does after the warm-up."""
    weight_decay: Annotated[float, Field(ge=0)] = 0.01
    """Decoupled weight decay, on matrices only."""
    betas: tuple[Fraction, Fraction] = (0.9, 0.99)
    """AdamW's memory of the gradient and of its square."""
    max_grad_norm: PositiveFloat = 1.0
    """Gradients are scaled down to this norm."""
    ema_decay: Annotated[float, Field(ge=0, lt=1)] = 0.9995
    """Decay of the moving average of the weights after its warm-up; 0 switches it off."""
    max_bad_steps: Positive = 10
    """Stop after this many non-finite steps in a row."""


class TrainingConfig(OptimizationConfig):
    """Training of the UNet."""

    epochs: Positive = 100
    """Passes over the training images, unless steps or minutes is given."""
    steps: Positive | None = None
    """Optimizer steps."""
    minutes: PositiveFloat | None = None
    """Minutes of training; such a run depends on the machine's speed and cannot be repeated bit by bit."""
    seed: NotNegative = 0
    """The run's seed; all randomness derives from it."""
    caption_dropout: Fraction = 0.1
    """Share of samples trained with the empty caption, which guidance needs."""
    mixed_precision: Literal["auto", "no", "bf16"] = "auto"
    """"auto": bf16 autocast on GPUs that have it, fp32 elsewhere; weights are always fp32."""
    checkpoint_epochs: NotNegative = 0
    """Save a checkpoint every so many epochs; 0: about ten over the run."""
    checkpoint_minutes: PositiveFloat = 15.0
    """Save a checkpoint also after so many minutes."""
    keep_checkpoints: Annotated[int, Field(ge=2)] = 3
    """How many checkpoints stay; older ones go only after a newer one was verified."""
    evaluations: Positive = 20
    """Held-out losses and previews over the run."""
    preview_prompts: tuple[str, ...] = ()
    """Prompts drawn at every evaluation; empty: four captions of the data."""


class VAETrainingConfig(OptimizationConfig):
    """Training of the autoencoder."""

    batch_size: Positive = 16
    learning_rate: PositiveFloat = 1.5e-3
    ema_decay: Annotated[float, Field(ge=0, lt=1)] = 0.995
    steps: Positive = 3000
    """Optimizer steps."""
    good_enough_psnr: PositiveFloat = 26.0
    """Round-trip quality in dB from which "auto" takes a VAE that is at hand instead of training one."""
    kl_weight: Annotated[float, Field(ge=0)] = 1e-4
    """Weight of the KL divergence to N(0, 1), per latent value."""
    detail_weight: Annotated[float, Field(ge=0)] = 1.0
    """Weight of the L1 loss on image gradients, which keeps edges sharp."""
    adversarial_steps: NotNegative = 0
    """Last steps in which a patch discriminator judges the decoder's output as well."""
    adversarial_weight: Annotated[float, Field(ge=0)] = 0.1
    """Weight of that judgement."""


class CLIPTrainingConfig(OptimizationConfig):
    """Contrastive training of the text encoder."""

    batch_size: Positive = 128
    learning_rate: PositiveFloat = 5e-4
    weight_decay: Annotated[float, Field(ge=0)] = 0.1
    betas: tuple[Fraction, Fraction] = (0.9, 0.98)
    ema_decay: Annotated[float, Field(ge=0, lt=1)] = 0.99
    steps: Positive = 800
    """Optimizer steps, at most."""
    epochs: Positive = 60
    """Passes over the images, at most: a contrastive loss soon learns few images by heart."""
    good_enough_pieces: PositiveFloat = 1.3
    """Vocabulary pieces per word of the captions up to which "auto" takes a text encoder that is at hand."""


class SamplingConfig(Settings):
    """What a model does when it is only given a prompt; travels with the model."""

    num_inference_steps: Positive = 30
    """Denoising steps."""
    guidance_scale: Annotated[float, Field(ge=0)] = 4.0
    """Strength of classifier-free guidance; 1 is off."""
    scheduler: str = "ddim"
    """Name of the sampler."""


class Config(Settings):
    """All settings of a run."""

    data: DataConfig = DataConfig()
    vae: VAEConfig = VAEConfig()
    vae_training: VAETrainingConfig = VAETrainingConfig()
    clip: CLIPConfig = CLIPConfig()
    clip_training: CLIPTrainingConfig = CLIPTrainingConfig()
    text: TextConfig = TextConfig()
    unet: UNetConfig = UNetConfig()
    schedule: ScheduleConfig = ScheduleConfig()
    training: TrainingConfig = TrainingConfig()
    sampling: SamplingConfig = SamplingConfig()


def parse_settings(group: type[Group], values: Mapping[str, Any]) -> Group:
    """Validate a mapping against a group of settings; one ConfigError names everything that is wrong with it."""
    try:
        return group.model_validate(values)
    except ValidationError as error:
        raise ConfigError("; ".join(_explain(group, fault) for fault in error.errors())) from None


def _explain(group: type[Settings], fault: Any) -> str:
    *parents, name = [part for part in fault["loc"]] or [""]
    where = ".".join(str(part) for part in fault["loc"])
    if fault["type"] == "extra_forbidden":
        valid = _fields(group, parents)
        return f'setting "{where}" is unknown{nearest(str(name), valid)}. Valid here: {", ".join(valid)}'
    message = fault["msg"].removeprefix("Value error, ")
    return (
        f"{where}: {message} (got {fault['input']!r})"
        if isinstance(fault["input"], str | int | float)
        else (f"{where}: {message}" if where else message)
    )


def _fields(group: type[Settings], parents: Iterable[Any]) -> list[str]:
    for parent in parents:
        annotation = group.model_fields[parent].annotation
        assert isinstance(annotation, type) and issubclass(annotation, Settings)
        group = annotation
    return sorted(group.model_fields)
