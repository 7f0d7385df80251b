import math

import pytest
import torch
from torch import nn

from t2im.nn.embeddings import (
    AttentionPooling,
    SizeEmbedding,
    TextTimeEmbedding,
    TimestepEmbedding,
    sinusoidal_embedding,
)


def test_embedding_is_cosines_then_sines_of_falling_frequency():
    embedding = sinusoidal_embedding(torch.tensor([7]), 6)
    frequencies = [10_000 ** (-i / 3) for i in range(3)]
    expected = [math.cos(7 * w) for w in frequencies] + [math.sin(7 * w) for w in frequencies]
    torch.testing.assert_close(embedding, torch.tensor([expected]))


def test_sines_come_first_when_not_flipped():
    timesteps = torch.tensor([0, 3, 999])
    cosines, sines = sinusoidal_embedding(timesteps, 10).chunk(2, dim=-1)
    assert torch.equal(sinusoidal_embedding(timesteps, 10, flip_sin_to_cos=False), torch.cat([sines, cosines], dim=-1))


def test_frequency_shift_of_one_makes_the_slowest_wave_exactly_the_longest_period():
    slowest = sinusoidal_embedding(torch.tensor([5000]), 8, freq_shift=1)[0, 3]
    assert slowest.item() == pytest.approx(math.cos(0.5), abs=1e-6)


def test_an_odd_last_channel_is_zero():
    embedding = sinusoidal_embedding(torch.tensor([1, 2]), 7)
    assert embedding.shape == (2, 7)
    assert torch.equal(embedding[:, -1], torch.zeros(2))


def test_fractional_and_whole_timesteps_are_read_alike():
    assert torch.equal(sinusoidal_embedding(torch.tensor([500]), 8), sinusoidal_embedding(torch.tensor([500.0]), 8))
    assert not torch.equal(sinusoidal_embedding(torch.tensor([500.5]), 8), sinusoidal_embedding(torch.tensor([500]), 8))


def test_all_thousand_timesteps_look_different():
    embedding = sinusoidal_embedding(torch.arange(1000), 32)
    distances = torch.cdist(embedding, embedding) + 9 * torch.eye(1000)
    assert distances.min() > 0.05


def test_time_embedding_is_a_two_layer_network_over_any_leading_axes():
    torch.manual_seed(0)
    embedding = TimestepEmbedding(5, 11)
    waves = torch.randn(2, 3, 5)
    reference = nn.Sequential(embedding.linear_1, nn.SiLU(), embedding.linear_2)
    assert torch.equal(embedding(waves), reference(waves))


def test_pooling_weighs_tokens_by_how_well_they_answer_their_mean():
    torch.manual_seed(1)
    pool = AttentionPooling(6, heads=1)
    states = torch.randn(2, 5, 6)
    asker = states.mean(1, keepdim=True) + pool.positional_embedding
    everyone = torch.cat([asker, states], dim=1)
    scores = pool.q_proj(asker) @ pool.k_proj(everyone).mT / math.sqrt(6)
    expected = (scores.softmax(-1) @ pool.v_proj(everyone))[:, 0]
    torch.testing.assert_close(pool(states), expected)


def test_summary_of_a_prompt_does_not_depend_on_the_order_of_its_states():
    torch.manual_seed(2)
    summary = TextTimeEmbedding(8, 12, heads=2)
    states = torch.randn(1, 7, 8)
    torch.testing.assert_close(summary(states), summary(states.flip(1)))


def test_summary_of_a_masked_prompt_is_that_of_its_visible_tokens():
    torch.manual_seed(3)
    summary = TextTimeEmbedding(8, 12, heads=2)
    states = torch.randn(3, 7, 8)
    mask = torch.tensor([[True] * 7, [True, False, True, False, False, False, True], [False] * 7])
    masked = summary(states, mask)
    for row in range(2):
        torch.testing.assert_close(masked[row], summary(states[row : row + 1, mask[row]])[0])
    assert torch.isfinite(masked).all()  # a prompt of which nothing is visible is summed up, too


def test_sizes_are_waves_of_four_numbers_and_unknown_ones_are_nothing():
    torch.manual_seed(4)
    embedding = SizeEmbedding(6, 11)
    sizes = torch.tensor([[64, 96, 0, 16], [0, 0, 0, 0]])
    waves = torch.cat([sinusoidal_embedding(sizes[:1, number], 6) for number in range(4)], dim=1)
    torch.testing.assert_close(embedding(sizes)[:1], embedding.embedding(waves))
    assert not embedding(sizes)[1].any()
