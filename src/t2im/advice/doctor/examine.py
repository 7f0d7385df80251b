"""Is anything wrong with this folder and these settings? Three examinations, one after the other, and a folder of findings.

Captions and images are read, the VAE is tried, eight images are learned by heart. What is found wrong is said with how to
mend it; the pictures in the report are for the reader's own eyes.
"""

import contextlib
import tempfile
import warnings
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from t2im import cache
from t2im.advice.doctor.captions import caption_findings, image_findings
from t2im.advice.doctor.findings import Finding, lines, worst
from t2im.advice.doctor.overfit import QUARTER, Attempt, Bench, choose
from t2im.advice.doctor.round_trip import examine, vae_findings
from t2im.advice.doctor.suspects import before_training, verdict
from t2im.advice.plan import CAPTIONS_TRIED, spread, untrained_text_encoder
from t2im.config import Config
from t2im.data.captions import Example, find
from t2im.data.check import WORDS, Ruler, check
from t2im.devices import available_device
from t2im.encoders.text import PromptTooLong, TextEncoder
from t2im.encoders.vae import VAE
from t2im.errors import DataError, ModelError, TrainingError, UsageError
from t2im.files import numbered_path, require_writable, write_json, write_text
from t2im.model_folder import builtin_folder
from t2im.recipe import load_config
from t2im.training.at_hand import JUDGED, VAEAtHand, text_encoder_at_hand, vae_at_hand
from t2im.training.encoders import whitened_on
from t2im.training.run import fitted
from t2im.training.trainer import Compute

ROUND_TRIP, OVERFIT = "vae_worst.png", "overfit.png"
SHARE_OF_MAIN_ATTEMPT = 0.6
"""Of the time; the rest is for experiments, if it fails."""
MEASURED = 1024
"""Images on which a VAE's latents are measured."""
BATCH = 8
"""Samples of a step on eight images: each once."""

Say = Callable[[str], None]


@dataclass(frozen=True)
class Diagnosis:
    """What was found, and where it is written."""

    findings: tuple[Finding, ...]
    report: Path

    @property
    def exit_code(self) -> int:
        """3 if data are wrong, 5 if a training would fail, 0 if neither."""
        if worst(self.findings, ("captions", "images")) == "wrong":
            return DataError.exit_code
        return TrainingError.exit_code if worst(self.findings, ("vae", "training")) == "wrong" else 0


def doctor(
    folder: str | Path,
    *,
    output: str | Path | None = None,
    run: str | Path = "output",
    recipe: str | None = None,
    settings: Sequence[str] = (),
    vae: str = "auto",
    text_encoder: str = "auto",
    minutes: float = 3.0,
    device: str = "auto",
    say: Say = lambda text: None,
) -> Diagnosis:
    """Examine a folder and the settings it is to be trained with.

    output: a new folder for the report, else a numbered one under `outputs/doctor`. run: the run's folder, in which
    encoders may lie. minutes: for the eight images; 0 leaves them out.

    Raises: what `train` would raise for settings, captions and encoders that cannot be used.
    """
    config = load_config(recipe, settings=settings)
    compute = Compute(
        str(available_device(device)), config.training.mixed_precision, channels_last=config.training.channels_last
    )
    examples, run = find(folder).examples, Path(run)
    report = _report_folder(output, Path(folder))
    some = spread(examples, CAPTIONS_TRIED)
    text = text_encoder_at_hand(text_encoder, some, config, run) if some else None
    encoder = None if text is None else text.encoder or untrained_text_encoder(some, config)
    say("reading captions and images")
    looked, usable = check(folder, background=config.data.background, ruler=_ruler(encoder))
    findings = caption_findings(looked, usable, config)
    if usable and text is not None and encoder is not None:
        findings += image_findings(looked, usable, config)
        findings.append(Finding("captions", "OK" if text.encoder else "look", f"text encoder: {text.why}"))
        say("sending images through the VAE")
        found = vae_at_hand(vae, spread(usable, JUDGED), config, run)
        tried, tried_findings = _vae(found, usable, config, report)
        findings += tried_findings
        if tried is not None and minutes:
            say(f"learning eight images by heart, for up to {minutes:g} minutes")
            findings += _overfit(usable, tried, encoder, config, compute, 60 * minutes, report)
    diagnosis = Diagnosis(tuple(findings), report)
    write_text(report / "findings.txt", "\n".join(lines(findings, shown=None)) + "\n")
    write_json(
        report / "findings.json",
        {"findings": [asdict(finding) for finding in findings], "config": config.model_dump(mode="json")},
    )
    return diagnosis


def _vae(
    found: VAEAtHand, examples: Sequence[Example], config: Config, report: Path
) -> tuple[VAE | None, list[Finding]]:
    """Try the VAE at hand; without one, the built-in one stands in for the one that would be trained."""
    findings, vae = [], found.vae
    if vae is None:
        with contextlib.suppress(ModelError):  # a package without a built-in model
            vae = VAE.load(builtin_folder())
        if vae is not None and config.data.resolution % vae.downscale:
            vae = None
        what = f"VAE: {found.why}; " + ("the built-in one stands in" if vae else "there is none to try")
        mend = "t2im train vae FOLDER trains one into OUTPUT; then examine again with --run OUTPUT"
        findings.append(Finding("vae", "look", what, mend))
        if vae is None:
            return None, findings
    else:
        findings.append(Finding("vae", "OK", f"VAE: {found.why}"))
    if not found.whitened:  # as `train` does
        vae = whitened_on(vae, spread(examples, MEASURED), config)
    trip = examine(vae, examples, config, report / ROUND_TRIP)
    tried = vae_findings(trip, report / ROUND_TRIP)
    if found.vae is None:  # what a stand-in does badly is no fault of the run's
        tried = [replace(finding, level="look") if finding.level == "wrong" else finding for finding in tried]
    return vae, [*findings, *tried]


def _overfit(
    examples: Sequence[Example],
    vae: VAE,
    encoder: TextEncoder,
    config: Config,
    compute: Compute,
    seconds: float,
    report: Path,
) -> list[Finding]:
    """Learn eight images by heart, with the user's settings but for what would make eight images more."""
    training = {"batch_size": min(BATCH, config.training.batch_size), "gradient_accumulation_steps": 1}
    data = {"horizontal_flip": False, "skip_bad": True}
    config = config.model_copy(
        update={
            "training": config.training.model_copy(update=training),
            "data": config.data.model_copy(update=data),
        }
    )
    config = fitted(config, vae, encoder)
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore", PromptTooLong)  # said already
        device = compute.device
        store = cache.build(choose(examples), vae.to(device), encoder.to(device), folder, config.data)
        return diagnose(Bench(store, vae, encoder, config, compute), seconds, report / OVERFIT)


def diagnose(bench: Bench, seconds: float, sheet: Path) -> list[Finding]:
    """Let the bench learn for so long, and name what is to blame if it does not; no time is spent on a known fault."""
    early = before_training(bench)
    if worst(early, ("training",)) == "wrong":
        return early
    attempt = bench.attempt(seconds=SHARE_OF_MAIN_ATTEMPT * seconds)
    bench.write_sheet(attempt.averaged, sheet)

    def again(factor: float) -> Attempt:
        return bench.attempt(steps=round(attempt.early_steps / QUARTER), share=QUARTER, rate=factor)

    return [*early, verdict(bench, attempt, again)]


def _ruler(encoder: TextEncoder | None) -> Ruler:
    if encoder is None:
        return WORDS
    return Ruler("tokens", lambda caption: len(encoder.tokenize(caption)), encoder.context_length)


def _report_folder(output: str | Path | None, images: Path) -> Path:
    """Return an empty folder outside the images.

    Raises: UsageError if it is not.
    """
    if output is None:
        with numbered_path(Path("outputs") / "doctor", "findings") as numbered:
            numbered.mkdir()
        output = numbered
    folder = Path(output)
    root = images if images.is_dir() else images.parent
    if folder.resolve().is_relative_to(root.resolve()):
        raise UsageError(f"{folder}: is inside the image folder, where nothing is written. Name another with --output.")
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UsageError(f"{folder}: exists already, and is not overwritten. Choose another --output.")
    return require_writable(folder)
