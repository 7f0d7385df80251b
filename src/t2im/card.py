"""What should a person know who finds a model? Its card says what it is, how to run it, and what it cannot do."""

import json
from collections.abc import Mapping
from typing import Any

from t2im.config import SamplingConfig
from t2im.settings import Settings


class ModelFacts(Settings):
    """What a model knows about itself beside its weights; travels in `t2im.json`."""

    name: str
    """A plain name."""
    license: str = "other"
    """The weights' licence, as a hub spells it; the trainer's to choose, for it depends on the data."""
    training: Mapping[str, Any] = {}
    """How it was trained: steps, losses, hardware, time."""
    data: Mapping[str, Any] = {}
    """What it was trained on."""
    latents: Mapping[str, Any] = {}
    """Measured mean and std of the training latents, per channel, before they were whitened."""
    captions: tuple[str, ...] = ()
    """Some captions of the training set: prompts that it should know."""


def model_card(
    facts: ModelFacts,
    sampling: SamplingConfig,
    *,
    side: int,
    parameters: Mapping[str, int],
    stock_obstacle: str | None,
) -> str:
    """Return the README.md of a model folder, in the form that model hubs read.

    side: pixels of a native picture. parameters: how many each part has. stock_obstacle: why diffusers' own
    `StableDiffusionPipeline` cannot draw the same pictures, if so; the card then says it and shows no way to try.
    """
    stock = stock_obstacle is None
    prompts = facts.captions[:4] or ("a red fox",)
    quoted = [json.dumps(prompt, ensure_ascii=False) for prompt in prompts]  # a JSON string is a YAML and Python string
    front = [
        "---",
        "library_name: diffusers" if stock else "library_name: t2im",
        "pipeline_tag: text-to-image",
        f"license: {json.dumps(facts.license)}",
        "tags: [text-to-image, latent-diffusion, t2im" + (", stable-diffusion, diffusers]" if stock else "]"),
        "widget:",
        *(f"- text: {prompt}" for prompt in quoted),
        "---",
    ]
    use = [
        "```python",
        "import t2im",
        "",
        f't2im.load("FOLDER")({quoted[0]}, seed=7).save("picture.png")',
        "```",
    ]
    if stock:
        use += [
            "",
            "or with diffusers alone:",
            "",
            "```python",
            "from diffusers import StableDiffusionPipeline",
            "",
            'pipeline = StableDiffusionPipeline.from_pretrained("FOLDER")',
            f"pipeline({quoted[0]}, num_inference_steps={sampling.num_inference_steps}, "
            f'guidance_scale={sampling.guidance_scale:g}).images[0].save("picture.png")',
            "```",
        ]
    else:
        use += ["", f"A stock diffusers pipeline cannot draw with it: {stock_obstacle}."]
    sizes = {f"parameters of the {part}": f"{count:,}" for part, count in parameters.items()}
    return "\n".join(
        [
            *front,
            "",
            f"# {facts.name}",
            "",
            f"A small text-to-image latent diffusion model, trained from scratch with t2im; it draws {side}x{side} pixels.",
            "",
            "## Use",
            "",
            *use,
            "",
            *_table("Size", sizes),
            *_table("Training", facts.training),
            *_table("Data", facts.data),
            "## Limits",
            "",
            "It knows the words and the style of its training captions and little beyond them. It cannot write text, "
            "counts badly, and repeats what its data holds, mistakes and one-sidedness included.",
            "",
        ]
    )


def _table(title: str, facts: Mapping[str, Any]) -> list[str]:
    """Lay plain facts out as a table; nothing if there are none. What is nested stays in `t2im.json`."""
    rows = [
        f"| {name.replace('_', ' ')} | {str(value).replace('|', '/')} |"
        for name, value in facts.items()
        if isinstance(value, str | int | float)
    ]
    return [f"## {title}", "", "| | |", "|---|---|", *rows, ""] if rows else []
