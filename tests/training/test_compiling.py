"""Compiled or not, channels first or last: the same numbers, under the same names."""

import copy

import pytest
import torch
from torch import nn

from t2im.networks import UNetConfig
from t2im.nn.unet import ConditionalUNet
from t2im.training.compiling import channels_last, compiled


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(7)
        self.a, self.b = nn.Linear(3, 5), nn.Linear(5, 2)

    def forward(self, x, scale=1.0):
        return self.b(torch.tanh(self.a(x))) * scale


def pretend(monkeypatch, run):
    """Let `torch.compile` return what `run` makes of a model; a real compiler takes a while, and not everyone has one."""
    monkeypatch.setattr(torch, "compile", lambda model: lambda *inputs, **named: run(model, *inputs, **named))


def refuse(model, *inputs, **named):
    try:
        raise FileNotFoundError("no C++ compiler\nsearched here\nand there")
    except FileNotFoundError as error:
        raise RuntimeError("backend failed") from error


def test_a_compiler_that_fails_is_named_once_and_the_run_goes_on(monkeypatch):
    calls, said = [], []
    pretend(monkeypatch, lambda *inputs, **named: (calls.append(1), refuse(*inputs, **named)))
    model, x = Model(), torch.randn(7, 3)
    call = compiled(model, said.append)
    assert all(torch.equal(call(x, scale=2.0), model(x, scale=2.0)) for _ in range(3))
    assert said == ["compile: going on without, because it failed here: FileNotFoundError: no C++ compiler"]
    assert len(calls) == 1


def test_an_error_of_the_model_is_the_models_and_not_the_compilers(monkeypatch):
    said = []
    pretend(monkeypatch, refuse)
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        compiled(Model(), said.append)(torch.randn(7, 4))
    assert said == []


def test_nothing_is_compiled_before_it_is_called(monkeypatch):
    pretend(monkeypatch, lambda *_: pytest.fail("compiled too early"))
    compiled(Model(), print)


def test_names_of_weights_stay_and_so_does_the_model_itself(monkeypatch):
    pretend(monkeypatch, lambda model, *inputs: model(*inputs))
    model = Model()
    names, forward = list(model.state_dict()), model.forward
    compiled(model, print)(torch.randn(7, 3))
    assert list(model.state_dict()) == names == ["a.weight", "a.bias", "b.weight", "b.bias"]
    assert model.forward == forward


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # whatever compilers warn of
def test_compiled_outputs_and_gradients_are_those_of_the_model():
    said, plain = [], Model()
    model = copy.deepcopy(plain)
    call, x = compiled(model, said.append), torch.randn(7, 3)
    call(x).square().sum().backward()
    plain(x).square().sum().backward()
    if said:
        pytest.skip(said[0])
    torch.testing.assert_close(call(x), plain(x))
    for ours, theirs in zip(model.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad)


def test_channels_last_gives_the_same_numbers_from_feature_maps_that_lie_otherwise():
    config = UNetConfig(
        block_out_channels=(8, 16),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=10,
        norm_num_groups=4,
        attention_head_dim=2,
    )
    torch.manual_seed(19)
    plain = ConditionalUNet(config)
    other = copy.deepcopy(plain)
    channels_last(other)
    lies_so = []
    for block in (*other.down_blocks, other.mid_block, *other.up_blocks):
        block.resnets[0].register_forward_hook(
            lambda module, inputs, output: lies_so.append(output.is_contiguous(memory_format=torch.channels_last))
        )
    inputs = torch.randn(3, 4, 8, 8), torch.tensor([0, 500, 999]), torch.randn(3, 5, 10)
    expected, found = plain(*inputs), other(*inputs)
    torch.testing.assert_close(found, expected)
    assert lies_so == [True] * 5
    expected.square().sum().backward()
    found.square().sum().backward()
    for ours, theirs in zip(other.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-4, atol=1e-4)
    assert list(other.state_dict()) == list(plain.state_dict())
