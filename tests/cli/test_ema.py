"""`t2im ema` reads widths strictly, prints a table, and gives the model's folder as its last line."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from t2im.cli.ema import parse_sigmas
from t2im.cli.main import app
from t2im.errors import UsageError
from t2im.training import ema_choice
from t2im.training.ema_choice import Candidate, Choice


def test_a_range_is_spread_evenly_by_ratio_with_both_ends():
    assert parse_sigmas("0.02..0.16", 4) == pytest.approx([0.02, 0.04, 0.08, 0.16])


def test_one_candidate_of_a_range_is_its_middle():
    assert parse_sigmas("0.04..0.16", 1) == pytest.approx([0.08])


def test_a_list_is_taken_as_it_is_rising_and_each_width_once():
    assert parse_sigmas("0.1, 0.05,0.10", 9) == [0.05, 0.1]


@given(st.floats(0.001, 0.28), st.floats(0.001, 0.28), st.integers(2, 30))
def test_every_range_stays_within_its_ends(first, last, count):
    low, high = sorted((first, last))
    if low < high:
        sigmas = parse_sigmas(f"{low}..{high}", count)
        assert sigmas == sorted(sigmas) and low * 0.999 <= sigmas[0] and sigmas[-1] <= high * 1.001


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("wide", r"give a range such as 0.03..0.2"),
        ("0.05..", "give a range"),
        ("", "give a range"),
        ("0.05,0.29", "--sigma 0.29: a width is a share of the run above 0 and below 0.29"),
        ("0..0.1", "--sigma 0: a width"),
        ("nan", "--sigma nan: a width"),
        ("0.2..0.1", "the range is empty; write the smaller width first"),
    ],
)
def test_a_width_that_cannot_be_is_refused(text, complaint):
    with pytest.raises(UsageError, match=complaint):
        parse_sigmas(text, 8)


@pytest.fixture
def asked(monkeypatch, tmp_path):
    """Put a comparison that is ready into the place of a real one; return what was asked of it."""
    asked = {}

    def ready(run, sigmas, **options):
        asked.update(run=run, sigmas=sigmas, **options)
        measured = [{"heldout_loss": loss, "heldout_x0": 0.4, "text_gain": 0.05} for loss in (0.21, 0.2, asked["loss"])]
        candidates = (
            Candidate("raw weights", measured[0]),
            Candidate("the run's average", measured[1]),
            Candidate("sigma 0.1", measured[2], 0.1, 0.012),
        )
        return Choice(candidates, candidates[2], 12, tmp_path / "strip.png", tmp_path / "model_ema")

    monkeypatch.setattr(ema_choice, "choose", ready)
    return asked


def test_the_table_marks_the_best_and_the_last_line_is_the_model(asked, tmp_path):
    asked["loss"] = 0.19
    result = CliRunner().invoke(app, ["ema", "output/run", "--sigma", "0.1", "--data", "photos"])
    assert result.exit_code == 0, result.output
    lines = result.stdout.splitlines()
    assert lines[-1] == str(tmp_path / "model_ema")
    (row,) = [line for line in lines if "sigma 0.1" in line]
    assert all(word in row for word in ("1.2%", "0.19000", "0.40000", "5.0%", "best"))
    assert asked["sigmas"] == [0.1] and str(asked["run"]) == "output/run" and str(asked["folder"]) == "photos"
    assert "none of these widths" not in result.stderr


def test_it_is_said_when_the_run_had_a_better_average_already(asked):
    asked["loss"] = 0.3
    result = CliRunner().invoke(app, ["ema", "output/run", "--sigma", "0.1"])
    assert "none of these widths does better than the run's average" in result.stderr
