"""Why do samples come from averaged weights?

The weights of a running optimizer jitter around a good place; their exponential moving average sits in it. For
diffusion models the average draws visibly better pictures than the weights themselves.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn


class EMA:
    """Exponential moving average of a model's parameters (never of its buffers).

        theta_ema <- d theta_ema + (1 - d) theta,    d = min(decay, (1 + n) / (10 + n)) after n updates

    The warm-up of d keeps the first, untrained weights from haunting the average for 1 / (1 - decay) steps.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay = decay
        self.updates = 0
        self.shadow = {name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad}

    @property
    def current_decay(self) -> float:
        """The decay of the next update."""
        return min(self.decay, (1 + self.updates) / (10 + self.updates))

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        """Move the average towards the model's present weights."""
        live = dict(model.named_parameters())
        torch._foreach_lerp_(
            list(self.shadow.values()), [live[name].detach() for name in self.shadow], 1 - self.current_decay
        )
        self.updates += 1

    @contextmanager
    def swapped_in(self, model: nn.Module) -> Iterator[nn.Module]:
        """Put the average into the model for the length of a `with` block, then put the live weights back."""
        self._exchange(model)
        try:
            yield model
        finally:
            self._exchange(model)

    @torch.no_grad()
    def copy_to(self, model: nn.Module) -> None:
        """Put the average into the model for good."""
        for name, parameter in model.named_parameters():
            if name in self.shadow:
                parameter.copy_(self.shadow[name])

    @torch.no_grad()
    def _exchange(self, model: nn.Module) -> None:
        # Storage is exchanged, not copied: instant, and the model's tensors stay the same objects.
        for name, parameter in model.named_parameters():
            if name in self.shadow:
                live = parameter.data
                parameter.data = self.shadow[name]
                self.shadow[name] = live

    def state_dict(self) -> dict[str, Tensor | int]:
        """Return the averaged parameters and the count of updates under the key "updates"."""
        return {**self.shadow, "updates": self.updates}

    def load_state_dict(self, state: dict[str, Tensor | int]) -> None:
        """Take up an average that was saved.

        Raises: KeyError if a parameter is missing from it.
        """
        for name, shadow in self.shadow.items():
            saved = state[name]
            assert isinstance(saved, Tensor)
            shadow.copy_(saved)
        self.updates = int(state["updates"])
