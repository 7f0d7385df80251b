"""How do I draw pictures from a training checkpoint in one call?"""

import random
from collections.abc import Sequence
from itertools import cycle, islice
from pathlib import Path

from PIL.Image import Image

from t2im.devices import available_device
from t2im.errors import UsageError
from t2im.files import numbered_path, require_writable
from t2im.model import TextToImage
from t2im.request import RANDOM, Request
from t2im.settings import parse_settings


def generate_images_direct(
    unet_path: str | Path | None = None,
    device: str = "auto",
    *,
    prompts: str | Sequence[str] | None = None,
    negative_prompt: str = "",
    num_images: int | None = None,
    num_inference_steps: int | None = None,
    guidance_scale: float | None = None,
    seed: int = RANDOM,
    scheduler: str | None = None,
    height: int | None = None,
    width: int | None = None,
    output_dir: str | Path | None = None,
) -> list[Image]:
    """Draw pictures with a checkpoint or a model folder, through our own reverse loop: no pipeline of diffusers.

    Args:
        unet_path: a checkpoint such as "output/checkpoint_epoch_600.pt", or a model folder; None: the built-in model.
        device: "cuda", "mps" or "cpu"; where it is missing, the best there is, with a warning.
        prompts: what to draw; None: captions of the training set.
        negative_prompt: what to move away from, when guidance is on.
        num_images: pictures of each prompt (default 1); without prompts, pictures in all (default 4).
        num_inference_steps: denoising steps; None: the model's own default, here and below.
        guidance_scale: strength of classifier-free guidance; 1 is off.
        seed: of the first picture; picture i has seed + i; -1 draws one.
        scheduler: name of the sampler, such as "ddim" or "ddpm".
        height: pixels.
        width: pixels.
        output_dir: where to save the pictures as well, as PNG files with their settings inside.

    Returns: the pictures, those of one prompt side by side.

    Raises: UsageError for values that cannot be; ModelError for a model that cannot be loaded.
    """
    chosen = available_device(device)
    if output_dir is not None:
        require_writable(output_dir)
    model = TextToImage.load(unet_path).to(chosen)
    if prompts is None:
        captions = list(model.facts.captions)
        if not captions:
            raise UsageError("this model remembers no captions of its training set; pass prompts=[...].")
        random.Random(None if seed == RANDOM else seed).shuffle(captions)
        prompts, num_images = list(islice(cycle(captions), 4 if num_images is None else num_images)), 1
    request = parse_settings(
        Request,
        {
            "prompts": (prompts,) if isinstance(prompts, str) else tuple(prompts),
            "negative_prompt": negative_prompt,
            "num_images": 1 if num_images is None else num_images,
            "seed": seed,
            "num_inference_steps": num_inference_steps,
            "guidance_scale": guidance_scale,
            "scheduler": scheduler,
            "height": height,
            "width": width,
        },
    )
    images = []
    for picture in model.draw(request):
        if output_dir is not None:
            with numbered_path(output_dir, f"{picture.seed}.png") as path:
                picture.save(path)
        images.append(picture.image)
    return images
