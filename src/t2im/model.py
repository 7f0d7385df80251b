"""How do the parts make a picture of a prompt?

    prompt ── text encoder ──► states ─┐
    seed ──► noise ──► reverse loop (UNet + schedule) ──► latents ── VAE decoder ──► picture

`TextToImage` holds the four parts. It comes from a folder in the layout of diffusers' pipelines, from a training
checkpoint, or out of the box, and goes back into such a folder.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal, Self

import torch

from t2im import __version__
from t2im.card import ModelFacts, model_card
from t2im.checkpoint import config_of, read_checkpoint, recorded_checksum, weights_of
from t2im.config import SamplingConfig, TextConfig
from t2im.diffusion.sample import Step, sample
from t2im.diffusion.schedule import Schedule
from t2im.encoders.text import TextEncoder
from t2im.encoders.vae import VAE
from t2im.errors import ModelError, UsageError, nearest
from t2im.files import atomic_folder, sha256_of_file, write_json, write_text
from t2im.infotext import SCHEMA
from t2im.model_folder import (
    DESCRIPTION_FILE,
    UNET_WEIGHTS,
    Description,
    builtin_folder,
    halve_weights,
    model_index,
    read_description,
    read_schedule,
    write_description,
)
from t2im.nn.unet import ConditionalUNet
from t2im.picture import Picture, to_pil
from t2im.request import RANDOM, Request, ResolvedRequest
from t2im.samplers import scheduler_name
from t2im.settings import parse_settings
from t2im.shapes import TextStates
from t2im.stock import stock_obstacle

MOST_AT_ONCE = 16
PIXELS_AT_ONCE = 2**20
"""Larger orders are drawn in several batches, so that memory does not grow with them; pictures do not depend on it."""


@dataclass(frozen=True, eq=False, repr=False)
class TextToImage:
    """A text-to-image model, ready to draw.

    >>> model = TextToImage.load("model/")  # doctest: +SKIP
    >>> model("a red fox in the snow", seed=7).save("fox.png")  # doctest: +SKIP
    """

    unet: ConditionalUNet
    vae: VAE
    text_encoder: TextEncoder
    schedule: Schedule
    sampling: SamplingConfig = field(default_factory=SamplingConfig)
    """The defaults of a call."""
    facts: ModelFacts = field(default_factory=lambda: ModelFacts(name="model"))
    """What it knows about itself."""
    sha256: str = ""
    """Checksum of the file that the UNet's weights came from, if any."""

    def __post_init__(self) -> None:
        config = self.unet.config
        if not config.in_channels == config.out_channels == self.vae.latent_channels:
            raise ModelError(
                f"the UNet maps {config.in_channels} to {config.out_channels} latent channels, the VAE has "
                f"{self.vae.latent_channels}: they do not belong together."
            )
        if config.cross_attention_dim != self.text_encoder.width:
            raise ModelError(
                f"the UNet reads text of width {config.cross_attention_dim}, the text encoder's is "
                f"{self.text_encoder.width}: they do not belong together."
            )

    def __repr__(self) -> str:
        height, width = self.native_size
        return (
            f"TextToImage({self.facts.name!r}, {self.unet.num_parameters():,} parameters in the UNet, "
            f"{height}x{width} pixels, on {self.vae.device})"
        )

    @classmethod
    def load(cls, source: str | Path | None = None, *, weights: Literal["ema", "raw"] = "ema") -> Self:
        """Load a model: the built-in one, a model folder, or a training checkpoint (`.pt`).

        weights: of a checkpoint that has both, the moving average (which draws better) or the raw ones.

        Raises: ModelError if there is none, or its files are damaged or do not fit each other.
        """
        path = builtin_folder() if source is None else Path(source).expanduser()
        if path.suffix == ".pt" or path.is_file():
            return cls._from_checkpoint(path, weights)
        if weights == "raw":
            raise UsageError("raw weights are only kept in checkpoints; a model folder has one set of weights.")
        if not path.is_dir():
            there = [entry.name for entry in path.parent.iterdir()] if path.parent.is_dir() else []
            raise ModelError(
                f"{path}: no such model{nearest(path.name, there)}. Name a model folder or a .pt checkpoint."
            )
        return cls._from_folder(path)

    @classmethod
    def _from_folder(cls, folder: Path) -> Self:
        description = read_description(folder)
        return cls(
            unet=ConditionalUNet.load(folder / "unet"),
            vae=VAE.load(folder, local_files_only=True),
            text_encoder=TextEncoder.load(folder, padding=description.text.padding, local_files_only=True),
            schedule=Schedule(*read_schedule(folder)),
            sampling=description.sampling,
            facts=description.facts,
            sha256=description.checksums.get(UNET_WEIGHTS) or sha256_of_file(folder / UNET_WEIGHTS),
        )

    @classmethod
    def _from_checkpoint(cls, path: Path, weights: Literal["ema", "raw"]) -> Self:
        checkpoint = read_checkpoint(path)
        config = config_of(checkpoint, path)
        with torch.device("meta"):  # no time for random weights that are thrown away
            unet = ConditionalUNet(config.unet)
        unet.load_state_dict(weights_of(checkpoint, weights), assign=True)
        folders = {part: path.parent / entry["folder"] for part, entry in checkpoint["encoders"].items()}
        vae = VAE.load(folders["vae"], local_files_only=True)
        text_encoder = TextEncoder.load(folders["text_encoder"], padding=config.text.padding, local_files_only=True)
        for part, encoder in (("vae", vae), ("text_encoder", text_encoder)):
            if encoder.sha256 != checkpoint["encoders"][part]["sha256"]:
                raise ModelError(
                    f"{folders[part]}: not the encoder that {path.name} was trained with. Put the original one back."
                )
        data = dict(checkpoint["data"])
        facts = {
            "name": path.stem,
            "training": checkpoint["summary"],
            "captions": data.pop("captions", ()),
            "latents": data.pop("latents", {}),
            "data": data,
        }
        return cls(
            unet=unet.eval().requires_grad_(False),
            vae=vae,
            text_encoder=text_encoder,
            schedule=Schedule(config.schedule, config.objective.type),
            sampling=config.sampling,
            facts=parse_settings(ModelFacts, facts),
            sha256=recorded_checksum(path) or "",
        )

    @property
    def stock_obstacle(self) -> str | None:
        """Why diffusers' own StableDiffusionPipeline cannot draw the same pictures; None if it can."""
        return stock_obstacle(
            self.unet.config,
            padding=self.text_encoder.padding,
            prediction_type=self.schedule.prediction_type,
            scheduler=self.sampling.scheduler,
        )

    @property
    def native_size(self) -> tuple[int, int]:
        """Height and width in pixels of the pictures it was trained on."""
        _, height, width = self.unet.latent_shape
        return height * self.vae.downscale, width * self.vae.downscale

    def to(self, device: torch.device | str) -> Self:
        """Move all weights, in place."""
        self.unet.to(device)
        self.vae.to(device)
        self.text_encoder.to(device)
        return self

    def save(
        self, folder: str | Path, *, dtype: Literal["float32", "float16"] = "float32", for_diffusers: bool = False
    ) -> Path:
        """Write a model folder, whole or not at all; an older model there is replaced.

        A model that no stock pipeline can run gets no model_index.json, and `t2im.json` and the card say why.
        for_diffusers: write it only if diffusers can draw with it.

        Raises: UsageError if the folder holds something else than a model, or if diffusers cannot do what it should.
        """
        obstacle = self.stock_obstacle
        if for_diffusers and obstacle:
            raise UsageError(f"{self.facts.name}: not saved for diffusers, because {obstacle}.")
        folder = Path(folder)
        if (
            folder.exists()
            and not (folder / DESCRIPTION_FILE).is_file()
            and (folder.is_file() or any(folder.iterdir()))
        ):
            raise UsageError(f"{folder}: holds something else than a model, which would be lost. Name a new folder.")
        with atomic_folder(folder) as temporary:
            self.unet.save(temporary / "unet")
            self.vae.save(temporary / "vae")
            self.text_encoder.save(temporary)
            scheduler: Any = self.schedule.scheduler(self.sampling.scheduler)
            scheduler.save_pretrained(temporary / "scheduler")
            if obstacle is None:
                write_json(temporary / "model_index.json", model_index(type(scheduler).__name__))
            if dtype == "float16":
                halve_weights(temporary)
            parts = {"UNet": self.unet, "VAE": self.vae.module, "text encoder": self.text_encoder.module}
            parameters = {name: sum(p.numel() for p in part.parameters()) for name, part in parts.items()}
            card = model_card(
                self.facts,
                self.sampling,
                side=self.native_size[0],
                parameters=parameters,
                stock_obstacle=obstacle,
            )
            write_text(temporary / "README.md", card)
            text = TextConfig(padding=self.text_encoder.padding)
            description = Description(facts=self.facts, sampling=self.sampling, text=text, stock_obstacle=obstacle)
            write_description(temporary, description)
        return folder

    def __call__(
        self,
        prompt: str | Sequence[str],
        *,
        negative_prompt: str = "",
        num_images: int = 1,
        seed: int = RANDOM,
        num_inference_steps: int | None = None,
        guidance_scale: float | None = None,
        guidance_rescale: float = 0.0,
        scheduler: str | None = None,
        eta: float = 0.0,
        height: int | None = None,
        width: int | None = None,
    ) -> Picture | list[Picture]:
        """Draw a prompt, or num_images pictures of each of several; picture i uses seed + i.

        seed: -1 draws one; the picture keeps it. What is None is the model's own default (`sampling`, `native_size`).
        guidance_scale: 1 is off. height, width: pixels. Returns a list unless one picture of one prompt was asked for.

        Raises: UsageError for values that cannot be; SamplingError if the numbers overflow.
        """
        request = _request(
            prompt,
            negative_prompt=negative_prompt,
            num_images=num_images,
            seed=seed,
            num_inference_steps=num_inference_steps,
            guidance_scale=guidance_scale,
            guidance_rescale=guidance_rescale,
            scheduler=scheduler,
            eta=eta,
            height=height,
            width=width,
        )
        pictures = list(self.draw(request))
        return pictures[0] if isinstance(prompt, str) and num_images == 1 else pictures

    def steps(self, prompt: str | Sequence[str], **settings: Any) -> Iterator[Step]:
        """Yield the denoising steps of a call with the same settings, all pictures in one batch; stop when you like."""
        resolved = self.resolve(_request(prompt, **settings))
        return self._sample(resolved, range(resolved.count), *self._texts(resolved))

    def draw(self, request: Request, on_step: Callable[[Step], None] | None = None) -> Iterator[Picture]:
        """Yield an order's pictures as they are finished, batch by batch.

        on_step: hears every step of every batch (for progress); what it raises stops the work.
        """
        resolved = self.resolve(request)
        texts = self._texts(resolved)
        at_once = max(1, min(MOST_AT_ONCE, PIXELS_AT_ONCE // (resolved.height * resolved.width)))
        for start in range(0, resolved.count, at_once):
            images = range(start, min(start + at_once, resolved.count))
            for step in self._sample(resolved, images, *texts):
                if on_step is not None:
                    on_step(step)
            for image, pixels in zip(images, to_pil(self.vae.decode(step.latents)), strict=True):
                yield Picture(pixels, self._settings(resolved, image))

    def resolve(self, request: Request) -> ResolvedRequest:
        """Return an order with nothing left open: the model's defaults, a drawn seed, the sampler's own name.

        Raises: UsageError for a sampler or a size that this model cannot do.
        """
        height, width = self.native_size
        request = request.resolved(self.sampling, height=height, width=width)
        multiple = self.vae.downscale * 2 ** (len(self.unet.config.block_out_channels) - 1)
        for name, pixels in (("height", request.height), ("width", request.width)):
            if pixels % multiple:
                below, above = pixels // multiple * multiple, (pixels // multiple + 1) * multiple
                near = f"{below} or {above}" if below else f"{above}"
                raise UsageError(f"{name} {pixels}: this model draws multiples of {multiple} pixels; take {near}.")
        return request.model_copy(update={"scheduler": scheduler_name(request.scheduler)})

    def _texts(self, request: ResolvedRequest) -> tuple[TextStates, TextStates | None]:
        """Encode each prompt once, for an unscaled and uncropped picture; the negative one only where guidance uses it."""

        def states(prompts: Sequence[str]) -> TextStates:
            return self.text_encoder(prompts).sized(*self.native_size)

        return states(request.prompts), None if request.guidance_scale == 1 else states([request.negative_prompt])

    def _sample(
        self, request: ResolvedRequest, images: range, prompts: TextStates, negative: TextStates | None
    ) -> Iterator[Step]:
        downscale = self.vae.downscale
        return sample(
            self.unet,
            self.schedule,
            prompts[[image // request.num_images for image in images]],
            negative=negative,
            seed=[request.seed_of(image) for image in images],
            shape=(self.vae.latent_channels, request.height // downscale, request.width // downscale),
            num_inference_steps=request.num_inference_steps,
            guidance_scale=request.guidance_scale,
            guidance_rescale=request.guidance_rescale,
            scheduler=request.scheduler,
            eta=request.eta,
        )

    def _settings(self, request: ResolvedRequest, image: int) -> Mapping[str, Any]:
        """Return what a picture needs to remember so that it can be drawn again."""
        seed = request.seed_of(image)
        settings = request.model_dump(exclude={"prompts", "num_images"})
        return {
            "schema": SCHEMA,
            "request": {"prompt": request.prompt_of(image), **settings, "seed": seed},
            "resolved_seed": seed,
            "model": {"name": self.facts.name, "sha256": self.sha256},
            "versions": {"t2im": __version__, "torch": torch.__version__, "diffusers": version("diffusers")},
        }


def _request(prompt: str | Sequence[str], **settings: Any) -> Request:
    prompts = (prompt,) if isinstance(prompt, str) else tuple(prompt)
    return parse_settings(Request, {"prompts": prompts, **settings})
