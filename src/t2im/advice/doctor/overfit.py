"""Can these settings learn at all? Eight images must be learned by heart; who cannot do that will not learn thousands.

It is the oldest test of a training: with so little to learn, a model that works is soon able to draw each of the eight
images from its caption, whatever noise it starts with. If it cannot, something is broken, and a long run would only
take longer to fail. What exactly, is the question of `suspects.py`; here is the experiment.

Every step shows all eight, each at a noise level of its own, and learning stops as soon as they are known. What that
took with the recipe `nano`, on eight emoji and one thread of a CPU:

    steps   error of clean latents   the same, wrong captions   captions found   likeness
       25                    0.256                      0.474              6/8    12.2 dB
       50                    0.208                      0.541              8/8    14.1 dB
      100                    0.133                      0.650              8/8    16.9 dB
      150                    0.104                      0.728              8/8    19.0 dB, after 39 seconds
"""

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch.nn import functional as F

from t2im.batches import Store
from t2im.config import Config
from t2im.data.captions import Example
from t2im.diffusion import objective
from t2im.diffusion.sample import sample
from t2im.diffusion.schedule import Schedule
from t2im.encoders.text import TextEncoder
from t2im.encoders.vae import VAE, psnr
from t2im.errors import SamplingError
from t2im.files import atomic_path
from t2im.picture import grid, to_pil
from t2im.shapes import Images, Latents
from t2im.training.denoiser import DenoiserTask
from t2im.training.heldout import Denoiser
from t2im.training.learning_rate import learning_rate
from t2im.training.trainer import Compute, Trainer

IMAGES = 8
FEWEST_STEPS, MOST_STEPS = 50, 3000
"""Fewer steps say nothing; nano's 150 times 20 are enough for whoever learns slowly."""
WARMUP_STEPS = 20
"""The settings' warm-up may be longer than the whole attempt."""
LOOKS = 8
"""How often, over an attempt, it is seen whether the images are known by now."""
QUARTER = 0.25
"""Share of an attempt after which its error is noted, and for which it is made again with another learning rate."""
KNOWN = 0.07
"""Error of clean latents (see `Bench.errors`) at which the images are known; who knows nothing has 0.5."""
ROUGH_COPY = 15.0
"""dB that a drawn image must at least share with the one it was learned from (as the VAE shows it): rough, but shape and
colours are its own. We saw 16 to 19 at an error of 0.1, and 9 where nothing was learned."""
TIE = 1.0
"""dB by which another image may be nearer: two photographs of stars are hardly told apart in this way."""
LOG_SNRS = (-2.0, -1.0, 0.0, 1.0, 2.0)
"""Noise levels at which clean latents are asked for: those where pictures take shape."""
SEED = 1


@dataclass(frozen=True)
class Drawn:
    """How pictures drawn from the captions compare with the images."""

    found: int
    """Captions whose picture is nearest to their own image, or as good as nearest."""
    psnr: float
    """Mean likeness of a picture and its image in dB."""
    images: Images | None
    """The pictures; None if they could not be drawn, or were not."""

    @property
    def copied(self) -> bool:
        """Whether the images were learned by heart."""
        return self.images is not None and self.found == len(self.images) and self.psnr >= ROUGH_COPY


@dataclass(frozen=True)
class Attempt:
    """What some steps on the eight images came to."""

    steps: int
    seconds: float
    not_finite: int
    """Steps that were left out."""
    early_steps: int
    """Steps of the first quarter."""
    early: float
    """Error of the clean latents after these; see `Bench.errors`."""
    final: float
    """The same after all of them."""
    mistaken: float
    """The same with the captions of other images: if that is no larger, the text is not read."""
    raw: Drawn
    averaged: Drawn
    """With the moving average of the weights, which is what a run samples with."""


class Bench:
    """Eight images of a folder in a cache, with all that is needed to train on them again and again."""

    def __init__(self, store: Store, vae: VAE, text_encoder: TextEncoder, config: Config, compute: Compute) -> None:
        self.store, self.vae, self.text_encoder, self.config, self.compute = store, vae, text_encoder, config, compute
        self.rows = np.arange(len(store), dtype=np.int64)
        batch = store.batch(self.rows, self.rows, SEED)
        self.latents: Latents = batch.latents
        self.text = batch.text
        self.images: Images = vae.decode(self.latents).cpu()

    def attempt(
        self, *, seconds: float = math.inf, steps: int = MOST_STEPS, share: float = 1.0, rate: float = 1.0
    ) -> Attempt:
        """Train a fresh UNet until the images are known, or the time or the steps are up.

        share: how much of that to walk; if not all, nothing is drawn. rate: a factor of the learning rate.
        """
        began = time.perf_counter()
        settings = self.config.training
        settings = settings.model_copy(update={"warmup_steps": min(settings.warmup_steps, WARMUP_STEPS)})
        task = DenoiserTask(self.store, self.rows, self.rows[:0], self.vae, self.text_encoder, self.config, {})
        trainer = Trainer(
            task.model, settings, seed=settings.seed, compute=self.compute, ema_sigmas=(), say=lambda text: None
        )
        step, not_finite, looks, early_steps, early = 0, 0, 0, 0, math.nan
        final = math.inf
        while final > KNOWN:
            done = max(step / steps, (time.perf_counter() - began) / seconds)
            if done >= share:
                break
            first = step * settings.batch_size
            samples = range(first, first + settings.batch_size)
            taken = trainer.step(task.loss, samples, rate * learning_rate(step, done, settings))
            trainer.forget_gradients()
            not_finite += not taken.finite
            step += 1
            if done * LOOKS >= looks + 1:
                looks = int(done * LOOKS)
                with trainer.at_rest(averaged=False) as model:
                    final, _ = self.errors(task.schedule, model)
                if not early_steps and done >= QUARTER:
                    early_steps, early = step, final
        with trainer.at_rest(averaged=False) as model:
            final, mistaken = self.errors(task.schedule, model)
            raw = averaged = self._draw(task, model) if share == 1 else Drawn(0, -math.inf, None)
        if trainer.ema is not None and share == 1:
            with trainer.at_rest(averaged=True) as model:
                averaged = self._draw(task, model)
        return Attempt(
            step, time.perf_counter() - began, not_finite, early_steps, early, final, mistaken, raw, averaged
        )

    @torch.no_grad()
    def errors(self, schedule: Schedule, denoiser: Denoiser) -> tuple[float, float]:
        """Return the squared error of the clean latents, with the right captions and with those of other images.

        Who only knows that latents are N(0, 1) has the error E 1 / (1 + SNR) = 0.5 here, for the noise levels lie evenly
        around log SNR = 0; who knows the images by heart has an error near 0.
        """
        device = self.compute.device
        levels = schedule.timestep_at_snr(torch.tensor(LOG_SNRS).exp())
        seen = []
        for level in levels:
            noise = objective.draw_noise(self.latents.shape[1:], self.rows.tolist(), SEED + int(level))
            noised = objective.noise_at(self.latents.to(device), noise, level.expand(len(self.rows)), schedule)
            for text in (self.text, self.text[self.rows[::-1].tolist()]):
                prediction = denoiser(noised.latents, noised.timesteps, text.to(device)).float()
                x0 = schedule.pred_original_sample(prediction, noised.latents, noised.timesteps).cpu()
                seen.append(F.mse_loss(x0, self.latents).item())
        return sum(seen[::2]) / len(levels), sum(seen[1::2]) / len(levels)

    def _draw(self, task: DenoiserTask, model: torch.nn.Module) -> Drawn:
        """Draw each caption with the run's own sampler, unguided: a model that knows eight images needs no guidance."""
        sampling = self.config.sampling
        device = self.compute.device
        try:
            for step in sample(
                model,
                task.schedule,
                self.text.to(device),
                seed=SEED,
                num_inference_steps=sampling.num_inference_steps,
                guidance_scale=1.0,
                scheduler=sampling.scheduler,
            ):
                latents = step.latents
        except SamplingError:
            return Drawn(0, -math.inf, None)
        images = self.vae.decode(latents).cpu()
        likeness = torch.stack([psnr(image.expand_as(self.images), self.images) for image in images])
        found = (likeness.diagonal() >= likeness.amax(dim=1) - TIE).sum().item()
        return Drawn(int(found), likeness.diagonal().mean().item(), images)

    def write_sheet(self, drawn: Drawn, path: Path) -> None:
        """Lay the eight images above what was drawn from their captions."""
        if drawn.images is None:
            return
        larger = max(1, 160 // self.images.shape[-1])
        rows = torch.cat([self.images, drawn.images]).repeat_interleave(larger, -1).repeat_interleave(larger, -2)
        captions = [self.store.captions(index)[0] for index in self.rows.tolist()] * 2
        with atomic_path(path) as temporary:
            grid(to_pil(rows), columns=len(self.images), captions=captions).save(temporary)


def choose(examples: Sequence[Example], count: int = IMAGES) -> list[Example]:
    """Take images from all over the folder, no two with the same first caption, each with this caption only.

    Where fewer captions are different, fewer images are taken: no model could tell the others apart.
    """
    order = [examples[index] for index in np.random.RandomState(0).permutation(len(examples)).tolist()]
    different = {example.captions[0].strip().casefold(): example for example in reversed(order)}
    return [Example(example.path, example.captions[:1]) for example in list(different.values())[::-1][:count]]
