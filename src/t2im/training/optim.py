"""How does one optimizer step change the weights, and how large is it?

AdamW with decoupled weight decay (Loshchilov and Hutter 2019, arXiv 1711.05101, algorithm 2); the learning rate is a
pure function of how much of the run is done, so a resumed run needs no scheduler state.
"""

import math

import torch
from torch import Tensor, nn

from t2im.config import OptimizationConfig


def adamw(model: nn.Module, settings: OptimizationConfig) -> torch.optim.AdamW:
    """Build AdamW; matrices and kernels decay, biases and norm scales do not.

    Decaying a norm's scale towards 0 would fight the norm itself.
    """
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    groups = [
        {"params": [p for p in trained if p.ndim >= 2], "weight_decay": settings.weight_decay},
        {"params": [p for p in trained if p.ndim < 2], "weight_decay": 0.0},
    ]
    # fused: one pass over the memory instead of one per operation.
    return torch.optim.AdamW(groups, lr=settings.learning_rate, betas=settings.betas, fused=True)


def learning_rate(step: int, done: float, settings: OptimizationConfig) -> float:
    """Return the learning rate of optimizer step `step` (0-based) when the share `done` in [0, 1] of the run is behind.

        warm-up    lr_max (step + 1) / warmup_steps          while step < warmup_steps
        constant   lr_max
        linear     lr_max (1 - done)
        cosine     lr_max (1 + cos(pi done)) / 2              Loshchilov and Hutter 2017, eq. 5, arXiv 1608.03983

    >>> learning_rate(500, 0.5, OptimizationConfig(learning_rate=2.0, schedule="cosine", warmup_steps=0))
    1.0
    """
    done = min(max(done, 0.0), 1.0)
    shape = {"constant": 1.0, "linear": 1.0 - done, "cosine": (1.0 + math.cos(math.pi * done)) / 2.0}
    warmup = min(1.0, (step + 1) / settings.warmup_steps) if settings.warmup_steps else 1.0
    return settings.learning_rate * warmup * shape[settings.schedule]


def set_learning_rate(optimizer: torch.optim.Optimizer, value: float) -> None:
    """Give all parameter groups one learning rate."""
    for group in optimizer.param_groups:
        group["lr"] = value


def clip_gradients(model: nn.Module, max_norm: float) -> Tensor:
    """Scale all gradients so that their joint L2 norm is at most `max_norm`; return the norm they had."""
    return torch.nn.utils.clip_grad_norm_(model.parameters(), max_norm)
