"""Why do samples come from averaged weights?

The weights of a running optimizer jitter around a good place; their exponential moving average sits in it. For
diffusion models the average draws visibly better pictures than the weights themselves.
"""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from t2im.errors import TrainingError

VALUES_REMEMBERED = 8
"""Of each tensor of the initial weights, to notice an average that never moves."""


class EMA:
    """Exponential moving average of a model's parameters (never of its buffers).

        theta_ema <- d theta_ema + (1 - d) theta,    d = min(decay, (1 + n) / (10 + n)) after n updates

    The warm-up of d keeps the first, untrained weights from haunting the average for 1 / (1 - decay) steps.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay = decay
        self.updates = 0
        self.shadow = trainable(model)
        self._start = some_values(self.shadow.values())

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

    def check(self, model: nn.Module) -> None:
        """Sound the alarm if this is no average of what was trained; see `require_average`."""
        require_average(self.shadow, model, self._start, f"the moving average (decay {self.decay:g})")

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


def trainable(model: nn.Module) -> dict[str, Tensor]:
    """Return a copy of the parameters that learn, by name."""
    return {name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad}


def some_values(tensors: Iterable[Tensor]) -> Tensor:
    """Return a few values, evenly spread, of each tensor: what tells two sets of weights apart at no cost."""
    picked = [flat[:: max(1, len(flat) // VALUES_REMEMBERED)] for flat in (t.detach().flatten() for t in tensors)]
    return torch.cat(picked).clone()


def require_average(average: Mapping[str, Tensor], model: nn.Module, start: Tensor, name: str) -> None:
    """Refuse what only looks like an average of a model's weights.

    Two faults hide for a whole run, because training itself goes well: an update that is never called, or called with
    another copy of the model, leaves the initial weights, which draw noise; and an average over buffers blurs what must
    stay exact, such as a table of betas. start: `some_values` of the initial weights.

    Raises: TrainingError if the average still equals the initial weights although the model does not, or if it holds
    buffers.
    """
    buffers = sorted(average.keys() & dict(model.named_buffers()).keys())
    if buffers:
        raise TrainingError(f'{name} holds buffers (first: "{buffers[0]}"). Average parameters only.')
    live = dict(model.named_parameters())
    moved = not torch.equal(some_values(live[weight] for weight in average), start)
    if moved and torch.equal(some_values(average.values()), start):
        raise TrainingError(
            f"{name} still equals the initial weights, while the model has moved: it was never updated, or with another "
            "copy of the model. Call update(model) after every optimizer step, with the model that the optimizer moves."
        )
