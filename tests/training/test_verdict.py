"""Curves whose story is known, and what is said of them."""

import pytest

from t2im.training.history import History
from t2im.training.verdict import findings


def history(heldout, loss=(1.0, 0.5, 0.4, 0.3, 0.2), **others):
    """Return a run with a number at each of a few evaluations, 100 steps apart."""
    curves = {"heldout_loss": heldout, **{name: others.pop(name) for name in list(others) if name != "start"}}
    count = max(map(len, curves.values()))
    return History(
        start=others.get("start", {}),
        steps=[{"step": 100 * (index + 1), "loss": value} for index, value in enumerate(loss)],
        evaluations=[
            {"step": 100 * (index + 1), **{name: values[index] for name, values in curves.items()}}
            for index in range(count)
        ],
    )


def said(run):
    return " ".join(found.text for found in findings(run))


def test_learning_by_heart_is_seen_and_dated():
    text = said(history([0.9, 0.5, 0.4, 0.42, 0.5]))
    assert "since step 300 (0.4 to 0.5)" in text and "by heart" in text


def test_a_run_that_flies_apart_is_not_taken_for_learning_by_heart():
    text = said(history([0.9, 0.5, 0.4, 0.5, 0.9], loss=(1.0, 0.5, 0.4, 0.6, 0.9)))
    assert "learning_rate" in text and "by heart" not in text


def test_a_run_that_still_learns_is_told_from_one_that_has_ended():
    assert "a longer run helps" in said(history([0.9, 0.7, 0.6, 0.5, 0.4]))
    assert "levelled off" in said(history([0.9, 0.5, 0.41, 0.4, 0.4]))


def test_noise_is_no_finding():
    (found,) = findings(history([0.9, 0.5, 0.4, 0.401, 0.402]))
    assert found.good


def test_a_model_that_knows_nothing_is_named():
    assert "not below 0.4" in said(history([0.6, 0.5, 0.5], start={"expected": {"blind": 0.4}}))
    assert "not below" not in said(history([0.6, 0.5, 0.3], start={"expected": {"blind": 0.4}}))


@pytest.mark.parametrize(
    ("gain", "words"), [([0.0, 0.004, 0.0], "is not read"), ([0.0, 0.03, 0.25], "25% of the error"), ([], "")]
)
def test_whether_the_text_is_read(gain, words):
    text = said(history([0.9, 0.5, 0.4], **({"text_gain": gain} if gain else {})))
    assert words in text and ("step 200" in text) == ("25%" in words) and bool(gain) == ("caption" in text)


def test_troubles_are_counted():
    run = history([0.9, 0.5, 0.4])
    run.story = [
        {"event": "skipped", "step": 3},
        {"event": "skipped", "step": 4, "excused": True},
        {"event": "save", "step": 9, "problem": "full"},
    ]
    run.steps += [{"step": 500 + index, "samples_per_second": 60 if index < 40 else 20} for index in range(50)]
    text = said(run)
    assert "skipped: 1." in text and "written: 1." in text and "from 60 to 20 samples/s" in text


def test_nothing_is_claimed_of_a_run_that_was_hardly_measured():
    assert "nothing can be said" in said(History())
