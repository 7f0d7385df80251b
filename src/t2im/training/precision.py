"""With how many bits does a step calculate, and what does fp16 need besides?

    fp32   8 bits of exponent, 23 of fraction     weights, optimizer and averages are always kept in it
    bf16   8 bits of exponent,  7 of fraction     the range of fp32; autocast multiplies matrices in it
    fp16   5 bits of exponent, 10 of fraction     half of the GPUs have only this; gradients below 6e-8 vanish

So fp16 scales the loss up before the gradients are taken and the gradients down after (Micikevicius et al. 2018,
arXiv:1710.03740, section 3.2). The scale feels its way: too large a one makes gradients infinite, the step is left out
and the scale halved; after 2,000 steps that went well it is doubled. Powers of two change no digit of a gradient.
"""

from typing import Any

import torch

from t2im.errors import UsageError


def precision_for(wanted: str, device: torch.device | str) -> str:
    """Return what a device calculates with: "auto" is "bf16" where hardware multiplies it fast, else "no".

    fp16 is never chosen without being asked for: it is the one that can go wrong. Most CPUs calculate in bf16 slower
    than in fp32, and in fp16 they gain nothing that would be worth the scaling, so fp16 is refused there.

    Raises: UsageError for what the device cannot do.

    >>> precision_for("auto", "cpu")
    'no'
    """
    kind = torch.device(device).type
    has_bf16 = kind != "cuda" or torch.cuda.is_bf16_supported(including_emulation=False)
    if wanted == "auto":
        return "bf16" if kind == "cuda" and has_bf16 else "no"
    if wanted == "fp16" and kind == "cpu":
        raise UsageError('mixed_precision "fp16" needs a GPU; a CPU gains nothing by it. Use "auto" or "no" here.')
    if wanted == "bf16" and not has_bf16:
        raise UsageError('mixed_precision "bf16" is not in the hardware of this GPU. Use "fp16", or "no" for fp32.')
    return wanted


class LossScale:
    """The scale of the loss that fp16 needs; with any other precision there is no scaler, and nothing is scaled.

    scale(loss).backward(); unscale(optimizer); judge and clip the gradients; step(optimizer, finite)
    """

    def __init__(self, scaler: torch.amp.GradScaler | None) -> None:
        self._scaler = scaler

    @property
    def value(self) -> float:
        """The scale of the next loss."""
        return 1.0 if self._scaler is None else float(self._scaler.get_scale())

    def unscale(self, optimizer: torch.optim.Optimizer) -> None:
        """Give the gradients their true size, before anyone looks at them."""
        if self._scaler is not None:
            self._scaler.unscale_(_plain(optimizer))

    def step(self, optimizer: torch.optim.Optimizer, *, finite: bool) -> None:
        """Take the step if loss and gradients are finite; let the scale learn from it in either case."""
        if self._scaler is None:
            if finite:
                optimizer.step()
            return
        if finite:
            self._scaler.step(_plain(optimizer))
        # After a step that was left out, too: this is what halves the scale, without which no later one would be taken.
        self._scaler.update()

    def explains(self, loss: torch.Tensor) -> bool:
        """Say, before `step`, whether gradients that are not finite may be the scale's fault alone.

        They may if the loss itself is finite and the scale can still fall; such a step counts as left out, but not as
        broken. From its beginning at 2^16 the scale can fall 16 times, so a real fault is seen a little later.
        """
        return self._scaler is not None and self.value > 1.0 and bool(torch.isfinite(loss.detach()))

    def state_dict(self) -> dict[str, Any]:
        """Return the scale and how many steps in a row went well; empty without a scaler."""
        return {} if self._scaler is None else dict(self._scaler.state_dict())

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take up such a state; a run that goes on in fp16 after another precision begins with a scale of its own."""
        if self._scaler is not None and state:
            self._scaler.load_state_dict(state)


def _plain(optimizer: Any) -> Any:
    """Return the optimizer inside the one that accelerate makes of it, whose `step` would update the scale itself."""
    return getattr(optimizer, "optimizer", optimizer)
