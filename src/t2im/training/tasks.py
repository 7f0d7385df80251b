"""What does one training step of an encoder compute? The VAE learns to redraw, CLIP learns which words go with what.

The UNet's step is in `denoiser.py`.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn import functional as F

from t2im.batches import examples_at
from t2im.config import DataConfig, VAETrainingConfig
from t2im.data.captions import Example
from t2im.data.images import read_images
from t2im.encoders.text import new_clip
from t2im.encoders.vae import new_vae, psnr
from t2im.networks import CLIPConfig, VAEConfig
from t2im.picture import grid, to_pil
from t2im.seeds import seed_for
from t2im.shapes import Images, Latents
from t2im.training.discriminator import Judge
from t2im.training.trainer import Forward

if TYPE_CHECKING:
    from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
    from transformers.models.clip.tokenization_clip import CLIPTokenizer


class ImageBatches:
    """Examples with their images, drawn as a pure function of the run's seed and the sample's index."""

    def __init__(self, examples: Sequence[Example], data: DataConfig, resolution: int, seed: int) -> None:
        self.examples, self.seed = examples, seed
        self._resolution, self._background = resolution, data.background

    def __len__(self) -> int:
        """Return the number of examples."""
        return len(self.examples)

    def at(self, samples: range) -> list[Example]:
        """Return the examples that samples of the run show."""
        shown = examples_at(np.arange(samples.start, samples.stop), len(self.examples), self.seed)
        return [self.examples[index] for index in shown.tolist()]

    def images(self, examples: Sequence[Example]) -> Images:
        """Read the images of examples."""
        return read_images(
            [example.path for example in examples], resolution=self._resolution, background=self._background
        )

    def moved(self, images: Images, samples: range) -> Images:
        """Mirror half of the images and shift all by up to an eighth, so that few images teach more."""
        side = images.shape[-1]
        room = max(1, side // 8)
        padded = F.pad(images, (room,) * 4, mode="replicate")
        views = []
        for image, sample in zip(padded, samples, strict=True):
            draw = seed_for(self.seed, sample, "shift")
            top, left = draw % (2 * room + 1), draw // 1000 % (2 * room + 1)
            view = image[:, top : top + side, left : left + side]
            views.append(view.flip(-1) if seed_for(self.seed, sample, "mirror") % 2 else view)
        return torch.stack(views)


class RoundTrip(nn.Module):
    """An autoencoder as training sees it: images -> moments -> a sample -> images."""

    def __init__(self, vae: "AutoencoderKL") -> None:
        super().__init__()
        self.vae = vae

    def forward(self, images: Images, noise: Latents) -> tuple[Images, Latents, Latents]:
        """Return (reconstruction, mean, logvar)."""
        posterior = self.vae.encode(images).latent_dist
        reconstruction = self.vae.decode(posterior.mean + posterior.std * noise).sample
        return reconstruction, posterior.mean, posterior.logvar


class VAETask:
    """Train an autoencoder from nothing.

        loss = |x - x'| + w_detail |grad x - grad x'| + w_KL KL(N(mean, var) || N(0, 1)) [+ w_adv hinge(D(x'))]

    The KL is Kingma and Welling 2013, appendix B, arXiv 1312.6114; gradients are differences of neighbouring pixels,
    and make edges matter as much as areas without any perceptual network. In the last `adversarial_steps` steps a patch
    discriminator joins (Esser et al. 2021, arXiv 2012.09841): late, when only sharpness is missing.
    """

    name = "vae"
    headlines: tuple[str, ...] = ("heldout_psnr",)

    def __init__(
        self,
        train: Sequence[Example],
        heldout: Sequence[Example],
        data: DataConfig,
        vae: VAEConfig,
        settings: VAETrainingConfig,
        seed: int,
    ) -> None:
        torch.manual_seed(seed_for(seed, 0, "initial weights of the VAE"))
        self.model: RoundTrip = RoundTrip(new_vae(vae, data.resolution))
        self.batches = ImageBatches(train, data, data.resolution, seed)
        self.examples = len(train)
        self.heldout = self.batches.images(heldout[:256])
        self._settings, self._seed = settings, seed
        self._judge: Judge | None = None
        if settings.adversarial_steps:
            self._judge = Judge(settings.learning_rate / 4, seed_for(seed, 0, "initial weights of the discriminator"))
        self._noise_shape = (vae.latent_channels, *(data.resolution // vae.downscale,) * 2)

    def loss(self, model: Forward, samples: range) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the loss of one batch and its parts."""
        images = self.batches.moved(self.batches.images(self.batches.at(samples)), samples)
        generator = torch.Generator().manual_seed(seed_for(self._seed, samples.start, "posterior"))
        noise = torch.randn(len(samples), *self._noise_shape, generator=generator)
        device = next(self.model.parameters()).device
        images = images.to(device)
        reconstruction, mean, logvar = model(images, noise.to(device))
        pixels = F.l1_loss(reconstruction, images)
        detail = F.l1_loss(reconstruction.diff(dim=-1), images.diff(dim=-1)) + F.l1_loss(
            reconstruction.diff(dim=-2), images.diff(dim=-2)
        )
        kl = 0.5 * (mean.square() + logvar.exp() - 1 - logvar).mean()
        total = pixels + self._settings.detail_weight * detail + self._settings.kl_weight * kl
        parts = {"pixels": pixels.detach(), "detail": detail.detach(), "kl": kl.detach()}
        judged_from = (self._settings.steps - self._settings.adversarial_steps) * len(samples)
        if self._judge is not None and samples.start >= judged_from:
            parts["discriminator"] = self._judge.learn(images, reconstruction)
            total = total + self._settings.adversarial_weight * self._judge.objection(reconstruction)
        return total, parts

    def evaluate(self, model: nn.Module) -> dict[str, float]:
        """Return the mean PSNR in dB of held-out images."""
        return {"heldout_psnr": psnr(self.heldout, self._redrawn(self.heldout)).mean().item()}

    def preview(self, model: nn.Module, path: Path) -> None:
        """Draw held-out images above their round trips."""
        images = self.heldout[:8]
        rows = torch.cat([images, self._redrawn(images)])
        path.parent.mkdir(parents=True, exist_ok=True)
        grid(to_pil(rows), columns=len(images)).save(path)

    def describe(self, samples: range) -> list[str]:
        """Return the image of each sample."""
        return [str(example.path) for example in self.batches.at(samples)]

    def state_dict(self) -> dict[str, Any]:
        """Return the discriminator's state, if there is one; all else is in the model."""
        return {} if self._judge is None else {"judge": self._judge.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take up such a state."""
        if self._judge is not None:
            self._judge.load_state_dict(state["judge"])

    @torch.no_grad()
    def _redrawn(self, images: Images) -> Images:
        device = next(self.model.parameters()).device
        redrawn = []
        for batch in torch.split(images, 32):
            posterior = self.model.vae.encode(batch.to(device)).latent_dist
            redrawn.append(self.model.vae.decode(posterior.mean).sample.clamp(-1, 1).cpu())
        return torch.cat(redrawn)


class CLIPTask:
    """Train a small CLIP: of all captions in a batch, an image must find its own, and the reverse.

        loss = (CE(s T I^t, pairs) + CE(s I T^t, pairs)) / 2        Radford et al. 2021, figure 3, arXiv 2103.00020

    T and I are the unit-length text and image vectors, s the learned inverse temperature, at most 100. Where captions of
    a batch are equal, each of their images is a right answer; the paper's data is too large for that to matter.
    """

    name = "clip"
    headlines: tuple[str, ...] = ("heldout_loss", "recall_at_1", "recall_at_5")

    def __init__(
        self,
        train: Sequence[Example],
        heldout: Sequence[Example],
        data: DataConfig,
        clip: CLIPConfig,
        tokenizer: "CLIPTokenizer",
        seed: int,
    ) -> None:
        torch.manual_seed(seed_for(seed, 0, "initial weights of CLIP"))
        self.model = new_clip(clip, tokenizer)
        self.batches = ImageBatches(train, data, clip.image_size, seed)
        self.examples = len(train)
        self._tokenizer, self._seed = tokenizer, seed
        self._heldout = list(heldout[:256])
        self._heldout_images = self.batches.images(self._heldout)

    def loss(self, model: Forward, samples: range) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the contrastive loss of one batch, and how often an image found its caption."""
        shown = self.batches.at(samples)
        images = self.batches.moved(self.batches.images(shown), samples)
        captions = [
            example.captions[seed_for(self._seed, sample, "caption") % len(example.captions)]
            for example, sample in zip(shown, samples, strict=True)
        ]
        logits = self._similarities(model, images, captions)
        pairs = torch.tensor([[one == other for other in captions] for one in captions], device=logits.device)
        found = pairs.gather(1, logits.argmax(dim=1, keepdim=True)).float().mean()
        return contrastive_loss(logits, pairs), {"found": found}

    def evaluate(self, model: nn.Module) -> dict[str, float]:
        """Return how often a held-out image finds its first caption among all of them, first and within five."""
        logits = self._similarities(model, self._heldout_images, [example.captions[0] for example in self._heldout])
        ranks = (logits >= logits.diagonal()[:, None]).sum(dim=1)
        return {
            "heldout_loss": contrastive_loss(
                logits, torch.eye(len(logits), dtype=torch.bool, device=logits.device)
            ).item(),
            "recall_at_1": (ranks <= 1).float().mean().item(),
            "recall_at_5": (ranks <= 5).float().mean().item(),
        }

    def preview(self, model: nn.Module, path: Path) -> None:
        """Draw nothing: there is nothing to see."""

    def describe(self, samples: range) -> list[str]:
        """Return the image and the captions of each sample."""
        return [f"{example.path}: {' | '.join(example.captions)}" for example in self.batches.at(samples)]

    def state_dict(self) -> dict[str, Any]:
        """Return nothing: all is in the model."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take nothing up."""

    def _similarities(self, model: Forward, images: Images, captions: Sequence[str]) -> Tensor:
        """Return the scaled cosine of every image (rows) with every caption (columns)."""
        device = next(self.model.parameters()).device
        # Padded to the longest only: the tower is causal and reads the result at the end mark, so padding is wasted work.
        tokens = self._tokenizer(list(captions), padding="longest", truncation=True, return_tensors="pt")
        with torch.no_grad():
            self.model.logit_scale.clamp_(max=float(np.log(100.0)))
        logits: Tensor = model(input_ids=tokens.input_ids.to(device), pixel_values=images.to(device)).logits_per_image
        return logits


def contrastive_loss(logits: Float[Tensor, "rows rows"], pairs: Bool[Tensor, "rows rows"]) -> Float[Tensor, ""]:
    """Return the symmetric cross-entropy; an image's right answers share its probability equally, and the reverse."""
    right = pairs.to(logits.dtype)
    from_images = F.cross_entropy(logits, right / right.sum(dim=1, keepdim=True))
    from_captions = F.cross_entropy(logits.t(), right.t() / right.t().sum(dim=1, keepdim=True))
    return (from_images + from_captions) / 2
