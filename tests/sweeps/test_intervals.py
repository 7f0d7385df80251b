"""Intervals agree with the printed tables of Student's t, and hold what they promise over many draws."""

import numpy as np
import pytest

from t2im.sweeps.intervals import interval, t_probability, t_quantile, time_to_reach


@pytest.mark.parametrize(
    ("degrees", "quantile"),
    [(1, 12.7062), (2, 4.3027), (3, 3.1824), (4, 2.7764), (7, 2.3646), (8, 2.3060), (29, 2.0452), (120, 1.9799)],
)
def test_quantiles_are_those_of_the_printed_table(degrees, quantile):
    assert t_quantile(0.95, degrees) == pytest.approx(quantile, abs=6e-5)


def test_probabilities_have_their_closed_forms_at_one_and_two_degrees():
    for t in (0.1, 0.9, 4.7):
        assert t_probability(t, 1) == pytest.approx(2 / np.pi * np.arctan(t))
        assert t_probability(t, 2) == pytest.approx(t / np.sqrt(2 + t * t))


def test_nineteen_of_twenty_intervals_hold_the_true_mean():
    draws = np.random.RandomState(0).normal(3.0, 2.0, size=(4000, 3))
    held = sum(abs(found.mean - 3.0) <= found.half_width for found in map(interval, draws.tolist()))
    assert held / 4000 == pytest.approx(0.95, abs=0.012)


def test_one_run_has_a_mean_but_no_interval():
    one = interval([0.25])
    assert (one.mean, one.half_width, one.count, one.differs_from_zero) == (0.25, None, 1, False)


@pytest.mark.parametrize(("values", "differs"), [([1.0, 1.1, 0.9], True), ([1.0, -1.1, 0.9], False)])
def test_a_difference_is_certain_when_zero_lies_outside(values, differs):
    assert interval(values).differs_from_zero is differs


@pytest.mark.parametrize(
    ("values", "seconds"),
    [
        ([0.9, 0.5, 0.4], 17.5),
        ([0.6, 0.5, 0.4], 10.0),  # no later than the first look
        ([0.9, 0.6, 0.8], 20.0),  # the first time counts
        ([0.9, 0.8, 0.7], None),
        ([], None),
    ],
)
def test_the_time_to_a_target_lies_on_the_line_between_two_looks(values, seconds):
    assert time_to_reach([10.0, 20.0, 30.0][: len(values)], values, target=0.6) == seconds
