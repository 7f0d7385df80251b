"""Optimizers, on a bowl whose bottom is known, and with the first steps that their papers give in closed form."""

import copy
import sys

import pytest
import torch
from torch import nn

from t2im.config import OptimizationConfig
from t2im.errors import ConfigError, UsageError
from t2im.networks import CLIPConfig, UNetConfig
from t2im.nn.unet import ConditionalUNet
from t2im.settings import parse_settings
from t2im.training.optimizers import (
    OPTIMIZERS,
    averages_weights,
    build_optimizer,
    clip_gradients,
    evaluation_weights,
    for_evaluation,
    for_training,
    set_learning_rate,
)

PACKAGES = {"adamw8bit": "bitsandbytes", "lion": "lion_pytorch", "schedule_free": "schedulefree"}
RATES = {"adafactor": 0.3, "lion": 0.01}
"""Adafactor's rate is relative to a weight's size; Lion moves every weight by the whole rate."""


class Bowl(nn.Module):
    """The loss is the squared distance of all weights to a target; every kind of parameter that models have is here."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(11)
        self.conv = nn.Conv2d(3, 5, 3)
        self.norm = nn.GroupNorm(1, 5)
        self.words = nn.Embedding(7, 3)
        self.layers = nn.ModuleList([nn.Linear(67, 71)])  # more than 4096 weights: what 8 bits begin at
        self.logit_scale = nn.Parameter(torch.tensor(0.5))
        self.frozen = nn.Parameter(torch.ones(2, 3), requires_grad=False)
        self.targets = [torch.randn(p.shape) for p in self.parameters() if p.requires_grad]

    def loss(self, step=0):
        trained = [p for p in self.parameters() if p.requires_grad]
        noise = torch.Generator().manual_seed(step)
        return sum(
            (p - target + 0.1 * torch.randn(p.shape, generator=noise)).square().mean()
            for p, target in zip(trained, self.targets, strict=True)
        )


def settings_for(name, **changes):
    schedule = "constant" if name == "schedule_free" else "cosine"
    changes = {"learning_rate": RATES.get(name, 0.05), "weight_decay": 0.0} | changes
    return OptimizationConfig(optimizer=name, schedule=schedule, **changes)


@pytest.fixture(params=list(OPTIMIZERS))
def name(request):
    if request.param in PACKAGES:
        pytest.importorskip(PACKAGES[request.param], exc_type=ImportError)
    return request.param


def take_steps(model, optimizer, steps):
    for_training(optimizer)
    for step in steps:
        optimizer.zero_grad(set_to_none=True)
        model.loss(step).backward()
        optimizer.step()


def test_every_optimizer_finds_the_bottom_of_a_bowl(name):
    model = Bowl()
    optimizer = build_optimizer(model, settings_for(name))
    before = model.loss().item()
    take_steps(model, optimizer, range(200))
    for_evaluation(optimizer)
    assert model.loss().item() < 0.1 * before


def test_five_steps_and_five_after_a_restart_are_ten_bit_by_bit(name, tmp_path):
    whole, halves = Bowl(), Bowl()
    take_steps(whole, optimizer := build_optimizer(whole, settings_for(name, weight_decay=0.1)), range(10))

    take_steps(halves, first := build_optimizer(halves, settings_for(name, weight_decay=0.1)), range(5))
    torch.save({"model": halves.state_dict(), "optimizer": first.state_dict()}, tmp_path / "checkpoint.pt")
    state = torch.load(tmp_path / "checkpoint.pt", weights_only=True)
    resumed = Bowl()
    resumed.load_state_dict(state["model"])
    second = build_optimizer(resumed, settings_for(name, weight_decay=0.1, learning_rate=0.7))
    second.load_state_dict(state["optimizer"])
    take_steps(resumed, second, range(5, 10))

    assert all(map(torch.equal, whole.parameters(), resumed.parameters()))
    assert_same(optimizer.state_dict(), second.state_dict())


def assert_same(one, other):
    assert type(one) is type(other)
    if isinstance(one, torch.Tensor):
        assert torch.equal(one, other)
    elif isinstance(one, dict):
        assert list(one) == list(other)
        assert [assert_same(one[key], other[key]) for key in one] or not one
    elif isinstance(one, list | tuple):
        assert [assert_same(a, b) for a, b in zip(one, other, strict=True)] or not one
    else:
        assert one == other
