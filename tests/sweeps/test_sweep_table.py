"""The table of a sweep, on runs whose numbers are made up so that every column is known beforehand."""

import json

import pytest

from t2im.sweeps.sweep_table import Outcome, as_json, as_markdown, read_outcome, rows_of, seconds_to_reach


def run(variant, seed, x0, gain=(0.0, 0.1, 0.2), loss=None, **options):
    curves = {"heldout_x0": tuple(x0), "text_gain": tuple(gain)} | ({"heldout_loss": loss} if loss else {})
    return Outcome(
        variant, seed, steps=30, samples_per_second=50.0, seconds=(10.0, 20.0, 30.0), curves=curves, **options
    )


RUNS = [
    run("plain", 0, (0.9, 0.6, 0.50)),
    run("plain", 1, (0.9, 0.7, 0.60)),
    run("plain", 2, (0.9, 0.8, 0.70)),
    run("better", 0, (0.8, 0.4, 0.30), gain=(0.1, 0.2, 0.3)),
    run("better", 1, (0.8, 0.5, 0.40), gain=(0.2, 0.2, 0.3)),
    run("better", 2, (0.8, 0.6, 0.49), gain=(0.2, 0.2, 0.3)),
    run("worse", 0, (0.9, 0.8, 0.70)),
]


def test_rows_are_sorted_by_x0_error_and_compared_within_seeds():
    best, plain, worse = rows_of(RUNS)
    assert [row.variant for row in (best, plain, worse)] == ["better", "plain", "worse"]
    assert best.measures["heldout_x0"].mean == pytest.approx(1.19 / 3)
    difference = best.differences["heldout_x0"]
    # Differences 0.2, 0.2, 0.21 have s = 0.0057735 and t(2) = 4.3027: half width 4.3027 s / sqrt(3).
    assert difference.mean == pytest.approx(-0.61 / 3)
    assert difference.half_width == pytest.approx(4.30265 * 0.0057735 / 3**0.5, rel=1e-4)
    assert difference.differs_from_zero and plain.differences == {}
    # Unpaired, the same seeds spread by 0.2 and nothing could be said.
    assert best.measures["heldout_x0"].half_width > 0.2
    assert worse.differences["heldout_x0"].mean == pytest.approx(0.2)
    assert worse.differences["heldout_x0"].half_width is None


def test_the_time_to_reach_counts_both_measures_and_is_a_share_of_the_first_settings_own():
    # x0 error falls from 0.8 to 0.4 between 10 s and 20 s and passes 0.5 at 17.5 s; the gain is 0.2 at 20 s only.
    assert seconds_to_reach(RUNS[3], RUNS[0]) == pytest.approx(20.0)
    assert seconds_to_reach(RUNS[4], RUNS[1]) == pytest.approx(10 + 10 * 0.2 / 0.3)
    best, plain, worse = rows_of(RUNS)
    assert plain.seconds_to_reach == (30.0, 30.0, 30.0) and plain.time_ratio == 1.0
    assert best.time_ratio == pytest.approx((10 + 10 * 0.2 / 0.3) / 30)
    assert worse.seconds_to_reach == (None,) and worse.time_ratio is None


def test_a_gain_that_is_never_reached_spoils_the_time():
    assert seconds_to_reach(run("deaf", 0, (0.1, 0.1, 0.1), gain=(0, 0, 0)), RUNS[0]) is None


def test_the_table_says_what_a_reader_must_know():
    text = as_markdown(rows_of([*RUNS, Outcome("bad", 0, fault="10 steps in a row")]), first="plain", budget="20m")
    lines = text.splitlines()
    assert len({line.count("|") for line in lines[:6]}) == 1 and len({len(line) for line in lines[:6]}) == 1
    assert lines[2].startswith("| **better** | 3    | 0.3967 ±") and "-0.2033 ± 0.0143 *" in lines[2]
    assert "| first " in lines[3] and "(n=1)" in lines[4] and "not reached (0/1)" in lines[4]
    assert lines[5].startswith("| bad        | 0 ") and "bad, seed 0: 10 steps in a row" in text
    assert "Every run had 20m" in text and "heldout_loss" not in text


def test_losses_are_shown_with_the_warning_that_objectives_differ():
    text = as_markdown(rows_of([run("a", 0, (3, 2, 1), loss=(0.3, 0.2, 0.1))]), first="a", budget="5steps")
    assert "| heldout_loss " in text and "rows of one objective" in text


def test_without_x0_errors_the_losses_decide():
    curves = [{"heldout_loss": (0.3,)}, {"heldout_loss": (0.2,)}]
    rows = rows_of([Outcome(name, 0, seconds=(1.0,), curves=c) for name, c in zip("ab", curves, strict=True)])
    assert [row.variant for row in rows] == ["b", "a"] and rows[0].time_ratio is None


def test_all_numbers_go_into_the_json():
    numbers = json.loads(json.dumps(as_json(rows_of(RUNS), RUNS)))
    assert len(numbers["settings"]) == 3 and len(numbers["runs"]) == 7
    assert numbers["runs"][0]["curves"]["heldout_x0"] == [0.9, 0.6, 0.5]


def write_metrics(path, events):
    path.write_text("".join(json.dumps(event) + "\n" for event in events))


def test_what_a_resumed_run_did_twice_counts_once(tmp_path):
    def at(step, value):
        return [
            {"event": "step", "step": step, "time": 1.0, "samples_per_second": 10.0 * step},
            {"event": "evaluation", "step": step, "time": 1.0, "heldout_x0": value, "training_seconds": step * 2.0},
        ]

    write_metrics(
        tmp_path / "m.jsonl", [*at(1, 0.9), *at(2, 0.8), {"event": "resume", "step": 1}, *at(2, 0.7), *at(3, 0.6)]
    )
    outcome = read_outcome(tmp_path / "m.jsonl", "a", 4)
    assert outcome.curves == {"heldout_x0": (0.9, 0.7, 0.6)} and outcome.seconds == (2.0, 4.0, 6.0)
    assert (outcome.variant, outcome.seed, outcome.steps, outcome.samples_per_second) == ("a", 4, 3, 20.0)


def test_a_run_without_metrics_or_with_holes_in_them_has_no_such_curve(tmp_path):
    assert read_outcome(tmp_path / "none.jsonl", "a", 0).curves == {}
    event = {"event": "evaluation", "time": 1.0, "training_seconds": 1.0, "text_gain": 0.1}
    write_metrics(
        tmp_path / "m.jsonl", [event | {"step": 1, "heldout_x0": None}, event | {"step": 2, "heldout_x0": 0.5}]
    )
    assert read_outcome(tmp_path / "m.jsonl", "a", 0).curves == {"text_gain": (0.1, 0.1)}
