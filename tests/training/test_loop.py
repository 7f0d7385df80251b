"""The loop, on a task whose answer is known: fit y = 2x + 1."""

import json
import os
import signal

import pytest
import torch

from t2im.config import OptimizationConfig
from t2im.errors import ModelError, TrainingError
from t2im.seeds import seed_for
from t2im.training.checkpoint import Checkpoints, read_state, write_state
from t2im.training.loop import fit
from t2im.training.report import Report
from t2im.training.rhythm import Budget, Plan

SETTINGS = OptimizationConfig(
    batch_size=4, learning_rate=0.05, warmup_steps=2, weight_decay=0.0, max_bad_steps=3, ema_decay=0.9
)


class Line:
    name, examples, headlines = "line", 10, ("heldout_loss",)

    def __init__(self, poison=(), on_step=None, dropout=0.1):
        torch.manual_seed(3)
        self.model = torch.nn.Sequential(torch.nn.Linear(1, 1), torch.nn.Dropout(dropout))
        self.seen, self.poison, self.on_step = [], poison, on_step

    def loss(self, model, samples):
        self.seen += samples
        if self.on_step:
            self.on_step(len(self.seen) // len(samples))
        x = torch.tensor([[seed_for(0, sample, "x") / 2**63] for sample in samples])
        loss = (model(x) - (2 * x + 1)).square().mean()
        return loss * (float("nan") if samples.start in self.poison else 1.0), {"x": x.mean()}

    def evaluate(self, model):
        return {"heldout_loss": (model(torch.tensor([[0.5]])) - 2).square().item()}

    def preview(self, model, path):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("a picture")

    def describe(self, samples):
        return [f"sample {sample}" for sample in samples]

    def state_dict(self):
        return {"extra": "fact"}

    def load_state_dict(self, state):
        assert state["extra"] == "fact"


def run(folder, steps, *, task=None, resume=False, plan=None, settings=SETTINGS, keep=3):
    task = task or Line()
    checkpoints = Checkpoints(folder, write_state, read_state, keep=keep)
    with Report(folder, name="line", quiet=True) as report:
        progress = fit(
            task,
            settings,
            Budget(steps=steps),
            plan or Plan(evaluations=2),
            checkpoints,
            report,
            seed=5,
            resume=resume,
        )
    return task, progress


def events(folder, kind):
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return [line for line in map(json.loads, lines) if line["event"] == kind]


def test_the_loss_falls_to_the_known_answer(tmp_path):
    settings = SETTINGS.model_copy(update={"learning_rate": 0.3})
    run(tmp_path, 200, task=Line(dropout=0.0), settings=settings)
    first, last = events(tmp_path, "evaluation")
    assert last["heldout_loss"] < 0.01 < events(tmp_path, "step")[0]["loss"]
    assert first["step"] == 100 and last["step"] == 200


def test_each_sample_of_the_run_is_drawn_once_in_order(tmp_path):
    task, progress = run(tmp_path, 7)
    assert task.seen == list(range(28)) and (progress.samples, progress.epoch, progress.step) == (28, 2, 7)


def test_ten_steps_are_five_and_resume_and_five_to_the_bit(tmp_path):
    class Stopping(Line):
        """Stopped by Ctrl-C in step 5; dropout makes the random state matter."""

        def __init__(self):
            super().__init__(on_step=lambda step: os.kill(os.getpid(), signal.SIGINT) if step == 5 else None)

    whole, _ = run(tmp_path / "whole", 10)
    _, stopped = run(tmp_path / "parts", 10, task=Stopping())
    assert stopped.step == 5 and not stopped.finished
    torch.manual_seed(99)
    resumed, progress = run(tmp_path / "parts", 10, resume=True)
    assert progress.finished and resumed.seen == list(range(20, 40))
    for name, weight in whole.model.state_dict().items():
        assert torch.equal(weight, resumed.model.state_dict()[name])
    states = [read_state(tmp_path / part / "checkpoint_epoch_4.pt") for part in ("whole", "parts")]
    assert states[0]["optimizer"]["state"][0]["exp_avg"].equal(states[1]["optimizer"]["state"][0]["exp_avg"])
    assert states[0]["ema"]["0.weight"].equal(states[1]["ema"]["0.weight"])
    losses = [[(line["step"], line["loss"]) for line in events(tmp_path / part, "step")] for part in ("whole", "parts")]
    assert losses[0] == losses[1]


def test_forgetting_the_random_state_would_be_noticed(tmp_path, monkeypatch):
    whole, _ = run(tmp_path / "whole", 10)
    run(tmp_path / "parts", 5, settings=SETTINGS.model_copy(update={"schedule": "constant"}))
    monkeypatch.setattr("torch.set_rng_state", lambda state: None)
    resumed, _ = run(tmp_path / "parts", 10, resume=True)
    assert not torch.equal(whole.model[0].weight, resumed.model[0].weight)


def test_a_step_that_is_not_finite_leaves_weights_and_average_untouched(tmp_path):
    clean, _ = run(tmp_path / "clean", 1, settings=SETTINGS.model_copy(update={"schedule": "constant"}))
    task, progress = run(
        tmp_path / "bad", 2, task=Line(poison={4}), settings=SETTINGS.model_copy(update={"schedule": "constant"})
    )
    assert progress.skipped_steps == 1 and events(tmp_path / "bad", "skipped")[0]["samples"] == [4, 8]
    for name, weight in clean.model.state_dict().items():
        assert torch.equal(weight, task.model.state_dict()[name])


def test_a_run_of_bad_steps_stops_with_a_reason_and_saves_nothing_bad(tmp_path):
    with pytest.raises(TrainingError, match=r"3 steps in a row were not finite.*learning rate"):
        run(tmp_path, 10, task=Line(poison={8, 12, 16}))
    assert not list(tmp_path.glob("*.pt"))


def test_evaluation_happens_with_the_averaged_weights(tmp_path):
    weights = []

    class Watching(Line):
        def evaluate(self, model):
            weights.append(self.model[0].weight.item())
            return super().evaluate(model)

    run(tmp_path, 1, task=Watching(), plan=Plan(evaluations=1))
    raw, averaged = weights
    state = read_state(tmp_path / "checkpoint_epoch_0_step_1.pt")
    assert raw == state["model"]["0.weight"].item() and averaged == state["ema"]["0.weight"].item() != raw


def test_the_model_ends_with_its_averaged_weights(tmp_path):
    task, _ = run(tmp_path, 3)
    state = read_state(sorted(tmp_path.glob("*.pt"))[-1])
    assert torch.equal(task.model[0].weight, state["ema"]["0.weight"])


def test_checkpoints_come_at_epochs_and_old_ones_go(tmp_path):
    run(tmp_path, 25, plan=Plan(evaluations=1, checkpoint_epochs=2), keep=2)
    assert [path.name for path in Checkpoints(tmp_path, write_state, read_state).paths()] == [
        "checkpoint_epoch_8.pt",
        "checkpoint_epoch_10.pt",
    ]
    assert len(list(tmp_path.glob("*.sha256"))) == 2


def test_a_damaged_newest_checkpoint_is_passed_over(tmp_path):
    run(tmp_path, 10, plan=Plan(evaluations=1, checkpoint_epochs=2))
    older, newest = Checkpoints(tmp_path, write_state, read_state).paths()
    damaged = bytearray(newest.read_bytes())
    damaged[len(damaged) // 2] ^= 1
    newest.write_bytes(damaged)
    with pytest.warns(UserWarning, match="damaged"):
        path, state = Checkpoints(tmp_path, write_state, read_state).read_newest()
    assert path == older and state["progress"]["epoch"] == 2


def test_resuming_from_nothing_says_so(tmp_path):
    with pytest.raises(ModelError, match=r"no checkpoint to resume from.*without --resume"):
        run(tmp_path, 3, resume=True)


def test_newest_is_by_number_not_by_date(tmp_path):
    for number, name in enumerate(("epoch_10", "epoch_9", "epoch_10_step_123", "epoch_2_step_30")):
        path = tmp_path / f"checkpoint_{name}.pt"
        path.write_text("")
        os.utime(path, (number, number))
    (tmp_path / "checkpoint_epoch_11.pt.tmp").write_text("")
    (tmp_path / "other_epoch_99.pt").write_text("")
    names = [path.name for path in Checkpoints(tmp_path, write_state, read_state).paths()]
    assert names == [f"checkpoint_{n}.pt" for n in ("epoch_2_step_30", "epoch_9", "epoch_10", "epoch_10_step_123")]


def test_minutes_end_a_run_and_finish_its_learning_rate(tmp_path):
    checkpoints = Checkpoints(tmp_path, write_state, read_state)
    with Report(tmp_path, name="line", quiet=True) as report:
        progress = fit(Line(), SETTINGS, Budget(minutes=0.005), Plan(evaluations=1), checkpoints, report)
    assert progress.finished and progress.seconds >= 0.3
    assert events(tmp_path, "step")[-1]["learning_rate"] < 0.05 * SETTINGS.learning_rate


def test_metrics_are_json_even_when_a_number_is_not(tmp_path):
    with Report(tmp_path, name="x", quiet=True) as report:
        report.event("step", step=1, loss=float("nan"))
    assert events(tmp_path, "step")[0]["loss"] is None


def test_a_run_stopped_before_its_first_step_can_be_resumed(tmp_path, monkeypatch):
    from t2im.training import interrupt

    monkeypatch.setattr(interrupt.Interruption, "__enter__", lambda self: setattr(self, "exit_code", 130) or self)
    _, stopped = run(tmp_path, 3)
    monkeypatch.undo()
    assert stopped.step == 0 and not stopped.finished
    task, progress = run(tmp_path, 3, resume=True)
    assert progress.finished and task.seen == list(range(12))
