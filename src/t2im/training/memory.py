"""How much memory has this process needed so far? The number that says whether a larger batch would fit."""

import sys

import torch


def peak_memory() -> dict[str, float]:
    """Return the peaks in GB (10^9 bytes) as numbers for the metrics: of the process, and of the GPU where one is used.

    The process's is what the system calls its maximum resident set; where the system does not tell, it is left out.
    """
    peaks = {}
    if sys.platform != "win32":
        import resource

        unit = 1 if sys.platform == "darwin" else 1024  # getrusage counts bytes there, kilobytes elsewhere
        peaks["memory_gb"] = round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e9, 3)
    if torch.cuda.is_available() and (used := torch.cuda.max_memory_allocated()):
        peaks["gpu_memory_gb"] = round(used / 1e9, 3)
    return peaks
