import json

import pytest

from t2im.errors import DataError
from t2im.training.history import read_history


def write(folder, *events, tail=""):
    (folder / "metrics.jsonl").write_text("".join(json.dumps(event) + "\n" for event in events) + tail)
    return folder


def step(number, **numbers):
    return {"event": "step", "step": number, **numbers}


def test_curves_leave_out_what_was_not_measured(tmp_path):
    write(
        tmp_path,
        step(1, loss=1.0),
        step(2, loss=None),
        step(3),
        {"event": "evaluation", "step": 3, "heldout_loss": 0.5},
        step(4, loss=0.25),
    )
    history = read_history(tmp_path)
    assert history.curve("loss") == [(1, 1.0), (4, 0.25)] and history.curve("heldout_loss") == [(3, 0.5)]
    assert history.last("loss") == 0.25 and history.last("text_gain") is None and history.step == 4


def test_steps_that_were_taken_again_count_once(tmp_path):
    evaluation = {"event": "evaluation", "step": 20, "heldout_loss": 9.0}
    write(
        tmp_path,
        *(step(number, loss=1.0) for number in (10, 20, 30)),
        evaluation,
        {"event": "resume", "step": 10, "path": "c.pt"},
        *(step(number, loss=2.0) for number in (20, 30)),
        {**evaluation, "heldout_loss": 3.0},
    )
    history = read_history(tmp_path)
    assert history.curve("loss") == [(10, 1.0), (20, 2.0), (30, 2.0)]
    assert history.curve("heldout_loss") == [(20, 3.0)] and history.count("resume") == 1


def test_a_file_is_read_however_it_was_cut_off(tmp_path):
    write(tmp_path, step(1, loss=1.0), [1, 2], {"event": "unknown"}, {"step": 3}, tail='{"event": "step", "st')
    assert read_history(tmp_path).curve("loss") == [(1, 1.0)]
    (tmp_path / "metrics.jsonl").write_bytes(b'{"event": "step", "step": 1}\n\xff\xfe\x00\n')
    assert read_history(tmp_path).step == 1


def test_the_story_is_told_in_order(tmp_path):
    write(
        tmp_path,
        {"event": "start", "settings": "x"},
        step(1),
        {"event": "save", "step": 1, "path": "a.pt", "problem": ""},
        {"event": "skipped", "step": 2, "samples": [4, 8]},
        {"event": "save", "step": 2, "path": "b.pt", "problem": "disk full"},
        {"event": "rollback", "reason": "not finite"},
        {"event": "end", "step": 2, "finished": True},
    )
    history = read_history(tmp_path)
    assert [event["event"] for event in history.story] == ["start", "skipped", "save", "rollback", "end"]
    assert history.start["settings"] == "x"


@pytest.mark.parametrize(
    ("text", "what"), [(None, "no such file"), ("", "no training step"), ("\n{}\n", "no training")]
)
def test_a_folder_without_a_run_is_named(text, what, tmp_path):
    if text is not None:
        (tmp_path / "metrics.jsonl").write_text(text)
    with pytest.raises(DataError, match=what):
        read_history(tmp_path)
