"""Which knobs are there? The one tree of settings; with `networks.py`, the only place where defaults live.

The same tree has three spellings: Python (`UNetConfig(block_out_channels=(64, 128))`), a TOML recipe (`[unet]`,
`block_out_channels = [64, 128]`) and the command line (`--set unet.block_out_channels=[64,128]`); `recipe.py` puts them
together. The resolved tree travels in every checkpoint.
"""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from t2im.errors import UsageError
from t2im.networks import CLIPConfig, UNetConfig, VAEConfig
from t2im.samplers import require_able
from t2im.settings import Fraction, NotNegative, Positive, PositiveFloat, Settings

PredictionType = Literal["epsilon", "v_prediction", "sample", "flow"]
OptimizerName = Literal["adamw", "adamw8bit", "adafactor", "lion", "muon", "schedule_free"]


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
    rescale_betas_zero_snr: bool = False
    """Make the last timestep pure noise (Lin et al. 2023); impossible with epsilon."""
    timestep_spacing: Literal["leading", "trailing", "linspace"] = "trailing"
    """Which timesteps a sampler visits. "trailing" begins at the very last one, where sampling's pure noise belongs;
    "leading", as in Stable Diffusion, begins a little before it."""

    @model_validator(mode="after")
    def _combination_is_possible(self) -> Self:
        if self.beta_end <= self.beta_start:
            raise ValueError(f"beta_end {self.beta_end} must be larger than beta_start {self.beta_start}")
        if self.rescale_betas_zero_snr and self.timestep_spacing != "trailing":
            raise ValueError(
                'rescale_betas_zero_snr needs timestep_spacing = "trailing", or sampling would never '
                "visit the last timestep it was made for"
            )
        if self.rescale_betas_zero_snr and self.num_train_timesteps < 2:
            raise ValueError("rescale_betas_zero_snr needs at least two timesteps")
        return self


class ObjectiveConfig(Settings):
    """What the UNet learns, at which noise levels, and how much each of them counts."""

    type: PredictionType = "epsilon"
    """What the UNet predicts: the noise, the velocity, the clean latents, or the rectified flow's direction. "flow" has
    a noise path of its own, a straight line, and leaves the betas of `schedule` unused."""
    timestep_sampling: Literal["uniform", "logit_normal"] = "uniform"
    """How often training visits each noise level: all alike, or the middle ones more often (Esser et al. 2024)."""
    stratified: bool = False
    """Spread the timesteps of neighbouring samples evenly instead of independently: same mean, calmer gradients."""
    logit_mean: Annotated[float, Field(allow_inf_nan=False)] = 0.0
    """Of "logit_normal": above 0 towards more noise."""
    logit_std: PositiveFloat = 1.0
    """Of "logit_normal": its spread."""
    uniform_share: Fraction = 0.1
    """Of "logit_normal": share of samples drawn uniformly all the same, so that no noise level is forgotten."""
    loss_weighting: Literal["none", "min_snr", "debiased"] = "none"
    """How much each noise level counts: by the plain loss of the target, by min-SNR-gamma or debiased."""
    min_snr_gamma: PositiveFloat = 5.0
    """gamma of "min_snr" (Hang et al. 2023)."""
    min_loss_weight: Fraction = 0.05
    """Floor under "min_snr" and "debiased" weights below an SNR of 1: they vanish with it, yet sampling begins there."""


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
    gradient_accumulation_steps: Positive = 1
    """Compute a step's samples in so many parts, one after the other, to need less memory; the step stays the same."""
    optimizer: OptimizerName = "adamw"
    """What turns gradients into steps; the best learning rate differs from one to the next."""
    learning_rate: PositiveFloat = 1e-3
    """Peak learning rate."""
    warmup_steps: NotNegative = 100
    """Steps over which the learning rate rises from 0."""
    schedule: Literal["constant", "cosine", "linear", "inverse_sqrt", "warmup_stable_decay"] = "cosine"
    """What the learning rate does after the warm-up."""
    decay_share: Fraction = 0.2
    """Of "warmup_stable_decay": the last share of the run, over which the learning rate falls to 0."""
    reference_steps: Positive = 1000
    """Of "inverse_sqrt": the step from which the learning rate falls."""
    weight_decay: Annotated[float, Field(ge=0)] = 0.01
    """Decoupled weight decay, on matrices only."""
    betas: tuple[Fraction, Fraction] = (0.9, 0.99)
    """The optimizer's memory of the gradient and of its square, where it has them."""
    max_grad_norm: PositiveFloat = 1.0
    """Gradients are scaled down to this norm."""
    ema_decay: Annotated[float, Field(ge=0, lt=1)] = 0.9995
    """Decay of the moving average of the weights after its warm-up; 0 switches it off."""
    max_bad_steps: Positive = 10
    """Stop after this many non-finite steps in a row."""

    @model_validator(mode="after")
    def _parts_are_equal(self) -> Self:
        if self.batch_size % self.gradient_accumulation_steps:
            raise ValueError(
                f"batch_size {self.batch_size} is no multiple of gradient_accumulation_steps "
                f"{self.gradient_accumulation_steps}"
            )
        return self

    @model_validator(mode="after")
    def _learning_rate_falls_once(self) -> Self:
        if self.optimizer == "schedule_free" and self.schedule != "constant":
            raise ValueError(
                f'optimizer schedule_free averages the weights in place of schedule "{self.schedule}"; '
                'set schedule = "constant" with it'
            )
        return self


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
    size_dropout: Fraction = 0.1
    """Of a UNet with size_conditioning: share of samples whose original size it is not told."""
    mixed_precision: Literal["auto", "no", "bf16", "fp16"] = "auto"
    """"auto": bf16 autocast on GPUs that have it, fp32 elsewhere; "fp16" adds a loss scaler. Weights are always fp32."""
    gradient_checkpointing: bool = False
    """Compute feature maps twice instead of keeping them: less memory, about a third slower."""
    compile: bool = False
    """Compile the UNet with torch.compile; where that fails the run says why and goes on without."""
    channels_last: bool = False
    """Keep feature maps with their channels innermost, as tensor cores and some CPUs like it."""
    ema_sigmas: tuple[Annotated[float, Field(gt=0, lt=0.29)], ...] = ()
    """Widths, as shares of the run, of power-function averages that are kept in snapshots; `t2im ema` makes any other
    average of them afterwards. Two, such as (0.05, 0.10), are enough; none keeps no snapshots."""
    ema_snapshots: Positive = 32
    """Snapshots over the run."""
    checkpoint_steps: NotNegative = 0
    """Save a checkpoint every so many steps."""
    checkpoint_epochs: NotNegative = 0
    """Save a checkpoint every so many epochs; 0: about ten over the run."""
    checkpoint_minutes: PositiveFloat = 15.0
    """Save a checkpoint also after so many minutes."""
    keep_checkpoints: Annotated[int, Field(ge=2)] = 3
    """How many checkpoints stay; older ones go only after a newer one was verified."""
    evaluations: Positive = 20
    """Held-out losses and previews over the run."""
    preview_minutes: Annotated[float, Field(ge=0)] = 0.0
    """Draw previews also after so many minutes; 0: at evaluations only."""
    trackers: tuple[Literal["tensorboard", "trackio", "wandb"], ...] = ()
    """Where numbers and previews go beside `metrics.jsonl`."""
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
    objective: ObjectiveConfig = ObjectiveConfig()
    training: TrainingConfig = TrainingConfig()
    sampling: SamplingConfig = SamplingConfig()

    @model_validator(mode="after")
    def _objective_fits_schedule(self) -> Self:
        if self.schedule.rescale_betas_zero_snr and self.objective.type == "epsilon":
            raise ValueError(
                "objective.type epsilon cannot be combined with schedule.rescale_betas_zero_snr: at the last timestep "
                "the input is pure noise, so the noise tells nothing about the picture; use v_prediction"
            )
        if self.schedule.rescale_betas_zero_snr and self.objective.type == "flow":
            raise ValueError(
                "objective.type flow has no betas and ends at pure noise by itself; "
                "leave schedule.rescale_betas_zero_snr out"
            )
        if self.objective.type == "flow" and self.schedule.timestep_spacing != "trailing":
            raise ValueError(
                "objective.type flow is always sampled at even steps from pure noise; leave schedule.timestep_spacing "
                'at "trailing"'
            )
        try:
            require_able(self.sampling.scheduler, self.objective.type, zero_snr=self.schedule.rescale_betas_zero_snr)
        except UsageError as error:
            raise ValueError(f"sampling.{error}") from None
        return self
