"""How much noise is there at time t?

One table answers: `alphas_cumprod` (alpha_bar), the share of the picture's variance that is left at each timestep.

    x_t = sqrt(alpha_bar_t) x_0 + sqrt(1 - alpha_bar_t) eps,    eps ~ N(0, 1)         Ho et al. 2020, arXiv 2006.11239

At t = 0 the picture is almost clean, at T - 1 it is almost noise. Three things know x_0 once x_t is given, and each can
be what the UNet predicts: the noise eps, the picture x_0 itself, or the velocity v, which turns from eps (at t = 0) to
-x_0 (at T - 1) and so stays well-conditioned at both ends. They are one another's linear combinations, and this file
holds all of them.

Training uses the table only. Samplers, the ways to walk back from noise to picture, are diffusers' own schedulers, and
`Schedule.scheduler` builds each from the same settings, so that no sampler can disagree with what was trained.
"""

import importlib.util
import inspect
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from t2im.config import PredictionType, ScheduleConfig
from t2im.errors import UsageError, nearest
from t2im.shapes import Latents, PerSample, Timesteps


class Schedule:
    """The noise levels of a `ScheduleConfig`: tables of length T on the CPU, computed in float64, kept in float32.

    The methods take latents on any device. Timesteps are cheapest on the CPU, where the tables are.

    >>> schedule = Schedule(ScheduleConfig())
    >>> [round(schedule.alphas_cumprod[t].item(), 4) for t in (0, 500, 999)]
    [0.9991, 0.2763, 0.0047]
    """

    def __init__(self, config: ScheduleConfig, prediction_type: PredictionType = "epsilon") -> None:
        self.config = config
        self.prediction_type = prediction_type
        betas = _betas(config)
        alphas_cumprod = torch.cumprod(1 - betas, dim=0)
        self.betas = betas.float()
        self.alphas_cumprod = alphas_cumprod.float()
        self.sqrt_alphas_cumprod = alphas_cumprod.sqrt().float()
        self.sqrt_one_minus_alphas_cumprod = (1 - alphas_cumprod).sqrt().float()

    def __len__(self) -> int:
        """Return T, the number of timesteps."""
        return self.config.num_train_timesteps

    def snr(self, timesteps: Timesteps) -> PerSample:
        """Return the signal-to-noise ratio alpha_bar / (1 - alpha_bar): large at t = 0, near 0 at T - 1."""
        alpha_bar = _at(self.alphas_cumprod, timesteps)
        return (alpha_bar / (1 - alpha_bar)).to(timesteps.device)

    def add_noise(self, latents: Latents, noise: Latents, timesteps: Timesteps) -> Latents:
        """Jump from clean latents to time t in one step, the forward process (Ho et al. 2020, eq. 4).

        x_t = sqrt(alpha_bar_t) x_0 + sqrt(1 - alpha_bar_t) eps
        """
        alpha, sigma = self._alpha_sigma(timesteps, latents)
        return alpha * latents + sigma * noise

    def velocity(self, latents: Latents, noise: Latents, timesteps: Timesteps) -> Latents:
        """Return the velocity of that path (Salimans & Ho 2022, app. D, arXiv 2202.00512).

        v = sqrt(alpha_bar_t) eps - sqrt(1 - alpha_bar_t) x_0
        """
        alpha, sigma = self._alpha_sigma(timesteps, latents)
        return alpha * noise - sigma * latents

    def target(self, latents: Latents, noise: Latents, timesteps: Timesteps) -> Latents:
        """Return what the UNet shall predict, by `prediction_type`: the noise, the velocity or the clean latents."""
        match self.prediction_type:
            case "epsilon":
                return noise
            case "v_prediction":
                return self.velocity(latents, noise, timesteps)
            case "sample":
                return latents
            case "flow":
                raise NotImplementedError

    def pred_original_sample(self, prediction: Latents, noisy: Latents, timesteps: Timesteps) -> Latents:
        """Return the clean latents x_0 that a prediction at x_t = `noisy` implies.

        epsilon: (x_t - sqrt(1 - alpha_bar) eps) / sqrt(alpha_bar)      v: sqrt(alpha_bar) x_t - sqrt(1 - alpha_bar) v
        """
        alpha, sigma = self._alpha_sigma(timesteps, noisy)
        match self.prediction_type:
            case "epsilon":
                return (noisy - sigma * prediction) / alpha
            case "v_prediction":
                return alpha * noisy - sigma * prediction
            case "sample":
                return prediction
            case "flow":
                raise NotImplementedError

    def noise_from(self, prediction: Latents, noisy: Latents, timesteps: Timesteps) -> Latents:
        """Return the noise eps that a prediction at x_t = `noisy` implies.

        v: sqrt(1 - alpha_bar) x_t + sqrt(alpha_bar) v        sample: (x_t - sqrt(alpha_bar) x_0) / sqrt(1 - alpha_bar)
        """
        alpha, sigma = self._alpha_sigma(timesteps, noisy)
        match self.prediction_type:
            case "epsilon":
                return prediction
            case "v_prediction":
                return sigma * noisy + alpha * prediction
            case "sample":
                return (noisy - alpha * prediction) / sigma
            case "flow":
                raise NotImplementedError

    def scheduler(self, name: str) -> "Scheduler":
        """Build one of diffusers' schedulers from the settings the model was trained with, never from its defaults.

        Those defaults would do harm: DDIM's clip the latents to [-1, 1] and assume another beta range. What is not a
        setting of ours is as in Stable Diffusion: no clipping, the last step ends at alpha_bar_0, "leading" timesteps
        are shifted by one.

        Raises: UsageError if the name is unknown, or if that sampler cannot run this schedule.
        """
        name = scheduler_name(name)
        sampler = SCHEDULERS[name]
        if self.prediction_type == "sample" and not sampler.takes_sample_prediction:
            raise UsageError(
                f'scheduler "{name}" cannot run a model that predicts "sample"; use ddim, ddpm or dpm++2m.'
            )
        if sampler.needs and importlib.util.find_spec(sampler.needs) is None:
            raise UsageError(f'scheduler "{name}" needs {sampler.needs}: pip install {sampler.needs}, or use euler.')
        module = importlib.import_module(f"diffusers.schedulers.{sampler.module}")
        scheduler_class = getattr(module, sampler.class_name)
        known = inspect.signature(scheduler_class.__init__).parameters
        if self.config.rescale_betas_zero_snr and "rescale_betas_zero_snr" not in known:
            raise UsageError(f'scheduler "{name}" cannot run zero terminal SNR; use ddim, ddpm, euler or dpm++2m.')
        # LCM picks its timesteps from a grid this fine; it was distilled on 50, our models on all.
        settings = {
            **self.config.model_dump(),
            "prediction_type": self.prediction_type,
            **_STABLE_DIFFUSION,
            "original_inference_steps": len(self),
        }
        scheduler: Scheduler = scheduler_class(**{key: value for key, value in settings.items() if key in known})
        return scheduler

    def _alpha_sigma(self, timesteps: Timesteps, like: Latents) -> tuple[Tensor, Tensor]:
        """Return sqrt(alpha_bar_t) and sqrt(1 - alpha_bar_t) as (batch, 1, 1, 1), ready to multiply `like`."""
        tables = self.sqrt_alphas_cumprod, self.sqrt_one_minus_alphas_cumprod
        alpha, sigma = (_at(table, timesteps).to(like.device, like.dtype)[:, None, None, None] for table in tables)
        return alpha, sigma


def _betas(config: ScheduleConfig) -> Tensor:
    """Return beta_t = 1 - alpha_bar_t / alpha_bar_(t-1) for all t, in float64."""
    steps, start, end = config.num_train_timesteps, config.beta_start, config.beta_end
    match config.beta_schedule:
        case "linear":  # Ho et al. 2020, section 4
            betas = torch.linspace(start, end, steps, dtype=torch.float64)
        case "scaled_linear":  # linear in sqrt(beta), as in Stable Diffusion (Rombach et al. 2022)
            betas = torch.linspace(start**0.5, end**0.5, steps, dtype=torch.float64) ** 2
        case "squaredcos_cap_v2":  # Nichol & Dhariwal 2021, eq. 17
            edges = torch.arange(steps + 1, dtype=torch.float64) / steps
            alpha_bar = torch.cos((edges + 0.008) / 1.008 * math.pi / 2) ** 2
            betas = (1 - alpha_bar[1:] / alpha_bar[:-1]).clamp(max=0.999)
    return _rescale_zero_terminal_snr(betas) if config.rescale_betas_zero_snr else betas


def _rescale_zero_terminal_snr(betas: Tensor) -> Tensor:
    """Shift and scale sqrt(alpha_bar) so that its end is exactly 0 and its start stays (Lin et al. 2023, algorithm 1).

    Stable Diffusion's own table ends at sqrt(alpha_bar) = 0.068: a little of every training picture's mean brightness
    shines through, and sampling, which starts from pure noise, then always returns to middling grey. arXiv 2305.08891
    """
    root = torch.cumprod(1 - betas, dim=0).sqrt()
    root = (root - root[-1]) * (root[0] / (root[0] - root[-1]))
    alpha_bar = root**2
    return 1 - alpha_bar / torch.cat([alpha_bar.new_ones(1), alpha_bar[:-1]])


def _at(table: Tensor, timesteps: Timesteps) -> PerSample:
    """Look timesteps up; a negative one must not wrap round to the noisy end, as indexing alone would have it."""
    timesteps = timesteps.to(table.device)
    if timesteps.numel() and not 0 <= int(timesteps.min()) <= int(timesteps.max()) < len(table):
        wrong = timesteps[(timesteps < 0) | (timesteps >= len(table))][0].item()
        raise UsageError(f"timestep {wrong} is outside the schedule; timesteps are 0 to {len(table) - 1}.")
    return table[timesteps]


@runtime_checkable
class Scheduler(Protocol):
    """What the reverse loop uses of a diffusers scheduler."""

    timesteps: Tensor
    """The times to visit, from noise to picture; second-order samplers name some twice."""
    init_noise_sigma: float | Tensor
    """What to multiply the initial N(0, 1) noise by."""
    config: Mapping[str, Any]
    """The settings it was built from."""

    def set_timesteps(self, num_inference_steps: int, device: torch.device | None = None) -> None:
        """Choose the timesteps."""

    def scale_model_input(self, sample: Tensor, timestep: Tensor) -> Tensor:
        """Bring the sampler's own state to the variance the UNet was trained on."""

    def step(self, model_output: Tensor, timestep: Tensor, sample: Tensor, **options: Any) -> Any:
        """Go one step back; the result has `prev_sample` and, in some classes, `pred_original_sample`."""

    def register_to_config(self, **settings: Any) -> None:
        """Change settings after construction."""


@dataclass(frozen=True)
class Sampler:
    """Where diffusers keeps a sampler, how else people call it, what it cannot run and which package it needs."""

    module: str
    class_name: str
    aliases: tuple[str, ...] = ()
    takes_sample_prediction: bool = True
    needs: str | None = None


_STABLE_DIFFUSION = {"clip_sample": False, "set_alpha_to_one": False, "steps_offset": 1, "skip_prk_steps": True}

SCHEDULERS: Mapping[str, Sampler] = MappingProxyType(
    {
        "ddim": Sampler("scheduling_ddim", "DDIMScheduler"),
        "ddpm": Sampler("scheduling_ddpm", "DDPMScheduler"),
        "euler": Sampler("scheduling_euler_discrete", "EulerDiscreteScheduler", ("k_euler",)),
        "euler_a": Sampler(
            "scheduling_euler_ancestral_discrete",
            "EulerAncestralDiscreteScheduler",
            ("euler_ancestral", "k_euler_a", "k_euler_ancestral"),
            takes_sample_prediction=False,
        ),
        "heun": Sampler("scheduling_heun_discrete", "HeunDiscreteScheduler", ("k_heun",)),
        "dpm++2m": Sampler(
            "scheduling_dpmsolver_multistep", "DPMSolverMultistepScheduler", ("dpmpp_2m", "k_dpmpp_2m", "dpm_solver++")
        ),
        "unipc": Sampler("scheduling_unipc_multistep", "UniPCMultistepScheduler"),
        "pndm": Sampler("scheduling_pndm", "PNDMScheduler", ("plms",), takes_sample_prediction=False),
        "deis": Sampler("scheduling_deis_multistep", "DEISMultistepScheduler"),
        "lcm": Sampler("scheduling_lcm", "LCMScheduler"),
        "lms": Sampler("scheduling_lms_discrete", "LMSDiscreteScheduler", ("k_lms",), needs="scipy"),
    }
)
"""The samplers by the name we print; other spellings are accepted."""


def _fold(name: str) -> str:
    return re.sub(r"[\s_-]", "", name.casefold())


_NAMES = {
    _fold(spelling): name
    for name, sampler in SCHEDULERS.items()
    for spelling in (name, sampler.class_name, *sampler.aliases)
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
