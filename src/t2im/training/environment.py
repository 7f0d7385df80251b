"""Will a resumed run take the same steps to the bit? On a CPU it does, where these are the same as before.

Sums of floating-point numbers depend on their order, and the order on the number of threads, the instructions of the
processor and the version of torch. So a checkpoint remembers them, and a run that goes on elsewhere says so.
"""

import platform
from collections.abc import Mapping
from typing import Any

import torch

from t2im import __version__


def environment() -> dict[str, Any]:
    """Return what decides the last bits of a training step, beside the settings and the data."""
    return {
        "t2im": __version__,
        "torch": str(torch.__version__),
        "threads": torch.get_num_threads(),
        "processor": f"{platform.machine()} {torch.backends.cpu.get_cpu_capability()}",
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else "none",
    }


def changes_since(then: Mapping[str, Any]) -> str:
    """Return one line about what is no longer as it was when a checkpoint was written; empty if all is as it was."""
    now = environment()
    changed = [f"{name} {then[name]} then, {now[name]} now" for name in now if then.get(name, now[name]) != now[name]]
    if not changed:
        return ""
    return f"going on elsewhere: {'; '.join(changed)}. The run goes on correctly, but its last bits will differ."
