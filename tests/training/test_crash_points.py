"""A save is made of a few dozen calls to the system. A process may die before and after each of them: what is left?

Each trial forks a child that saves, and dies by itself at one such point, with no chance to tidy up. The four ways to
get it wrong at the end show that the trials would notice.
"""

import os
import shutil
import tempfile
import threading
from pathlib import Path

import pytest
import torch

from t2im import checkpoint as package
from t2im.checkpoint import checksum_path, recorded_checksum
from t2im.errors import ModelError
from t2im.files import sha256_of_file, write_text
from t2im.training import checkpoint
from t2im.training.checkpoint import Checkpoints, read_state, write_state

CALLS = (
    (tempfile, "mkstemp"),
    (torch, "save"),
    (os, "fsync"),
    (os, "chmod"),
    (os, "link"),
    (os, "replace"),
    (os, "unlink"),
    (Path, "unlink"),
    (Path, "write_text"),
)
SAVES = {
    "the first": (),
    "one that removes an old one": (1, 2),
    "one that takes the place of its like": (4,),
}
"""What is there before the save of epoch 4."""


def state_of(epoch, attempt):
    return {
        "model": {"weight": torch.full((50,), float(epoch))},
        "progress": {"epoch": epoch, "attempt": attempt},
        "judged_by": {"heldout_loss": 1 / epoch},
    }


def save(folder, epoch, attempt=1):
    saver = Checkpoints(folder, write_state, read_state, keep=2, best_by="heldout_loss")
    saver.write(state_of(epoch, attempt), step=epoch, epoch=epoch, at_epoch=True)


def watched(at):
    """Make every call that changes the disk report itself to `at`, before and after it happens."""

    def wrapped(owner, name):
        call = getattr(owner, name)

        def reporting(*arguments, **options):
            at(f"before {name}", *arguments)
            if name == "save":
                arguments = (arguments[0], Halting(arguments[1], at))
            result = call(*arguments, **options)
            at(f"after {name}", *arguments)
            return result

        setattr(owner, name, reporting)

    for owner, name in CALLS:
        wrapped(owner, name)


class Halting:
    """A file that reports each piece that is written to it, half of it being on the disk already."""

    def __init__(self, handle, at):
        self.handle, self.at = handle, at

    def write(self, data):
        data = bytes(data)
        self.handle.write(data[: len(data) // 2])
        self.handle.flush()
        self.at("half a write")
        self.handle.write(data[len(data) // 2 :])
        return len(data)

    def flush(self):
        self.handle.flush()


def in_child(work):
    """Fork, work, die; return the exit code."""
    child = os.fork()
    if not child:
        try:
            work()
            os._exit(0)
        except BaseException:
            os._exit(1)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def die_at(number):
    """Return a function that kills its process at its n-th call, from whichever thread."""
    lock, calls = threading.Lock(), [0]

    def at(what, *arguments):
        with lock:
            calls[0] += 1
            if calls[0] == number:
                os._exit(9)

    return at


def sound(folder):
    return [
        path.name
        for path in Checkpoints(folder, write_state, read_state).paths()
        if recorded_checksum(path) == sha256_of_file(path)
    ]


def losses(folder, before, breaking=lambda: None):
    """Die at every point of a save, until something is lost; return how many points were tried, and what was lost."""
    lost, tried = [], 0
    start = folder / "start"
    start.mkdir()
    for epoch in before:
        save(start, epoch)
    while True:
        number = tried + 1
        place = folder / str(number)
        shutil.copytree(start, place)

        def dying(place=place, number=number):
            breaking()
            watched(die_at(number))
            save(place, 4, attempt=2)

        code = in_child(dying)
        assert code in (0, 9), code
        there = sound(place)
        saver = Checkpoints(place, write_state, read_state, keep=2, best_by="heldout_loss")
        # What was saved before is there, or the new one is; of the twin of a new one at least the bytes.
        if (
            before
            and max(before) != 4
            and not {f"checkpoint_epoch_{max(before)}.pt", "checkpoint_epoch_4.pt"} & {*there}
        ):
            lost.append(f"{number}: only {there} are sound")
        if before:
            try:
                assert saver.read_newest()[1]["progress"]["epoch"] in (max(before), 4)
            except (ModelError, AssertionError, UserWarning) as error:  # the warning is about damage
                lost.append(f"{number}: {error!r}")
        if tried % 8 == 0:  # whatever was left, the next save is as good as any
            save(place, 5)
            assert saver.read_newest()[0].name == "checkpoint_epoch_5.pt"
        shutil.rmtree(place)
        if code == 0 or lost:
            return tried, lost
        tried += 1


@pytest.mark.filterwarnings("ignore:.*cannot be verified", "ignore:.*multi-threaded")
@pytest.mark.parametrize("name", SAVES)
def test_whoever_dies_at_any_point_of_a_save_loses_nothing_that_was_saved(name, tmp_path):
    points, lost = losses(tmp_path, SAVES[name])
    assert lost == []
    assert points >= 40


def save_with_the_oldest_gone_first():
    """As trainers do that keep no more than so many."""
    write = checkpoint.write_verified

    def writing(path, value):
        for old in path.parent.glob("checkpoint_*.pt"):
            old.unlink()
        write(path, value)

    checkpoint.write_verified = writing


def save_in_place():
    def writing(path, value):
        with open(path, "wb") as handle:
            torch.save(value, handle)
        write_text(checksum_path(path), f"{sha256_of_file(path)}  {path.name}\n")

    checkpoint.write_verified = writing


def save_the_checksum_first():
    def writing(path, value):
        with package.atomic_path(path) as temporary:
            with open(temporary, "wb") as handle:
                torch.save(value, handle)
            write_text(checksum_path(path), f"{sha256_of_file(temporary)}  {path.name}\n")

    checkpoint.write_verified = writing


@pytest.mark.filterwarnings("ignore:.*cannot be verified", "ignore:.*multi-threaded")
@pytest.mark.parametrize(
    ("breaking", "before"),
    [(save_with_the_oldest_gone_first, (1, 2)), (save_in_place, (4,)), (save_the_checksum_first, (4,))],
)
def test_a_saver_that_is_wrong_is_found_out(breaking, before, tmp_path):
    _, lost = losses(tmp_path, before, breaking)
    assert lost


def order_of_a_save(folder, monkeypatch):
    """Return what a save does to the disk, in order."""
    for owner, name in CALLS:
        monkeypatch.setattr(owner, name, getattr(owner, name))  # to be undone
    happened = []
    watched(lambda what, *arguments: happened.append(what))
    save(folder, 1)
    monkeypatch.undo()
    return happened


def badly_synced(happened):
    """Return whether a file was renamed before it was synced, or a rename was not followed by a sync of its folder."""
    last = -1
    for place, what in enumerate(happened):
        if what == "before replace":
            if "after fsync" not in happened[last + 1 : place]:
                return True
            last = place
    return "after fsync" not in happened[last:]


def test_bytes_are_on_the_disk_before_they_have_their_name(tmp_path, monkeypatch):
    happened = order_of_a_save(tmp_path, monkeypatch)
    assert happened.count("before replace") == 4
    assert not badly_synced(happened)
    assert badly_synced([what for what in happened if "fsync" not in what])
