"""How does one kill a training run at a chosen moment, fifty times in a minute?

By forking: torch is imported and the data are encoded once, and each child is a real process that runs the real loop
with its real checkpoints, until a real SIGKILL ends it. A byte that parent and child share says whether the child is
saving just now. After some kills the run may go on to its end, and must then hold, bit for bit, what an unbroken run
holds.

`BREAKS` are ways to get this wrong. Whoever trusts the tests below should see that each of these is noticed.
"""

import argparse
import json
import mmap
import os
import random
import signal
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from t2im import cache, checkpoint
from t2im.checkpoint import recorded_checksum
from t2im.data import captions
from t2im.encoders.text import TextEncoder, new_clip, text_part, train_tokenizer
from t2im.encoders.vae import VAE, new_vae
from t2im.files import alone_in, sha256_of_file
from t2im.networks import CLIPConfig, VAEConfig
from t2im.recipe import load_config
from t2im.training import run
from t2im.training.checkpoint import Checkpoints
from t2im.training.denoiser import DenoiserTask, read_unet_checkpoint, write_unet_checkpoint
from t2im.training.loop import fit
from t2im.training.report import Report
from t2im.training.rhythm import Budget, Plan, Progress

COLOURS = (
    "red",
    "green",
    "blue",
    "black",
    "white",
    "yellow",
    "purple",
    "orange",
    "cyan",
    "pink",
    "grey",
    "brown",
    "tan",
)
SETTINGS = (
    "data.resolution=16",
    "data.heldout=0.2",
    "data.horizontal_flip=true",
    "training.batch_size=4",
    "training.gradient_accumulation_steps=2",
    "training.evaluations=3",
    "training.ema_decay=0.9",
    "training.keep_checkpoints=2",
    "training.learning_rate=0.01",
    "training.caption_dropout=0.2",
    "unet.block_out_channels=(8,)",
    "unet.norm_num_groups=4",
    "unet.attention_head_dim=4",
    "unet.down_block_types=('DownBlock2D',)",
    "unet.up_block_types=('UpBlock2D',)",
    "unet.dropout=0.1",
)
"""A UNet of 8 channels on latents of 8 x 8, with everything switched on that has a memory or draws a number."""
STEPS = 8
SAVING, SAVES = 0, 1  # what the shared bytes say: whether a save is under way, and how many have begun


@dataclass
class Tally:
    """What happened to runs that were killed."""

    runs: int = 0
    kills: int = 0
    inside_a_save: int = 0
    faults: list[str] = field(default_factory=list)

    def add(self, other: "Tally") -> None:
        """Add what happened to another run."""
        self.runs += other.runs
        self.kills += other.kills
        self.inside_a_save += other.inside_a_save
        self.faults += other.faults


class QuickTask(DenoiserTask):
    """The UNet's task, judged by something quick: an exam of 576 passes would be most of such a run."""

    def evaluate(self, model: nn.Module) -> dict[str, float]:
        """Return the mean square of the weights."""
        return {"heldout_loss": torch.stack([weight.square().mean() for weight in model.parameters()]).mean().item()}

    def preview(self, model: nn.Module, path: Path) -> None:
        """Draw nothing."""


class World:
    """What all runs share: data, encoders and settings, made once."""

    def __init__(self, folder: Path) -> None:
        """Draw pictures, build encoders and fill the cache."""
        torch.set_num_threads(1)  # a process with one thread can be forked; and the bits are the same everywhere
        self.folder = folder
        self.shared = mmap.mmap(-1, 2)
        self._vae, self._text = make_encoders()
        self.config = run.fitted(load_config(settings=SETTINGS), self._vae, self._text)
        examples = captions.read(make_data(folder / "data"))
        self._store = cache.build(examples, self._vae, self._text, folder / "cache", self.config.data)
        names = {"vae": "encoders/vae", "text_encoder": "encoders"}
        self.unbroken = folder / "unbroken"
        self._about = {
            "encoders": {name: {"folder": place, "sha256": "0"} for name, place in names.items()},
            "data": {"captions": []},
            "summary": {},
        }
        started = time.perf_counter()
        self.train(self.unbroken)
        self.seconds = time.perf_counter() - started
        """What an unbroken run takes."""
        started = time.perf_counter()
        write_unet_checkpoint(folder / "timed.pt", final_state(self.unbroken))
        self.save_seconds = time.perf_counter() - started
        """What a save takes, and a little more."""

    def train(self, output: Path, steps: int = STEPS) -> Progress:
        """Train in this process as `t2im train --resume` does, with a checkpoint after every step."""
        output.mkdir(exist_ok=True)
        everything = np.arange(len(COLOURS))
        task = QuickTask(self._store, everything, everything[:0], self._vae, self._text, self.config, self._about)
        settings = self.config.training
        saver = checkpoints(output)
        plan = Plan(evaluations=settings.evaluations, checkpoint_steps=1)
        with alone_in(output, "training there"), Report(output, name="unet", quiet=True) as report:
            there = bool(saver.paths())
            return fit(task, settings, Budget(steps=steps), plan, saver, report, seed=7, resume=there)

    def start(self, output: Path, prepare: Callable[[], None] | None = None) -> int:
        """Fork a child that trains; return its process id. prepare: called there, to break something on purpose."""
        self.shared[:] = b"\0\0"
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about threads of the parent, which a child does not inherit
            child = os.fork()
        if child:
            return child
        code = 1
        try:
            log = os.open(log_of(output), os.O_WRONLY | os.O_CREAT | os.O_APPEND)
            os.dup2(log, 1)
            os.dup2(log, 2)
            warnings.simplefilter("default")
            torch.set_num_threads(1)
            self._watch_saves()
            if prepare is not None:
                prepare()
            progress = self.train(output)
            code = 0 if progress.finished else progress.exit_code
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stderr.flush()
            os._exit(code)

    def wait_for_save(self, count: int, child: int) -> None:
        """Wait until the child has begun so many saves, or has ended."""
        while self.shared[SAVES] < count and os.waitid(os.P_PID, child, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
            time.sleep(0.0002)

    def _watch_saves(self) -> None:
        save, shared = Checkpoints._save, self.shared

        def watched(saver: Checkpoints, *arguments: Any) -> Any:
            shared[SAVING], shared[SAVES] = 1, min(255, shared[SAVES] + 1)
            try:
                return save(saver, *arguments)
            finally:
                shared[SAVING] = 0

        Checkpoints._save = watched


def make_data(folder: Path) -> Path:
    """Draw a folder of captioned pictures, small but not all alike."""
    (folder / "images").mkdir(parents=True)
    for number, colour in enumerate(COLOURS):
        picture = Image.new("RGB", (20 + number, 16), colour)
        picture.paste("olive", (0, 0, 4 + number, 5))  # so that a mirrored one differs
        picture.save(folder / "images" / f"{colour}.png")
    texts = {f"{colour}.png": [f"a {colour} picture", f"all {colour}"] for colour in COLOURS}
    (folder / "captions.json").write_text(json.dumps(texts))
    return folder


def make_encoders() -> tuple[VAE, TextEncoder]:
    """Build a small VAE and a small text encoder with random weights: to resume, they need not be good."""
    torch.manual_seed(5)
    vae = VAEConfig(latent_channels=3, block_out_channels=(4, 8), norm_num_groups=4)
    clip = CLIPConfig(
        vocab_size=540,
        context_length=16,
        width=8,
        layers=1,
        heads=2,
        vision_width=8,
        vision_layers=1,
        vision_heads=1,
        image_size=8,
        projection_dim=5,
    )
    tokenizer = train_tokenizer([f"a {colour} picture" for colour in COLOURS], clip.vocab_size, clip.context_length)
    text_encoder = text_part(new_clip(clip, tokenizer).eval().requires_grad_(False), tokenizer, "attend")
    return VAE(new_vae(vae, 16).eval().requires_grad_(False)), text_encoder


def forget_random_state() -> None:
    """Let a resumed run draw its dropout from wherever the generator happens to be."""
    torch.set_rng_state = lambda state: None


def write_in_place() -> None:
    """Overwrite one file again and again, as scripts do that were never killed."""
    save = Checkpoints._save
    Checkpoints._save = lambda saver, path, *rest: save(saver, path.with_name("checkpoint_epoch_0.pt"), *rest)
    checkpoint.write_verified = lambda path, value: torch.save(value, path)


MOST_TRIES = 10
"""Runs that a broken trainer may survive by luck before this whole test is called worthless."""
BREAKS = {"random_state_forgotten": forget_random_state, "written_in_place": write_in_place}


def kill(child: int) -> bool:
    """Kill a child now; return whether it was still running."""
    os.kill(child, signal.SIGKILL)
    return os.WIFSIGNALED(os.waitpid(child, 0)[1])


def kill_and_finish(
    world: World, output: Path, draw: random.Random, kills: int, prepare: Callable[[], None] | None = None
) -> Tally:
    """Kill a run so many times, or until it ends before its turn, and compare its end with that of the unbroken one."""
    tally = Tally(runs=1)
    for number in range(kills):
        child = world.start(output, prepare)
        if number % 2:
            time.sleep(draw.uniform(0, 0.7 * world.seconds))
        else:
            world.wait_for_save(draw.randint(1, 3), child)
            time.sleep(draw.uniform(0, world.save_seconds))
        running = kill(child)
        saving = bool(world.shared[SAVING])
        if lost := lost_save(output):
            tally.faults.append(f"{output.name}: {lost}")
        tally.kills += running
        tally.inside_a_save += running and saving
        if not running:
            break
    _, status = os.waitpid(world.start(output, prepare), 0)
    if status:
        tally.faults.append(f"{output.name} ended with {os.waitstatus_to_exitcode(status)}: {last_line(output)}")
        return tally
    found = differences(final_state(output), final_state(world.unbroken)) + curve_faults(output, world.unbroken)
    if found:
        tally.faults.append(f"{output.name}: {len(found)} differences: {'; '.join(found[:3])}")
    return tally


def caught(world: World, name: str, draw: random.Random) -> Tally:
    """Kill a broken trainer until somebody minds; in a few kills it may be lucky."""
    tally = Tally()
    while not tally.faults and tally.runs < MOST_TRIES:
        tally.add(kill_and_finish(world, world.folder / f"{name}_{tally.runs}", draw, 2, BREAKS[name]))
    return tally


def lost_save(output: Path) -> str:
    """Return what is wrong if neither the last save that was reported is there, whole, nor a later one.

    Later ones may have taken its place, if the run was killed before it could tell of them.
    """
    reported = [line for line in _events(output, "save") if not line["problem"]]
    steps = [read_unet_checkpoint(path)["progress"]["step"] for path in sound_checkpoints(output)]
    if not reported or max(steps, default=-1) >= reported[-1]["step"]:
        return ""
    return f"{reported[-1]['path']} was saved, but only steps {steps} are sound"


def sound_checkpoints(output: Path) -> list[Path]:
    """Return the checkpoints of a run that their checksums prove to be whole."""
    return [path for path in checkpoints(output).paths() if recorded_checksum(path) == sha256_of_file(path)]


def final_state(output: Path) -> dict[str, Any]:
    """Return what a run ended with."""
    return read_unet_checkpoint(checkpoints(output).paths()[-1])


def differences(one: Any, other: Any, where: str = "") -> list[str]:
    """Return where two states differ, to the bit; what a clock has measured does not count."""
    if where in ("progress", "environment"):
        one, other = ({key: s[key] for key in s if "seconds" not in key} for s in (one, other))
    if isinstance(one, Tensor) and isinstance(other, Tensor):
        same = one.dtype == other.dtype and one.shape == other.shape and torch.equal(one, other)
        return [] if same else [where]
    if isinstance(one, dict) and isinstance(other, dict):
        if one.keys() != other.keys():
            return [f"{where}: {sorted(map(str, one.keys() ^ other.keys()))}"]
        return [found for key in one for found in differences(one[key], other[key], f"{where}.{key}".lstrip("."))]
    if isinstance(one, list | tuple) and isinstance(other, list | tuple) and len(one) == len(other):
        return [
            found
            for index, pair in enumerate(zip(one, other, strict=True))
            for found in differences(*pair, f"{where}[{index}]")
        ]
    return [] if one == other else [where]


def curve_faults(output: Path, unbroken: Path) -> list[str]:
    """Return what is wrong with a learning curve: a step that is missing, or was taken twice and differently."""
    want, faults = dict(_steps(unbroken)), []
    seen: dict[int, tuple[float, ...]] = {}
    for step, numbers in _steps(output):
        if seen.setdefault(step, numbers) != numbers or want.get(step) != numbers:
            faults.append(f"step {step} was taken differently: {numbers}, not {want.get(step)}")
    return faults + [f"step {step} is missing" for step in want.keys() - seen.keys()]


def _steps(output: Path) -> list[tuple[int, tuple[float, ...]]]:
    names = ("loss", "learning_rate", "gradient_norm")
    return [(line["step"], tuple(line[name] for name in names)) for line in _events(output, "step")]


def _events(output: Path, kind: str) -> list[dict[str, Any]]:
    metrics = output / "metrics.jsonl"
    lines = metrics.read_text().splitlines() if metrics.exists() else []
    return [line for line in map(json.loads, lines) if line["event"] == kind]


def checkpoints(output: Path) -> Checkpoints:
    """Return the checkpoints of a run, written as those of `t2im train` are."""
    return Checkpoints(output, write_unet_checkpoint, read_unet_checkpoint, keep=2, best_by="heldout_loss")


def log_of(output: Path) -> Path:
    """Return where the children of a run write what they say."""
    return output.with_name(f"{output.name}.log")


def last_line(output: Path) -> str:
    """Return the last line that a child said."""
    return (log_of(output).read_text().splitlines() or [""])[-1]


def main() -> int:
    """Kill runs, whole and broken ones, and print as JSON what happened."""
    parser = argparse.ArgumentParser(description="Kill training runs, half of them inside a save, and see who minds.")
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    draw = random.Random(arguments.seed)
    with tempfile.TemporaryDirectory() as folder:
        world = World(Path(folder))
        tally = Tally()
        while tally.kills < arguments.kills and not tally.faults:
            few = min(5, arguments.kills - tally.kills)
            tally.add(kill_and_finish(world, world.folder / f"run_{tally.runs}", draw, few))
        broken = {name: asdict(caught(world, name, draw)) for name in BREAKS}
    print(json.dumps({"seed": arguments.seed, **asdict(tally), "broken": broken}, indent=2))
    return 0


if __name__ == "__main__":
    sys.exit(main())
