"""Precision and the loss scale; torch's scaler works on the CPU too, so everything it does can be seen here."""

import pytest
import torch

from t2im.errors import UsageError
from t2im.training.nonfinite import is_finite
from t2im.training.precision import LossScale, precision_for

TARGET = torch.tensor([[1.0, -2.0, 3.0]])


def gpu_with(monkeypatch, *, bf16):
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: bf16 or including_emulation)


@pytest.mark.parametrize(
    ("wanted", "device", "bf16", "expected"),
    [
        ("auto", "cpu", False, "no"),
        ("auto", "mps", False, "no"),
        ("auto", "cuda", True, "bf16"),
        ("auto", "cuda:1", False, "no"),
        ("no", "cuda", True, "no"),
        ("bf16", "cpu", False, "bf16"),
        ("fp16", "cuda", False, "fp16"),
    ],
)
def test_auto_takes_bf16_only_where_the_hardware_has_it(wanted, device, bf16, expected, monkeypatch):
    gpu_with(monkeypatch, bf16=bf16)
    assert precision_for(wanted, device) == expected


@pytest.mark.parametrize(("wanted", "device"), [("fp16", "cpu"), ("bf16", "cuda")])
def test_a_precision_that_gains_nothing_is_refused_with_another(wanted, device, monkeypatch):
    gpu_with(monkeypatch, bf16=False)
    with pytest.raises(UsageError, match=f'"{wanted}".*[Uu]se "'):
        precision_for(wanted, device)


class Run:
    """A linear model that learns, with or without a loss scale."""

    def __init__(self, scaler=None):
        torch.manual_seed(17)
        self.scaler, self.scale = scaler, LossScale(scaler)
        self.model = torch.nn.Linear(3, 1, bias=False)
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=0.1, fused=True)
        self.step_number, self.taken, self.scales = 0, [], []

    def step(self, poison=1.0):
        x = torch.eye(3)[self.step_number % 3 :][:1] * 7
        loss = poison * (self.model(x) - x @ TARGET.T).square().mean()
        (loss if self.scaler is None else self.scaler.scale(loss)).backward()
        self.scale.unscale(self.optimizer)
        norm = torch.nn.utils.get_total_norm([p.grad for p in self.model.parameters()])
        finite = is_finite(loss, norm)
        explained = self.scale.explains(loss)
        self.scale.step(self.optimizer, finite=finite)
        self.optimizer.zero_grad()
        self.scales.append(self.scale.value)
        self.step_number += finite
        return finite, explained

    def until(self, steps):
        while self.step_number < steps:
            self.taken.append(self.step())
        return self

    def state(self):
        return {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scale": self.scale.state_dict(),
            "step": self.step_number,
        }

    def load(self, state):
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.scale.load_state_dict(state["scale"])
        self.step_number = state["step"]
        return self


def scaler(init_scale=2.0**16, growth_interval=3):
    return torch.amp.GradScaler("cpu", init_scale=init_scale, growth_interval=growth_interval)


def test_a_scaled_loss_gives_the_same_weights_bit_by_bit():
    assert torch.equal(Run().until(20).model.weight, Run(scaler()).until(20).model.weight)


def test_a_scale_that_is_too_large_falls_until_steps_are_taken():
    run = Run(scaler(init_scale=2.0**127)).until(20)
    left_out = [explained for finite, explained in run.taken if not finite]
    assert left_out and all(left_out)
    assert run.scales[0] == 2.0**126
    assert torch.equal(run.model.weight, Run().until(20).model.weight)


def test_a_restart_goes_on_with_the_same_scale_and_the_same_count_towards_the_next(tmp_path):
    whole = Run(scaler()).until(10)
    torch.save(Run(scaler()).until(5).state(), tmp_path / "checkpoint.pt")
    state = torch.load(tmp_path / "checkpoint.pt", weights_only=True)
    resumed = Run(scaler(init_scale=4.0)).load(state).until(10)
    assert resumed.scales == whole.scales[5:]
    assert len(set(resumed.scales)) > 1  # it has grown on the way, after steps before and after the restart
    assert torch.equal(resumed.model.weight, whole.model.weight)


def test_a_run_may_go_on_in_fp16_that_began_without():
    resumed = Run(scaler(init_scale=64.0)).load(Run().until(5).state())
    assert resumed.scale.value == 64.0
    assert resumed.until(6).step_number == 6


def test_a_loss_that_is_not_finite_changes_no_weight_and_is_not_the_scales_fault():
    for run in (Run(), Run(scaler())):
        run.until(2)
        before = run.model.weight.clone()
        assert run.step(poison=float("nan")) == (False, False)
        assert torch.equal(run.model.weight, before)
        run.until(3)  # a step that was left out is no obstacle to the next
        assert not torch.equal(run.model.weight, before)


def test_the_scale_excuses_nothing_once_it_cannot_fall_any_more():
    finite_loss = torch.tensor(1.0)
    assert LossScale(scaler(init_scale=2.0)).explains(finite_loss)
    assert not LossScale(scaler(init_scale=1.0)).explains(finite_loss)
    assert not LossScale(None).explains(finite_loss)


def test_without_a_scaler_nothing_is_scaled_and_nothing_is_kept():
    assert LossScale(None).value == 1.0
    assert LossScale(None).state_dict() == {}


def test_an_optimizer_that_accelerate_wraps_updates_the_scale_once_per_step():
    from accelerate import Accelerator
    from accelerate.optimizer import AcceleratedOptimizer

    Accelerator(cpu=True)
    plain, wrapped = Run(scaler()), Run(scaler())
    wrapped.optimizer = AcceleratedOptimizer(wrapped.optimizer, scaler=wrapped.scaler)
    assert plain.until(7).scales == wrapped.until(7).scales
    assert torch.equal(plain.model.weight, wrapped.model.weight)
