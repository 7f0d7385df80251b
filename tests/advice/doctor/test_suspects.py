"""Whatever is broken on purpose is named."""

import math
from dataclasses import replace

import pytest
import torch

from t2im import cache
from t2im.advice.doctor import overfit
from t2im.advice.doctor.examine import diagnose
from t2im.advice.doctor.overfit import Attempt, Bench, Drawn, choose
from t2im.advice.doctor.suspects import FACTOR, alike, before_training, verdict
from t2im.data.captions import Example
from t2im.recipe import load_config
from t2im.shapes import TextStates
from t2im.training.run import fitted
from t2im.training.trainer import Compute

GOOD = Drawn(2, 25.0, torch.zeros(2, 3, 16, 16))
POOR = Drawn(1, 9.0, torch.zeros(2, 3, 16, 16))
LEARNED = Attempt(400, 9.0, 0, early_steps=100, early=0.4, final=0.02, mistaken=0.4, raw=GOOD, averaged=GOOD)
STUCK = replace(LEARNED, early=0.5, final=0.5, raw=POOR, averaged=POOR)


@pytest.fixture
def bench(colours, tiny_model, unet_settings, tmp_path):
    """Return a function that prepares two pictures for learning by heart."""
    from t2im.data import captions

    def prepare(*settings, latents_scale=1.0, captions_alike=False):
        config = load_config(
            settings=(*unet_settings, "training.batch_size=8", "sampling.num_inference_steps=5", *settings)
        )
        config = fitted(config, tiny_model.vae, tiny_model.text_encoder)
        examples = choose(captions.read(colours), 2)
        store = cache.build(examples, tiny_model.vae, tiny_model.text_encoder, tmp_path / "cache", config.data)
        prepared = Bench(store, tiny_model.vae, tiny_model.text_encoder, config, Compute("cpu"))
        # The tiny VAE is not trained: what it says is brought to the size of latents here, or to another one.
        prepared.latents = prepared.latents / prepared.latents.std() * latents_scale
        if captions_alike:
            prepared.text = prepared.text[[0, 0]]
        return prepared

    return prepare


def no_experiment(factor):
    raise AssertionError("no experiment is needed")


def test_images_that_were_learned_are_no_case(bench):
    finding = verdict(bench(), LEARNED, no_experiment)
    assert finding.level == "OK" and "2 of 2 captions draw their own image, at 25.0 dB" in finding.what


@pytest.mark.parametrize(("share", "level"), [(1.0, "wrong"), (0.5, "look"), (0.1, None)])
def test_dropped_captions_are_named(bench, share, level):
    findings = before_training(bench(f"training.caption_dropout={share}"))
    assert [finding.level for finding in findings] == ([level] if level else [])
    assert all("caption_dropout" in finding.what for finding in findings)


@pytest.mark.parametrize("scale", [0.18, 5.5])
def test_latents_that_are_not_scaled_are_named(bench, scale):
    (finding,) = before_training(bench(latents_scale=scale))
    assert finding.level == "wrong" and "not scaled" in finding.what


def test_a_text_encoder_that_says_the_same_of_all_is_named(bench):
    (finding,) = before_training(bench(captions_alike=True))
    assert finding.level == "wrong" and "text encoder" in finding.what


def test_states_are_alike_whatever_lies_behind_the_mask():
    states, mask = torch.ones(2, 3, 5), torch.tensor([[True, True, False]] * 2)
    states[1, 2] = 7.0
    assert alike(TextStates(states, mask)) and not alike(TextStates(states))


def test_no_time_is_spent_on_what_is_known_beforehand(bench, tmp_path, monkeypatch):
    prepared = bench("training.caption_dropout=1")
    monkeypatch.setattr(prepared, "attempt", no_experiment)
    assert [finding.level for finding in diagnose(prepared, 60.0, tmp_path / "sheet.png")] == ["wrong"]


def test_an_average_that_lags_behind_is_named(bench):
    finding = verdict(bench("training.ema_decay=0.99999"), replace(LEARNED, averaged=POOR), no_experiment)
    assert finding.level == "wrong" and "EMA" in finding.what and "100,000 steps" in finding.mend


def test_sampling_that_does_not_fit_the_training_is_named(bench):
    finding = verdict(bench("sampling.scheduler=lcm"), replace(LEARNED, raw=POOR, averaged=POOR), no_experiment)
    assert finding.level == "wrong" and "sampling does not fit" in finding.what and "lcm" in finding.mend


def test_captions_that_make_no_difference_are_told_from_sampling(bench):
    deaf = replace(LEARNED, final=0.05, mistaken=0.06, raw=POOR, averaged=POOR)
    assert "the text is not read" in verdict(bench(), deaf, no_experiment).what


def test_a_handful_of_steps_says_nothing(bench):
    finding = verdict(bench(), replace(STUCK, steps=49), no_experiment)
    assert finding.level == "look" and "--minutes" in finding.mend


@pytest.mark.parametrize(("better", "name"), [(FACTOR, "too low"), (1 / FACTOR, "too high")])
def test_a_learning_rate_is_named_where_another_one_learns(bench, better, name):
    def again(factor):
        return replace(STUCK, final=0.1) if factor == better else STUCK

    finding = verdict(bench(), STUCK, again)
    assert finding.level == "wrong" and finding.what.endswith(f"the learning rate is {name}")


def test_steps_that_are_not_finite_are_blamed_on_what_cures_them(bench):
    broken = replace(STUCK, not_finite=399)
    by_rate = verdict(bench(), broken, lambda factor: STUCK)
    prepared = bench()
    by_encoders = verdict(prepared, broken, lambda factor: broken)
    prepared.compute = Compute("cpu", "bf16")
    by_precision = verdict(prepared, broken, lambda factor: broken)
    assert "not finite" in by_rate.what and "too high" in by_rate.what
    assert "mixed_precision=no" in by_precision.mend and "encoders" in by_encoders.mend


def test_what_still_learns_gets_more_time_and_what_does_not_is_wrong(bench):
    slow = verdict(bench(), replace(STUCK, early=1.0), lambda factor: replace(STUCK, final=1.0))
    dead = verdict(bench(), STUCK, lambda factor: STUCK)
    assert (slow.level, dead.level) == ("look", "wrong")
    assert "still learning" in slow.what and "no learning rate helps" in dead.mend


def test_weights_that_become_non_finite_are_counted(bench, monkeypatch):
    prepared = bench()
    monkeypatch.setattr(
        overfit.DenoiserTask, "loss", lambda self, model, samples: (self.model.conv_in.bias.sum() * math.nan, {})
    )
    assert prepared.attempt(steps=3).not_finite == 3


def test_knowing_the_latents_leaves_no_error_and_knowing_nothing_leaves_half(bench):
    prepared = bench()
    schedule = overfit.Schedule(prepared.config.schedule, "sample")

    def knows(latents, timesteps, text):
        return prepared.latents

    def knows_the_prior(latents, timesteps, text):
        return schedule.alpha_sigma(timesteps)[0][:, None, None, None] * latents

    assert prepared.errors(schedule, knows) == (0.0, 0.0)
    assert prepared.errors(schedule, knows_the_prior)[0] == pytest.approx(0.5, abs=0.1)


def test_eight_different_captions_are_chosen_and_only_the_first_of_each_image(tmp_path):
    examples = [Example(tmp_path / f"{n}.png", (f"caption {n % 9}", "another")) for n in range(100)]
    chosen = choose(examples)
    assert len({example.captions for example in chosen}) == 8 and all(len(example.captions) == 1 for example in chosen)
    assert len(choose(examples[:3])) == 3
    assert len(choose([Example(tmp_path / f"{n}.png", ("same",)) for n in range(20)])) == 1
