"""`t2im plan` and `t2im doctor` print what they found, end with the right code, and only read the user's folder."""

import hashlib
import json

import pytest
from PIL import Image

from t2im.cli.main import main

COLOURS = ("red", "green", "blue", "black", "white", "yellow", "purple", "orange", "cyan", "pink", "grey")
TINY = (
    "data.resolution=16",
    "unet.block_out_channels=(8,16)",
    "unet.norm_num_groups=4",
    "unet.attention_head_dim=2",
    "unet.down_block_types=('DownBlock2D','CrossAttnDownBlock2D')",
    "unet.up_block_types=('CrossAttnUpBlock2D','UpBlock2D')",
    "unet.addition_embed_type=none",
    "training.batch_size=4",
    "sampling.num_inference_steps=2",
)


@pytest.fixture
def photos(tmp_path, monkeypatch):
    """Return a folder of eleven captioned pictures, below the working directory."""
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "photos"
    folder.mkdir()
    for colour in COLOURS:
        Image.new("RGB", (17, 17), colour).save(folder / f"{colour}.png")
        (folder / f"{colour}.txt").write_text(f"a {colour} picture")
    return folder


@pytest.fixture
def options(tiny_model, tmp_path):
    """Return options that make both commands take a moment."""
    tiny_model.vae.save(tmp_path / "encoders" / "vae")
    tiny_model.text_encoder.save(tmp_path / "encoders")
    encoders = str(tmp_path / "encoders")
    settings = [part for setting in TINY for part in ("--set", setting)]
    return ["--vae", encoders, "--text-encoder", encoders, "--device", "cpu", *settings]


def state_of(folder):
    return {path: path.is_file() and hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.rglob("*")}


@pytest.fixture
def run(monkeypatch, capsys):
    """Return a function that runs a command; it returns (exit code, standard output, standard error)."""

    def call(*arguments):
        monkeypatch.setattr("sys.argv", ["t2im", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            main()
        return ended.value.code, *capsys.readouterr()

    return call


def test_a_plan_is_one_json_object_and_writes_nothing_at_all(run, photos, options, tmp_path):
    before = state_of(tmp_path)
    code, printed, complaint = run("plan", photos, "--json", "--steps", 7, *options)
    assert code == 0, complaint
    forecast = json.loads(printed)
    assert forecast["steps"] == 7 and forecast["images"] == 11
    assert forecast["seconds"] == pytest.approx(sum(stage["seconds"] for stage in forecast["stages"]))
    assert state_of(tmp_path) == before


@pytest.mark.parametrize("arguments", [("plan", "nowhere"), ("doctor", "nowhere")])
def test_a_folder_that_is_not_there_is_the_datas_fault(run, arguments, photos):
    code, printed, complaint = run(*arguments)
    assert code == 3 and printed == ""
    assert complaint.startswith("t2im: ") and "nowhere" in complaint and complaint.count("\n") == 1


def test_two_lengths_are_one_too_many(run, photos, options):
    code, _, complaint = run("plan", photos, "--steps", 7, "--epochs", 2, *options)
    assert code == 2 and "both say how long" in complaint


def test_the_doctor_tells_bad_data_by_its_code_and_writes_one_report(run, photos, options, tmp_path):
    for path in photos.glob("*.txt"):
        path.write_text("a picture")
    before = state_of(tmp_path)
    code, printed, complaint = run("doctor", photos, "--minutes", 0, "--output", tmp_path / "findings", *options)
    assert code == 3, complaint
    assert "wrong  captions  11 images (100%) have no caption of their own" in printed
    assert printed.splitlines()[-1].startswith("report: ")
    after = state_of(tmp_path)
    assert {path for path in after if before.get(path) != after[path]} == {
        tmp_path / "findings",
        *(tmp_path / "findings").iterdir(),
    }


def test_the_doctor_never_writes_over_a_report(run, photos, options, tmp_path):
    (tmp_path / "findings").mkdir()
    (tmp_path / "findings" / "mine.txt").write_text("kept")
    before = state_of(tmp_path)
    code, _, complaint = run("doctor", photos, "--output", tmp_path / "findings", *options)
    assert code == 2 and "not overwritten" in complaint
    assert state_of(tmp_path) == before
