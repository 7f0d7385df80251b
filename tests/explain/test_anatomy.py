"""The anatomy names every weight once, and sizes, channels and listeners as the forward pass has them."""

import pytest
import torch

from t2im.explain.anatomy import anatomy
from t2im.networks import UNetConfig
from t2im.nn.unet import ConditionalUNet

ONE_LEVEL = UNetConfig(
    sample_size=5,
    block_out_channels=(8,),
    down_block_types=("DownBlock2D",),
    up_block_types=("UpBlock2D",),
    layers_per_block=2,
    attention_head_dim=2,
    cross_attention_dim=10,
    norm_num_groups=4,
)
UNEVEN = UNetConfig(
    sample_size=(11, 7),
    in_channels=3,
    out_channels=5,
    block_out_channels=(8, 24, 16),
    down_block_types=("CrossAttnDownBlock2D", "DownBlock2D", "CrossAttnDownBlock2D"),
    up_block_types=("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
    layers_per_block=(1, 2, 1),
    transformer_layers_per_block=(1, 1, 3),
    attention_head_dim=(2, 3, 4),
    cross_attention_dim=10,
    norm_num_groups=4,
    resnet_time_scale_shift="scale_shift",
    addition_embed_type="text",
    addition_embed_type_num_heads=5,
    qk_norm=True,
    size_conditioning=True,
)


@pytest.fixture(params=[ONE_LEVEL, UNEVEN], ids=["one level", "uneven"])
def unet(request):
    torch.manual_seed(0)
    return ConditionalUNet(request.param).eval()


def parts_of(model):
    for level in model.levels:
        for row in level.rows:
            yield from (*row.down, *row.up)
        if level.upsampler is not None:
            yield level.upsampler
    yield from (*model.mid_parts, *model.out, *model.time, *model.text)
    if model.size is not None:
        yield model.size


def test_every_weight_belongs_to_exactly_one_part(unet):
    model = anatomy(unet)
    named = [
        f"{part.path}.{name}"
        for part in parts_of(model)
        for name, _ in unet.get_submodule(part.path).named_parameters()
    ]
    assert sorted(named) == sorted(name for name, _ in unet.named_parameters())


def test_counts_are_those_of_the_modules(unet):
    model = anatomy(unet)
    blocks = [block for level in model.levels for block in (level.down, level.up)] + [model.mid]
    for part in (*parts_of(model), *blocks):
        module = unet.get_submodule(part.path)
        assert part.parameters == sum(weight.numel() for weight in module.parameters()), part.path
        assert part.kind.removeprefix("CrossAttn") in (type(module).__name__, part.path)
    assert model.parameters == sum(part.parameters for part in parts_of(model)) == unet.num_parameters()


def test_block_kinds_are_those_of_the_configuration(unet):
    model = anatomy(unet)
    assert tuple(level.down.kind for level in model.levels) == unet.config.down_block_types
    assert tuple(level.up.kind for level in reversed(model.levels)) == unet.config.up_block_types
    assert model.mid.kind == unet.config.mid_block_type


def test_sizes_and_channels_are_those_of_a_forward_pass(unet):
    seen = {}
    for name, module in unet.named_modules():
        module.register_forward_hook(
            lambda module, inputs, output, name=name: seen.update({name: output}) if torch.is_tensor(output) else None
        )
    with torch.no_grad():
        unet(torch.zeros(1, *unet.latent_shape), 3, torch.zeros(1, 2, unet.config.cross_attention_dim))
    for level in anatomy(unet).levels:
        arrivals = [level.upsampler] if level.upsampler else []
        for part in [*arrivals, *(part for row in level.rows for part in (*row.down, *row.up))]:
            height, width = seen[part.path].shape[-2:]
            assert level.size == f"{height} × {width}", part.path
        for row in level.rows:
            assert seen[row.down[-1].path].shape[1] == row.skip_channels
            assert seen[row.up[-1].path].shape[1] == level.channels


def test_each_row_pairs_what_the_forward_pass_joins(unet):
    """A resnet of the way up takes in the picture so far and the skip that stands beside it."""
    model = anatomy(unet)
    so_far = model.levels[-1].channels
    for level in reversed(model.levels):
        for row in reversed(level.rows):
            resnet = unet.get_submodule(row.up[0].path)
            assert resnet.conv1.in_channels == so_far + row.skip_channels
            so_far = resnet.conv1.out_channels


def test_listeners_are_the_parts_that_are_told_something(unet):
    for part in parts_of(anatomy(unet)):
        names = {name.rsplit(".", 1)[-1] for name, _ in unet.get_submodule(part.path).named_modules()}
        assert (part.hears == "time") == ("time_emb_proj" in names), part.path
        assert (part.hears == "text") == ("attn2" in names), part.path


def test_a_unet_without_a_native_size_is_described_in_fractions():
    model = anatomy(ConditionalUNet(UNEVEN.model_copy(update={"sample_size": None})))
    assert [level.size for level in model.levels] == ["H × W", "H/2 × W/2", "H/4 × W/4"]


def test_deep_transformers_say_how_deep():
    parts = {part.path: part.detail for part in parts_of(anatomy(ConditionalUNet(UNEVEN)))}
    assert parts["down_blocks.0.attentions.0"] == "2 QK-norm heads"
    assert parts["down_blocks.2.attentions.0"] == "3 × 4 QK-norm heads"
    plain = ConditionalUNet(UNEVEN.model_copy(update={"qk_norm": False}))
    assert anatomy(plain).levels[2].rows[1].down[1].detail == "3 × 4 heads"
