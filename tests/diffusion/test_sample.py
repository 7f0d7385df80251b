import importlib.util
import itertools
import math

import pytest
import torch

from t2im.config import ScheduleConfig
from t2im.diffusion.sample import sample
from t2im.diffusion.schedule import Schedule
from t2im.errors import SamplingError, UsageError
from t2im.samplers import SCHEDULERS
from t2im.shapes import TextStates

SHAPE = (2, 5, 7)
RUNNABLE = [name for name in SCHEDULERS if name != "lms" or importlib.util.find_spec("scipy")]
LEADING, ZERO_SNR = ScheduleConfig(timestep_spacing="leading"), ScheduleConfig(rescale_betas_zero_snr=True)
SCHEDULE, FLOW = Schedule(LEADING), Schedule(ScheduleConfig(), "flow")
FLOW_SAMPLERS = [name for name, sampler in SCHEDULERS.items() if sampler.flow]


def prompts(count, seed=0):
    return TextStates(torch.randn(count, 3, 4, generator=torch.Generator().manual_seed(seed)))


def listens(latents, timesteps, text):
    """A denoiser that depends on everything it is given, and treats each sample alone."""
    told = text.hidden_states.mean(dim=(1, 2)) + timesteps / 1000
    return 0.5 * latents + latents.roll(1, dims=-1).tanh() * told[:, None, None, None]


def draw(denoiser=listens, schedule=SCHEDULE, text=None, shape=SHAPE, **options):
    options = {"num_inference_steps": 7, **options}
    return list(sample(denoiser, schedule, prompts(1) if text is None else text, shape=shape, **options))


class Recorder:
    """A denoiser that remembers its calls."""

    def __init__(self):
        self.calls = []

    def __call__(self, latents, timesteps, text):
        self.calls.append((latents, timesteps, text))
        return listens(latents, timesteps, text)


class Preparer(Recorder):
    """A denoiser with something to prepare, and a native size."""

    latent_shape = SHAPE

    def prepare(self, text, timesteps):
        self.prepared_for = timesteps
        self.prepared = TextStates(text.hidden_states.clone())
        return self.prepared


@pytest.mark.parametrize("name", RUNNABLE)
@pytest.mark.parametrize("guidance_scale", [1.0, 4.0])
@pytest.mark.parametrize("schedule", [SCHEDULE, FLOW], ids=["curved", "flow"])
def test_batched_image_equals_single_run(name, guidance_scale, schedule):
    if schedule is FLOW and name not in FLOW_SAMPLERS:
        return  # refused, see test_samplers.py
    text, negative = prompts(3), prompts(1, seed=9)
    options = {
        "schedule": schedule,
        "scheduler": name,
        "guidance_scale": guidance_scale,
        "negative": negative,
        "eta": 0.5 * (name == "ddim"),
    }
    together = draw(text=text, seed=11, **options)[-1].latents
    for i in range(3):
        alone = draw(text=text[i : i + 1], seed=11 + i, **options)[-1].latents
        torch.testing.assert_close(together[i : i + 1], alone, rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", ["ddim", "ddpm", "euler_a"])
def test_seeds_can_be_listed(name):
    text = prompts(1)[[0, 0]]
    listed = draw(text=text, seed=[5, 3], scheduler=name)[-1].latents
    torch.testing.assert_close(listed[1:], draw(text=text[:1], seed=3, scheduler=name)[-1].latents, rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", ["ddpm", "euler_a", "lcm"])
def test_another_seed_draws_other_steps_from_the_same_start(name):
    noise = torch.randn(1, *SHAPE, generator=torch.Generator().manual_seed(0))
    first, second = (draw(latents=noise, seed=seed, scheduler=name)[-1].latents for seed in (0, 1))
    assert not torch.allclose(first, second, atol=0.01)


@pytest.mark.parametrize("name", ["ddim", "euler", "heun", "dpm++2m", "unipc", "pndm", "deis"])
def test_deterministic_samplers_depend_on_the_start_only(name):
    noise = torch.randn(1, *SHAPE, generator=torch.Generator().manual_seed(0))
    first, second = (draw(latents=noise, seed=seed, scheduler=name)[-1].latents for seed in (0, 1))
    assert torch.equal(first, second)


def test_eta_puts_noise_into_ddim():
    still, noisy = (draw(seed=3, eta=eta) for eta in (0.0, 1.0))
    assert torch.equal(still[0].noisy_latents, noisy[0].noisy_latents)
    assert not torch.allclose(still[-1].latents, noisy[-1].latents, atol=0.01)


def test_the_first_noise_is_the_generators_first():
    first = draw(seed=42)[0].noisy_latents
    assert torch.equal(first[0], torch.randn(SHAPE, generator=torch.Generator().manual_seed(42)))


@pytest.mark.parametrize("name", RUNNABLE)
@pytest.mark.parametrize(
    "schedule",
    [Schedule(LEADING), Schedule(ScheduleConfig()), Schedule(ZERO_SNR, "v_prediction")],
    ids=["leading", "trailing", "zero"],
)
def test_steps_tell_what_happened(name, schedule):
    if schedule.config is ZERO_SNR and name in ("heun", "pndm", "deis", "lms"):
        return  # refused, see test_schedule.py
    recorder = Recorder()
    steps = draw(recorder, schedule, scheduler=name)
    assert [step.index for step in steps] == list(range(len(steps)))
    assert {step.total for step in steps} == {len(steps)} == {len(recorder.calls)}
    assert all(earlier.timestep >= later.timestep for earlier, later in itertools.pairwise(steps))
    for step, (latents, timesteps, _) in zip(steps, recorder.calls, strict=True):
        assert torch.equal(step.noisy_latents, latents)
        assert timesteps.dtype == torch.int64
        assert timesteps.tolist() == [step.timestep]
        assert torch.equal(step.noise_pred, listens(latents, timesteps, prompts(1)))
        expected = schedule.pred_original_sample(step.noise_pred, latents, timesteps)
        torch.testing.assert_close(step.pred_original_sample, expected, rtol=1e-3, atol=2e-3)


def test_second_order_samplers_call_more_often():
    assert len(draw(scheduler="heun", num_inference_steps=7)) == 13
    assert len(draw(scheduler="pndm", num_inference_steps=7)) == 8


def test_linspace_may_stand_between_two_timesteps():
    recorder = Recorder()
    steps = draw(recorder, Schedule(ScheduleConfig(timestep_spacing="linspace")), scheduler="euler")
    assert steps[1].timestep == pytest.approx(999 * 5 / 6)
    assert recorder.calls[1][1].is_floating_point()


@pytest.mark.parametrize("name", FLOW_SAMPLERS)
def test_flow_goes_in_even_steps_from_pure_noise(name):
    recorder = Recorder()
    steps = draw(recorder, FLOW, scheduler=name)
    expected = [1000 * (1 - i / 7) for i in range(7)]
    visited = list(dict.fromkeys(step.timestep for step in steps))
    # dpm++2m and unipc ask at whole numbers below, and the first begins one below: so does the stock pipeline with them.
    assert visited == pytest.approx(expected, abs=2.5 if name in ("dpm++2m", "unipc") else 1e-3)
    for step, (latents, timesteps, _) in zip(steps, recorder.calls, strict=True):
        assert torch.equal(step.noisy_latents, latents)
        assert timesteps.tolist() == [step.timestep]
        sigma = step.timestep / 1000
        torch.testing.assert_close(step.pred_original_sample, latents - sigma * step.noise_pred, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", ["euler", "heun"])
@pytest.mark.parametrize("steps", [1, 2, 11])
def test_flow_takes_few_and_all_timesteps(name, steps):
    schedule = Schedule(ScheduleConfig(num_train_timesteps=11), "flow")
    visited = {step.timestep for step in draw(schedule=schedule, scheduler=name, num_inference_steps=steps)}
    assert sorted(visited, reverse=True) == pytest.approx([11 * (1 - i / steps) for i in range(steps)], abs=1e-4)


@pytest.mark.parametrize("name", FLOW_SAMPLERS)
def test_a_flow_denoiser_prepares_for_every_time_between_timesteps(name):
    preparer = Preparer()
    steps = draw(preparer, FLOW, scheduler=name, shape=None)
    assert preparer.prepared_for.tolist() == sorted({step.timestep for step in steps})


@pytest.mark.parametrize("name", sorted(set(RUNNABLE) - {"dpm++2m", "unipc", "deis"}))
@pytest.mark.parametrize("steps", [1, 2, 11])
def test_few_and_all_timesteps_work(name, steps):
    schedule = Schedule(ScheduleConfig(num_train_timesteps=11, beta_end=0.5))
    visited = draw(schedule=schedule, scheduler=name, num_inference_steps=steps)
    assert len({step.timestep for step in visited}) == steps
    assert all(0 <= step.timestep < 11 for step in visited)


def test_guidance_is_one_call_of_both_halves():
    recorder, text, negative = Recorder(), prompts(2), prompts(2, seed=9)
    steps = draw(recorder, text=text, negative=negative, guidance_scale=3.0)
    assert len(recorder.calls) == len(steps)
    for step, (latents, timesteps, states) in zip(steps, recorder.calls, strict=True):
        assert latents.shape == (4, *SHAPE)
        assert torch.equal(states.hidden_states, torch.cat([negative.hidden_states, text.hidden_states]))
        unconditional = listens(step.noisy_latents, timesteps[:2], negative)
        conditional = listens(step.noisy_latents, timesteps[:2], text)
        expected = unconditional + 3 * (conditional - unconditional)
        torch.testing.assert_close(step.noise_pred, expected, rtol=1e-5, atol=1e-6)


def test_no_unconditional_half_without_guidance():
    recorder = Recorder()
    draw(recorder, text=prompts(2), negative=prompts(1, seed=9), guidance_scale=1.0)
    assert {len(latents) for latents, _, _ in recorder.calls} == {2}


def test_one_negative_prompt_serves_all():
    text, negative = prompts(3), prompts(1, seed=9)
    one = draw(text=text, negative=negative, guidance_scale=3.0)[-1].latents
    three = draw(text=text, negative=negative[[0, 0, 0]], guidance_scale=3.0)[-1].latents
    assert torch.equal(one, three)


def test_texts_of_different_length_meet_under_a_mask():
    recorder = Recorder()
    short = TextStates(torch.zeros(1, 2, 4))
    draw(recorder, text=prompts(1), negative=short, guidance_scale=3.0)
    assert recorder.calls[0][2].mask.tolist() == [[True, True, False], [True, True, True]]


def test_guidance_rescale_restores_the_contrast_of_the_conditional_prediction():
    text, negative = prompts(1), prompts(1, seed=9)
    recorder = Recorder()
    step = draw(recorder, text=text, negative=negative, guidance_scale=9.0, guidance_rescale=1.0)[0]
    conditional = listens(step.noisy_latents, recorder.calls[0][1][:1], text)
    torch.testing.assert_close(step.noise_pred.std(), conditional.std())


def test_a_denoiser_prepares_once_for_all_timesteps():
    preparer, text, negative = Preparer(), prompts(2), prompts(1, seed=9)
    steps = draw(preparer, text=text, negative=negative, guidance_scale=3.0, scheduler="heun", shape=None)
    assert preparer.prepared_for.tolist() == sorted({step.timestep for step in steps})
    assert len(preparer.prepared) == 4
    assert all(states is preparer.prepared for _, _, states in preparer.calls)
    plain = draw(text=text, negative=negative, guidance_scale=3.0, scheduler="heun")
    assert torch.equal(plain[-1].latents, steps[-1].latents)


def test_given_latents_are_the_start():
    noise = torch.randn(1, *SHAPE, generator=torch.Generator().manual_seed(5))
    assert torch.equal(draw(latents=noise, shape=None)[0].noisy_latents, noise)
    assert torch.equal(draw(latents=noise, scheduler="ddpm", seed=1)[0].noisy_latents, noise)
    assert draw(latents=noise.bfloat16())[0].noisy_latents.dtype == torch.float32


def test_the_denoiser_works_in_the_dtype_of_the_text():
    recorder, text = Recorder(), prompts(1).to(dtype=torch.bfloat16)
    steps = draw(recorder, text=text)
    assert {latents.dtype for latents, _, _ in recorder.calls} == {torch.bfloat16}
    assert steps[-1].latents.dtype == steps[-1].noise_pred.dtype == torch.float32


def test_nothing_is_computed_before_it_is_asked_for():
    recorder = Recorder()
    steps = sample(recorder, SCHEDULE, prompts(1), shape=SHAPE)
    assert not recorder.calls
    next(steps)
    assert len(recorder.calls) == 1


def test_sampling_records_no_gradients_and_leaves_the_listeners_alone():
    weight = torch.ones(1, requires_grad=True)
    for step in sample(lambda x, t, text: x * weight, SCHEDULE, prompts(1), shape=SHAPE, num_inference_steps=3):
        assert torch.is_grad_enabled()
        assert not step.latents.requires_grad


def test_two_runs_do_not_disturb_each_other():
    alone = [step.latents for step in draw(scheduler="dpm++2m")]
    interleaved = [
        pair[0].latents
        for pair in zip(
            sample(listens, SCHEDULE, prompts(1), shape=SHAPE, num_inference_steps=7, scheduler="dpm++2m"),
            sample(listens, SCHEDULE, prompts(1), shape=SHAPE, num_inference_steps=7, scheduler="dpm++2m", seed=9),
            strict=True,
        )
    ]
    assert all(torch.equal(a, b) for a, b in zip(alone, interleaved, strict=True))


def test_a_denoiser_that_breaks_is_named_with_its_step():
    def breaks(latents, timesteps, text):
        return latents * (math.nan if timesteps[0] < 500 else 1)

    with pytest.raises(
        SamplingError, match=r"step 4 of 7 \(timestep 427\): the denoiser's prediction is not finite\. "
    ):
        draw(breaks, num_inference_steps=7)


def test_one_bad_value_in_one_image_is_enough():
    def breaks(latents, timesteps, text):
        latents = latents.clone()
        latents[1, 0, 0, 0] = math.inf
        return latents

    with pytest.raises(SamplingError, match="step 1 of 7"):
        draw(breaks, text=prompts(2))


def test_latents_that_overflow_are_named():
    with pytest.raises(SamplingError, match="the sampler's latents are not finite"):
        draw(lambda latents, timesteps, text: torch.full_like(latents, 3e38))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_inference_steps": 0}, "num_inference_steps is 0, but the schedule has timesteps for 1 to 1000"),
        ({"num_inference_steps": 1001}, "num_inference_steps is 1001, but"),
        ({"num_inference_steps": 1000, "scheduler": "dpm++2m"}, r'1000, which dpm\+\+2m cannot spread .*"leading"'),
        ({"guidance_scale": -1.0}, "guidance_scale is -1.0"),
        ({"guidance_scale": math.nan}, "guidance_scale is nan"),
        ({"guidance_scale": math.inf}, "guidance_scale is inf"),
        ({"guidance_scale": 4.0}, r"guidance_scale is 4.0, which needs negative="),
        ({"guidance_scale": 4.0, "negative": prompts(2)}, "2 negative prompts for 3 prompts"),
        ({"guidance_rescale": 1.5}, "guidance_rescale is 1.5; it must lie between 0 and 1"),
        ({"eta": -0.5}, "eta is -0.5"),
        ({"eta": 0.5, "scheduler": "euler"}, 'eta is 0.5, but scheduler "euler" has no eta'),
        ({"seed": -1}, "seed -1 is out of range"),
        ({"seed": 2**63 - 1}, f"seed {2**63} is out of range"),
        ({"seed": [1, 2]}, "2 seeds for 3 prompts"),
        ({"shape": None}, "no latent_shape; pass shape="),
        ({"latents": torch.zeros(2, *SHAPE)}, r"latents have shape \(2, 2, 5, 7\); these prompts need \(3, 2, 5, 7\)"),
        ({"latents": torch.zeros(3, 2, 5, 5)}, r"latents have shape \(3, 2, 5, 5\); these prompts need \(3, 2, 5, 7\)"),
        ({"schedule": FLOW}, r'"ddim" cannot run the straight path of flow; use euler, '),
        ({"schedule": FLOW, "scheduler": "dpm++2m", "num_inference_steps": 1000}, r"1000, which dpm\+\+2m cannot"),
        ({"scheduler": "dimm"}, r'"dimm" is unknown \(did you mean "ddim"\?\)'),
    ],
)
def test_impossible_values_are_refused_at_once(options, message):
    with pytest.raises(UsageError, match=message):
        sample(listens, text=prompts(3), **{"schedule": SCHEDULE, "shape": SHAPE, **options})


def test_steps_that_diffusers_rounds_below_zero_are_refused():
    # Its "trailing" spacing visits timestep -1, the noisiest, as the 62nd of 61 steps.
    schedule = Schedule(ScheduleConfig(timestep_spacing="trailing"))
    with pytest.raises(UsageError, match='61, which ddim cannot spread over 1000 timesteps with "trailing" spacing'):
        draw(schedule=schedule, num_inference_steps=61)
    assert len(draw(schedule=schedule, num_inference_steps=60)) == 60
