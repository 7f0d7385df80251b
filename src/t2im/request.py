"""What can one ask for? A prompt, and the few settings that decide the picture; all others belong to the model."""

import secrets
from typing import Annotated, Self

from pydantic import Field, model_validator

from t2im.config import SamplingConfig
from t2im.seeds import LARGEST_SEED
from t2im.settings import Fraction, Positive, Settings

RANDOM = -1
"""The seed that asks for any seed; it is replaced by a number as soon as possible, and that number is kept."""

Strength = Annotated[float, Field(ge=0, allow_inf_nan=False)]


class Request(Settings):
    """One order of pictures; what is None is the model's own default."""

    prompts: Annotated[tuple[str, ...], Field(min_length=1)]
    """What to draw."""
    negative_prompt: str = ""
    """What to move away from, when guidance is on."""
    num_images: Positive = 1
    """Pictures of each prompt; all pictures are counted through, and picture i has seed + i."""
    seed: Annotated[int, Field(ge=RANDOM, le=LARGEST_SEED)] = RANDOM
    """The first picture's seed; -1 draws one."""
    num_inference_steps: Positive | None = None
    """Denoising steps."""
    guidance_scale: Strength | None = None
    """Strength of classifier-free guidance; 1 is off."""
    guidance_rescale: Fraction = 0.0
    """How far guided predictions are scaled back to their natural contrast."""
    scheduler: str | None = None
    """Name of the sampler."""
    eta: Fraction = 0.0
    """Noise that DDIM adds in every step: 0 none, 1 as much as DDPM."""
    height: Positive | None = None
    """Pixels."""
    width: Positive | None = None
    """Pixels."""

    @property
    def count(self) -> int:
        """Pictures in all."""
        return len(self.prompts) * self.num_images

    def prompt_of(self, image: int) -> str:
        """Return the prompt of picture i; the pictures of one prompt lie side by side."""
        return self.prompts[image // self.num_images]

    def seed_of(self, image: int) -> int:
        """Return the seed of picture i."""
        return self.seed + image

    def resolved(self, sampling: SamplingConfig, *, height: int, width: int) -> "ResolvedRequest":
        """Fill in a model's defaults and draw the seed if it is random."""
        defaults = {**sampling.model_dump(), "height": height, "width": width}
        values = {name: defaults.get(name) if value is None else value for name, value in self}
        if self.seed == RANDOM:
            values["seed"] = secrets.randbelow(2**32 - self.count)  # 32 bits: what other tools can take up
        return ResolvedRequest.model_validate(values)

    @model_validator(mode="after")
    def _last_seed_fits(self) -> Self:
        if self.seed + self.count - 1 > LARGEST_SEED:
            raise ValueError(f"seed {self.seed} with {self.count} pictures exceeds the largest seed {LARGEST_SEED}")
        return self


class ResolvedRequest(Request):
    """An order with nothing left open: the same model draws the same pictures of it, at any time."""

    num_inference_steps: Positive
    guidance_scale: Strength
    scheduler: str
    height: Positive
    width: Positive
