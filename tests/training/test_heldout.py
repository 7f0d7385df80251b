"""The exam on held-out images, against closed forms: latents are all one value, and captions may say which."""

import itertools

import numpy as np
import pytest
import torch

from t2im.batches import Batch, Store
from t2im.config import ScheduleConfig
from t2im.diffusion.schedule import Schedule
from t2im.shapes import TextStates
from t2im.training.heldout import LOG_SNRS, LOSS_ROWS, ROWS_PER_LEVEL, HeldOut, gain, others

KINDS = ("epsilon", "v_prediction", "sample", "flow")
CPU = torch.device("cpu")
X0_ROWS = len(LOG_SNRS) * ROWS_PER_LEVEL
NUMBERS = {"heldout_loss", *(f"heldout_loss_t{part}" for part in range(4)), "heldout_x0", "heldout_x0_shuffled"}
NUMBERS |= {"heldout_x0_empty", "text_gain", "text_gain_empty"}


class Signs(Store):
    """A store whose even examples are latents of 1, the odd ones of -1; captions say it, and so do the text states."""

    def __init__(self):
        self.asked = []

    def captions(self, index):
        return (f"{'odd' if index % 2 else 'even'} {index}",)

    def batch(self, example_indices, sample_indices, seed, caption_dropout=0.0):
        self.asked += example_indices.tolist()
        sign = torch.from_numpy(1.0 - 2 * (example_indices % 2)).float()
        said = torch.zeros_like(sign) if caption_dropout else sign
        return Batch(
            latents=sign[:, None, None, None].expand(-1, 3, 5, 7).clone(),
            text=TextStates(said[:, None, None].expand(-1, 2, 3), sizes=sign.long()[:, None].expand(-1, 4)),
            sample_indices=torch.as_tensor(sample_indices),
            example_indices=torch.as_tensor(example_indices),
        )


def measure(denoiser, prediction_type="sample", schedule=None, examples=(4, 7, 2, 9), store=None):
    schedule = Schedule(schedule or ScheduleConfig(), prediction_type)
    return HeldOut(Signs() if store is None else store, np.array(examples), schedule).measure(denoiser, CPU)


def said(latents, text):
    return text.hidden_states[:, :1, :1, None].expand_as(latents)


def test_the_numbers_have_these_names_and_are_a_pure_function_of_the_weights():
    heldout = HeldOut(Signs(), np.array([4, 7, 2, 9]), Schedule(ScheduleConfig()))

    def denoiser(latents, timesteps, text):
        return 0.3 * latents

    numbers = heldout.measure(denoiser, CPU)
    assert set(numbers) == NUMBERS
    assert heldout.measure(denoiser, CPU) == numbers
    assert HeldOut(Signs(), np.array([4, 7, 2, 9]), Schedule(ScheduleConfig())).measure(denoiser, CPU) == numbers
    assert heldout.measure(lambda latents, timesteps, text: 0.2 * latents, CPU) != numbers


@pytest.mark.parametrize("prediction_type", KINDS)
def test_a_perfect_denoiser_has_no_error(prediction_type):
    schedule = Schedule(ScheduleConfig(), prediction_type)

    def exact(latents, timesteps, text):
        alpha, sigma = (share.float()[:, None, None, None] for share in schedule.alpha_sigma(timesteps))
        clean = said(latents, text)
        noise = (latents - alpha * clean) / sigma
        return schedule.target(clean, noise, timesteps)

    numbers = measure(exact, prediction_type)
    assert numbers["heldout_x0"] < 1e-8
    assert max(numbers[name] for name in numbers if name.startswith("heldout_loss")) < 1e-6
    assert numbers["text_gain"] == pytest.approx(1, abs=1e-8) == numbers["text_gain_empty"]


@pytest.mark.parametrize("prediction_type", KINDS)
def test_a_denoiser_that_ignores_the_text_gains_exactly_nothing(prediction_type):
    numbers = measure(lambda latents, timesteps, text: latents.tanh(), prediction_type)
    assert numbers["text_gain"] == numbers["text_gain_empty"] == 0.0
    assert numbers["heldout_x0"] == numbers["heldout_x0_shuffled"] > 0


def test_a_denoiser_that_half_believes_its_text_gains_what_the_algebra_says():
    # Wrong captions say the opposite here: (1 - a)^2 with the right one, (1 + a)^2 with a wrong one, 1 with none.
    numbers = measure(lambda latents, timesteps, text: 0.5 * said(latents, text))
    assert numbers["heldout_x0"] == pytest.approx(0.25)
    assert numbers["heldout_x0_shuffled"] == pytest.approx(2.25)
    assert numbers["heldout_x0_empty"] == pytest.approx(1.0)
    assert numbers["text_gain"] == pytest.approx(8 / 9)
    assert numbers["text_gain_empty"] == pytest.approx(3 / 4)


def test_a_denoiser_that_always_predicts_zero_has_the_loss_of_its_target():
    def zero(latents, timesteps, text):
        return torch.zeros_like(latents)

    assert measure(zero, "epsilon")["heldout_loss"] == pytest.approx(1, abs=0.02)
    assert measure(zero, "v_prediction")["heldout_loss"] == pytest.approx(1, abs=0.02)
    assert measure(zero, "sample")["heldout_loss"] == pytest.approx(1, abs=1e-6)


def test_the_quarters_are_those_of_the_time_axis():
    def quarter(latents, timesteps, text):
        wrong = (timesteps * 4 // 1000).sqrt()[:, None, None, None]
        return said(latents, text) + wrong

    numbers = measure(quarter)
    assert [numbers[f"heldout_loss_t{part}"] for part in range(4)] == pytest.approx([0, 1, 2, 3], abs=1e-5)
    assert numbers["heldout_loss"] == pytest.approx(1.5, abs=1e-5)


def test_x0_errors_do_not_depend_on_objective_or_schedule():
    schedules = (
        ScheduleConfig(),
        ScheduleConfig(beta_schedule="squaredcos_cap_v2"),
        ScheduleConfig(num_train_timesteps=4000, beta_start=1e-4, beta_end=5e-3),
    )

    def denoiser_of(schedule):
        def denoiser(latents, timesteps, text):
            alpha, sigma = (share.float()[:, None, None, None] for share in schedule.alpha_sigma(timesteps))
            clean = alpha / (alpha**2 + sigma**2) * latents  # the best guess for pictures that are noise themselves
            noise = (latents - alpha * clean) / sigma
            return schedule.target(clean, noise, timesteps)

        return denoiser

    found = [
        measure(denoiser_of(Schedule(config, kind)), kind, config)["heldout_x0"]
        for config, kind in itertools.product(schedules, KINDS)
    ]
    # Of latents of unit size, sigma^2 / (alpha^2 + sigma^2) = 1 / (1 + SNR) is then left.
    assert found == pytest.approx([np.mean(1 / (1 + np.exp(LOG_SNRS)))] * 12, rel=0.02)
    assert max(found) - min(found) < 0.005


@pytest.mark.parametrize("examples", [(8, 3, 5), tuple(range(0, 2000, 3))])
def test_no_training_image_is_in_the_exam_and_the_work_is_bounded(examples):
    seen, store = [], Signs()

    def denoiser(latents, timesteps, text):
        seen.extend(timesteps.tolist())
        return latents

    measure(denoiser, examples=examples, store=store)
    assert len(seen) == LOSS_ROWS + 3 * X0_ROWS == 576
    assert set(store.asked) <= set(examples)
    assert np.abs(np.sort(seen[:LOSS_ROWS]) - (np.arange(LOSS_ROWS) + 0.5) * 1000 / LOSS_ROWS).max() <= 1
    times = [store.asked[:LOSS_ROWS].count(example) for example in examples]
    assert max(times) - min(times) <= 1


def test_every_image_meets_many_noise_levels():
    """The order of timesteps is independent of that of images: no image is asked about fine detail only."""
    seen = []

    def denoiser(latents, timesteps, text):
        seen.extend(zip(text.hidden_states[:, 0, 0].tolist(), (timesteps * 4 // 1000).tolist(), strict=True))
        return latents

    measure(denoiser, examples=(4, 7))
    asked = seen[:LOSS_ROWS]  # after these come other captions, which would hide an image's own noise levels
    assert set(asked) == {(sign, quarter) for sign in (1.0, -1.0) for quarter in range(4)}


@pytest.mark.parametrize("captions", ["abcdefg", "aaabcd", "AaabBb", "ab", "a red|a red |b|c"])
def test_other_captions_really_are_others(captions):
    words = captions.split("|") if "|" in captions else list(captions)

    class Words(Store):
        def __init__(self):
            pass

        def captions(self, index):
            return (words[index - 10],)

    examples = np.arange(10, 10 + len(words))
    partners = others(Words(), examples)
    assert sorted(partners.tolist()) == examples.tolist()
    for own, other in zip(examples.tolist(), partners.tolist(), strict=True):
        assert words[own - 10].strip().casefold() != words[other - 10].strip().casefold()


def test_another_caption_is_all_that_changes():
    """What is told of an image beside its caption stays its own: else the gain would be that of the sizes."""
    numbers = measure(lambda latents, timesteps, text: text.sizes[:, :1, None, None].expand_as(latents).float())
    assert numbers["heldout_x0_shuffled"] == numbers["heldout_x0_empty"] == numbers["heldout_x0"] == 0


def test_one_image_alone_tells_nothing_of_the_text():
    assert measure(lambda latents, timesteps, text: 0.5 * said(latents, text), examples=(4,))["text_gain"] == 0.0


def test_no_error_leaves_nothing_to_gain():
    assert gain(0.0, 0.0) == 0.0
