"""The learning rate is a pure function, so everything about it can be said in advance."""

import math
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from t2im.config import OptimizationConfig
from t2im.training.learning_rate import SHAPES, learning_rate

SCHEDULES = st.sampled_from(sorted(SHAPES))
SETTINGS = st.builds(
    OptimizationConfig,
    schedule=SCHEDULES,
    learning_rate=st.floats(1e-6, 1.0),
    warmup_steps=st.integers(0, 60),
    decay_share=st.floats(0.05, 1.0),
    reference_steps=st.integers(1, 50),
)


def rates(settings, steps):
    return [learning_rate(step, step / steps, settings) for step in range(steps)]


def test_warmup_rises_linearly_to_the_peak():
    settings = OptimizationConfig(learning_rate=0.4, warmup_steps=4, schedule="constant")
    assert [learning_rate(step, 0.0, settings) for step in range(6)] == pytest.approx([0.1, 0.2, 0.3, 0.4, 0.4, 0.4])


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        ("constant", [1, 1, 1, 1, 1]),
        ("linear", [1, 0.75, 0.5, 0.25, 0]),
        ("cosine", [1, (2 + math.sqrt(2)) / 4, 0.5, (2 - math.sqrt(2)) / 4, 0]),
        ("warmup_stable_decay", [1, 1, 1, 0.5, 0]),
    ],
)
def test_schedules_meet_their_closed_form(schedule, expected):
    settings = OptimizationConfig(learning_rate=1.0, warmup_steps=0, schedule=schedule, decay_share=0.5)
    assert [learning_rate(99, done, settings) for done in (0.0, 0.25, 0.5, 0.75, 1.0)] == pytest.approx(expected)


def test_inverse_square_root_halves_when_the_steps_are_four_times_as_many():
    settings = OptimizationConfig(learning_rate=1.0, warmup_steps=0, schedule="inverse_sqrt", reference_steps=100)
    values = [learning_rate(step - 1, 0.0, settings) for step in (1, 100, 200, 400, 1600)]
    assert values == pytest.approx([1, 1, math.sqrt(0.5), 0.5, 0.25])


@given(settings=SETTINGS, steps=st.integers(2, 400))
def test_it_rises_while_it_warms_up_and_never_after(settings, steps):
    values = rates(settings, steps)
    peak = max(range(steps), key=values.__getitem__)
    assert peak <= settings.warmup_steps
    assert all(value <= settings.learning_rate * (1 + 1e-12) and value > 0 for value in values)
    assert all(later <= earlier for earlier, later in pairwise(values[peak:]))


@given(settings=SETTINGS, steps=st.integers(2, 400))
def test_it_never_jumps(settings, steps):
    # The steepest that each may be, in shares of the peak for a step.
    fall = {
        "constant": 0.0,
        "linear": 1 / steps,
        "cosine": math.pi / 2 / steps,
        "inverse_sqrt": 0.5 / settings.reference_steps,
        "warmup_stable_decay": 1 / (settings.decay_share * steps),
    }[settings.schedule]
    rise = 1 / settings.warmup_steps if settings.warmup_steps else 0.0
    shares = [value / settings.learning_rate for value in rates(settings, steps)]
    changes = [later - earlier for earlier, later in pairwise(shares)]
    assert all(-fall - 1e-9 <= change <= rise + 1e-9 for change in changes)


@given(settings=SETTINGS)
def test_those_that_end_at_zero_end_there(settings):
    end = learning_rate(10**6, 1.0, settings)
    assert (end == pytest.approx(0.0, abs=1e-12)) == (settings.schedule not in {"constant", "inverse_sqrt"})


@given(settings=SETTINGS, steps=st.integers(2, 80), devices=st.integers(1, 8), parts=st.integers(1, 8))
def test_devices_and_parts_of_a_step_do_not_change_it(settings, steps, devices, parts):
    # Each device computes each part of a step with the settings of its own, and asks for the step's learning rate.
    spread = settings.model_copy(update={"batch_size": devices * parts, "gradient_accumulation_steps": parts})
    asked = [learning_rate(part // parts, part // parts / steps, spread) for part in range(steps * parts)]
    assert asked[::parts] == asked[parts - 1 :: parts] == rates(settings, steps)


@given(settings=SETTINGS, step=st.integers(0, 10**6), beyond=st.floats(-1, 2))
def test_a_share_outside_the_run_counts_as_its_end(settings, step, beyond):
    inside = min(max(beyond, 0.0), 1.0)
    assert learning_rate(step, beyond, settings) == learning_rate(step, inside, settings)


def test_a_decay_without_a_share_of_the_run_never_begins():
    settings = OptimizationConfig(schedule="warmup_stable_decay", decay_share=0.0, warmup_steps=0, learning_rate=1.0)
    assert rates(settings, 10) == [1.0] * 10
