"""How does a gradient become a step, and which optimizer makes it?

    adamw          Loshchilov and Hutter 2019, arXiv:1711.05101      two numbers of memory for each weight
    adamw8bit      Dettmers et al. 2022, arXiv:2110.02861            the same two in a byte each
    adafactor      Shazeer and Stern 2018, arXiv:1804.04235          rows and columns instead of a number for each weight
    lion           Chen et al. 2023, arXiv:2302.06675                one number: the sign of a moving average
    muon           Jordan et al. 2024; Liu et al. 2025, arXiv:2502.16982   one number: orthogonal steps for matrices
    schedule_free  Defazio et al. 2024, arXiv:2405.15682             two numbers: averages weights, needs no decay

All come from well-kept libraries. All decay (decoupled) what is a matrix or a kernel, and leave biases and the scales
of norms alone: to pull a norm's scale towards 0 would fight the norm itself.
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from importlib import import_module
from typing import Any

import torch
from torch import Tensor, nn

from t2im.config import OptimizationConfig, OptimizerName
from t2im.errors import UsageError

TRANSFORMER_BLOCKS = ("transformer_blocks", "layers")
"""What holds transformer blocks: in UNets of diffusers' layout, and in CLIP."""

Groups = list[dict[str, Any]]


def build_optimizer(model: nn.Module, settings: OptimizationConfig) -> torch.optim.Optimizer:
    """Build the optimizer that `settings` names, for all parameters of `model` that require gradients.

    Raises: UsageError if its package is missing, or if it has nothing to do in this model.
    """
    return OPTIMIZERS[settings.optimizer](model, settings)


def set_learning_rate(optimizer: torch.optim.Optimizer, value: float) -> None:
    """Give all parameter groups one learning rate."""
    for group in optimizer.param_groups:
        group["lr"] = value


def clip_gradients(model: nn.Module, max_norm: float) -> Tensor:
    """Scale all gradients so that their joint L2 norm is at most `max_norm`; return the norm they had.

    Gradients whose norm is not finite stay as they are, so that one can see which of them is to blame.
    """
    parameters = [parameter for parameter in model.parameters() if parameter.grad is not None]
    norm = nn.utils.get_total_norm([parameter.grad for parameter in parameters if parameter.grad is not None])
    # Torch's own clipping would multiply every gradient by the NaN of one. A norm of 0 means: nothing to scale.
    nn.utils.clip_grads_with_norm_(parameters, max_norm, norm.nan_to_num(nan=0.0, posinf=0.0))
    return norm


def for_training(optimizer: torch.optim.Optimizer) -> None:
    """Put the weights to learn with in place; a change for schedule-free optimizers only, which begin without."""
    if averages_weights(optimizer) and not optimizer.param_groups[0]["train_mode"]:
        _unwrapped(optimizer).train()


def for_evaluation(optimizer: torch.optim.Optimizer) -> None:
    """Put the weights to sample with in place, for good; a change for schedule-free optimizers only."""
    if averages_weights(optimizer):
        _unwrapped(optimizer).eval()


@contextmanager
def evaluation_weights(optimizer: torch.optim.Optimizer) -> Iterator[None]:
    """Lend the model the weights to sample with; a change for schedule-free optimizers only.

    The weights to learn with come back bit by bit, which `eval()` and `train()` in turn would miss by a rounding: a run
    must not depend on how often it is looked at.
    """
    if not averages_weights(optimizer):
        yield
        return
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    kept = [parameter.detach().clone() for parameter in parameters]
    modes = [group["train_mode"] for group in optimizer.param_groups]
    for_evaluation(optimizer)
    try:
        yield
    finally:
        with torch.no_grad():
            for parameter, weight in zip(parameters, kept, strict=True):
                parameter.copy_(weight)
        for group, mode in zip(optimizer.param_groups, modes, strict=True):
            group["train_mode"] = mode


def averages_weights(optimizer: torch.optim.Optimizer) -> bool:
    """Say whether the weights it learns with differ from those to sample with."""
    return "train_mode" in optimizer.param_groups[0]


class MuonWithAdamW(torch.optim.Optimizer):
    """Muon for the matrices of transformer blocks and AdamW for all else, as one optimizer with one state.

    Muon replaces a matrix's momentum by the orthogonal matrix next to it, U V^T of its singular value decomposition, so
    that a step moves all directions alike. Scaled by 0.2 sqrt(max(rows, columns)) (Liu et al. 2025, eq. 4), its steps
    are as large as AdamW's, and one learning rate serves both. Kernels of convolutions stay with AdamW: they are no
    maps between vectors, and there is no one way to flatten them.
    """

    def __init__(
        self, matrices: list[nn.Parameter], rest: Iterable[nn.Parameter], settings: OptimizationConfig
    ) -> None:
        learning_rate, weight_decay = settings.learning_rate, settings.weight_decay
        self._muon: torch.optim.Optimizer = torch.optim.Muon(
            matrices, lr=learning_rate, weight_decay=weight_decay, adjust_lr_fn="match_rms_adamw"
        )
        self._adamw: torch.optim.Optimizer = torch.optim.AdamW(
            _groups(rest, settings), lr=learning_rate, betas=settings.betas, fused=True
        )
        super().__init__([*self._muon.param_groups, *self._adamw.param_groups], {})

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        """Take one step with both."""
        loss = None if closure is None else closure()
        # Groups and state are this object's; the two only work on them, also after a state was loaded.
        self._muon.param_groups, self._adamw.param_groups = self.param_groups[:1], self.param_groups[1:]
        for part in (self._muon, self._adamw):
            part.state = self.state
            part.step()
        return loss


def _adamw(model: nn.Module, settings: OptimizationConfig) -> torch.optim.Optimizer:
    # fused: one pass over the memory instead of one per operation; CUDA, MPS and CPUs all have it.
    groups = _groups(model.parameters(), settings)
    return torch.optim.AdamW(groups, lr=settings.learning_rate, betas=settings.betas, fused=True)


def _adamw8bit(model: nn.Module, settings: OptimizationConfig) -> torch.optim.Optimizer:
    build = _imported("adamw8bit", "bitsandbytes", "bitsandbytes.optim", "AdamW8bit")
    return build(_groups(model.parameters(), settings), lr=settings.learning_rate, betas=settings.betas)


def _adafactor(model: nn.Module, settings: OptimizationConfig) -> torch.optim.Optimizer:
    return torch.optim.Adafactor(_groups(model.parameters(), settings), lr=settings.learning_rate)


def _lion(model: nn.Module, settings: OptimizationConfig) -> torch.optim.Optimizer:
    build = _imported("lion", "lion-pytorch", "lion_pytorch.foreach", "Lion")
    return build(_groups(model.parameters(), settings), lr=settings.learning_rate, betas=settings.betas)


def _muon(model: nn.Module, settings: OptimizationConfig) -> torch.optim.Optimizer:
    trained = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    names = {
        name for name, p in trained.items() if p.ndim == 2 and not set(TRANSFORMER_BLOCKS).isdisjoint(name.split("."))
    }
    if not names:
        raise UsageError(
            'optimizer "muon" steps the matrices of transformer blocks, and this network has none; use "adamw".'
        )
    rest = [parameter for name, parameter in trained.items() if name not in names]
    return MuonWithAdamW([trained[name] for name in trained if name in names], rest, settings)


def _schedule_free(model: nn.Module, settings: OptimizationConfig) -> torch.optim.Optimizer:
    build = _imported("schedule_free", "schedulefree", "schedulefree", "AdamWScheduleFree")
    return build(_groups(model.parameters(), settings), lr=settings.learning_rate, betas=settings.betas)


OPTIMIZERS: dict[OptimizerName, Callable[[nn.Module, OptimizationConfig], torch.optim.Optimizer]] = {
    "adamw": _adamw,
    "adamw8bit": _adamw8bit,
    "adafactor": _adafactor,
    "lion": _lion,
    "muon": _muon,
    "schedule_free": _schedule_free,
}


def _groups(parameters: Iterable[nn.Parameter], settings: OptimizationConfig) -> Groups:
    """Split what is trained into what decays and what does not."""
    trained = [parameter for parameter in parameters if parameter.requires_grad]
    groups: Groups = [
        {"params": [p for p in trained if p.ndim >= 2], "weight_decay": settings.weight_decay},
        {"params": [p for p in trained if p.ndim < 2], "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]  # some libraries stumble over empty ones


def _imported(
    optimizer: OptimizerName, distribution: str, module: str, name: str
) -> Callable[..., torch.optim.Optimizer]:
    try:
        found: Callable[..., torch.optim.Optimizer] = getattr(import_module(module), name)
    except ImportError as error:
        raise UsageError(
            f'optimizer "{optimizer}" needs the package {distribution}, which cannot be imported ({error}). '
            'Install it with `pip install "t2im[optimizers]"`, or use "adamw".'
        ) from error
    return found


def _unwrapped(optimizer: Any) -> Any:
    """Return the library's own optimizer from inside the one that accelerate makes of it."""
    return getattr(optimizer, "optimizer", optimizer)
