"""Optimizers, on a bowl whose bottom is known, and with the first steps that their papers give in closed form."""

import copy
import sys

import pytest
import torch
from torch import nn

from t2im.config import OptimizationConfig
from t2im.errors import ConfigError, UsageError
from t2im.networks import UNetConfig
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


def decays_of(optimizer):
    """Map each trained parameter to its weight decays: as many as there are groups that hold it."""
    found = {}
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            found.setdefault(parameter, []).append(group["weight_decay"])
    return found


def test_matrices_and_kernels_decay_and_nothing_is_left_out_or_counted_twice(name):
    model = Bowl()
    decays = decays_of(build_optimizer(model, settings_for(name, weight_decay=0.7)))
    expected = {p: [0.7 if p.ndim >= 2 else 0.0] for p in model.parameters() if p.requires_grad}
    assert decays == expected


@pytest.mark.parametrize("changes", [{"learning_rate": 0.02}, {"learning_rate": 0.05}])
def test_decay_takes_its_share_of_matrices_and_nothing_of_biases(name, changes):
    model = Bowl()
    before = {key: parameter.detach().clone() for key, parameter in model.named_parameters()}
    optimizer = build_optimizer(model, settings_for(name, weight_decay=0.5, **changes))
    for_training(optimizer)
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter) if parameter.requires_grad else None
    optimizer.step()
    for_evaluation(optimizer)
    for key, parameter in model.named_parameters():
        decays = parameter.ndim >= 2 and parameter.requires_grad
        kept = 1 - 0.5 * changes["learning_rate"] if decays else 1.0
        torch.testing.assert_close(parameter, kept * before[key], msg=f"{name} {key}")


def test_the_learning_rate_that_is_set_is_the_one_that_is_used(name):
    model = Bowl()
    before = [parameter.detach().clone() for parameter in model.parameters()]
    optimizer = build_optimizer(model, settings_for(name, weight_decay=0.1))
    set_learning_rate(optimizer, 0.0)
    take_steps(model, optimizer, range(2))
    assert all(map(torch.equal, before, model.parameters()))


@pytest.mark.parametrize("optimizer", ["adamw", "lion"])
def test_first_step_moves_by_the_learning_rate_against_the_gradients_sign(optimizer):
    if optimizer in PACKAGES:
        pytest.importorskip(PACKAGES[optimizer])
    model = nn.Linear(1, 1, bias=False)
    before = model.weight.item()
    built = build_optimizer(model, settings_for(optimizer))
    set_learning_rate(built, 0.01)
    model.weight.grad = torch.tensor([[-3.0]])
    built.step()
    assert model.weight.item() == pytest.approx(before + 0.01, rel=1e-5)


def test_a_step_of_muon_is_as_large_as_one_of_adamw_and_moves_all_directions():
    model = nn.ModuleDict({"layers": nn.ModuleList([nn.Linear(48, 32)])})
    weight = model["layers"][0].weight
    before = weight.detach().clone()
    weight.grad = torch.randn(32, 2, generator=torch.Generator().manual_seed(2)) @ torch.randn(
        2, 48, generator=torch.Generator().manual_seed(4)
    )
    weight.grad += 0.2 * torch.randn(32, 48, generator=torch.Generator().manual_seed(3))
    gradient = torch.linalg.svdvals(weight.grad)
    build_optimizer(model, settings_for("muon", learning_rate=0.01)).step()
    update = (before - weight.detach()) / 0.01
    directions = torch.linalg.svdvals(update) / (0.2 * 48**0.5)
    assert update.square().mean().sqrt().item() == pytest.approx(0.2, rel=0.15)  # AdamW's are mostly 0.2 to 0.4
    assert gradient[0] > 50 * gradient[-1]
    assert directions[0] < 2 * directions[-1] and directions[0] < 1.5


def test_muon_steps_the_matrices_of_transformer_blocks_and_adamw_all_else():
    config = UNetConfig(
        block_out_channels=(8, 16),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        norm_num_groups=4,
        attention_head_dim=2,
    )
    unet = ConditionalUNet(config)
    optimizer = build_optimizer(unet, settings_for("muon"))
    by_muon = set(optimizer.param_groups[0]["params"])
    names = [name for name, parameter in unet.named_parameters() if parameter in by_muon]
    assert names
    assert all(".transformer_blocks." in name and name.endswith(".weight") and "norm" not in name for name in names)
    inside = [p for name, p in unet.named_parameters() if ".transformer_blocks." in name and p.ndim == 2]
    assert by_muon == set(inside)
    assert len(decays_of(optimizer)) == len(list(unet.parameters()))


def test_muon_is_refused_where_there_is_nothing_for_it():
    with pytest.raises(UsageError, match=r'"muon".* use "adamw"'):
        build_optimizer(nn.Conv2d(3, 5, 3), settings_for("muon"))


@pytest.mark.parametrize(("name", "package"), PACKAGES.items())
def test_a_package_that_is_missing_is_named_with_the_command_that_installs_it(name, package, monkeypatch):
    for module in [package, *(key for key in sys.modules if key.startswith(f"{package}."))]:
        monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(UsageError, match=rf'"{name}" needs the package .*pip install "t2im\[optimizers\]"') as caught:
        build_optimizer(Bowl(), settings_for(name))
    assert "\n" not in str(caught.value)


def test_eight_bits_are_used_where_they_save_something():
    pytest.importorskip("bitsandbytes")
    model = Bowl()
    take_steps(model, optimizer := build_optimizer(model, settings_for("adamw8bit")), range(1))
    state = optimizer.state[model.layers[0].weight]
    assert {state[key].dtype for key in ("state1", "state2")} == {torch.uint8}


def test_schedule_free_wants_a_constant_schedule():
    with pytest.raises(ConfigError, match='set schedule = "constant"'):
        parse_settings(OptimizationConfig, {"optimizer": "schedule_free", "schedule": "cosine"})


def test_looking_at_a_schedule_free_run_does_not_change_it():
    pytest.importorskip("schedulefree")
    looked_at, left_alone = Bowl(), Bowl()
    first, second = (build_optimizer(model, settings_for("schedule_free")) for model in (looked_at, left_alone))
    assert averages_weights(first)
    for step in range(6):
        take_steps(looked_at, first, range(step, step + 1))
        with evaluation_weights(first):
            assert step == 0 or not torch.equal(looked_at.conv.weight, left_alone.conv.weight)
        take_steps(left_alone, second, range(step, step + 1))
        assert all(map(torch.equal, looked_at.parameters(), left_alone.parameters()))
    assert_same(first.state_dict(), second.state_dict())


def test_the_weights_that_are_lent_are_those_of_the_end():
    pytest.importorskip("schedulefree")
    model = Bowl()
    take_steps(model, optimizer := build_optimizer(model, settings_for("schedule_free")), range(4))
    with evaluation_weights(optimizer):
        lent = [parameter.detach().clone() for parameter in model.parameters()]
    for_evaluation(optimizer)
    assert all(map(torch.equal, lent, model.parameters()))


def test_other_optimizers_lend_the_weights_as_they_are():
    model = Bowl()
    take_steps(model, optimizer := build_optimizer(model, settings_for("adamw")), range(2))
    assert not averages_weights(optimizer)
    before = copy.deepcopy(list(model.parameters()))
    with evaluation_weights(optimizer):
        assert all(map(torch.equal, before, model.parameters()))
    for_evaluation(optimizer)
    assert all(map(torch.equal, before, model.parameters()))


def test_accelerate_can_wrap_each_of_them(name):
    from accelerate import Accelerator

    alone, prepared = Bowl(), Bowl()
    take_steps(alone, build_optimizer(alone, settings_for(name)), range(3))
    take_steps(prepared, Accelerator(cpu=True).prepare(build_optimizer(prepared, settings_for(name))), range(3))
    assert all(map(torch.equal, alone.parameters(), prepared.parameters()))


def test_clipping_scales_the_joint_norm_and_reports_what_it_was():
    model = nn.Linear(2, 1, bias=False)
    for norm, expected in ((5.0, 1.0), (0.5, 0.5)):
        model.weight.grad = torch.tensor([[0.6, 0.8]]) * norm
        assert clip_gradients(model, 1.0).item() == pytest.approx(norm)
        assert model.weight.grad.norm().item() == pytest.approx(expected, rel=1e-4)


def test_clipping_leaves_gradients_alone_whose_norm_is_not_finite():
    model = nn.Linear(2, 1)
    model.weight.grad, model.bias.grad = torch.tensor([[float("inf"), 4.0]]), torch.tensor([3.0])
    assert not clip_gradients(model, 1.0).isfinite()
    assert model.bias.grad.item() == 3.0 and model.weight.grad[0, 1].item() == 4.0
