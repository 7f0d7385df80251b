"""What goes wrong once in a thousand times, or after hours? Faults on purpose, for as long as you like.

    python scripts/soak.py --hours 8 --seed 1 --report soak.json

Rounds of these are repeated until the time is up: runs that are killed inside and outside of saves, a run that is
suspended in the middle of a save and woken again, images and checkpoints with random bytes changed, and saves by the
thousand while memory, open files and the disk are watched. The report is JSON. The exit code is 1 if anything was
missed, or if too few faults did hit for the report to mean anything.
"""

import argparse
import gc
import json
import os
import random
import signal
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from crashes import (
    SAVING,
    Tally,
    World,
    curve_faults,
    differences,
    final_state,
    kill_and_finish,
    last_line,
)

from t2im.checkpoint import checksum_path, read_checkpoint
from t2im.data.images import read_images
from t2im.errors import BadImage, ModelError
from t2im.training.checkpoint import Checkpoints, read_state, write_state

MEGABYTES_AN_HOUR = 1.0
"""The memory that a run may grow by; measured over less than an hour it must stay below this as a whole."""
WARM_UP = 0.3
"""First share of the saves, in which buffers and caches are still growing."""


class Soak:
    """Counts what was tried and what was missed."""

    def __init__(self, folder: Path, seed: int) -> None:
        self.world = World(folder)
        self.draw = random.Random(seed)
        self.kills = Tally()
        self.counts = {"suspended": 0, "images": 0, "images_refused": 0, "checkpoints": 0, "saves": 0}
        self.memory: dict[str, Any] = {}
        self.faults: list[str] = []

    def killed(self) -> None:
        """Kill a run five times, and let it end."""
        self.kills.add(kill_and_finish(self.world, self._fresh("killed"), self.draw, 5))

    def suspended(self) -> None:
        """Stop a run inside a save as SIGSTOP does, wake it later, and compare its end."""
        output = self._fresh("suspended")
        child = self.world.start(output)
        self.world.wait_for_save(self.draw.randint(1, 3), child)
        os.kill(child, signal.SIGSTOP)
        self.counts["suspended"] += bool(self.world.shared[SAVING])
        time.sleep(self.draw.uniform(0.5, 3))
        os.kill(child, signal.SIGCONT)
        if os.waitpid(child, 0)[1]:
            self.faults.append(f"suspended: {last_line(output)}")
            return
        found = differences(final_state(output), final_state(self.world.unbroken))
        self.faults += [f"suspended: {fault}" for fault in (found + curve_faults(output, self.world.unbroken))[:3]]

    def images(self, count: int = 200) -> None:
        """Change some bytes of a picture: it is read, or refused as what it is; nothing else may happen."""
        path = self.world.folder / "mutated.png"
        originals = sorted((self.world.folder / "data" / "images").iterdir())
        for _ in range(count):
            path.write_bytes(self._changed(self.draw.choice(originals).read_bytes()))
            self.counts["images"] += 1
            try:
                read_images([path], resolution=16, background="white")
            except BadImage:
                self.counts["images_refused"] += 1
            except Exception as error:
                self.faults.append(f"image: {error!r}")

    def checkpoints(self, count: int = 20) -> None:
        """Change some bytes of a checkpoint: its checksum must tell, and without it nothing but ModelError may come."""
        whole = sorted(self.world.unbroken.glob("checkpoint_*.pt"))[0]
        path = self.world.folder / "mutated.pt"
        for _ in range(count):
            content = self._changed(whole.read_bytes())
            path.write_bytes(content)
            checksum_path(path).write_text(checksum_path(whole).read_text())
            self.counts["checkpoints"] += 1
            if content != whole.read_bytes() and self._outcome(path) != "refused":
                self.faults.append("checkpoint: damage was not noticed")
            checksum_path(path).unlink()
            if (outcome := self._outcome(path)) not in ("read", "refused"):
                self.faults.append(f"checkpoint: {outcome}")

    def saves(self, count: int = 400) -> None:
        """Save again and again; memory, open files and the number of checkpoints must not grow."""
        folder = self._fresh("saves")
        folder.mkdir()
        state = {"model": torch.randn(300_000), "judged_by": {}, "progress": {"step": 0}}
        memory: list[tuple[float, float]] = []
        files = 0
        with Checkpoints(folder, write_state, read_state, keep=3) as saver:
            for step in range(count):
                saver.write_in_background(state, step=step, epoch=step, at_epoch=True)
                saver.finished()
                self.counts["saves"] += 1
                if step == int(WARM_UP * count):
                    files = open_files()
                if step >= WARM_UP * count and step % 10 == 0:
                    gc.collect()
                    memory.append((time.time(), resident_megabytes()))
        grown = memory[-1][1] - memory[0][1]
        hours = max(1.0, (memory[-1][0] - memory[0][0]) / 3600)
        left = open_files() - files
        self.memory = {"grown_megabytes": round(grown, 2), "files_left_open": left, "checkpoints": len(saver.paths())}
        if grown > MEGABYTES_AN_HOUR * hours or left > 2 or len(saver.paths()) > 3:
            self.faults.append(f"saves: {self.memory}")

    def _outcome(self, path: Path) -> str:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                read_checkpoint(path)
        except ModelError:
            return "refused"
        except Exception as error:
            return repr(error)
        return "read"

    def _changed(self, content: bytes) -> bytes:
        changed = bytearray(content)
        for _ in range(self.draw.choice((1, 1, 3, 20))):
            changed[self.draw.randrange(len(changed))] ^= 1 << self.draw.randrange(8)
        return bytes(changed[: self.draw.randrange(len(changed))] if self.draw.random() < 0.2 else changed)

    def _fresh(self, name: str) -> Path:
        return self.world.folder / f"{name}_{self.draw.getrandbits(60):x}"


def resident_megabytes() -> float:
    """Return the memory that this process holds."""
    with open("/proc/self/statm") as handle:
        return int(handle.read().split()[1]) * os.sysconf("SC_PAGESIZE") / 1e6


def open_files() -> int:
    """Return how many files this process has open."""
    return len(list(Path("/proc/self/fd").iterdir()))


def too_few(soak: Soak) -> list[str]:
    """Return what hit too rarely for the report to prove anything."""
    wanted = {
        "kills": 5,
        "inside_a_save": soak.kills.kills // 4,
        "suspended": 1,
        "images_refused": 20,
        "checkpoints": 20,
    }
    hits = {**asdict(soak.kills), **soak.counts}
    return [
        f"too few hits: {name} {hits[name]}, at least {least}" for name, least in wanted.items() if hits[name] < least
    ]


def main() -> int:
    """Soak, report, and say by the exit code whether all went well."""
    parser = argparse.ArgumentParser(description="Faults on purpose, for hours.")
    parser.add_argument("--hours", type=float, default=1.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--report", type=Path, help="Where to write the report; it is printed in any case.")
    arguments = parser.parse_args()
    started = time.time()
    with tempfile.TemporaryDirectory() as folder:
        soak = Soak(Path(folder), arguments.seed)
        parts: tuple[Callable[[], None], ...] = (soak.killed, soak.suspended, soak.images, soak.checkpoints, soak.saves)
        rounds = 0
        while rounds == 0 or time.time() - started < 3600 * arguments.hours:
            for part in parts:
                part()
            rounds += 1
        faults = [*soak.kills.faults, *soak.faults, *too_few(soak)]
    report = {
        "seed": arguments.seed,
        "hours": round((time.time() - started) / 3600, 3),
        "rounds": rounds,
        "runs": soak.kills.runs,
        "kills": soak.kills.kills,
        "inside_a_save": soak.kills.inside_a_save,
        **soak.counts,
        "memory": soak.memory,
        "faults": faults,
    }
    text = json.dumps(report, indent=2)
    print(text)
    if arguments.report is not None:
        arguments.report.write_text(text + "\n")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
