"""What a run that goes on keeps, and what it refuses; on the task of a line, which takes milliseconds."""

import json
import os
import signal

import pytest
import torch

from t2im.config import OptimizationConfig
from t2im.errors import T2IMError, TrainingError, UsageError
from t2im.files import alone_in, require_writable
from t2im.recipe import load_config
from t2im.seeds import seed_for
from t2im.training.checkpoint import Checkpoints, read_state, write_state
from t2im.training.loop import fit
from t2im.training.report import Report
from t2im.training.rhythm import Budget, Plan
from t2im.training.run import _refuse_changes
from t2im.training.selftest import difference

EXAMPLES = 11
SETTINGS = OptimizationConfig(
    batch_size=4, gradient_accumulation_steps=2, learning_rate=0.05, warmup_steps=2, ema_decay=0.9
)


class Line:
    name, examples, headlines = "line", EXAMPLES, ()

    def __init__(self, stop_after=()):
        torch.manual_seed(3)
        self.model = torch.nn.Sequential(torch.nn.Linear(1, 1), torch.nn.Dropout(0.1))
        self.seen, self.stop_after = [], stop_after

    def loss(self, model, samples):
        self.seen += samples
        if len(self.seen) in self.stop_after:
            os.kill(os.getpid(), signal.SIGTERM)
        x = torch.tensor([[seed_for(0, sample, "x") / 2**63] for sample in samples])
        return (model(x) - (2 * x + 1)).square().mean(), {}

    def evaluate(self, model):
        return {}

    def preview(self, model, path):
        pass

    def describe(self, samples):
        return [str(sample) for sample in samples]

    def state_dict(self):
        return {}

    def load_state_dict(self, state):
        pass


def train(folder, steps, task=None, settings=SETTINGS):
    folder.mkdir(exist_ok=True)
    plan = Plan(evaluations=1, checkpoint_steps=3)
    task, saver = task or Line(), Checkpoints(folder, write_state, read_state, keep=3)
    with Report(folder, name="line", quiet=True) as report:
        progress = fit(task, settings, Budget(steps=steps), plan, saver, report, seed=5, resume=bool(saver.paths()))
    return task, progress, read_state(saver.paths()[-1])


def apart(one, other):
    return {part for part in ("model", "ema", "optimizer", "rng") if difference(one[part], other[part])}


def test_however_often_a_run_is_stopped_each_sample_is_drawn_once_and_no_bit_changes(tmp_path):
    """Over three epochs that end within a batch, with accumulation, dropout and averages."""
    whole, _, state = train(tmp_path / "whole", 9)
    assert whole.seen == list(range(36))
    seen = []
    for stop in (4, 10, 14, None):
        task, progress, part = train(tmp_path / "parts", 9, Line(stop_after=() if stop is None else (stop,)))
        seen += task.seen
        assert progress.exit_code == (0 if stop is None else 143)
    assert progress.finished and seen == list(range(36))
    assert apart(state, part) == set()
    curves = []
    for run in ("whole", "parts"):
        lines = map(json.loads, (tmp_path / run / "metrics.jsonl").read_text().splitlines())
        curves.append([(line["step"], line["loss"]) for line in lines if line["event"] == "step"])
    assert curves[0] == curves[1]


def test_the_same_seed_gives_the_same_bits_five_times(tmp_path):
    states = [train(tmp_path / str(number), 4)[2] for number in range(5)]
    assert all(apart(states[0], state) == set() for state in states[1:])


def test_another_learning_rate_would_be_seen(tmp_path):
    other = SETTINGS.model_copy(update={"learning_rate": 0.050001})
    one, two = train(tmp_path / "1", 4)[2], train(tmp_path / "2", 4, settings=other)[2]
    assert apart(one, two) == {"model", "ema", "optimizer"}


@pytest.mark.parametrize(
    "setting",
    [
        "training.batch_size=17",
        "training.seed=3",
        "data.resolution=32",
        "objective.type=sample",
        "unet.dropout=0.3",
    ],
)
def test_what_shapes_a_run_cannot_be_changed_by_going_on(setting):
    with pytest.raises(UsageError, match=rf"{setting.split('=')[0]} \(was .*, now "):
        _refuse_changes(load_config(), load_config(settings=[setting]))


def test_the_length_and_the_rhythm_of_a_run_can_be_changed():
    changed = ["training.epochs=500", "training.checkpoint_minutes=50", "training.keep_checkpoints=9"]
    _refuse_changes(load_config(), load_config(settings=changed))


@pytest.mark.filterwarnings("ignore:.*multi-threaded")
def test_a_second_trainer_is_refused_ten_times_and_told_who_the_first_is(tmp_path):
    reading, writing = os.pipe()
    pid = os.fork()
    if not pid:
        with alone_in(tmp_path, "training there"):
            os.write(writing, b"x")
            signal.pause()
    os.read(reading, 1)
    for _ in range(10):
        with pytest.raises(T2IMError, match=f"process {pid} is training there"), alone_in(tmp_path, "training there"):
            pass
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    with alone_in(tmp_path, "training there"):  # who was killed keeps nobody out
        pass


@pytest.mark.parametrize("name", ["with spaces", "Übung-日本", "deep/er/still", "a'quote\"s"])
def test_a_run_lives_in_a_folder_of_any_name(name, tmp_path):
    folder = require_writable(tmp_path / name)
    _, progress, state = train(folder, 3)
    assert progress.finished and state["progress"]["step"] == 3


def test_a_run_lives_behind_a_link(tmp_path):
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    train(require_writable(tmp_path / "link"), 3)
    assert list((tmp_path / "real").glob("*.pt"))


def test_a_place_that_cannot_be_written_is_refused_before_the_first_step(tmp_path):
    (tmp_path / "file").write_text("")
    for place in (tmp_path / "file", tmp_path / "file" / "below", "/proc/t2im"):
        with pytest.raises(T2IMError, match="cannot write there"):
            require_writable(place)


class Flipping(Line):
    """A weight that no loss looks at turns infinite in some steps, as a fault of the memory can make it."""

    def __init__(self, *at):
        super().__init__()
        self.model.register_parameter("spare", torch.nn.Parameter(torch.ones(2), requires_grad=False))
        self.calls, self.at = 0, at

    def loss(self, model, samples):
        self.calls += 1
        if self.calls in self.at:
            self.model.spare.data[1] = float("inf")
        return super().loss(model, samples)


def test_weights_that_turned_infinite_send_the_run_back_once_and_leave_no_trace(tmp_path):
    whole = train(tmp_path / "whole", 9, Flipping())[2]
    flipped = Flipping(10)  # in step 5; the save after step 6 finds out, and the one after step 3 is sound
    _, progress, state = train(tmp_path / "flipped", 9, flipped)
    assert progress.finished and flipped.calls > 18
    assert apart(whole, state) == set()
    assert '"event": "rollback"' in (tmp_path / "flipped" / "metrics.jsonl").read_text()


def test_weights_that_turn_infinite_again_stop_the_run(tmp_path):
    with pytest.raises(TrainingError, match=r'"model\.spare" is not finite'):
        train(tmp_path, 9, Flipping(*range(10, 60, 2)))
    saver = Checkpoints(tmp_path, write_state, read_state)
    assert saver.read_newest()[1]["progress"]["step"] == 3


def test_weights_that_are_infinite_before_the_first_save_stop_the_run(tmp_path):
    with pytest.raises(TrainingError, match="is not finite"):
        train(tmp_path, 9, Flipping(2))
    assert not list(tmp_path.glob("*.pt"))
