"""How does one of diffusers' samplers come to know our noise schedule?

It is built from the settings that the model was trained with, never from its own defaults. Those would do harm: DDIM's
clip the latents to [-1, 1] and assume another beta range.
"""

import importlib
import importlib.util
import inspect
from collections.abc import Mapping
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from t2im.config import PredictionType, ScheduleConfig
from t2im.errors import UsageError
from t2im.samplers import require_able, scheduler_name

STABLE_DIFFUSION = {"clip_sample": False, "set_alpha_to_one": False, "steps_offset": 1, "skip_prk_steps": True}
"""What is no setting of ours is as in Stable Diffusion: no clipping, the last step ends at alpha_bar_0, "leading"
timesteps are shifted by one."""

FLOW = {"prediction_type": "flow_prediction", "use_flow_sigmas": True}
"""How diffusers' classes for both kinds of path are told of the straight one; its FlowMatch classes know no other."""


@runtime_checkable
class Scheduler(Protocol):
    """What the reverse loop uses of a diffusers scheduler; some have `scale_model_input`, `init_noise_sigma` besides."""

    timesteps: Tensor
    """The times to visit, from noise to picture; second-order samplers name some twice."""
    config: Mapping[str, Any]
    """The settings it was built from."""

    def set_timesteps(self, num_inference_steps: int, device: torch.device | None = None) -> None:
        """Choose the timesteps."""

    def step(self, model_output: Tensor, timestep: Tensor, sample: Tensor, **options: Any) -> Any:
        """Go one step back; the result has `prev_sample` and, in some classes, `pred_original_sample`."""

    def register_to_config(self, **settings: Any) -> None:
        """Change settings after construction."""


def new_scheduler(name: str, config: ScheduleConfig, prediction_type: PredictionType) -> Scheduler:
    """Build a fresh scheduler; multistep ones carry the history of their run, so no two runs may share one.

    Raises: UsageError if the name is unknown, or if that sampler cannot run this schedule.
    """
    sampler = require_able(name, prediction_type, zero_snr=config.rescale_betas_zero_snr)
    if sampler.needs and importlib.util.find_spec(sampler.needs) is None:
        raise UsageError(
            f'scheduler "{scheduler_name(name)}" needs {sampler.needs}: pip install {sampler.needs}, or use euler.'
        )
    flow = sampler.flow if prediction_type == "flow" else None
    module, class_name = flow or (sampler.module, sampler.class_name)
    scheduler_class = getattr(importlib.import_module(f"diffusers.schedulers.{module}"), class_name)
    known = inspect.signature(scheduler_class.__init__).parameters
    settings = {
        **config.model_dump(),
        "prediction_type": prediction_type,
        **STABLE_DIFFUSION,
        # LCM picks its timesteps from a grid this fine; it was distilled on 50, our models on all.
        "original_inference_steps": config.num_train_timesteps,
        **(FLOW if flow else {}),
    }
    scheduler: Scheduler = scheduler_class(**{key: value for key, value in settings.items() if key in known})
    return scheduler
