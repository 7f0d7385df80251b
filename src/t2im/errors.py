"""What does an error of this project look like?

One line that says what is wrong, where, and how to fix it. Each family of errors has an exit code, so that a script
can tell a typing mistake from broken data.
"""

import difflib
from collections.abc import Iterable


class T2IMError(Exception):
    """The root of every error this package raises on purpose; the command line prints it as one line."""

    exit_code = 1


class UsageError(T2IMError, ValueError):
    """An argument or a setting that cannot be right."""

    exit_code = 2


class ConfigError(UsageError):
    """A setting that is unknown, of the wrong type, out of range, or in conflict with another."""


class DataError(T2IMError):
    """Captions or images that cannot be used."""

    exit_code = 3


class CaptionError(DataError):
    """A captions file that cannot be read, or that does not fit the images."""


class BadImage(DataError):
    """An image file that cannot be decoded safely and completely."""


class ModelError(T2IMError):
    """A model folder, a checkpoint or an encoder that is missing, damaged or of the wrong kind."""

    exit_code = 4


class TrainingError(T2IMError):
    """A training run that cannot go on, such as a loss that stays non-finite."""

    exit_code = 5


class Diverged(TrainingError):
    """Steps that stay non-finite: what these settings lead to, on whatever machine."""


class SamplingError(T2IMError):
    """A picture that cannot be drawn, such as latents that became non-finite."""

    exit_code = 6


CANCELLED = 130  # the exit code of a command stopped by Ctrl-C, as shells expect it
TERMINATED = 143  # and of one stopped by SIGTERM, as batch systems and containers send it


def nearest(name: str, valid: Iterable[str], *, count: int = 1) -> str:
    """Return ` (did you mean "X"?)` for the valid names closest to a wrong one, or nothing when none is close.

    >>> print("euler_b is unknown" + nearest("euler_b", ["euler_a", "ddim"]))
    euler_b is unknown (did you mean "euler_a"?)
    """
    by_folded = {candidate.casefold(): candidate for candidate in valid}
    close = difflib.get_close_matches(name.casefold(), by_folded, n=count, cutoff=0.6)
    if not close:
        return ""
    return " (did you mean " + " or ".join(f'"{by_folded[match]}"' for match in close) + "?)"
