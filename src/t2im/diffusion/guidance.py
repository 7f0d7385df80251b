"""How does a prompt get more weight than the data gave it?

By asking the UNet twice, with the prompt and without it, and walking further along the difference. The answer without
the prompt says what any picture looks like here; what the prompt adds to it is made `guidance_scale` times as strong.
The UNet learned to answer without a prompt because training leaves out some captions (`caption_dropout`).

All functions are pure and linear in what they mix, so they hold for every prediction type.
"""

from jaxtyping import Float
from torch import Tensor

from t2im.shapes import Latents


def guide(unconditional: Latents, conditional: Latents, guidance_scale: float) -> Latents:
    """Mix two predictions by classifier-free guidance (Ho & Salimans 2022, arXiv 2207.12598).

        guided = uncond + s (cond - uncond)

    s = 1 is the conditional model itself, s = 0 the unconditional one, s > 1 trades variety for faithfulness. (The
    paper's eq. 6 counts from 0: its w is s - 1. Everybody since counts as here.)
    """
    return unconditional + guidance_scale * (conditional - unconditional)


def rescale(guided: Latents, conditional: Latents, guidance_rescale: float) -> Latents:
    """Give a guided prediction back the contrast of the conditional one (Lin et al. 2023, eq. 15-16, arXiv 2305.08891).

        rescaled = guided std(cond) / std(guided)           result = phi rescaled + (1 - phi) guided

    Large scales stretch a prediction's spread and so burn the colours. phi = guidance_rescale in [0, 1]; the paper
    found 0.7 best for models with zero terminal SNR. Each sample has its own standard deviation.
    """
    ratio = _std(conditional) / _std(guided)
    return guided * (guidance_rescale * ratio + (1 - guidance_rescale))


def _std(latents: Latents) -> Float[Tensor, "batch 1 1 1"]:
    return latents.std(dim=(1, 2, 3), keepdim=True)
