"""The rule of thumb goes by views of an image, whatever the number of images and of steps."""

import pytest

from t2im.advice.copying import EXPECT, WATCH, risk_of_copying


@pytest.mark.parametrize("images", [211, 2_003, 200_003])
def test_the_onset_is_proportional_to_the_number_of_images(images):
    risks = [risk_of_copying(int(images * views), images).risk for views in (WATCH - 1, WATCH + 1, EXPECT + 1)]
    assert risks == ["low", "watch", "high"]


def test_what_is_commonly_trained_lies_between_the_bounds():
    assert risk_of_copying(10_000 * 128, 2_000).risk == "watch"
    assert risk_of_copying(20_000 * 128, 2_000).views == EXPECT


def test_mirror_images_are_other_images():
    assert risk_of_copying(1_000_000, 1_000).risk == "watch"
    assert risk_of_copying(1_000_000, 1_000, mirrored=True).risk == "low"


def test_a_handful_of_images_is_copied_at_any_length():
    assert risk_of_copying(10, 7).risk == "high"


def test_it_says_how_sure_it_is():
    assert "rule of thumb" in risk_of_copying(10, 7).how_sure
