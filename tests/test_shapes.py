"""Prompts keep their masks and sizes with them wherever they are cut, joined or moved."""

import torch

from t2im.shapes import TextStates


def states(batch, tokens=3, *, masked=False, sizes=None):
    torch.manual_seed(batch)
    mask = torch.rand(batch, tokens) < 0.5 if masked else None
    return TextStates(torch.randn(batch, tokens, 5), mask, sizes)


def test_rows_are_taken_with_their_mask_and_sizes():
    sizes = torch.arange(12).reshape(3, 4)
    text = states(3, masked=True, sizes=sizes)
    rows = text[[2, 0, 2]]
    assert torch.equal(rows.mask, text.mask[[2, 0, 2]])
    assert torch.equal(rows.sizes, sizes[[2, 0, 2]])
    assert len(text[1:].sizes) == 2
    assert states(3)[1:].sizes is None


def test_sized_prompts_ask_for_pictures_that_were_not_cropped():
    text = states(2, masked=True)
    sized = text.sized(64, 96)
    assert sized.sizes.tolist() == [[64, 96, 0, 0]] * 2
    assert sized.hidden_states is text.hidden_states and sized.mask is text.mask
    assert text.sizes is None


def test_joined_prompts_keep_their_sizes_and_those_without_are_unknown():
    joined = TextStates.stack(states(2), states(1, tokens=5).sized(7, 9))
    assert joined.sizes.tolist() == [[0] * 4, [0] * 4, [7, 9, 0, 0]]
    assert joined.hidden_states.shape == (3, 5, 5)
    assert TextStates.stack(states(2), states(1)).sizes is None


def test_a_change_of_type_is_for_the_states_alone():
    moved = states(2, masked=True).sized(64, 64).to("cpu", torch.float64)
    assert (moved.hidden_states.dtype, moved.mask.dtype, moved.sizes.dtype) == (
        torch.float64,
        torch.bool,
        torch.int64,
    )
