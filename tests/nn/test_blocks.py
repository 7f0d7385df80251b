import torch

from t2im.nn.attention import Transformer2DModel
from t2im.nn.blocks import DownBlock2D, LayerContext, UNetMidBlock2DCrossAttn, UpBlock2D, layers
from t2im.nn.resnet import ResnetBlock2D


def resnet(in_channels, out_channels=6):
    return ResnetBlock2D(
        in_channels, out_channels, time_embed_dim=5, groups=2, eps=1e-5, dropout=0.0, time_scale_shift="default"
    )


def transformer():
    return Transformer2DModel(
        6, 2, 1, cross_attention_dim=3, groups=2, use_linear_projection=True, upcast_attention=False
    )


def context_of(block, batch=2):
    embedding, states = torch.randn(batch, 5), torch.randn(batch, 4, 3)
    return tuple(layer.context(embedding, states, None) for layer in layers(block))


def test_layers_without_a_transformer_are_told_the_time_only():
    block = DownBlock2D([resnet(4), resnet(6)], [], downsample=False)
    assert [layer.attention for layer in layers(block)] == [None, None]
    assert all(isinstance(told, LayerContext) and told.text == () for told in context_of(block))


def test_mid_block_pairs_its_transformer_with_the_first_residual_block():
    block = UNetMidBlock2DCrossAttn([resnet(6), resnet(6)], [transformer()])
    first, second = layers(block)
    assert first.attention is block.attentions[0]
    assert second.attention is None
    context = context_of(block)
    maps = torch.randn(2, 6, 3, 5)
    expected = second.refine(first.refine(maps, context[0]), context[1])
    assert torch.equal(block(maps, context), expected)


def test_way_down_leaves_a_skip_after_each_layer_and_after_the_halving():
    block = DownBlock2D([resnet(4), resnet(6)], [transformer(), transformer()], downsample=True)
    skips = block(torch.randn(2, 4, 7, 5), context_of(block))
    assert [tuple(skip.shape[1:]) for skip in skips] == [(6, 7, 5), (6, 7, 5), (6, 4, 3)]
    coarsest = DownBlock2D([resnet(4)], [], downsample=False)
    assert len(coarsest(torch.randn(2, 4, 7, 5), context_of(coarsest))) == 1


def test_way_up_takes_its_own_skips_and_grows_to_the_next():
    block = UpBlock2D([resnet(6 + 4), resnet(6 + 2)], [], upsample=True)
    finer = torch.randn(2, 8, 7, 5)
    skips = [finer, torch.randn(2, 2, 4, 3), torch.randn(2, 4, 4, 3)]
    maps = block(torch.randn(2, 6, 4, 3), skips, context_of(block))
    assert maps.shape == (2, 6, 7, 5)
    assert len(skips) == 1
    assert skips[0] is finer
