"""Where does the model run? On what is there: CUDA, else Apple's MPS, else the CPU, which is first-class here."""

import warnings

import torch

from t2im.errors import UsageError, nearest

KINDS = ("auto", "cuda", "mps", "cpu")


def available_device(wanted: str = "auto") -> torch.device:
    """Return the wanted device ("cuda", "cuda:1", "mps", "cpu"), or the best there is, with a warning if it differs.

    Raises: UsageError for a name that is no device.

    >>> available_device("cpu")
    device(type='cpu')
    """
    kind, colon, number = wanted.partition(":")
    if kind not in KINDS or (colon and not number.isdecimal()):
        raise UsageError(f'device "{wanted}" is unknown{nearest(kind, KINDS)}. Valid: {", ".join(KINDS)}, cuda:1.')
    counts = {"cuda": torch.cuda.device_count(), "mps": int(torch.backends.mps.is_available()), "cpu": 1}
    if int(number or 0) < counts.get(kind, 0):
        return torch.device(wanted)
    best = next(name for name, count in counts.items() if count)
    if kind != "auto":
        warnings.warn(f'there is no device "{wanted}" here; using "{best}" instead.', stacklevel=2)
    return torch.device(best)
