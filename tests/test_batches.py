"""Order and chance are pure functions: every epoch shows everything once, and a start in the middle is a start there."""

import hashlib
import itertools

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from t2im.batches import Store, examples_at, permutation, split
from t2im.blocks import Table
from t2im.data.captions import Example
from t2im.errors import DataError, UsageError


def digests(*values):
    return np.frombuffer(b"".join(hashlib.sha256(str(value).encode()).digest() for value in values), "S32")


CAPTIONS = [("one",), ("two", "zwei", "deux"), ("three",), ("one", "four"), ("five",)]


def build(folder, *, flip=False, masked=False):
    """Store five examples whose records say by their numbers which they are."""
    examples = [Example(folder / f"{number}.png", captions) for number, captions in enumerate(CAPTIONS)]
    latents, text = Table(folder / "latents"), Table(folder / "text")
    moments = []
    for number, view in itertools.product(range(5), range(2)):
        mean = np.full((3, 2, 7), 10 * number + view, np.float16)
        moments.append(np.stack([mean, np.full_like(mean, np.log(0.25))]))  # a standard deviation of 1/2
    latents.append(digests(*range(10)), moments)
    words = sorted({caption for captions in CAPTIONS for caption in captions} | {""})
    states = [np.full((len(word) + 1 if masked else 6, 4), index, np.float16) for index, word in enumerate(words)]
    text.append(digests(*words), states)
    rows = np.array([words.index(caption) for captions in CAPTIONS for caption in captions])
    views = np.arange(10).reshape(5, 2)[:, : 2 if flip else 1]
    sizes = 10 * np.arange(20, dtype=np.int32).reshape(5, 4) + 1
    store = Store(examples, digests(*"abcde"), latents, views, text, rows, words.index(""), masked=masked, sizes=sizes)
    return store, words


def word_of(words, state):
    return words[int(state[0, 0])]


@given(count=st.integers(1, 50), seed=st.integers(0, 2**63 - 1), epoch=st.integers(0, 10**6))
def test_each_epoch_shows_every_example_once(count, seed, epoch):
    shown = examples_at(np.arange(count * epoch, count * (epoch + 1)), count, seed)
    assert sorted(shown.tolist()) == list(range(count))


@given(
    count=st.integers(1, 13),
    seed=st.integers(0, 99),
    start=st.integers(0, 100),
    cuts=st.lists(st.integers(1, 17), min_size=1, max_size=5),
)
def test_the_order_does_not_depend_on_how_it_is_cut(count, seed, start, cuts):
    whole = examples_at(np.arange(start, start + sum(cuts)), count, seed)
    bounds = np.cumsum([start, *cuts])
    parts = [examples_at(np.arange(first, last), count, seed) for first, last in itertools.pairwise(bounds)]
    assert np.concatenate(parts).tolist() == whole.tolist()


def test_epochs_and_seeds_have_different_orders():
    orders = {tuple(permutation(31, seed, epoch).tolist()) for seed in range(7) for epoch in range(7)}
    assert len(orders) == 49


def test_the_order_never_changes_between_versions():
    assert permutation(7, 0, 0).tolist() == [5, 1, 2, 3, 4, 0, 6]
    assert not permutation(7, 0, 0).flags.writeable


@given(st.lists(st.integers(0, 30), max_size=40), st.sampled_from([0.0, 0.02, 0.3, 0.9, 1.0]))
def test_split_divides_and_copies_never_straddle(numbers, fraction):
    train, heldout = split(digests(*numbers) if numbers else np.empty(0, "S32"), fraction)
    assert sorted([*train.tolist(), *heldout.tolist()]) == list(range(len(numbers)))
    assert not {numbers[index] for index in train} & {numbers[index] for index in heldout}
    if fraction == 0:
        assert not len(heldout)
    elif len(set(numbers)) >= 2:
        assert len(train) and len(heldout)


def test_split_takes_about_its_fraction_and_more_images_move_no_other():
    few, many = split(digests(*range(1000)), 0.1), split(digests(*range(3000)), 0.1)
    assert 70 < len(few[1]) < 130
    assert few[1].tolist() == [index for index in many[1].tolist() if index < 1000]


def test_starting_at_a_sample_is_skipping_to_it(tmp_path):
    store, _ = build(tmp_path, flip=True)
    chances = {"batch_size": 3, "seed": 11, "caption_dropout": 0.3}
    skipped = list(itertools.islice(store.batches(**chances), 4, 9))
    started = list(itertools.islice(store.batches(**chances, start=12), 5))
    for a, b in zip(skipped, started, strict=True):
        assert torch.equal(a.latents, b.latents) and torch.equal(a.text.hidden_states, b.text.hidden_states)
        assert torch.equal(a.sample_indices, b.sample_indices) and torch.equal(a.example_indices, b.example_indices)


@pytest.mark.parametrize("masked", [False, True])
def test_a_samples_draws_do_not_depend_on_its_batch(tmp_path, masked):
    store, _ = build(tmp_path, flip=True, masked=masked)
    whole = next(store.batches(batch_size=35, seed=11, caption_dropout=0.3))
    for index, batch in enumerate(itertools.islice(store.batches(batch_size=1, seed=11, caption_dropout=0.3), 35)):
        assert torch.equal(batch.latents[0], whole.latents[index])
        length = batch.text.hidden_states.shape[1]
        assert torch.equal(batch.text.hidden_states[0], whole.text.hidden_states[index, :length])
        assert batch.sample_indices.tolist() == [index]
        if masked:
            assert whole.text.mask[index].tolist() == [True] * length + [False] * (6 - length)


def test_latents_are_drawn_from_the_examples_posterior_anew_in_every_epoch(tmp_path):
    store, _ = build(tmp_path)
    batch = next(store.batches(batch_size=1000, seed=3))
    noise = (batch.latents - 10 * batch.example_indices[:, None, None, None]) / 0.5
    assert abs(noise.mean()) < 0.02 and abs(noise.std() - 1) < 0.02
    assert len({tuple(row) for row in noise.flatten(1).tolist()}) == 1000
    assert batch.latents.dtype == batch.text.hidden_states.dtype == torch.float32


def test_flips_show_both_views_about_equally_and_never_without_leave(tmp_path):
    def views(store):
        batch = next(store.batches(batch_size=400, seed=3))
        return (batch.latents.mean(dim=(1, 2, 3)) - 10 * batch.example_indices).round()

    assert 160 < views(build(tmp_path / "a", flip=True)[0]).sum() < 240
    assert not views(build(tmp_path / "b")[0]).any()


def test_captions_are_those_of_the_example_all_of_them_in_turn(tmp_path):
    store, words = build(tmp_path)
    batch = next(store.batches(batch_size=500, seed=3))
    shown = {}
    for index, state in zip(batch.example_indices.tolist(), batch.text.hidden_states, strict=True):
        shown.setdefault(index, []).append(word_of(words, state))
    assert {index: set(seen) for index, seen in shown.items()} == {i: set(c) for i, c in enumerate(CAPTIONS)}
    assert all(20 < shown[1].count(word) < 48 for word in CAPTIONS[1])
    assert store.captions(1) == CAPTIONS[1]


@pytest.mark.parametrize(("dropout", "low", "high"), [(0.0, 0, 0), (0.2, 60, 140), (1.0, 500, 500)])
def test_dropout_shows_the_empty_caption_as_often_as_asked(tmp_path, dropout, low, high):
    store, words = build(tmp_path)
    batch = next(store.batches(batch_size=500, seed=3, caption_dropout=dropout))
    assert low <= sum(word_of(words, state) == "" for state in batch.text.hidden_states) <= high


def test_dropout_changes_nothing_but_the_captions(tmp_path):
    store, _ = build(tmp_path, flip=True)
    with_it, without = (next(store.batches(batch_size=20, seed=3, caption_dropout=rate)) for rate in (0.5, 0.0))
    assert torch.equal(with_it.latents, without.latents)
    kept = (with_it.text.hidden_states == without.text.hidden_states).all(dim=(1, 2))
    assert kept.any() and not kept.all()


@pytest.mark.parametrize(("dropout", "low", "high"), [(0.0, 0, 0), (0.2, 60, 140), (0.9, 410, 490)])
def test_sizes_are_those_of_the_example_but_for_the_share_that_is_unknown(tmp_path, dropout, low, high):
    store, _ = build(tmp_path)
    batch = next(store.batches(batch_size=500, seed=3, size_dropout=dropout))
    unknown = (batch.text.sizes == 0).all(dim=1)
    assert low <= unknown.sum() <= high
    expected = torch.from_numpy(store.sizes)[batch.example_indices]
    assert torch.equal(batch.text.sizes[~unknown], expected[~unknown])


def test_dropped_sizes_change_nothing_else(tmp_path):
    store, words = build(tmp_path, flip=True)
    with_it, without = (
        next(store.batches(batch_size=40, seed=3, caption_dropout=0.5, **asked))
        for asked in ({"size_dropout": 0.5}, {})
    )
    assert torch.equal(with_it.latents, without.latents)
    assert torch.equal(with_it.text.hidden_states, without.text.hidden_states)
    assert store.sizes.all()  # the store keeps what a batch does not tell
    unknown, empty = with_it.text.sizes[:, 0] == 0, with_it.text.hidden_states[:, 0, 0] == words.index("")
    assert len({*zip(unknown.tolist(), empty.tolist(), strict=True)}) == 4  # each goes by its own chance


def test_a_subset_is_shown_alone_and_by_its_own_numbers(tmp_path):
    store, _ = build(tmp_path)
    batch = next(store.batches(batch_size=30, seed=3, examples=np.array([4, 1, 2])))
    assert sorted(batch.example_indices.tolist()) == [1] * 10 + [2] * 10 + [4] * 10
    assert (batch.latents.mean(dim=(1, 2, 3)) / 10).round().tolist() == batch.example_indices.tolist()


def test_a_fixed_batch_is_the_same_whenever_it_is_asked_for(tmp_path):
    store, _ = build(tmp_path, flip=True)
    examples, samples = np.array([3, 3, 0]), np.array([7, 8, 9])
    first = store.batch(examples, samples, seed=5)
    next(store.batches(batch_size=3, seed=5))
    again = store.batch(examples, samples, seed=5)
    assert torch.equal(first.latents, again.latents) and torch.equal(first.text.hidden_states, again.text.hidden_states)
    assert not torch.equal(first.latents[0], first.latents[1])
    assert first.example_indices.tolist() == [3, 3, 0] and first.sample_indices.tolist() == [7, 8, 9]


def test_a_store_knows_its_shapes_and_statistics(tmp_path):
    store, _ = build(tmp_path)
    assert (len(store), store.latent_shape, store.text_width) == (5, (3, 2, 7), 4)
    means = 10 * torch.arange(5, dtype=torch.float64)
    torch.testing.assert_close(store.statistics.mean, means.mean().expand(3))
    expected = (means.var(correction=0) + 0.25).sqrt().expand(3)
    torch.testing.assert_close(store.statistics.std, expected, rtol=1e-3, atol=0)


@pytest.mark.parametrize("wrong", [{"batch_size": 0}, {"start": -1}, {"examples": np.empty(0, np.int64)}])
def test_impossible_batches_are_refused_at_once(tmp_path, wrong):
    store, _ = build(tmp_path)
    with pytest.raises(UsageError, match="must be positive"):
        store.batches(**({"batch_size": 2, "seed": 0} | wrong))


def test_an_example_without_captions_is_refused(tmp_path):
    store, _ = build(tmp_path)
    bare = [*store.examples[:-1], Example(tmp_path / "bare.png", ())]
    with pytest.raises(DataError, match=r"bare\.png has no caption"):
        Store(
            bare,
            store.content,
            store._latents,
            store._views,
            store._text,
            np.arange(7),
            0,
            masked=False,
            sizes=store.sizes,
        )
