"""Two pictures are learned by heart in seconds; and each way of breaking that on purpose is named, by a real attempt."""

import math
from dataclasses import replace

import pytest
import torch
from torch.nn import functional as F

from t2im import cache
from t2im.advice.doctor import overfit
from t2im.advice.doctor.examine import diagnose
from t2im.advice.doctor.overfit import KNOWN, Bench, choose
from t2im.data import captions
from t2im.diffusion.sample import sample
from t2im.diffusion.schedule import Schedule
from t2im.encoders.vae import VAE, Posterior
from t2im.recipe import load_config
from t2im.training.ema import EMA
from t2im.training.run import fitted
from t2im.training.trainer import Compute

QUICK = (
    "unet.block_out_channels=(16,32)",
    "unet.norm_num_groups=8",
    "unet.attention_head_dim=2",
    "objective.type=v_prediction",
    "schedule.rescale_betas_zero_snr=true",
    "training.batch_size=4",
    "training.learning_rate=0.01",
    "sampling.num_inference_steps=10",
)


class Mosaic(VAE):
    """Latents that are the picture itself at half its size: an autoencoder that needs no training."""

    scale = 1.25

    def encode(self, images):
        mean = F.avg_pool2d(images, 2) * self.scale
        return Posterior(mean, torch.full_like(mean, -9.0))

    def decode(self, latents):
        return F.interpolate(latents / self.scale, scale_factor=2).clamp(-1, 1)


@pytest.fixture
def bench(colours, tiny_model, unet_settings, tmp_path):
    """Return a function that prepares two pictures for learning by heart."""

    def prepare(*settings, scale=Mosaic.scale):
        vae = Mosaic(tiny_model.vae.module)
        vae.scale = scale
        config = load_config(settings=(*unet_settings, *QUICK, *settings))
        config = fitted(config, vae, tiny_model.text_encoder)
        store = cache.build(
            choose(captions.read(colours), 2), vae, tiny_model.text_encoder, tmp_path / "cache", config.data
        )
        return Bench(store, vae, tiny_model.text_encoder, config, Compute("cpu"))

    return prepare


@pytest.fixture
def verdict(bench, tmp_path, monkeypatch):
    """Return a function that examines such settings with so many steps, whatever time they take."""
    attempt = Bench.attempt

    def examine(*settings, steps=160, **options):
        monkeypatch.setattr(
            Bench, "attempt", lambda self, seconds=0.0, **plan: attempt(self, **{"steps": steps, **plan})
        )
        return diagnose(bench(*settings, **options), 1.0, tmp_path / "sheet.png")[-1]

    return examine


def test_two_pictures_are_learned_by_heart(verdict, tmp_path):
    finding = verdict("training.ema_decay=0.99999")  # which does no harm: the average has a warm-up
    assert finding.level == "OK" and "2 of 2 captions draw their own image" in finding.what, finding
    assert (tmp_path / "sheet.png").is_file()


@pytest.mark.parametrize(
    ("settings", "scale", "name"),
    [(("training.caption_dropout=1",), Mosaic.scale, "caption_dropout"), ((), 10 * Mosaic.scale, "not scaled")],
)
def test_what_no_training_can_mend_is_named_at_once(verdict, settings, scale, name):
    finding = verdict(*settings, scale=scale)
    assert finding.level == "wrong" and name in finding.what


def test_numbers_that_are_not_finite_are_named(verdict, monkeypatch):
    monkeypatch.setattr(
        overfit.DenoiserTask, "loss", lambda self, model, samples: (self.model.conv_in.bias.sum() * math.nan, {})
    )
    finding = verdict(steps=50)
    assert finding.level == "wrong" and "50 of 50 steps were not finite" in finding.what


def test_an_attempt_ends_when_its_time_is_up_or_its_images_are_known(bench, monkeypatch):
    prepared = bench()
    monkeypatch.setattr(prepared, "errors", lambda schedule, model: (KNOWN + 0.01, 0.5))
    assert prepared.attempt(seconds=0.5).seconds < 5
    assert prepared.attempt(steps=12, share=0.25).steps == 3
    monkeypatch.setattr(prepared, "errors", lambda schedule, model: (KNOWN, 0.5))
    assert prepared.attempt(steps=16).steps == 3, "the first look is after an eighth"


@pytest.mark.slow
@pytest.mark.parametrize(("rate", "name"), [(1e-5, "too low"), (1e-4, "too low"), (1.0, "too high")])
def test_a_learning_rate_that_is_far_off_is_proved_by_another_one(verdict, rate, name):
    finding = verdict(f"training.learning_rate={rate}")
    assert finding.level == "wrong" and finding.what.endswith(f"the learning rate is {name}"), finding


@pytest.mark.slow
def test_an_average_without_a_warm_up_is_named(verdict, monkeypatch):
    monkeypatch.setattr(EMA, "current_decay", property(lambda self: self.decay))
    finding = verdict("training.ema_decay=0.99999")
    assert finding.level == "wrong" and "moving average" in finding.what, finding


@pytest.mark.slow
def test_sampling_that_takes_the_prediction_for_something_else_is_named(verdict, monkeypatch):
    def mistaken(model, schedule, *arguments, **options):
        return sample(model, Schedule(schedule.config, "sample"), *arguments, **options)

    monkeypatch.setattr(overfit, "sample", mistaken)
    finding = verdict()
    assert finding.level == "wrong" and "sampling does not fit" in finding.what, finding


@pytest.mark.slow
def test_captions_that_never_arrive_are_named(verdict, monkeypatch):
    learn = overfit.DenoiserTask.loss

    def deaf(self, model, samples):
        def forward(latents, timesteps, text):
            return model(latents, timesteps, replace(text, hidden_states=0 * text.hidden_states))

        return learn(self, forward, samples)

    monkeypatch.setattr(overfit.DenoiserTask, "loss", deaf)
    finding = verdict(steps=400)
    assert finding.level == "wrong" and "the text is not read" in finding.what, finding
