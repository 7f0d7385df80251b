"""The doctor writes a report beside the folder, never into it, and its exit code says what kind of thing is wrong."""

import json

import pytest

from t2im.advice.doctor.examine import Diagnosis, doctor
from t2im.advice.doctor.findings import Finding
from t2im.errors import UsageError


def test_a_folder_is_examined_without_being_touched(colours, encoders, unet_settings, tmp_path):
    before = sorted(colours.rglob("*"))
    options = {"settings": unet_settings, "minutes": 0, "device": "cpu", "output": tmp_path / "findings", **encoders}
    diagnosis = doctor(colours, **options)
    assert sorted(colours.rglob("*")) == before
    names = {path.name for path in diagnosis.report.iterdir()}
    assert names == {"findings.txt", "findings.json", "vae_worst.png"}
    written = json.loads((diagnosis.report / "findings.json").read_text())
    assert [finding["what"] for finding in written["findings"]] == [finding.what for finding in diagnosis.findings]
    assert diagnosis.exit_code == 5, "the tiny VAE was never trained"
    with pytest.raises(UsageError, match="not overwritten"):
        doctor(colours, **options)


def test_a_report_inside_the_image_folder_is_refused(colours):
    with pytest.raises(UsageError, match="inside the image folder"):
        doctor(colours, output=colours / "report")


@pytest.mark.parametrize(
    ("topic", "level", "code"), [("captions", "wrong", 3), ("vae", "wrong", 5), ("training", "look", 0)]
)
def test_the_exit_code_tells_data_from_training(topic, level, code, tmp_path):
    assert Diagnosis((Finding(topic, level, "something"),), tmp_path).exit_code == code
