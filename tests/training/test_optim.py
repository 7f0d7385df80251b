import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from t2im.config import OptimizationConfig
from t2im.training.optim import adamw, clip_gradients, learning_rate, set_learning_rate


def test_warmup_rises_linearly_to_the_peak():
    settings = OptimizationConfig(learning_rate=0.4, warmup_steps=4, schedule="constant")
    assert [learning_rate(step, 0.0, settings) for step in range(6)] == pytest.approx([0.1, 0.2, 0.3, 0.4, 0.4, 0.4])


@pytest.mark.parametrize(
    ("schedule", "middle", "end"), [("constant", 1.0, 1.0), ("linear", 0.5, 0.0), ("cosine", 0.5, 0.0)]
)
def test_schedules_meet_their_closed_form(schedule, middle, end):
    settings = OptimizationConfig(learning_rate=1.0, warmup_steps=0, schedule=schedule)
    values = [learning_rate(99, done, settings) for done in (0.0, 0.5, 1.0)]
    assert values == pytest.approx([1.0, middle, end], abs=1e-12)


@given(step=st.integers(0, 10**6), done=st.floats(-1, 2), warmup=st.integers(0, 1000))
def test_learning_rate_stays_between_zero_and_its_peak(step, done, warmup):
    for schedule in ("constant", "linear", "cosine"):
        settings = OptimizationConfig(learning_rate=0.3, warmup_steps=warmup, schedule=schedule)
        assert 0 <= learning_rate(step, done, settings) <= 0.3


def test_only_matrices_decay():
    model = torch.nn.Sequential(torch.nn.Linear(3, 5), torch.nn.LayerNorm(5))
    decayed, kept = adamw(model, OptimizationConfig(weight_decay=0.7)).param_groups
    assert [p.ndim for p in decayed["params"]] == [2] and decayed["weight_decay"] == 0.7
    assert {p.ndim for p in kept["params"]} == {1} and kept["weight_decay"] == 0.0


def test_first_step_moves_by_the_learning_rate_against_the_gradients_sign():
    model = torch.nn.Linear(1, 1, bias=False)
    before = model.weight.item()
    optimizer = adamw(model, OptimizationConfig(weight_decay=0.0))
    set_learning_rate(optimizer, 0.01)
    model.weight.grad = torch.tensor([[-3.0]])
    optimizer.step()
    assert model.weight.item() == pytest.approx(before + 0.01, rel=1e-5)


def test_clipping_scales_the_joint_norm_and_reports_what_it_was():
    model = torch.nn.Linear(2, 1, bias=False)
    model.weight.grad = torch.tensor([[3.0, 4.0]])
    assert clip_gradients(model, 1.0).item() == pytest.approx(5.0)
    assert model.weight.grad.norm().item() == pytest.approx(1.0, rel=1e-4)
