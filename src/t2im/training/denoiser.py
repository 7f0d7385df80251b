"""What does one training step of the UNet compute? The heart of diffusion in six lines: see `DenoiserTask.loss`."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from t2im.batches import Indices, Store, examples_at
from t2im.checkpoint import read_checkpoint, write_checkpoint
from t2im.config import Config
from t2im.diffusion import objective
from t2im.diffusion.sample import sample
from t2im.diffusion.schedule import Schedule
from t2im.encoders.text import TextEncoder
from t2im.encoders.vae import VAE
from t2im.nn.blocks import checkpoint_gradients
from t2im.nn.unet import ConditionalUNet
from t2im.picture import grid, to_pil
from t2im.seeds import seed_for
from t2im.training.heldout import HeldOut
from t2im.training.trainer import Forward

PREVIEW_SEED = 1


class DenoiserTask:
    """Train the UNet on cached latents and text states; no image and no encoder is touched by a step."""

    name = "unet"
    headlines: tuple[str, ...] = ("heldout_loss", "heldout_x0", "text_gain")

    def __init__(
        self,
        store: Store,
        train: Indices,
        heldout: Indices,
        vae: VAE,
        text_encoder: TextEncoder,
        config: Config,
        about: Mapping[str, Any],
    ) -> None:
        """Tie a fresh UNet to its data.

        about: what a checkpoint must know beside weights and settings: "encoders", "data" and "summary".
        """
        self._seed = config.training.seed
        torch.manual_seed(seed_for(self._seed, 0, "initial weights of the UNet"))
        self.model = ConditionalUNet(config.unet)
        if config.training.gradient_checkpointing:
            checkpoint_gradients(self.model)
        self.examples = len(train)
        self.schedule = Schedule(config.schedule, config.objective.type)
        self._objective = config.objective
        self._store, self._train, self._config, self._about = store, train, config, dict(about)
        self._vae, self._text_encoder = vae, text_encoder
        self._heldout = HeldOut(store, heldout, self.schedule) if len(heldout) else None
        self._prompts = list(config.training.preview_prompts) or preview_captions(store, heldout, train)
        side = config.data.resolution
        self._previewed = text_encoder(self._prompts).sized(side, side), text_encoder([""]).sized(side, side)

    def loss(self, model: Forward, samples: range) -> tuple[Tensor, dict[str, Tensor]]:
        """Draw examples, noise them, let the UNet see through, compare."""
        indices = np.arange(samples.start, samples.stop)
        training = self._config.training
        batch = self._store.batch(
            self._shown(indices), indices, self._seed, training.caption_dropout, training.size_dropout
        )
        device = next(self.model.parameters()).device
        noised = objective.noise(
            batch.latents.to(device), batch.sample_indices, self.schedule, self._seed, self._objective
        )
        prediction = model(noised.latents, noised.timesteps, batch.text.to(device))
        return objective.loss(prediction, noised), {}

    def evaluate(self, model: nn.Module) -> dict[str, float]:
        """Return what the fixed exam on held-out images measures, or nothing where no images were held out."""
        if self._heldout is None:
            return {}
        return self._heldout.measure(model, next(self.model.parameters()).device)

    def preview(self, model: nn.Module, path: Path) -> None:
        """Draw the preview prompts with the model's own sampler and defaults, always from the same noise."""
        device = next(self.model.parameters()).device
        text, empty = (states.to(device) for states in self._previewed)
        sampling = self._config.sampling
        for step in sample(
            self.model,
            self.schedule,
            text,
            negative=empty,
            seed=PREVIEW_SEED,
            num_inference_steps=sampling.num_inference_steps,
            guidance_scale=sampling.guidance_scale,
            scheduler=sampling.scheduler,
        ):
            latents = step.latents
        path.parent.mkdir(parents=True, exist_ok=True)
        grid(to_pil(self._vae.decode(latents)), captions=self._prompts).save(path)

    def describe(self, samples: range) -> list[str]:
        """Return the image and the captions of each sample."""
        shown = self._shown(np.arange(samples.start, samples.stop)).tolist()
        return [f"{self._store.examples[index].path}: {' | '.join(self._store.captions(index))}" for index in shown]

    def state_dict(self) -> dict[str, Any]:
        """Return the settings, the encoders' identities and facts about the data."""
        return {"config": self._config.model_dump(mode="json"), **self._about}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take nothing up: the run was built from the checkpoint's settings."""

    def _shown(self, samples: Indices) -> Indices:
        """Return which example each sample of the run shows."""
        chosen: Indices = self._train[examples_at(samples, len(self._train), self._seed)]
        return chosen


def preview_captions(store: Store, heldout: Indices, train: Indices, count: int = 8) -> list[str]:
    """Return first captions to draw as previews: of held-out images, then of training images."""
    chosen = [*heldout.tolist(), *train.tolist()][:: max(1, (len(heldout) or len(train)) // count)]
    return list(dict.fromkeys(store.captions(index)[0] for index in chosen))[:count]


def write_unet_checkpoint(path: Path, state: Mapping[str, Any]) -> None:
    """Write a training state as the checkpoint that `generate_images_direct` takes."""
    write_checkpoint(path, {"unet": state["model"], **{key: part for key, part in state.items() if key != "model"}})


def read_unet_checkpoint(path: Path) -> dict[str, Any]:
    """Read it back as a training state."""
    checkpoint = read_checkpoint(path)
    return {"model": checkpoint.pop("unet"), **checkpoint}


def known_captions(store: Store, train: Indices, count: int = 64) -> Sequence[str]:
    """Return some training captions, spread over the data: prompts that the model should know."""
    chosen = train[:: max(1, len(train) // count)][:count]
    return [store.captions(index)[0] for index in chosen.tolist()]
