"""How do images become latents, and back?

A variational autoencoder (Kingma & Welling 2013, arXiv:1312.6114) squeezes an image into a small grid of Gaussians, and
diffusion works on samples of them (Rombach et al. 2021, arXiv:2112.10752). The UNet expects about unit variance, so raw
latents z are moved and scaled; this happens here and nowhere else:

    latents = (z - shift) * scale      logvar_latents = logvar_z + 2 log(scale)
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import torch
from jaxtyping import Float
from torch import Tensor

from t2im.encoders.folders import first_line, locate, part_of, require_complete, sha256_of_weights
from t2im.errors import ModelError, UsageError
from t2im.networks import VAEConfig
from t2im.shapes import Images, Latents, PerSample
from t2im.weights import require_modest

if TYPE_CHECKING:
    from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL

WEIGHTS = "diffusion_pytorch_model.safetensors"
# What decides the output beside the weights; the rest of a configuration shows in their names and shapes.
DECISIVE = ("act_fn", "norm_num_groups", "scaling_factor", "shift_factor", "latents_mean", "latents_std")
PerChannel = Float[Tensor, "channels"]


@dataclass(frozen=True)
class Posterior:
    """What the encoder knows about an image's latents: independent Gaussians, in the scaled space of `Latents`."""

    mean: Latents
    logvar: Latents

    def sample(self, noise: Latents) -> Latents:
        """Draw latents = mean + exp(logvar / 2) * noise, with noise ~ N(0, 1)."""
        return self.mean + torch.exp(0.5 * self.logvar) * noise


@dataclass(frozen=True)
class LatentStatistics:
    """Mean and standard deviation of each channel of sampled latents (float64)."""

    mean: PerChannel
    std: PerChannel


class VAE:
    """Diffusers' `AutoencoderKL`, speaking in scaled latents."""

    def __init__(self, module: "AutoencoderKL") -> None:
        self.module = module

    @classmethod
    def load(cls, source: str | Path, *, local_files_only: bool = False) -> Self:
        """Load a frozen fp32 VAE from a folder (of a VAE, or of a pipeline with vae/ inside) or from a hub id.

        Raises: ModelError, if there is none, or its weights are no safetensors, incomplete or damaged.
        """
        from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL

        root = locate(source, {"vae": ("config.json", WEIGHTS)}, local_files_only=local_files_only)
        folder = part_of(root, "vae", "AutoencoderKL", WEIGHTS)
        require_modest(folder / WEIGHTS)
        try:
            module, report = AutoencoderKL.from_pretrained(
                folder, use_safetensors=True, torch_dtype=torch.float32, local_files_only=True, output_loading_info=True
            )
        except Exception as error:  # damaged safetensors, wrong shapes and odd configurations all raise differently
            raise ModelError(f"{folder}: cannot be loaded ({first_line(error)}). Save it again.") from error
        require_complete(module, folder, report["missing_keys"])
        return cls(module.eval().requires_grad_(False))

    def save(self, folder: str | Path) -> None:
        """Write config.json and safetensors weights as diffusers does."""
        self.module.save_pretrained(folder, safe_serialization=True)

    @torch.no_grad()
    def encode(self, images: Images) -> Posterior:
        """Translate images in [-1, 1], with sides that are multiples of `downscale`, to scaled float32 Gaussians.

        Raises: UsageError, if a side is no such multiple.
        """
        height, width = images.shape[-2:]
        if height % self.downscale or width % self.downscale:
            raise UsageError(
                f"images of {height}x{width} pixels: the VAE needs sides in multiples of {self.downscale}."
            )
        raw = self.module.encode(images.to(self.device, self.module.dtype)).latent_dist
        scale, shift = self._affine(raw.mean.device)
        mean = (raw.mean.float() - shift) * scale
        return Posterior(mean, raw.logvar.float() + 2 * torch.log(scale))

    @torch.no_grad()
    def decode(self, latents: Latents) -> Images:
        """Translate scaled latents to float32 images, clamped to [-1, 1]."""
        scale, shift = self._affine(self.device)
        raw = latents.to(self.device, torch.float32) / scale + shift
        images: Tensor = self.module.decode(raw.to(self.module.dtype)).sample
        return images.float().clamp(-1, 1)

    def to(self, device: torch.device | str) -> Self:
        """Move the weights."""
        self.module.to(device)
        return self

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        device: torch.device = next(self.module.parameters()).device
        return device

    @property
    def downscale(self) -> int:
        """How many pixels one latent cell is wide."""
        return int(2 ** (len(self.module.config["block_out_channels"]) - 1))

    @property
    def latent_channels(self) -> int:
        """Channels of the latents."""
        return int(self.module.config["latent_channels"])

    @property
    def sha256(self) -> str:
        """Identity of configuration and weights: two VAEs with equal hashes make equal latents."""
        return sha256_of_weights(self.module, {name: self.module.config.get(name) for name in DECISIVE})

    def _affine(self, device: torch.device) -> tuple[Tensor, Tensor]:
        """Return (scale, shift), each (channels, 1, 1), of latents = (z - shift) * scale."""
        scale, shift = _affine(self.module.config)
        return scale.float().to(device)[:, None, None], shift.float().to(device)[:, None, None]


def new_vae(config: VAEConfig, sample_size: int) -> "AutoencoderKL":
    """Build an untrained VAE for images of sample_size pixels; its latents are not scaled yet (see `whitened`)."""
    from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL

    levels = len(config.block_out_channels)
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * levels,
        up_block_types=("UpDecoderBlock2D",) * levels,
        block_out_channels=config.block_out_channels,
        layers_per_block=config.layers_per_block,
        latent_channels=config.latent_channels,
        norm_num_groups=config.norm_num_groups,
        mid_block_add_attention=config.mid_block_add_attention,
        sample_size=sample_size,
        scaling_factor=1.0,
    )


def latent_statistics(posteriors: Iterable[Posterior]) -> LatentStatistics:
    """Measure the exact moments of sampled latents, without sampling: Var[x] = Var[mean] + E[exp(logvar)].

    Batches are merged as in Chan, Golub & LeVeque (1979), in float64, so that a stream of any length keeps its digits.

    Raises: UsageError, if there are no latents.
    """
    count = 0
    mean = deviations = torch.zeros(1, dtype=torch.float64)
    for posterior in posteriors:
        values = posterior.mean.detach().cpu().double().transpose(0, 1).flatten(1)
        variances = posterior.logvar.detach().cpu().double().exp().transpose(0, 1).flatten(1)
        added, total = values.shape[1], count + values.shape[1]
        delta = values.mean(dim=1) - mean
        inside = ((values - values.mean(dim=1, keepdim=True)) ** 2 + variances).sum(dim=1)
        deviations = deviations + inside + delta**2 * (count * added / total)
        mean = mean + delta * (added / total)
        count = total
    if not count:
        raise UsageError("latent statistics of no images: give at least one.")
    return LatentStatistics(mean, (deviations / count).sqrt())


def whitened(vae: VAE, mean: PerChannel, std: PerChannel) -> VAE:
    """Return an equal VAE whose scaled latents have mean 0 and standard deviation 1 in every channel.

    mean, std: (channels,), as measured by `latent_statistics` on the latents of `vae`.

    The affine map is folded into the 1x1 convolutions next to the latents, and scaling_factor becomes 1: so also a stock
    pipeline, which knows one scalar only, decodes such latents. With latents = (z - B) * A, where A = scale / std and
    B = shift + mean / scale, the encoder's rows become A W and A (b - B), log-variances gain 2 log A, and the decoder's
    convolution sees z = latents / A + B. A VAE without these convolutions is given them, starting from the identity.

    Raises: UsageError, if a standard deviation is not positive.
    """
    from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL

    mean, std = mean.detach().cpu().double(), std.detach().cpu().double()
    if mean.shape != (vae.latent_channels,) or std.shape != mean.shape:
        raise UsageError(f"whitening needs one mean and one std for each of the {vae.latent_channels} latent channels.")
    if not bool(torch.isfinite(mean).all() and torch.isfinite(std).all() and (std > 0).all()):
        raise UsageError("whitening needs finite means and positive stds; a channel is constant. Train the VAE longer.")
    scale, shift = _affine(vae.module.config)
    a, b = scale / std, shift + mean / scale

    weights = {name: tensor.detach().cpu() for name, tensor in vae.module.state_dict().items()}
    quant_weight, quant_bias = _convolution(weights, "quant_conv", 2 * vae.latent_channels)
    post_weight, post_bias = _convolution(weights, "post_quant_conv", vae.latent_channels)
    row_scale = torch.cat([a, torch.ones_like(a)])
    weights["quant_conv.weight"] = quant_weight * row_scale[:, None, None, None]
    weights["quant_conv.bias"] = torch.cat([(quant_bias[: len(a)] - b) * a, quant_bias[len(a) :] + 2 * torch.log(a)])
    weights["post_quant_conv.weight"] = post_weight / a[None, :, None, None]
    weights["post_quant_conv.bias"] = post_bias + post_weight[:, :, 0, 0] @ b

    folded = {"scaling_factor": 1.0, "shift_factor": None, "latents_mean": None, "latents_std": None}
    convolutions = {"use_quant_conv": True, "use_post_quant_conv": True}
    module = AutoencoderKL.from_config({**vae.module.config, **folded, **convolutions})
    module.load_state_dict(weights)
    return VAE(module.to(vae.device).eval().requires_grad_(False))


def psnr(images: Images, reconstruction: Images) -> PerSample:
    """Return each image's peak signal-to-noise ratio in dB: 10 log10(2^2 / MSE), as [-1, 1] is 2 wide."""
    error = (images.float() - reconstruction.float()).square().flatten(1).mean(dim=1)
    return 10 * torch.log10(4 / error)


def _affine(config: Any) -> tuple[Tensor, Tensor]:
    """Read (scale, shift) in float64: one scalar each, or per channel where the configuration has latents_mean and _std."""
    ones = torch.ones(config["latent_channels"], dtype=torch.float64)
    scale = ones * config["scaling_factor"]
    if config.get("latents_mean") is not None and config.get("latents_std") is not None:
        return scale / torch.tensor(config["latents_std"]).double(), torch.tensor(config["latents_mean"]).double()
    return scale, ones * (config.get("shift_factor") or 0.0)


def _convolution(weights: dict[str, Tensor], name: str, channels: int) -> Iterator[Tensor]:
    """Give weight and bias of a 1x1 convolution in float64; the identity where the VAE has none."""
    identity = torch.eye(channels, dtype=torch.float64)[:, :, None, None]
    yield weights.get(f"{name}.weight", identity).double()
    yield weights.get(f"{name}.bias", torch.zeros(channels, dtype=torch.float64)).double()
