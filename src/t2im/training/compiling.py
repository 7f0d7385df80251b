"""How can the same step be made faster?

By asking for it in another way: `torch.compile` turns Python that calls hundreds of small operations into a few large
ones, and with their channels innermost feature maps lie in memory as tensor cores read them. Neither changes what is
calculated, but the order of sums changes, and with it the last digits.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import nn


def compiled(model: nn.Module, say: Callable[[str], None]) -> Callable[..., Any]:
    """Return a callable that does what calling the model does, compiled at its first call.

    Where that fails (no C++ compiler, an operation that is not supported) it says why in one line, once, and calls the
    model as it is. The model itself stays as it is in any case: its weights keep their names, and whoever evaluates or
    samples calls it and waits for no compiler.
    """
    run: Callable[..., Any] = torch.compile(model)

    def call(*inputs: Any, **named_inputs: Any) -> Any:
        nonlocal run
        try:
            return run(*inputs, **named_inputs)
        except Exception as error:
            if run is model:
                raise
            outputs = model(*inputs, **named_inputs)  # raises by itself if it was not the compiler's fault
            say(f"compile: going on without, because it failed here: {_reason(error)}")
            run = model
            return outputs

    return call


def channels_last(model: nn.Module) -> None:
    """Store kernels with their channels innermost; the feature maps that they make follow suit."""
    for parameter in model.parameters():
        if parameter.ndim == 4:
            parameter.data = parameter.data.contiguous(memory_format=torch.channels_last)


def _reason(error: BaseException) -> str:
    """Return the first line of what was wrong at the bottom of a chain of errors."""
    while (deeper := error.__cause__ or getattr(error, "inner_exception", None)) is not None:
        error = deeper
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
