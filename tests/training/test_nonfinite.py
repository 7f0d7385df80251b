"""Steps that are not finite: what is written about them, and when they are too many."""

import json

import pytest
import torch
from torch import nn

from t2im.errors import TrainingError
from t2im.training.nonfinite import DUMPS, Guard, evidence, is_finite

NAN, INF = float("nan"), float("inf")


def nothing():
    return {"suspect": "nothing"}


@pytest.mark.parametrize("bad", [NAN, INF, -INF])
def test_a_step_is_judged_by_its_loss_and_by_its_gradients(bad):
    assert is_finite(torch.tensor(1.0), torch.tensor(2.0))
    assert not is_finite(torch.tensor(bad), torch.tensor(2.0))
    assert not is_finite(torch.tensor(1.0), torch.tensor(bad))


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(23)
        self.first, self.dropout, self.second = nn.Linear(2, 3), nn.Dropout(0.5), nn.Linear(3, 1)

    def forward(self, x):
        return self.second(self.dropout(self.first(x)))


def step(poisoned_samples=(), poisoned_gradients=(), poisoned_weight=None):
    """Return the evidence about a step of samples 40 to 44 with some poison in it."""
    model, samples = Model(), range(40, 45)

    def loss_of(some):
        x = torch.tensor([[NAN if i in poisoned_samples else 0.1 * i, 1.0] for i in some])
        return model(x).square().mean()

    if poisoned_weight:
        with torch.no_grad():
            model.get_parameter(poisoned_weight).view(-1)[1] = NAN
    loss = loss_of(samples)
    loss.backward()
    for name in poisoned_gradients:
        model.get_parameter(name).grad.view(-1)[0] = INF
    return evidence(model, samples, loss, [f"images/{i}.png" for i in samples], loss_of)


def test_a_guilty_sample_is_named_with_what_it_shows():
    found = step(poisoned_samples=(43,))
    assert found["suspect"] == "sample 43 has no finite loss: images/43.png"
    assert found["samples"] == [{"sample": 43, "shows": "images/43.png", "loss": "nan"}]
    assert found["loss"] == "nan"


def test_gradients_that_went_wrong_are_named_and_the_others_measured():
    found = step(poisoned_gradients=("second.weight",))
    assert "first that of second.weight" in found["suspect"]
    assert found["gradients_not_finite"] == {"count": 1, "of": 4, "first": ["second.weight"]}
    norms = found["largest_gradient_norms"]
    assert set(norms) == {"first.weight", "first.bias", "second.bias"}
    assert list(norms.values()) == sorted(norms.values(), reverse=True)
    assert [sample["sample"] for sample in found["samples"]] == [40, 41, 42, 43, 44]


def test_weights_that_went_wrong_before_are_suspected_first():
    found = step(poisoned_samples=(43,), poisoned_weight="first.bias")
    assert found["suspect"] == "weights were not finite before the step, first first.bias"
    assert found["weights_not_finite"] == {"count": 1, "first": ["first.bias"]}


def test_losses_that_are_all_wrong_accuse_the_weights_and_not_the_samples():
    assert "weights have gone too far" in step(poisoned_samples=range(40, 45))["suspect"]


def test_gradients_whose_sum_alone_is_infinite_are_told_apart():
    assert step()["suspect"].startswith("each number is finite")


def test_looking_for_the_guilty_draws_nothing_from_the_runs_own_randomness():
    torch.manual_seed(5)
    step()
    after = torch.rand(3)
    torch.manual_seed(5)
    model = Model()
    model(torch.ones(5, 2))
    assert torch.equal(after, torch.rand(3))


def test_what_is_written_is_json_that_anything_can_read(tmp_path):
    path = Guard(tmp_path, 3).bad(7, lambda: step(poisoned_samples=(43,)))
    assert path == tmp_path / "nonfinite" / "step_00000007.json"

    def refuse(word):
        raise AssertionError(word)

    found = json.loads(path.read_text(), parse_constant=refuse)
    assert found["step"] == 7 and found["loss"] == "nan"


def test_a_run_stops_after_so_many_in_a_row_and_says_where_more_is_written(tmp_path):
    guard = Guard(tmp_path, 3)
    guard.bad(5, nothing)
    guard.good()
    guard.bad(7, nothing)
    guard.bad(8, nothing)
    with pytest.raises(
        TrainingError, match=r"^3 steps in a row .* step 9: nothing .*nonfinite/step_00000009.json.*--resume"
    ):
        guard.bad(9, nothing)


@pytest.mark.parametrize(("apart", "stops"), [(99, True), (100, False)])
def test_a_run_stops_when_more_than_one_in_a_hundred_of_the_last_thousand_were_bad(apart, stops, tmp_path):
    guard = Guard(tmp_path, 10)
    bad_steps = range(0, 40 * apart, apart)
    raised = []
    for step in range(bad_steps.stop):
        try:
            guard.bad(step, nothing) if step in bad_steps else guard.good()
        except TrainingError as error:
            raised.append((step, str(error)))
            break
    assert bool(raised) == stops
    if stops:
        step, message = raised[0]
        assert step == 10 * apart and message.startswith("11 of the last 1000 steps")
        assert (tmp_path / "nonfinite" / f"step_{step:08d}.json").exists()


def test_a_restart_remembers_the_bad_steps(tmp_path):
    whole = Guard(tmp_path / "whole", 10)
    for step in range(0, 50, 5):
        whole.bad(step, nothing)
        whole.good()
    resumed = Guard(tmp_path / "resumed", 10)
    resumed.load_state_dict(json.loads(json.dumps(whole.state_dict())))
    for guard in (whole, resumed):
        with pytest.raises(TrainingError, match="11 of the last 1000"):
            guard.bad(60, nothing)


def test_a_step_that_is_bad_again_after_a_restart_counts_once(tmp_path):
    guard = Guard(tmp_path, 10)
    for _ in range(4):
        guard.bad(60, nothing)
        guard.good()
    assert guard.state_dict()["recent"] == [60]


def test_dumps_are_few(tmp_path):
    guard = Guard(tmp_path, 10)
    for step in range(0, 4000, 200):
        guard.bad(step, nothing)
        guard.good()
    assert len(list((tmp_path / "nonfinite").iterdir())) == DUMPS


def test_a_disk_that_is_full_stops_no_run(tmp_path):
    (tmp_path / "nonfinite").write_text("not a folder")
    guard = Guard(tmp_path, 2)
    assert guard.bad(1, nothing) is None
    with pytest.raises(TrainingError, match=r"2 steps in a row .* step 2: nothing\. The newest"):
        guard.bad(2, nothing)
