"""A sweep of two settings with two seeds runs to its end, is cut short, and goes on."""

import json

import pytest
from PIL import Image
from typer.testing import CliRunner

import t2im.cache
from t2im.cli.main import app
from t2im.errors import CANCELLED, Diverged, UsageError
from t2im.sweeps import sweep as job
from t2im.training.run import Run

COLOURS = ("red", "green", "blue", "black", "white", "yellow", "purple", "orange", "cyan", "pink", "grey")
SETTINGS = (
    "data.resolution=16",
    "data.heldout=0.2",
    "training.batch_size=3",
    "training.evaluations=2",
    "unet.block_out_channels=(8,16)",
    "unet.addition_embed_type=none",
    "unet.norm_num_groups=4",
    "unet.attention_head_dim=2",
    "unet.down_block_types=('DownBlock2D','CrossAttnDownBlock2D')",
    "unet.up_block_types=('CrossAttnUpBlock2D','UpBlock2D')",
    "sampling.num_inference_steps=1",
)
OBJECTIVES = "objective.type=epsilon,v_prediction"


@pytest.fixture
def folder(tmp_path):
    images = tmp_path / "photos" / "images"
    images.mkdir(parents=True)
    for number, colour in enumerate(COLOURS):
        Image.new("RGB", (17 + number, 16), colour).save(images / f"{colour}.png")
    (images.parent / "captions.json").write_text(
        json.dumps({f"{colour}.png": f"a {colour} card" for colour in COLOURS})
    )
    return images.parent


@pytest.fixture
def start(folder, tmp_path):
    def run(*settings, seeds=2, budget="2steps", **options):
        options = {"output": tmp_path / "sweep", "device": "cpu", "quiet": True} | options
        return job.sweep(folder, settings=(*SETTINGS, *settings), budget=budget, seeds=seeds, **options)

    return run


def test_all_settings_are_trained_and_compared_and_nothing_is_encoded_twice(start, tiny_model, tmp_path, monkeypatch):
    tiny_model.vae.save(tmp_path / "encoders" / "vae")
    tiny_model.text_encoder.save(tmp_path / "encoders")
    encoded = []
    read = t2im.cache._read
    monkeypatch.setattr("t2im.cache._read", lambda path, *rest: encoded.append(path) or read(path, *rest))
    result = start(OBJECTIVES, vae=str(tmp_path / "encoders"), text_encoder=str(tmp_path / "encoders"))
    output = tmp_path / "sweep"
    assert result.exit_code == 0 and len(result.rows) == 2
    assert all(row.runs == 2 and row.steps == 2 and row.measures["heldout_x0"].half_width for row in result.rows)
    assert (output / "results.md").read_text() == result.table
    assert len(json.loads((output / "results.json").read_text())["runs"]) == 4
    assert len(encoded) == len(set(encoded)) == len(COLOURS)
    runs = list((output / "runs").glob("*/*"))
    assert {(run / "cache").resolve() for run in runs} == {output / "shared" / "cache"}
    assert all(len(list(run.glob("*.pt"))) == 1 and (run / "model").is_dir() for run in runs)


@pytest.fixture
def trained(monkeypatch):
    """Let runs take no time; note their order, and stop or break some of them."""

    class Order(list):
        stops_at = None

    order = Order()

    def fake(folder, *, output, settings, seed, resume, **options):
        assert resume and options["vae"] == options["text_encoder"]
        order.append(output.relative_to(output.parents[1]).as_posix())
        if "training.learning_rate=0.5" in settings:
            raise Diverged("3 steps in a row were not finite")
        event = {"event": "evaluation", "step": 2, "training_seconds": 1.0, "heldout_x0": 0.5 + seed}
        (output / "metrics.jsonl").write_text(json.dumps(event))
        stopped = len(order) == order.stops_at
        return Run(output, None, None, None, 2, 0, finished=not stopped, exit_code=143 * stopped)

    monkeypatch.setattr(job, "train", fake)
    monkeypatch.setattr(job, "_choose_encoders", lambda *arguments, **options: True)
    return order


def test_a_sweep_that_is_stopped_goes_on_where_it_was(start, trained, tmp_path):
    trained.stops_at = 3
    assert start(OBJECTIVES).exit_code == 143
    assert len(json.loads((tmp_path / "sweep" / "sweep.json").read_text())["runs"]) == 2
    assert start(OBJECTIVES).exit_code == 0
    assert trained[:3] == ["epsilon/seed_0", "v_prediction/seed_0", "epsilon/seed_1"]
    assert trained[3:] == ["epsilon/seed_1", "v_prediction/seed_1"]
    assert [row.runs for row in start(OBJECTIVES, seeds=3).rows] == [3, 3]
    assert trained[5:] == ["epsilon/seed_2", "v_prediction/seed_2"]


def test_encoders_whose_training_was_stopped_stop_the_sweep(start, trained, monkeypatch):
    monkeypatch.setattr(job, "_choose_encoders", lambda *arguments, **options: False)
    assert start(OBJECTIVES).exit_code == CANCELLED
    assert trained == []


def test_a_setting_that_diverges_is_counted_and_the_others_go_on(start, trained):
    result = start("training.learning_rate=0.5,0.001", seeds=2)
    good, bad = result.rows
    assert (good.runs, bad.runs, good.differences) == (2, 0, {}) and len(trained) == 4
    assert bad.faults[0] == "seed 0: 3 steps in a row were not finite" and bad.faults[0] in result.table
    start("training.learning_rate=0.5,0.001", seeds=2)
    assert len(trained) == 4  # that it diverges is a result, too


def test_runs_of_other_settings_or_another_length_are_not_mixed(start, trained):
    start("objective.type=epsilon", seeds=1)
    with pytest.raises(UsageError, match=r"defaults/seed_0 had other settings \(training.steps\)"):
        start("objective.type=epsilon", seeds=1, budget="3steps")
    with pytest.raises(UsageError, match=r"had other settings \(training.weight_decay\)"):
        start("objective.type=epsilon", "training.weight_decay=0.5", seeds=1)


def test_another_folder_or_no_seed_is_refused(start, tmp_path):
    with pytest.raises(UsageError, match="at least one is needed"):
        start(seeds=0)
    (tmp_path / "sweep").mkdir()
    (tmp_path / "sweep" / "sweep.json").write_text('{"format": "something else"}')
    with pytest.raises(UsageError, match="not a sweep of t2im"):
        start()


def test_the_command_line_says_what_is_wrong_before_it_trains(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = CliRunner().invoke(app, ["sweep", "photos", "nano", "--budget", "2x", "--set", OBJECTIVES])
    assert isinstance(result.exception, UsageError) and "--budget" in str(result.exception)
    assert list(tmp_path.iterdir()) == []
