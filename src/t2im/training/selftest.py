"""Does a run of mine that is killed go on as if nothing had happened? It is tried: with your settings, on your device.

    t2im train ... --steps N                                                    -> A
    t2im train ... --steps N, kill -9 after N / 2, t2im train ... --resume      -> B        A == B ?

Each is the real command in a process of its own, in a temporary folder, over some of your pictures. What is compared is
all that a checkpoint holds: weights, averages and the optimizer's memory, to the last bit.
"""

import json
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image, ImageDraw
from torch import Tensor

from t2im.data import captions
from t2im.errors import TrainingError
from t2im.files import write_json
from t2im.training.denoiser import read_unet_checkpoint

PICTURES = 48
"""Of the user's folder; enough for a step, and soon encoded."""
COMMAND = (sys.executable, "-c", "from t2im.cli.main import main; main()", "train")
QUICK = (
    "training.evaluations=1",
    "data.heldout=0",  # an exam would take longer than all the steps
    "sampling.num_inference_steps=2",
    "vae_training.good_enough_psnr=0.001",  # any VAE and any text encoder will do: they stay as they are
    "clip_training.good_enough_pieces=1000",
    "vae_training.steps=2",
    "clip_training.steps=2",
)
COMPARED = {"model": "weights", "ema": "averages", "power_ema": "power averages", "optimizer": "optimizer"}

Say = Callable[[str], None]


@dataclass(frozen=True)
class Proof:
    """How far the run that was killed ended from the one that was not."""

    differences: dict[str, float]
    """Largest absolute difference of each part; infinity where the two have other tensors."""
    resumed_at: int
    steps: int
    seconds: float

    @property
    def equal(self) -> bool:
        """Whether they ended in the same state, bit for bit."""
        return not any(self.differences.values())


def prove_resume(
    folder: str | Path | None,
    *,
    recipe: str | None = None,
    settings: Sequence[str] = (),
    steps: int = 8,
    device: str = "auto",
    say: Say = print,
) -> Proof:
    """Train twice, once killed halfway, and compare.

    folder: captioned images, of which some are used; None: pictures that are drawn here. steps: of the whole run.

    Raises: TrainingError if a run fails or could not be killed in time.
    """
    started = time.perf_counter()
    half = max(1, steps // 2)
    with tempfile.TemporaryDirectory(prefix="t2im-selftest-") as place:
        data, whole, killed = (Path(place) / name for name in ("data", "whole", "killed"))
        _some_pictures(folder, data)
        options = ["--steps", str(steps), "--device", device, "--quiet"]
        options += ["--recipe", recipe] if recipe is not None else []
        for setting in (*settings, *QUICK, f"training.checkpoint_steps={half}"):
            options += ["--set", setting]
        _finish(_start(data, whole, options))
        say(
            f"{steps} steps without a break: {time.perf_counter() - started:.0f} s; the others take about as long again"
        )
        shutil.copytree(whole / "encoders", killed / "encoders")
        _kill_after_save(_start(data, killed, options), killed)
        say("killed by SIGKILL after its first checkpoint; going on")
        _finish(_start(data, killed, [*options, "--resume"]))
        resumed_at = next((event["step"] for event in _events(killed) if event["event"] == "resume"), steps)
        if resumed_at >= steps:
            raise TrainingError(f"the run had made all its {steps} steps before it was killed: take more --steps.")
        states = [_final_state(output) for output in (whole, killed)]
    return Proof(
        {
            name: difference(*(state[part] for state in states))
            for part, name in COMPARED.items()
            if states[0].get(part)
        },
        resumed_at,
        steps,
        time.perf_counter() - started,
    )


def difference(one: Any, other: Any) -> float:
    """Return the largest absolute difference between the numbers of two states; infinity if their forms differ."""
    if isinstance(one, Tensor) and isinstance(other, Tensor) and one.shape == other.shape:
        return 0.0 if torch.equal(one, other) else (one.double() - other.double()).abs().max().item()
    if isinstance(one, Mapping) and isinstance(other, Mapping) and one.keys() == other.keys():
        return max((difference(one[key], other[key]) for key in one), default=0.0)
    if isinstance(one, list | tuple) and isinstance(other, list | tuple) and len(one) == len(other):
        return max((difference(*pair) for pair in zip(one, other, strict=True)), default=0.0)
    return 0.0 if type(one) is type(other) and not isinstance(one, Tensor) and one == other else float("inf")


def _some_pictures(folder: str | Path | None, data: Path) -> None:
    """Fill a folder with copies of the user's first pictures, or with discs if there is no folder."""
    (data / "images").mkdir(parents=True)
    texts: dict[str, list[str]] = {}
    if folder is None:
        for number in range(PICTURES):
            colour = f"hsl({360 * number // PICTURES}, 80%, 50%)"
            picture = Image.new("RGB", (64, 64), "white")
            ImageDraw.Draw(picture).ellipse((number // 2, 8, number // 2 + 40, 48), fill=colour)
            picture.save(data / "images" / f"{number}.png")
            texts[f"{number}.png"] = [f"disc number {number}"]
    else:
        for number, example in enumerate(captions.read(folder)[:PICTURES]):
            name = f"{number}{example.path.suffix}"
            shutil.copyfile(example.path, data / "images" / name)
            texts[name] = list(example.captions)
    write_json(data / "captions.json", texts)


def _start(data: Path, output: Path, options: Sequence[str]) -> "subprocess.Popen[str]":
    command = [*COMMAND, str(data), "--output", str(output), *options]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)


def _finish(process: "subprocess.Popen[str]") -> None:
    _, said = process.communicate()
    if process.returncode:
        last = (said.strip().splitlines() or ["without a word"])[-1]
        raise TrainingError(f"a run ended with exit code {process.returncode}: {last}")


def _kill_after_save(process: "subprocess.Popen[str]", output: Path) -> None:
    while process.poll() is None and not any(event["event"] == "save" for event in _events(output)):
        time.sleep(0.005)
    if process.poll():
        _finish(process)
    process.kill()
    process.communicate()


def _events(output: Path) -> list[dict[str, Any]]:
    metrics = output / "metrics.jsonl"
    lines = metrics.read_text(encoding="utf-8").split("\n")[:-1] if metrics.exists() else []
    return [json.loads(line) for line in lines]


def _final_state(output: Path) -> dict[str, Any]:
    newest = max(output.glob("checkpoint_*.pt"), key=lambda path: path.stat().st_mtime)
    return read_unet_checkpoint(newest)
