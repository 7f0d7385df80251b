import math

import pytest
import torch
import torch.nn.functional as F

from t2im.nn.attention import (
    GEGLU,
    Attention,
    BasicTransformerBlock,
    FeedForward,
    Transformer2DModel,
    attention_bias,
)


def transformer(channels=12, heads=3, depth=2, *, linear=True, upcast=False):
    torch.manual_seed(0)
    return Transformer2DModel(
        channels,
        heads,
        depth,
        cross_attention_dim=5,
        groups=3,
        use_linear_projection=linear,
        upcast_attention=upcast,
    )


@pytest.mark.parametrize("upcast", [False, True])
def test_attention_is_the_softmax_of_scaled_scores_over_values(upcast):
    torch.manual_seed(0)
    attention = Attention(6, 5, heads=2, upcast=upcast)
    tokens, context = torch.randn(3, 7, 6), torch.randn(3, 4, 5)
    heads = []
    for head in (slice(0, 3), slice(3, 6)):
        query, key, value = (
            layer(x)[..., head]
            for layer, x in ((attention.to_q, tokens), (attention.to_k, context), (attention.to_v, context))
        )
        heads.append((query @ key.mT / math.sqrt(3)).softmax(-1) @ value)
    expected = attention.to_out[0](torch.cat(heads, dim=-1))
    torch.testing.assert_close(attention(tokens, attention.keys_values(context)), expected)


@pytest.mark.parametrize("upcast", [False, True])
def test_masked_tokens_might_as_well_not_be_there(upcast):
    torch.manual_seed(1)
    attention = Attention(6, 5, heads=2, upcast=upcast)
    tokens, context = torch.randn(2, 7, 6), torch.randn(2, 4, 5)
    bias = attention_bias(torch.tensor([[True, True, False, False], [True] * 4]), torch.float32)
    masked = attention(tokens, attention.keys_values(context), bias)
    torch.testing.assert_close(masked[:1], attention(tokens[:1], attention.keys_values(context[:1, :2])))
    torch.testing.assert_close(masked[1:], attention(tokens[1:], attention.keys_values(context[1:])))


def scores_of(attention, tokens, context):
    """Return what goes into the softmax."""
    query = attention.norm_q(attention._split(attention.to_q(tokens)))
    key, _ = attention.keys_values(context)
    return query @ key.mT / math.sqrt(query.shape[-1])


def test_normalised_attention_is_that_of_queries_and_keys_of_unit_mean_square():
    torch.manual_seed(3)
    attention = Attention(6, 5, heads=2, upcast=False, qk_norm=True)
    with torch.no_grad():
        attention.norm_q.weight.normal_()
        attention.norm_k.weight.normal_()
    tokens, context = torch.randn(3, 7, 6), torch.randn(3, 4, 5)
    heads = []
    for head in (slice(0, 3), slice(3, 6)):
        query, key = attention.to_q(tokens)[..., head], attention.to_k(context)[..., head]
        query = attention.norm_q.weight * query / query.square().mean(-1, keepdim=True).sqrt()
        key = attention.norm_k.weight * key / key.square().mean(-1, keepdim=True).sqrt()
        heads.append((query @ key.mT / math.sqrt(3)).softmax(-1) @ attention.to_v(context)[..., head])
    expected = attention.to_out[0](torch.cat(heads, dim=-1))
    torch.testing.assert_close(attention(tokens, attention.keys_values(context)), expected, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("growth", [1.0, 100.0, 10_000.0])
def test_normalised_scores_stay_below_their_closed_form_however_the_projections_grow(growth):
    torch.manual_seed(4)
    attention = Attention(22, 5, heads=2, upcast=False, qk_norm=True)
    with torch.no_grad():
        attention.norm_q.weight.fill_(1.5)
        attention.to_q.weight.mul_(growth)
        attention.to_k.weight.mul_(growth)
    tokens, context = torch.randn(3, 17, 22), torch.randn(3, 13, 5)
    bound = math.sqrt(11) * 1.5  # sqrt(head width) max|w_q| max|w_k|
    assert 0.3 * bound < scores_of(attention, tokens, context).abs().max() <= bound + 1e-5
    attention.norm_q = attention.norm_k = torch.nn.Identity()
    assert growth == 1 or scores_of(attention, tokens, context).abs().max() > 10 * bound


def test_a_prompt_without_any_visible_token_is_seen_evenly():
    torch.manual_seed(2)
    attention = Attention(6, 5, heads=2, upcast=False)
    tokens, context = torch.randn(1, 3, 6), torch.randn(1, 4, 5)
    blind = attention(tokens, attention.keys_values(context), attention_bias(torch.zeros(1, 4).bool(), torch.float32))
    torch.testing.assert_close(blind, attention(tokens, attention.keys_values(context)), atol=1e-3, rtol=0)


@pytest.mark.parametrize(("upcast", "dtype"), [(True, torch.float32), (False, torch.bfloat16)])
def test_upcasting_means_scores_in_fp32_even_under_autocast(monkeypatch, upcast, dtype):
    torch.manual_seed(3)
    attention = Attention(8, 8, heads=2, upcast=upcast)
    tokens = torch.randn(2, 5, 8)
    bias = attention_bias(torch.tensor([[True, True, True, False, False]] * 2), torch.float32)
    seen = []

    def spy(*tensors):
        seen.extend(tensor.dtype for tensor in tensors[:3])
        return F.softmax(tensors[0] @ tensors[1].mT + tensors[3], dim=-1) @ tensors[2]

    with torch.autocast("cpu", dtype=torch.bfloat16):
        unpatched = attention(tokens, attention.keys_values(tokens), bias)
        monkeypatch.setattr(F, "scaled_dot_product_attention", spy)
        attention(tokens, attention.keys_values(tokens), bias)
    assert seen == [dtype] * 3
    assert unpatched.dtype == torch.bfloat16
    monkeypatch.undo()
    exact = attention(tokens, attention.keys_values(tokens), bias)
    torch.testing.assert_close(unpatched.float(), exact, atol=0.02, rtol=0.02)


def test_upcasting_never_casts_down():
    torch.manual_seed(4)
    plain, upcast = (Attention(8, 8, heads=2, upcast=upcast).double() for upcast in (False, True))
    upcast.load_state_dict(plain.state_dict())
    tokens = torch.randn(2, 5, 8, dtype=torch.float64)
    torch.testing.assert_close(
        upcast(tokens, upcast.keys_values(tokens)), plain(tokens, plain.keys_values(tokens)), atol=1e-14, rtol=0
    )


def test_geglu_gates_one_half_of_the_projection_by_the_other():
    geglu = GEGLU(3, 5)
    tokens = torch.randn(2, 4, 3)
    projected = geglu.proj(tokens)
    torch.testing.assert_close(geglu(tokens), projected[..., :5] * F.gelu(projected[..., 5:]))


def test_feed_forward_treats_each_token_alone():
    think = FeedForward(4)
    tokens = torch.randn(2, 7, 4)
    torch.testing.assert_close(think(tokens)[:, 2:3], think(tokens[:, 2:3]))


def test_block_adds_what_it_sees_reads_and_thinks():
    torch.manual_seed(4)
    block = BasicTransformerBlock(6, 2, 5, upcast_attention=False)
    tokens, states = torch.randn(2, 7, 6), torch.randn(2, 3, 5)
    text = block.attn2.keys_values(states)
    normed = block.norm1(tokens)
    seen = tokens + block.attn1(normed, block.attn1.keys_values(normed))
    read = seen + block.attn2(block.norm2(seen), text)
    torch.testing.assert_close(block(tokens, text, None), read + block.ff(block.norm3(read)))


@pytest.mark.parametrize("linear", [True, False])
@pytest.mark.parametrize("heads", [3, 5])
def test_transformer_keeps_the_shape_even_where_heads_do_not_divide_channels(linear, heads):
    model = transformer(heads=heads, linear=linear)
    maps, states = torch.randn(2, 12, 5, 3), torch.randn(2, 4, 5)
    assert model(maps, model.keys_values(states)).shape == maps.shape


@pytest.mark.parametrize("linear", [True, False])
def test_self_attention_connects_cells_and_keeps_their_places(linear):
    model = transformer(linear=linear)
    text = model.keys_values(torch.randn(1, 4, 5))
    maps = torch.randn(1, 12, 3, 5)
    # No cell knows its place, so a mirrored picture gives the mirrored result; a wrong reshape would shuffle it.
    torch.testing.assert_close(model(maps.flip(3), text), model(maps, text).flip(3))
    torch.testing.assert_close(model(maps.mT, text), model(maps, text).mT)
    assert not torch.equal(model(maps, text), maps)


def test_linear_and_convolutional_projections_are_the_same_arithmetic():
    linear, convolutional = transformer(linear=True), transformer(linear=False)
    weights = linear.state_dict()
    for name in ("proj_in.weight", "proj_out.weight"):
        weights[name] = weights[name][:, :, None, None]
    convolutional.load_state_dict(weights)
    maps, states = torch.randn(2, 12, 5, 3), torch.randn(2, 4, 5)
    torch.testing.assert_close(
        linear(maps, linear.keys_values(states)), convolutional(maps, convolutional.keys_values(states))
    )


@pytest.mark.parametrize("linear", [True, False])
def test_channels_last_maps_stay_channels_last(linear):
    model = transformer(linear=linear).to(memory_format=torch.channels_last)
    maps = torch.randn(2, 12, 4, 5).contiguous(memory_format=torch.channels_last)
    output = model(maps, model.keys_values(torch.randn(2, 4, 5)))
    assert output.is_contiguous(memory_format=torch.channels_last)


def test_every_block_needs_its_own_keys_and_values():
    model = transformer()
    text = model.keys_values(torch.randn(1, 4, 5))
    assert len(text) == 2
    with pytest.raises(ValueError, match="zip"):
        model(torch.randn(1, 12, 3, 3), text[:1])
