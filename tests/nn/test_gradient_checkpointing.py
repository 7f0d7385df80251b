"""Gradient checkpointing costs time and saves memory; it changes nothing else."""

import copy

import pytest
import torch
from torch.autograd.graph import saved_tensors_hooks

from t2im.networks import UNetConfig
from t2im.nn.blocks import checkpoint_gradients
from t2im.nn.unet import ConditionalUNet

CONFIG = UNetConfig(
    in_channels=3,
    out_channels=3,
    block_out_channels=(8, 16),
    down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
    up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
    layers_per_block=2,
    cross_attention_dim=10,
    norm_num_groups=4,
    attention_head_dim=2,
    dropout=0.3,
)


@pytest.fixture
def pair():
    torch.manual_seed(29)
    plain = ConditionalUNet(CONFIG).train()
    checkpointed = copy.deepcopy(plain)
    checkpoint_gradients(checkpointed)
    return plain, checkpointed


def step(unet):
    """Return prediction, gradients, and the bytes of feature maps that are kept between the two."""
    torch.manual_seed(31)
    latents, text = torch.randn(2, 3, 7, 5), torch.randn(2, 4, 10, requires_grad=True)
    weights = {parameter.untyped_storage().data_ptr() for parameter in unet.parameters()}
    kept = {}

    def keep(tensor):
        if tensor.untyped_storage().data_ptr() not in weights:
            kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with saved_tensors_hooks(keep, lambda tensor: tensor):
        prediction = unet(latents, torch.tensor([3, 700]), text)
    prediction.square().mean().backward()
    return prediction, [parameter.grad for parameter in [text, *unet.parameters()]], sum(kept.values())


def test_prediction_and_gradients_are_the_same_with_dropout_too(pair):
    (prediction, gradients, _), (again, same, _) = map(step, pair)
    assert torch.equal(prediction, again)
    assert all(map(torch.equal, gradients, same))


def test_it_keeps_less_than_half_of_the_feature_maps(pair):
    plain, checkpointed = (step(unet)[2] for unet in pair)
    assert 0 < checkpointed < 0.5 * plain


def test_only_training_computes_twice(pair, monkeypatch):
    calls = []
    monkeypatch.setattr(
        "t2im.nn.blocks.checkpoint", lambda function, *inputs, **_: (calls.append(1), function(*inputs))[1]
    )
    plain, checkpointed = pair
    step(plain)
    step(checkpointed.eval())
    assert not calls
    step(checkpointed.train())
    assert len(calls) == 2 * 2 + 2 + 2 * 3  # a call for each layer: down, mid, up


def test_names_of_weights_stay(pair):
    plain, checkpointed = pair
    assert list(plain.state_dict()) == list(checkpointed.state_dict())
