"""Which ways back from noise are there, and which of them can a model take?

Samplers are diffusers' own schedulers. Not every one can run every model: some cannot read a prediction of the clean
latents, some cannot start where there is no signal at all, and few know the straight path of rectified flow, for which
diffusers keeps other classes. This table knows without importing them, so that a run whose model nobody could sample is
refused before it begins.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from t2im.errors import UsageError, nearest


@dataclass(frozen=True)
class Sampler:
    """Where diffusers keeps a sampler, how else people call it, what it cannot run and which package it needs."""

    module: str
    class_name: str
    aliases: tuple[str, ...] = ()
    takes_sample_prediction: bool = True
    takes_zero_snr: bool = True
    flow: tuple[str, str] | None = None
    """Module and class for rectified flow, if it can run it."""
    needs: str | None = None

    @property
    def class_names(self) -> set[str]:
        """Return the names of its classes in diffusers."""
        return {self.class_name} | ({self.flow[1]} if self.flow else set())


DPM_SOLVER = ("scheduling_dpmsolver_multistep", "DPMSolverMultistepScheduler")
UNIPC = ("scheduling_unipc_multistep", "UniPCMultistepScheduler")

SCHEDULERS: Mapping[str, Sampler] = MappingProxyType(
    {
        "ddim": Sampler("scheduling_ddim", "DDIMScheduler"),
        "ddpm": Sampler("scheduling_ddpm", "DDPMScheduler"),
        "euler": Sampler(
            "scheduling_euler_discrete",
            "EulerDiscreteScheduler",
            ("k_euler",),
            flow=("scheduling_flow_match_euler_discrete", "FlowMatchEulerDiscreteScheduler"),
        ),
        "euler_a": Sampler(
            "scheduling_euler_ancestral_discrete",
            "EulerAncestralDiscreteScheduler",
            ("euler_ancestral", "k_euler_a", "k_euler_ancestral"),
            takes_sample_prediction=False,
        ),
        "heun": Sampler(
            "scheduling_heun_discrete",
            "HeunDiscreteScheduler",
            ("k_heun",),
            takes_zero_snr=False,
            flow=("scheduling_flow_match_heun_discrete", "FlowMatchHeunDiscreteScheduler"),
        ),
        "dpm++2m": Sampler(*DPM_SOLVER, ("dpmpp_2m", "k_dpmpp_2m", "dpm_solver++"), flow=DPM_SOLVER),
        "unipc": Sampler(*UNIPC, flow=UNIPC),
        "pndm": Sampler(
            "scheduling_pndm", "PNDMScheduler", ("plms",), takes_sample_prediction=False, takes_zero_snr=False
        ),
        "deis": Sampler("scheduling_deis_multistep", "DEISMultistepScheduler", takes_zero_snr=False),
        "lcm": Sampler("scheduling_lcm", "LCMScheduler"),
        "lms": Sampler(
            "scheduling_lms_discrete", "LMSDiscreteScheduler", ("k_lms",), takes_zero_snr=False, needs="scipy"
        ),
    }
)
"""The samplers by the name we print; other spellings are accepted."""


def _fold(name: str) -> str:
    return re.sub(r"[\s_-]", "", name.casefold())


_NAMES = {
    _fold(spelling): name
    for name, sampler in SCHEDULERS.items()
    for spelling in (name, *sampler.class_names, *sampler.aliases)
}


def scheduler_name(name: str) -> str:
    """Return our name of a sampler, whatever the spelling: case, spaces, hyphens and underscores do not count.

    Raises: UsageError naming the nearest samplers.

    >>> scheduler_name("Euler a"), scheduler_name("DPM++ 2M"), scheduler_name("DDIMScheduler")
    ('euler_a', 'dpm++2m', 'ddim')
    """
    try:
        return _NAMES[_fold(name)]
    except KeyError:
        near = nearest(name, SCHEDULERS)
        raise UsageError(f'scheduler "{name}" is unknown{near}. Valid: {", ".join(SCHEDULERS)}.') from None


def require_able(name: str, prediction_type: str, *, zero_snr: bool) -> Sampler:
    """Return a sampler that can run a model of this prediction type, trained with or without zero terminal SNR.

    Raises: UsageError if it is unknown or cannot, naming those that can.
    """
    name = scheduler_name(name)
    sampler = SCHEDULERS[name]
    if prediction_type == "flow" and sampler.flow is None:
        raise UsageError(f'scheduler "{name}" cannot run the straight path of flow; use {_able("flow")}.')
    if prediction_type == "sample" and not sampler.takes_sample_prediction:
        raise UsageError(
            f'scheduler "{name}" cannot run a model that predicts "sample"; use {_able("takes_sample_prediction")}.'
        )
    if zero_snr and not sampler.takes_zero_snr:
        raise UsageError(f'scheduler "{name}" cannot run zero terminal SNR; use {_able("takes_zero_snr")}.')
    return sampler


def _able(what: str) -> str:
    names = [name for name, sampler in SCHEDULERS.items() if getattr(sampler, what) and name != "lcm"]
    return ", ".join(names[:-1]) + " or " + names[-1]
