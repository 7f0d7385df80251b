"""How does noise become a picture?

Step by step, backwards. Start from pure noise; at each timestep ask the denoiser what noise it sees, and let a sampler
take a part of it away. Thirty such steps and the latents are clean; the VAE makes pixels of them elsewhere.

`sample` is a generator: it yields a `Step` for each call of the denoiser, and progress bars, previews, traces and
servers listen to it. Stop listening and it stops working. The last step's `latents` are the result.

The denoiser is any callable `(latents, timesteps, text) -> prediction`: a UNet, an exported engine, or in the tests a
closed formula. All randomness comes from one CPU generator per image, which gives first the initial noise and then the
noise of the steps; so a picture depends on its own seed only, not on its batch nor on the device.
"""

import inspect
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from t2im.diffusion.guidance import guide, rescale
from t2im.diffusion.schedule import Schedule
from t2im.diffusion.schedulers import Scheduler
from t2im.errors import SamplingError, UsageError
from t2im.seeds import LARGEST_SEED
from t2im.shapes import Latents, TextStates, Times

Denoiser = Callable[[Latents, Times, Any], Latents]
"""What predicts noise, velocity, clean latents or flow, by the schedule's `prediction_type`.

Its third argument is a `TextStates`, or what its own `prepare(text, timesteps)` made of one, if it has that method.
"""


@dataclass(frozen=True)
class Step:
    """One call of the denoiser and what the sampler made of it."""

    index: int
    """0-based; second-order samplers such as heun take more than one step per inference step."""
    total: int
    """How many steps there will be."""
    timestep: int | float
    """The time of `noisy_latents`; a whole number except with "linspace" spacing and for rectified flow."""
    noisy_latents: Latents
    """x_t as the denoiser saw it, about unit variance."""
    latents: Latents
    """Where the sampler went from there, in its own scaling (euler*, heun, lms: x_0 + sigma eps); clean at the end."""
    pred_original_sample: Latents
    """The clean latents x_0 that the prediction implies: the picture as foreseen at this step."""
    noise_pred: Latents
    """The prediction after guidance, of the schedule's `prediction_type`."""


def sample(
    denoiser: Denoiser,
    schedule: Schedule,
    text: TextStates,
    *,
    negative: TextStates | None = None,
    seed: int | Sequence[int] = 0,
    shape: tuple[int, int, int] | None = None,
    num_inference_steps: int = 30,
    guidance_scale: float = 1.0,
    guidance_rescale: float = 0.0,
    scheduler: str = "ddim",
    eta: float = 0.0,
    latents: Latents | None = None,
    device: torch.device | str | None = None,
) -> Iterator[Step]:
    """Draw one picture's latents for each prompt in `text`, yielding every step on the way.

    negative: what to steer away from (the empty prompt's states, if nothing), one or as many as prompts; needed and
    used only if guidance_scale is not 1. seed: image i uses seed + i, or its own entry of a sequence. shape: channels,
    height, width of the latents; by default the denoiser's `latent_shape`. eta: noise of ddim, 0 none to 1 as ddpm.
    latents: N(0, 1) noise to start from in place of the seed's. device: where to compute; by default where `text` is.

    The denoiser is called in the dtype of `text`, the sampler in float32.

    Raises: UsageError at once for values that cannot be; SamplingError on the way, if latents become non-finite.
    """
    device = torch.device(device or text.hidden_states.device)
    _check_strengths(guidance_scale, guidance_rescale, eta)
    generators = [torch.Generator().manual_seed(each) for each in _seeds(seed, len(text))]
    initial_noise = _initial_noise(denoiser, generators, shape, latents)

    sampler = _sampler(schedule, scheduler, num_inference_steps)
    options = _step_options(sampler, scheduler, generators, eta)

    if guidance_scale != 1:
        text = TextStates.stack(_negative_for(text, negative, guidance_scale), text)
    text = text.to(device)
    dtype = text.hidden_states.dtype
    prepare = getattr(denoiser, "prepare", None)
    with torch.no_grad():
        context = text if prepare is None else prepare(text, _distinct(sampler).to(device))

    def predict(noisy: Latents, times: Times) -> Latents:
        times = times.to(device)
        if guidance_scale == 1:
            return denoiser(noisy.to(dtype), times, context).float()
        # Both halves in one call: one large batch is faster than two small ones.
        both = denoiser(noisy.to(dtype).repeat(2, 1, 1, 1), times.repeat(2), context).float()
        unconditional, conditional = both.chunk(2)
        guided = guide(unconditional, conditional, guidance_scale)
        return rescale(guided, conditional, guidance_rescale) if guidance_rescale else guided

    return _walk(predict, schedule, sampler, initial_noise.to(device), options)


def _walk(
    predict: Callable[[Latents, Times], Latents],
    schedule: Schedule,
    sampler: Scheduler,
    latents: Latents,
    options: dict[str, Any],
) -> Iterator[Step]:
    """Walk from noise to clean latents: the reverse process (Ho et al. 2020, algorithm 2, arXiv 2006.11239)."""
    # Samplers made for rectified flow have neither of these: their state always is x_t itself.
    latents = latents * getattr(sampler, "init_noise_sigma", 1.0)
    scale_model_input = getattr(sampler, "scale_model_input", lambda latents, t: latents)
    total = len(sampler.timesteps)
    for index, t in enumerate(sampler.timesteps):
        with torch.no_grad():  # not around the yield: the listeners' own gradients are theirs
            noisy = scale_model_input(latents, t)
            times = _whole(t.expand(len(latents)))
            prediction = predict(noisy, times)
            result = sampler.step(prediction, t, latents, **options)
            latents = result.prev_sample
            _check_finite(prediction, latents, f"step {index + 1} of {total} (timestep {t.item():g})")
            x_0 = getattr(result, "pred_original_sample", None)
            if x_0 is None:  # The samplers that do not tell it keep x_t as the schedule defines it.
                x_0 = schedule.pred_original_sample(prediction, noisy, times)
        yield Step(index, total, times[0].item(), noisy, latents, x_0, prediction)


def _sampler(schedule: Schedule, name: str, num_inference_steps: int) -> Scheduler:
    """Return a fresh scheduler that will visit `num_inference_steps` different timesteps of the schedule."""
    spacing = schedule.config.timestep_spacing
    if not 1 <= num_inference_steps <= len(schedule):
        raise UsageError(
            f"num_inference_steps is {num_inference_steps}, but the schedule has timesteps for 1 to {len(schedule)}."
        )
    sampler = schedule.scheduler(name)
    if "sigma_min" in vars(sampler):
        # Of n steps from 1 to 1/T, diffusers' FlowMatch samplers would waste the last on T's own smallest noise.
        vars(sampler)["sigma_min"] = 1 / num_inference_steps
    sampler.set_timesteps(num_inference_steps)
    if sampler.timesteps.max() > schedule.timesteps[-1]:
        # With all T steps, Stable Diffusion's shift of "leading" timesteps by one would go past the table's end.
        sampler.register_to_config(steps_offset=0)
        sampler.set_timesteps(num_inference_steps)
    visited = _distinct(sampler)
    ends = round(visited[0].item()), round(visited[-1].item())
    if not all(end in schedule.timesteps for end in ends) or len(visited) != num_inference_steps:
        # Rounding in diffusers: 61 of 1000 "trailing" steps end at timestep -1, which is the noisiest of all.
        raise UsageError(
            f"num_inference_steps is {num_inference_steps}, which {name} cannot spread over {len(schedule)} timesteps "
            f'with "{spacing}" spacing; take a few steps less.'
        )
    return sampler


def _step_options(sampler: Scheduler, name: str, generators: list[torch.Generator], eta: float) -> dict[str, Any]:
    """Return what this sampler's `step` wants beside the prediction: its noise and, for ddim, eta."""
    known = inspect.signature(sampler.step).parameters
    if eta and "eta" not in known:
        raise UsageError(f'eta is {eta}, but scheduler "{name}" has no eta; use ddim, or leave eta at 0.')
    options = {"generator": generators, "eta": eta}
    return {key: value for key, value in options.items() if key in known}


def _initial_noise(
    denoiser: Denoiser,
    generators: list[torch.Generator],
    shape: tuple[int, int, int] | None,
    latents: Latents | None,
) -> Latents:
    if latents is None:
        shape = shape or getattr(denoiser, "latent_shape", None)
        if shape is None:
            raise UsageError("this denoiser has no latent_shape; pass shape=(channels, height, width) of the latents.")
        return torch.stack([torch.randn(shape, generator=generator) for generator in generators])
    if len(latents) != len(generators) or shape not in (None, latents.shape[1:]):
        wanted = (len(generators), *(shape or latents.shape[1:]))
        raise UsageError(f"latents have shape {tuple(latents.shape)}; these prompts need {wanted}.")
    return latents.float()


def _seeds(seed: int | Sequence[int], count: int) -> list[int]:
    seeds = [seed + i for i in range(count)] if isinstance(seed, int) else list(seed)
    if len(seeds) != count:
        raise UsageError(f"{len(seeds)} seeds for {count} prompts; give one number, or one for each prompt.")
    for each in seeds:
        if not 0 <= each <= LARGEST_SEED:
            raise UsageError(f"seed {each} is out of range; seeds are 0 to {LARGEST_SEED}.")
    return seeds


def _negative_for(text: TextStates, negative: TextStates | None, guidance_scale: float) -> TextStates:
    if negative is None:
        raise UsageError(
            f"guidance_scale is {guidance_scale}, which needs negative= (the text states of the empty prompt, or of "
            "what to avoid); without it guidance_scale must be 1."
        )
    if len(negative) not in (1, len(text)):
        raise UsageError(f"{len(negative)} negative prompts for {len(text)} prompts; give one, or one for each.")
    return negative[[0] * len(text)] if len(negative) == 1 else negative


def _check_strengths(guidance_scale: float, guidance_rescale: float, eta: float) -> None:
    if not (math.isfinite(guidance_scale) and guidance_scale >= 0):
        raise UsageError(
            f"guidance_scale is {guidance_scale}; it must be a number from 0 up (1 is off, 3 to 8 is usual)."
        )
    for name, value in (("guidance_rescale", guidance_rescale), ("eta", eta)):
        if not 0 <= value <= 1:
            raise UsageError(f"{name} is {value}; it must lie between 0 and 1.")


def _check_finite(prediction: Latents, latents: Latents, where: str) -> None:
    if torch.isfinite(latents).all():
        return
    culprit = "the sampler's latents are" if torch.isfinite(prediction).all() else "the denoiser's prediction is"
    raise SamplingError(
        f"{where}: {culprit} not finite. Compute in float32, lower guidance_scale, or take an earlier checkpoint."
    )


def _distinct(sampler: Scheduler) -> Times:
    """Return the timesteps a sampler will visit, each once, in rising order."""
    return _whole(torch.tensor(sorted(set(sampler.timesteps.tolist())), dtype=sampler.timesteps.dtype))


def _whole(times: Times) -> Times:
    """Return timesteps as int64 where no precision is lost by it; several schedulers keep whole numbers as floats."""
    whole = times.long()
    return whole if torch.equal(whole.to(times.dtype), times) else times
