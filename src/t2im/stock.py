"""Can diffusers' own pipeline draw with a model, and if not, why not?

A model folder is laid out as a `StableDiffusionPipeline`, and whatever that pipeline can run it draws alike. But it
takes no mask for its prompts, it builds diffusers' UNet, and it asks two things of a sampler that the ones made for
rectified flow do not have. What it cannot run must not be announced to it: opened, it would fail, or draw other pictures
without a word.
"""

from t2im.networks import UNetConfig
from t2im.samplers import SCHEDULERS, scheduler_name


def stock_obstacle(unet: UNetConfig, *, padding: str, prediction_type: str, scheduler: str) -> str | None:
    """Return why a stock pipeline cannot draw with such a model, or None if it can.

    padding: how the text encoder treats it, see `TextConfig`. scheduler: the model's own sampler.
    """
    obstacles = []
    if padding == "mask":
        obstacles.append(
            'the UNet reads prompts without their padding (text.padding = "mask"), and a stock pipeline gives no mask'
        )
    if unet.beyond_stock:
        obstacles.append(
            f"the UNet was built with {' and '.join(unet.beyond_stock)}, which diffusers' UNet does not have"
        )
    name = scheduler_name(scheduler)
    sampler = SCHEDULERS[name]
    if prediction_type == "flow" and sampler.flow != (sampler.module, sampler.class_name):
        obstacles.append(
            f'a stock pipeline cannot run flow with the sampler "{name}" (sampling.scheduler = "dpm++2m" or "unipc" it can)'
        )
    return "; ".join(obstacles) or None
