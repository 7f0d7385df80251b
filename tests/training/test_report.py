import json
import math
from pathlib import Path

import pytest

from t2im.training.report import Report


def test_every_event_is_a_line_of_json_whatever_its_numbers(tmp_path):
    with Report(tmp_path, name="unet", quiet=True) as report:
        report.event("step", step=1, loss=math.nan, norm=math.inf, rate=0.5)
        (line,) = (tmp_path / "metrics.jsonl").read_text().splitlines()  # at once, not when the run has ended
    event = json.loads(line)
    assert (event["event"], event["step"], event["loss"], event["norm"], event["rate"]) == ("step", 1, None, None, 0.5)


def test_a_preview_is_noted_by_its_place_in_the_folder(tmp_path):
    with Report(tmp_path, name="unet", quiet=True) as report:
        report.preview(tmp_path / "previews" / "unet_step_00000003.png", step=3)
    event = json.loads((tmp_path / "metrics.jsonl").read_text())
    assert (event["event"], event["step"], event["path"]) == ("preview", 3, "previews/unet_step_00000003.png")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a file that is always full")
def test_a_full_disk_costs_numbers_and_not_the_run(tmp_path, monkeypatch):
    (tmp_path / "metrics.jsonl").symlink_to("/dev/full")
    said = []
    report = Report(tmp_path, name="unet", quiet=True)
    monkeypatch.setattr(report, "say", said.append)
    with report:
        for step in range(3):
            report.event("step", step=step)
    assert said == [f"{tmp_path}/metrics.jsonl: cannot be written (No space left on device). The run goes on."]


def test_a_line_that_a_crash_cut_off_spoils_no_other(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"event": "step", "step": 1}\n{"event": "st')
    with Report(tmp_path, name="unet", quiet=True) as report:
        report.event("step", step=2)
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert lines[1] == '{"event": "st' and lines[2].startswith('{"event": "step"') and len(lines) == 3
