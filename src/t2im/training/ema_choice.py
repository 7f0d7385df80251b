"""Which average of a finished run draws best? Make several, measure each on held-out images, and look at them.

Every candidate is a whole model: mixed from the run's snapshots (`posthoc.py`), it sees through the same noise over the
same held-out images, and draws the same prompts from the same noise. Beside them stand the run's own average and its raw
weights, for a choice means nothing without what there was before.
"""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from t2im import cache
from t2im.card import ModelFacts
from t2im.checkpoint import config_of
from t2im.devices import available_device
from t2im.errors import UsageError
from t2im.files import atomic_path
from t2im.model import TextToImage
from t2im.model_folder import DESCRIPTION_FILE, read_description
from t2im.training.checkpoint import Checkpoints
from t2im.training.denoiser import PREVIEW_SEED, preview_captions, read_unet_checkpoint, write_unet_checkpoint
from t2im.training.ema_snapshots import FOLDER, EMASnapshot, series
from t2im.training.heldout import HeldOut
from t2im.training.posthoc import reconstruct
from t2im.training.split import read_split

RUN_FILE = "run.json"
"""In a run's output: {"folder": where its images are}. It stays here; models and checkpoints do not tell it."""
PROMPTS = 6
"""Columns of the strip."""


@dataclass(frozen=True)
class Candidate:
    """One set of weights, and what was measured of it."""

    name: str
    measured: Mapping[str, float]
    """By `HeldOut.measure`: "heldout_loss", "heldout_x0", "text_gain", ..."""
    sigma: float | None = None
    """Width of a reconstructed average; None for the weights that the run kept itself."""
    error: float | None = None
    """How far its weighting is from the wanted one, as a share; see `posthoc.Mixture`."""

    @property
    def loss(self) -> float:
        """The held-out loss, by which the best is chosen."""
        return self.measured["heldout_loss"]


@dataclass(frozen=True)
class Choice:
    """What the comparison found."""

    candidates: tuple[Candidate, ...]
    best: Candidate
    """The reconstructed average with the lowest held-out loss."""
    step: int
    """Where in the run the averages end."""
    strip: Path
    model: Path


def choose(
    run: str | Path,
    sigmas: Sequence[float],
    *,
    folder: str | Path | None = None,
    output: str | Path | None = None,
    device: str = "auto",
    say: Callable[[str], None] = print,
) -> Choice:
    """Compare averages of several widths of one run; write a strip of pictures, and the best one as a model folder.

    run: what `t2im train` wrote. sigmas: widths in (0, 0.29). folder: the run's images, if they have been moved. output:
    a new folder for the model; RUN/model_ema if None.

    Raises: UsageError for a run without snapshots or held-out images, or an output that exists; ModelError, DataError
    for what cannot be read.
    """
    run = Path(run)
    snapshots = series(run / FOLDER)
    model_folder = _new_folder(run, output)
    path, state = Checkpoints(run, write_unet_checkpoint, read_unet_checkpoint).read_newest()
    config = config_of(state, path)
    where = available_device(device)
    model = TextToImage.load(path).to(where)
    # Images that the run left out are found by the same look at every image.
    data = read_split(_images_of(run, folder), config, run, say, check_images=config.data.skip_bad)
    if not len(data.heldout):
        raise UsageError(f"{run}: no images were held out to judge by. Train with data.heldout above 0.")
    store = cache.build(data.examples, model.vae, model.text_encoder, run / "cache", config.data)
    heldout = HeldOut(store, data.heldout, model.schedule)
    prompts = list(config.training.preview_prompts) or preview_captions(store, data.heldout, data.train)
    prompts = prompts[:PROMPTS]
    step = max(snapshot.step for snapshot in snapshots)
    say(f"{len(snapshots)} snapshots, up to update {step}; the newest checkpoint is {path.name}")

    candidates: list[Candidate] = []
    rows: list[list[Image.Image]] = []
    for candidate, weights in _all_weights(state, snapshots, sigmas):
        model.unet.load_state_dict(weights)
        candidates.append(replace(candidate, measured=heldout.measure(model.unet, where)))
        drawn = model(prompts, seed=PREVIEW_SEED)
        rows.append([picture.image for picture in drawn] if isinstance(drawn, list) else [drawn.image])
        say(f"{candidate.name}: held-out loss {candidates[-1].loss:.5f}")
    best = min((each for each in candidates if each.sigma is not None), key=lambda each: each.loss)
    strip = run / FOLDER / "strip.png"
    labels = [f"{each.name}{' *' if each is best else ''}\n{each.loss:.5f}" for each in candidates]
    with atomic_path(strip) as temporary:
        draw_strip(rows, labels, prompts).save(temporary)

    assert best.sigma is not None
    model.unet.load_state_dict(reconstruct(snapshots, best.sigma)[0])
    facts = _facts(model.facts, run, {"ema_sigma": best.sigma, "steps": step, **best.measured})
    replace(model, facts=facts).save(model_folder)
    return Choice(tuple(candidates), best, step, strip, model_folder)


def draw_strip(rows: Sequence[Sequence[Image.Image]], labels: Sequence[str], prompts: Sequence[str]) -> Image.Image:
    """Lay rows of pictures under their prompts, each row beside its label."""
    side, gap, left, top = 128, 4, 130, 20
    font = ImageFont.load_default(size=12)
    columns = len(prompts)
    sheet = Image.new("RGB", (left + columns * (side + gap), top + len(rows) * (side + gap)), "white")
    pen = ImageDraw.Draw(sheet)
    for column, prompt in enumerate(prompts):
        words = prompt.replace("\n", " ")
        while words and pen.textlength(words, font=font) > side:
            words = words[:-2].rstrip() + "…" if len(words) > 2 else ""
        pen.text((left + column * (side + gap), 2), words, font=font, fill="black")
    for index, (row, label) in enumerate(zip(rows, labels, strict=True)):
        above = top + index * (side + gap)
        pen.multiline_text((4, above + side // 2 - 14), label, font=font, fill="black")
        for column, picture in enumerate(row):
            shown = picture.resize((side, side * picture.height // picture.width))
            sheet.paste(shown, (left + column * (side + gap), above))
    return sheet


def _all_weights(
    state: Mapping[str, Any], snapshots: Sequence[EMASnapshot], sigmas: Sequence[float]
) -> Iterator[tuple[Candidate, Mapping[str, Tensor]]]:
    """Yield what is compared, one model's weights at a time, not measured yet."""
    yield Candidate("raw weights", {}), state["model"]
    if state["ema"] is not None:
        average = {name: weight for name, weight in state["ema"].items() if name != "updates"}
        yield Candidate("the run's average", {}), average
    for sigma in sigmas:
        weights, mixed = reconstruct(snapshots, sigma)
        yield Candidate(f"sigma {sigma:.3g}", {}, sigma, mixed.error), weights


def _images_of(run: Path, folder: str | Path | None) -> Path:
    """Return where the run's images are."""
    if folder is not None:
        return Path(folder)
    try:
        return Path(json.loads((run / RUN_FILE).read_text(encoding="utf-8"))["folder"])
    except (OSError, ValueError, KeyError, TypeError):
        raise UsageError(f"{run}: does not tell where its images are. Name their folder with --data.") from None


def _new_folder(run: Path, output: str | Path | None) -> Path:
    """Return the folder for the model: the one asked for, or the first free one in the run."""
    if output is not None:
        if Path(output).exists():
            raise UsageError(f"{output}: exists already. Choose another --output.")
        return Path(output)
    number, free = 2, run / "model_ema"
    while free.exists():
        number, free = number + 1, run / f"model_ema-{number}"
    return free


def _facts(facts: ModelFacts, run: Path, measured: Mapping[str, float]) -> ModelFacts:
    """Return what the finished model of the run tells of itself, or else its checkpoint, with the new measurement."""
    if (run / "model" / DESCRIPTION_FILE).is_file():
        facts = read_description(run / "model").facts
    rounded = {name: round(value, 5) for name, value in measured.items()}
    return facts.model_copy(update={"training": {**facts.training, **rounded}})
