import pytest
import torch
import torch.nn.functional as F

from t2im.nn.resnet import Downsample2D, ResnetBlock2D, Upsample2D


def block(in_channels=6, out_channels=9, *, dropout=0.0, time_scale_shift="default"):
    torch.manual_seed(0)
    return ResnetBlock2D(
        in_channels,
        out_channels,
        time_embed_dim=5,
        groups=3,
        eps=1e-5,
        dropout=dropout,
        time_scale_shift=time_scale_shift,
    )


def test_default_block_adds_time_before_the_second_norm():
    resnet = block()
    maps, time = torch.randn(2, 6, 5, 7), torch.randn(2, 9)
    hidden = resnet.conv1(F.silu(resnet.norm1(maps))) + time[:, :, None, None]
    expected = resnet.conv_shortcut(maps) + resnet.conv2(F.silu(resnet.norm2(hidden)))
    torch.testing.assert_close(resnet(maps, time), expected)


def test_scale_shift_block_modulates_after_the_second_norm():
    resnet = block(time_scale_shift="scale_shift")
    maps, scale, shift = torch.randn(2, 6, 5, 7), torch.randn(2, 9), torch.randn(2, 9)
    hidden = resnet.norm2(resnet.conv1(F.silu(resnet.norm1(maps))))
    hidden = hidden * (1 + scale[:, :, None, None]) + shift[:, :, None, None]
    expected = resnet.conv_shortcut(maps) + resnet.conv2(F.silu(hidden))
    torch.testing.assert_close(resnet(maps, torch.cat([scale, shift], dim=1)), expected)


@pytest.mark.parametrize(("time_scale_shift", "channels"), [("default", 9), ("scale_shift", 18)])
def test_time_is_translated_into_one_or_two_numbers_per_channel(time_scale_shift, channels):
    resnet = block(time_scale_shift=time_scale_shift)
    embedding = torch.randn(4, 3, 5)
    projection = resnet.project_time(embedding)
    assert projection.shape == (4, 3, channels)
    torch.testing.assert_close(projection, resnet.time_emb_proj(F.silu(embedding)))


def test_one_row_of_time_serves_the_whole_batch():
    resnet = block()
    maps, time = torch.randn(3, 6, 4, 4), torch.randn(1, 9)
    assert torch.equal(resnet(maps, time), resnet(maps, time.expand(3, -1)))


def test_shortcut_is_the_identity_where_channels_stay():
    resnet = block(9, 9)
    assert resnet.conv_shortcut is None
    torch.nn.init.zeros_(resnet.conv2.weight)
    torch.nn.init.zeros_(resnet.conv2.bias)
    maps = torch.randn(2, 9, 3, 5)
    assert torch.equal(resnet(maps, torch.randn(2, 9)), maps)


def test_a_sample_does_not_depend_on_its_neighbours():
    resnet = block()
    maps, time = torch.randn(3, 6, 5, 5), torch.randn(3, 9)
    torch.testing.assert_close(resnet(maps, time)[1:2], resnet(maps[1:2], time[1:2]))


def test_dropout_acts_in_training_only():
    resnet = block(dropout=0.5)
    maps, time = torch.randn(1, 6, 5, 5), torch.randn(1, 9)
    assert not torch.equal(resnet(maps, time), resnet(maps, time))
    resnet.eval()
    assert torch.equal(resnet(maps, time), resnet(maps, time))


@pytest.mark.parametrize(("size", "halved"), [((8, 6), (4, 3)), ((7, 5), (4, 3)), ((1, 1), (1, 1))])
def test_halving_rounds_up_and_growing_comes_back_to_any_size(size, halved):
    maps = torch.randn(2, 4, *size)
    small = Downsample2D(4)(maps)
    assert small.shape == (2, 4, *halved)
    assert Upsample2D(4)(small, size=size).shape == maps.shape


def test_growing_repeats_cells_before_it_smooths():
    up = Upsample2D(2)
    maps = torch.randn(1, 2, 3, 3)
    repeated = maps.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3)
    torch.testing.assert_close(up(maps, size=(6, 6)), up.conv(repeated))
