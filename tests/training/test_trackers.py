"""TensorBoard is really written and read back; trackio and wandb are stood in for by modules that remember."""

import math
import sys
from types import SimpleNamespace

import pytest
from PIL import Image

from t2im.errors import UsageError
from t2im.training import trackers
from t2im.training.report import Report
from t2im.training.trackers import INSTALL, MAKERS, Trackers, require_trackers


@pytest.fixture
def picture(tmp_path):
    path = tmp_path / "previews" / "unet_step_00000005.png"
    path.parent.mkdir()
    Image.new("RGB", (7, 5), "red").save(path)
    return path


@pytest.fixture
def events(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    def read():
        return EventAccumulator(str(tmp_path / "tensorboard")).Reload()

    return read


def test_tensorboard_shows_what_the_metrics_say(tmp_path, picture, events):
    with Report(tmp_path, name="unet", quiet=True, trackers=["tensorboard"]) as report:
        report.event("step", step=5, epoch=0, samples=320, loss=0.5, learning_rate=1e-3)
        report.event("step", step=6, epoch=0, samples=384, loss=math.nan)
        report.event("evaluation", step=6, heldout_loss=0.75, text_gain=0.25, seconds=3.5)
        report.event("save", step=6, path="x.pt")
        report.preview(picture, step=5)
    found = events()
    tags = {"train/loss", "train/learning_rate", "heldout/heldout_loss", "heldout/text_gain"}
    assert set(found.Tags()["scalars"]) == tags
    assert [(point.step, point.value) for point in found.Scalars("train/loss")] == [(5, 0.5)]
    assert [(point.step, point.value) for point in found.Scalars("heldout/text_gain")] == [(6, 0.25)]
    (image,) = found.Images("preview")
    assert (image.step, image.width, image.height) == (5, 7, 5)


def test_a_resumed_run_takes_back_the_points_that_it_makes_again(tmp_path, events):
    for steps in (range(1, 8), range(5, 10)):
        with Report(tmp_path, name="unet", quiet=True, trackers=["tensorboard"]) as report:
            for step in steps:
                report.event("step", step=step, loss=step / 2)
    assert [point.step for point in events().Scalars("train/loss")] == list(range(1, 10))


def test_nothing_is_opened_that_nobody_wants(tmp_path):
    with Report(tmp_path, name="unet", quiet=True) as report:
        report.event("step", step=1, loss=0.5)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["metrics.jsonl"]


def fake(name, monkeypatch):
    """Put a module in the place of trackio or wandb; return what is called on it."""
    calls = []

    def note(what):
        return lambda *args, **kwargs: calls.append((what, args, kwargs)) or module

    module = SimpleNamespace(
        init=note("init"), log=note("log"), finish=note("finish"), Image=lambda path: f"image of {path}"
    )
    monkeypatch.setitem(sys.modules, name, module)
    return calls


@pytest.mark.parametrize("name", ["trackio", "wandb"])
def test_other_trackers_are_told_the_same(name, tmp_path, picture, monkeypatch):
    monkeypatch.delenv("WANDB_MODE", raising=False)
    calls = fake(name, monkeypatch)
    opened = Trackers([name], tmp_path, {"seed": 7}, pytest.fail)
    opened.scalars({"train/loss": 0.5, "train/note": "text", "train/excused": True, "train/bad": math.inf}, 3)
    opened.image("preview", picture, 3)
    opened.close()
    (init, _, how), *rest = calls
    assert init == "init" and how["project"] == "t2im" and how["name"] == tmp_path.name and how["config"] == {"seed": 7}
    assert rest == [
        ("log", ({"train/loss": 0.5},), {"step": 3}),
        ("log", ({"preview": f"image of {picture}"},), {"step": 3}),
        ("finish", (), {}),
    ]


def test_wandb_sends_nothing_unless_the_user_says_so(tmp_path, monkeypatch):
    calls = fake("wandb", monkeypatch)
    monkeypatch.delenv("WANDB_MODE", raising=False)
    Trackers(["wandb"], tmp_path, {}, pytest.fail)
    monkeypatch.setenv("WANDB_MODE", "online")
    Trackers(["wandb"], tmp_path, {}, pytest.fail)
    assert [how["mode"] for _, _, how in calls] == ["offline", "online"]


def test_a_tracker_that_breaks_is_named_once_and_the_others_go_on(tmp_path, monkeypatch):
    said, seen = [], []

    class Broken:
        def __init__(self, folder, config):
            pass

        def scalars(self, numbers, step):
            raise OSError("no space left\nand a long story")

        close = image = scalars

    class Sound(Broken):
        def scalars(self, numbers, step):
            seen.append(step)

        def close(self):
            seen.append("closed")

    monkeypatch.setattr(trackers, "MAKERS", {"wandb": Broken, "tensorboard": Sound})
    opened = Trackers(["wandb", "tensorboard"], tmp_path, {}, said.append)
    opened.scalars({"loss": 1.0}, 1)
    opened.scalars({"loss": 1.0}, 2)
    opened.close()
    assert said == ["wandb: no space left. The run goes on without it; metrics.jsonl has all numbers."]
    assert seen == [1, 2, "closed"]


def test_a_tracker_that_cannot_begin_does_not_end_the_run(tmp_path, monkeypatch):
    said = []
    monkeypatch.setitem(sys.modules, "trackio", None)  # as if it were not installed
    with Report(tmp_path, name="unet", quiet=True) as report:
        monkeypatch.setattr(report, "say", said.append)
        Trackers(["trackio"], tmp_path, {}, report.say).scalars({"loss": 1.0}, 1)
    assert len(said) == 1 and said[0].startswith("trackio: ")


def test_a_missing_package_is_named_before_the_run_with_the_command(monkeypatch):
    assert set(INSTALL) == set(MAKERS)
    require_trackers(["tensorboard"])
    monkeypatch.setattr(trackers.importlib.util, "find_spec", lambda package: None)
    with pytest.raises(UsageError, match=r'tensorboard is not installed. Install it with: pip install "t2im\[train\]"'):
        require_trackers(["tensorboard", "wandb"])
