"""Which images teach, and which judge? All are looked at first; then the content of each decides, not its name."""

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from t2im.batches import Indices, split
from t2im.config import Config
from t2im.content import hashes_of_files
from t2im.data import captions
from t2im.data.captions import Example
from t2im.data.images import read_image
from t2im.errors import BadImage, DataError

Say = Callable[[str], None]


FEWEST_HELD_OUT = 24
"""Images that are held out of a small folder, unless they are more than a tenth of it."""


@dataclass(frozen=True)
class Split:
    """The examples of a folder, divided by the content of their images."""

    examples: list[Example]
    train: Indices
    heldout: Indices

    @property
    def for_training(self) -> list[Example]:
        """The examples to learn from."""
        return [self.examples[index] for index in self.train.tolist()]

    @property
    def held_out(self) -> list[Example]:
        """The examples to judge by."""
        return [self.examples[index] for index in self.heldout.tolist()]


def read_split(folder: str | Path, config: Config, output: Path, say: Say, *, check_images: bool) -> Split:
    """Read a folder's captions, look at every image if asked, and divide the examples.

    Raises: DataError for captions or images that cannot be used.
    """
    examples = captions.read(folder, skip_missing=config.data.skip_missing)
    if check_images:
        examples = readable(examples, config, say)
    content = hashes_of_files([example.path for example in examples], output / "cache" / "files")
    train_set, heldout = split(content, heldout_share(config.data.heldout, len(examples)))
    if not len(train_set):
        raise DataError(f"{folder}: no image is left to train on. Add images, or lower data.heldout.")
    say(f"data: {len(examples)} images, {len(train_set)} to train on, {len(heldout)} held out")
    return Split(examples, train_set, heldout)


def heldout_share(wanted: float, images: int) -> float:
    """Return the share of so many images that is held out: of a few hundred, 2 % would be too few to tell anything.

    >>> heldout_share(0.02, 10_000), heldout_share(0.02, 300), heldout_share(0.02, 50), heldout_share(0.0, 50)
    (0.02, 0.08, 0.1, 0.0)
    """
    return max(wanted, min(0.1, FEWEST_HELD_OUT / images)) if wanted else 0.0


def readable(examples: Sequence[Example], config: Config, say: Say) -> list[Example]:
    """Decode every image once; return the examples whose images are sound.

    Raises: BadImage for the first that is not, unless data.skip_bad leaves such images out (each is named).
    """

    def fault(example: Example) -> BadImage | None:
        try:
            read_image(example.path, resolution=config.data.resolution, background=config.data.background)
        except BadImage as error:
            return error
        return None

    with ThreadPoolExecutor(os.cpu_count()) as threads:
        faults = list(threads.map(fault, examples))
    bad = [error for error in faults if error is not None]
    if bad and not config.data.skip_bad:
        raise BadImage(f"{bad[0]} ({len(bad)} such images; t2im data check names them all)" if len(bad) > 1 else bad[0])
    for error in bad:
        say(f"left out: {error}")
    return [example for example, error in zip(examples, faults, strict=True) if error is None]
