"""After how many passes does a model begin to copy? A rule of thumb, and how little it is sure of.

A diffusion model first learns what its pictures have in common, and, when it is trained much longer, each of them by
heart. Bonnaire et al. 2025 (arXiv 2505.17638; UNets among others) found two times in a training: good pictures come
after a time that hardly depends on the number of images n; copies come after a time that grows in proportion to n. Time
in proportion to n, at a fixed batch size, is a fixed number of *passes over the data*. So passes are what to watch.

Which number that is depends on the model (larger ones copy sooner), on the resolution and on how alike the images are;
nobody can compute it beforehand. The numbers here come from what is commonly trained: 10,000 to 20,000 steps of 128
samples for about 2,000 images, with an eye on copies from there on, which is 640 to 1,280 passes. Each is one point of
experience and no law.
"""

from dataclasses import dataclass
from typing import Literal

WATCH = 640.0
"""Views of one image from which copies are to be looked for."""
EXPECT = 1280.0
"""Views of one image after which copies are to be expected in a small data set."""
FEW_IMAGES = 200
"""Below it a model has too little to find what pictures have in common."""

HOW_SURE = (
    "How sure is this? That copying starts after a number of passes, whatever the number of images, was measured by "
    "others (arXiv 2505.17638); which number it is for your model and images is a rule of thumb that may be wrong by a "
    "factor of a few. The held-out loss tells: when it rises while the training loss falls, the model copies."
)


@dataclass(frozen=True)
class Copying:
    """How likely copies of training images are at the planned length."""

    risk: Literal["low", "watch", "high"]
    views: float
    """How often each image is seen, its mirror image counted as another one."""
    why: str
    how_sure: str = HOW_SURE


def risk_of_copying(samples: int, images: int, *, mirrored: bool = False) -> Copying:
    """Judge a run that sees so many samples of so many images.

    >>> risk_of_copying(200_000, 2_000).risk
    'low'
    """
    views = samples / (images * (2 if mirrored else 1))
    until = f"{_count(WATCH * images * (2 if mirrored else 1))} samples"
    seen = f"each image is seen {_count(views)} times"
    if images < FEW_IMAGES:
        return Copying("high", views, f"{images} images are so few that copies are what a model can learn best; {seen}")
    if views < WATCH:
        return Copying("low", views, f"{seen}; copies are rarely seen before {_count(WATCH)}, here {until}")
    if views < EXPECT:
        return Copying("watch", views, f"{seen}; look for copies from {_count(WATCH)} on, here {until}")
    return Copying("high", views, f"{seen}, beyond the {_count(EXPECT)} after which copies are to be expected")


def _count(number: float) -> str:
    return f"{number:,.0f}" if number >= 10 else f"{number:.1f}"
