"""Checkpoints of a run: which one is the newest, the best, the oldest, and what damage and full disks do to them."""

import hashlib
import os
import resource
import shutil
import subprocess
import sys
import textwrap
import threading
import time
import warnings

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from t2im.errors import ModelError, TrainingError
from t2im.training.checkpoint import Checkpoints, NotFinite, read_state, write_state


def state_of(step, size=101):
    return {"model": {"weight": torch.full((size,), float(step))}, "progress": {"step": step}}


def checkpoints(folder, **options):
    return Checkpoints(folder, options.pop("write", write_state), options.pop("read", read_state), **options)


def save(saver, *epochs, heldout_loss=None):
    for epoch in epochs:
        judged = {} if heldout_loss is None else {"judged_by": {"heldout_loss": heldout_loss}}
        saver.write_in_background({**state_of(epoch), **judged}, step=epoch, epoch=epoch, at_epoch=True)


def digests(folder):
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir()}


def names(folder):
    return sorted(path.name for path in folder.glob("*.pt"))


def test_a_save_is_a_copy_that_training_cannot_change(tmp_path):
    saver, gate, model = checkpoints(tmp_path), threading.Event(), torch.nn.Linear(3, 5)
    slow = checkpoints(tmp_path, write=lambda path, state: (gate.wait(9), write_state(path, state)))
    before = model.weight.detach().clone()
    slow.write_in_background({"model": model.state_dict()}, step=1, epoch=1, at_epoch=True)
    with torch.no_grad():
        model.weight.add_(1)
    assert slow.finished() == [] and saver.paths() == []
    gate.set()
    slow.write({"model": model.state_dict()}, step=2, epoch=2, at_epoch=True)
    first, second = (read_state(path)["model"]["weight"] for path in saver.paths())
    assert torch.equal(first, before) and torch.equal(second, model.weight)


def test_one_save_at_a_time(tmp_path):
    running, most = [], []

    def write(path, state):
        running.append(path)
        most.append(len(running))
        time.sleep(0.01)
        write_state(path, state)
        running.remove(path)

    saver = checkpoints(tmp_path, write=write, keep=9)
    save(saver, 1, 2, 3, 4)
    saver.write(state_of(5), step=5, epoch=5, at_epoch=True)
    assert most == [1] * 5 and len(saver.paths()) == 5
    assert [saved.step for saved in saver.finished()] == [1, 2, 3, 4]


def test_what_a_save_leaves_out_is_its_environment_and_nothing_else(tmp_path):
    saver = checkpoints(tmp_path)
    state = {**state_of(3), "optimizer": {"state": {0: {"step": torch.tensor(7)}}, "groups": [(0.9, 0.99), None, "x"]}}
    read = read_state(saver.write(state, step=3, epoch=0, at_epoch=False).path)
    assert read.pop("environment")["threads"] == torch.get_num_threads() and read.pop("judged_by") == {}
    assert torch.equal(read["model"].pop("weight"), state["model"].pop("weight"))
    assert read == state


def test_the_newest_few_stay_and_go_only_after_a_newer_one_was_verified(tmp_path):
    saver = checkpoints(tmp_path, keep=2)
    seen = []

    def write(path, state):
        seen.append(names(tmp_path))
        write_state(path, state)

    saver._write = write
    with saver:
        save(saver, 1, 2, 3, 4)
    assert seen == [[], ["checkpoint_epoch_1.pt"], *[[f"checkpoint_epoch_{n}.pt" for n in (m - 1, m)] for m in (2, 3)]]
    assert names(tmp_path) == ["checkpoint_epoch_3.pt", "checkpoint_epoch_4.pt"]
    assert len(list(tmp_path.iterdir())) == 4


def test_a_damaged_checkpoint_does_not_count_as_one_that_stays(tmp_path):
    with checkpoints(tmp_path, keep=2) as saver:
        save(saver, 1, 2)
    (tmp_path / "checkpoint_epoch_2.pt").write_bytes(b"rubbish")
    with checkpoints(tmp_path, keep=2) as saver:
        save(saver, 3)
    assert names(tmp_path) == [f"checkpoint_epoch_{n}.pt" for n in (1, 2, 3)]
    with checkpoints(tmp_path, keep=2) as saver:
        save(saver, 4)
    assert names(tmp_path) == [f"checkpoint_epoch_{n}.pt" for n in (3, 4)]


def test_an_older_save_is_kept_although_newer_numbers_are_there(tmp_path):
    with checkpoints(tmp_path, keep=2) as saver:
        save(saver, 7, 8)
        save(saver, 3)
    assert "checkpoint_epoch_3.pt" in names(tmp_path)


def test_the_best_stays_though_it_is_old(tmp_path):
    with checkpoints(tmp_path, keep=2, best_by="heldout_loss") as saver:
        for epoch, loss in enumerate((0.5, 0.3, 0.4, 0.35, 0.6), start=1):
            assert saver.is_best({"heldout_loss": loss}) == (epoch < 3)
            save(saver, epoch, heldout_loss=loss)
            save(saver, epoch + 10)  # never judged, so never the best
            saver._settle()
    assert [saved.step for saved in saver.finished() if saved.best] == [1, 2]
    best = read_state(tmp_path / "best.pt")
    assert best["progress"]["step"] == 2 and best["judged_by"] == {"heldout_loss": 0.3}
    subprocess.run(["sha256sum", "--check", "--status", "best.pt.sha256"], cwd=tmp_path, check=True)
    again = checkpoints(tmp_path, best_by="heldout_loss")
    assert again.is_best({"heldout_loss": 0.29}) and not again.is_best({"heldout_loss": 0.3})
    assert not again.is_best({}) and not checkpoints(tmp_path).is_best({"heldout_loss": 0.1})


def test_the_best_is_a_copy_where_files_cannot_have_two_names(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "link", lambda *args: (_ for _ in ()).throw(OSError("not here")))
    with checkpoints(tmp_path, best_by="heldout_loss") as saver:
        save(saver, 1, heldout_loss=0.5)
    assert (tmp_path / "best.pt").read_bytes() == (tmp_path / "checkpoint_epoch_1.pt").read_bytes()
    assert not list(tmp_path.glob(".*"))


def test_the_best_is_what_is_left_when_all_newer_ones_are_damaged(tmp_path):
    with checkpoints(tmp_path, best_by="heldout_loss") as saver:
        save(saver, 1, heldout_loss=0.5)
    with checkpoints(tmp_path, keep=1) as saver:
        save(saver, 2, 3)
    (tmp_path / "checkpoint_epoch_3.pt").write_bytes(b"")
    with pytest.warns(UserWarning, match=r"going on from best\.pt.*checkpoint_epoch_3\.pt: damaged"):
        assert saver.read_newest()[1]["progress"]["step"] == 1


@given(st.data())
@settings(max_examples=200, deadline=None)
def test_newest_is_by_number_among_those_that_are_sound(tmp_path_factory, data):
    """Dates, strays, files of others and damage change nothing (200 folders)."""
    numbers = st.tuples(st.sampled_from([0, 1, 2, 9, 10, 11, 99, 100, 600]), st.sampled_from([0, 5, 40, 312]))
    sound = data.draw(st.lists(numbers, min_size=1, max_size=4, unique=True))
    damaged = [pair for pair in data.draw(st.lists(numbers, max_size=2, unique=True)) if pair not in sound]
    folder = tmp_path_factory.mktemp("run")
    try:
        for epoch, step in sound + damaged:
            path = folder / (f"checkpoint_epoch_{epoch}_step_{step}.pt" if step else f"checkpoint_epoch_{epoch}.pt")
            content = f"{epoch} {step}".encode()
            path.write_bytes(content)
            digest = "0" * 64 if (epoch, step) in damaged else hashlib.sha256(content).hexdigest()
            path.with_name(f"{path.name}.sha256").write_text(f"{digest}  {path.name}\n")
            date = data.draw(st.integers(0, 2_000_000_000))
            os.utime(path, (date, date))
        foreign = (
            "checkpoint_epoch_700.pt.part",
            ".checkpoint_epoch_800.abcdefgh.tmp.pt",
            "model_epoch_900.pt",
            "x.pt",
        )
        for name in data.draw(st.lists(st.sampled_from(foreign), unique=True)):
            (folder / name).write_bytes(b"not ours")

        def read(path):
            if hashlib.sha256(path.read_bytes()).hexdigest() not in path.with_name(f"{path.name}.sha256").read_text():
                raise ModelError(f"{path}: damaged.")
            return {"content": path.read_text()}

        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always")
            _, state = checkpoints(folder, read=read).read_newest()
        assert state["content"] == " ".join(map(str, max(sound)))
        newer = [pair for pair in damaged if pair > max(sound)]
        assert sum(str(warning.message).count("damaged") for warning in told) == len(newer)
    finally:
        shutil.rmtree(folder)


DAMAGES = {
    **{f"cut to {share}/20": lambda content, share=share: content[: len(content) * share // 20] for share in range(20)},
    **{
        f"bit {place}": lambda content, place=place: flipped(content, place * len(content) * 8 // 50 + place % 8)
        for place in range(50)
    },
    "emptied": lambda content: b"",
}


def flipped(content, bit):
    changed = bytearray(content)
    changed[bit // 8] ^= 1 << bit % 8
    return bytes(changed)


def test_damage_is_found_named_and_passed_over(tmp_path):
    """20 lengths, 50 single bits and an empty file: none is loaded, and the one before is."""
    with checkpoints(tmp_path) as saver:
        save(saver, 9, 10)
    older, newest = saver.paths()
    content = newest.read_bytes()
    for name, damage in DAMAGES.items():
        newest.write_bytes(damage(content))
        with pytest.warns(
            UserWarning, match=r"going on from checkpoint_epoch_9\.pt: .*checkpoint_epoch_10\.pt: damaged"
        ):
            path, state = saver.read_newest()
        assert path == older and state["progress"]["step"] == 9, name
        with pytest.raises(ModelError, match=r"checkpoint_epoch_10\.pt: damaged"):
            read_state(newest)  # who names a file gets that file or an error


def test_one_without_its_checksum_is_the_last_choice(tmp_path):
    with checkpoints(tmp_path) as saver:
        save(saver, 9, 10)
    older, newest = saver.paths()
    newest.with_name(f"{newest.name}.sha256").unlink()
    assert saver.read_newest()[0] == older
    older.with_name(f"{older.name}.sha256").unlink()
    with pytest.warns(UserWarning, match=r"checkpoint_epoch_10\.pt: cannot be verified"):
        assert saver.read_newest()[0] == newest


def test_a_checksum_that_is_empty_is_damage(tmp_path):
    with checkpoints(tmp_path) as saver:
        save(saver, 1)
    (tmp_path / "checkpoint_epoch_1.pt.sha256").write_text("")
    with pytest.raises(ModelError, match=r"no checkpoint to resume from.*damaged"):
        saver.read_newest()


def test_a_number_that_is_not_finite_is_never_written(tmp_path):
    saver = checkpoints(tmp_path)
    save(saver, 1)
    broken = state_of(2)
    broken["model"]["weight"][3] = float("inf")
    with pytest.raises(NotFinite, match=r'step 2: "model\.weight" is not finite'):
        saver.write(broken, step=2, epoch=2, at_epoch=True)
    saver.write_in_background(broken, step=2, epoch=2, at_epoch=True)
    with pytest.raises(NotFinite):
        while True:
            saver.finished()
    path, state = saver.read_newest()
    assert path.name == "checkpoint_epoch_1.pt" and saver.paths() == [path]
    save(saver, 2)  # after going back the run saves as before
    assert saver.write(state, step=3, epoch=3, at_epoch=True).path.is_file()


@pytest.fixture
def small_files():
    """Let no file grow beyond 100 kB, as if the disk were full."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_save_that_fails_halfway_leaves_nothing_and_harms_nothing(tmp_path, small_files):
    saver = checkpoints(tmp_path)
    save(saver, 1, 2)
    saver._settle()
    before = digests(tmp_path)
    saver.write_in_background(state_of(3, size=50_000), step=3, epoch=3, at_epoch=True)
    saver._settle()
    problem = saver.finished()[-1].problem
    assert problem.startswith("File too large; it needs 1 MB, and ")
    assert digests(tmp_path) == before
    save(saver, 4)
    saver._settle()
    assert [saved.problem for saved in saver.finished()] == [""] and names(tmp_path)[-1] == "checkpoint_epoch_4.pt"


def test_three_failures_in_a_row_end_the_run_and_two_do_not(tmp_path, small_files):
    saver = checkpoints(tmp_path)
    big = state_of(3, size=50_000)
    for step in (1, 2):
        saver.write_in_background(big, step=step, epoch=step, at_epoch=True)
    save(saver, 3)
    for step in (4, 5, 6):
        saver.write_in_background(big, step=step, epoch=step, at_epoch=True)
    with pytest.raises(TrainingError, match=r"epoch_6\.pt: 3 saves in a row.*epoch_3\.pt is untouched"):
        while True:
            saver.finished()


def test_a_last_save_that_fails_is_an_error_at_once(tmp_path, small_files):
    with pytest.raises(TrainingError, match=r"epoch_1\.pt: not saved: File too large.*no older one"):
        checkpoints(tmp_path).write(state_of(1, size=50_000), step=1, epoch=1, at_epoch=True)


def test_what_cannot_fit_is_not_begun(tmp_path, monkeypatch):
    begun = []
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=12_000_000))
    saver = checkpoints(tmp_path, write=lambda path, state: begun.append(path))
    save(saver, 1)
    with pytest.raises(TrainingError, match=r"No space left on device; it needs 41 MB, and 12 MB are free"):
        saver.write(state_of(2, size=10_000_000), step=2, epoch=2, at_epoch=True)
    assert [path.name for path in begun] == ["checkpoint_epoch_1.pt"]


FULL_DISK = """
    import subprocess, sys, torch
    from pathlib import Path
    from t2im.training import checkpoint
    disk = Path(sys.argv[1])
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=6m", "none", disk], check=True)
    checkpoint._require_room = lambda *args: None  # the disk itself must say it
    saver = checkpoint.Checkpoints(disk, checkpoint.write_state, checkpoint.read_state)
    states = [{"model": torch.randn(300_000), "progress": {"step": step}} for step in range(5)]
    print(saver.write(states[0], step=0, epoch=0, at_epoch=True).path.name)
    before = (disk / "checkpoint_epoch_0.pt").read_bytes()
    (disk / "holiday.mp4").write_bytes(bytes(4_000_000))
    saver.write_in_background(states[1], step=1, epoch=1, at_epoch=True)
    saver._settle()
    print(saver.finished()[0].problem)
    assert sorted(path.name for path in disk.iterdir() if path.suffix != ".sha256") == ["checkpoint_epoch_0.pt", "holiday.mp4"]
    assert (disk / "checkpoint_epoch_0.pt").read_bytes() == before
    (disk / "holiday.mp4").unlink()
    print(saver.write(states[2], step=2, epoch=2, at_epoch=True).path.name)
"""


def test_a_truly_full_disk(tmp_path):
    """A file system of 6 MB, mounted in a namespace of its own."""
    alone = ["unshare", "--user", "--map-root-user", "--mount"]
    if shutil.which("unshare") is None or subprocess.run([*alone, "true"], capture_output=True, check=False).returncode:
        pytest.skip("this system lets no user mount a file system of his own")
    program = [sys.executable, "-c", textwrap.dedent(FULL_DISK), tmp_path]
    done = subprocess.run([*alone, *program], capture_output=True, text=True, check=False)
    first, problem, third = done.stdout.splitlines() or [done.stderr] * 3
    assert (first, third) == ("checkpoint_epoch_0.pt", "checkpoint_epoch_2.pt"), done.stderr
    assert problem.startswith("No space left on device; it needs 2 MB, and ")


def test_what_a_killed_process_left_goes_after_an_hour_and_nothing_else(tmp_path):
    hour = time.time() - 3700
    ours = [
        ".checkpoint_epoch_6.a1b2c3_d.tmp.pt",
        ".checkpoint_epoch_6_step_77.a1b2c3_d.tmp.pt",
        ".checkpoint_epoch_6.pt.a1b2c3_d.tmp.sha256",
        ".best.a1b2c3_d.tmp.pt",
    ]
    others = [".checkpoint_epoch_x.a1b2c3_d.tmp.pt", ".notes.a1b2c3_d.tmp.pt", ".lock", "checkpoint_epoch_5.tmp.pt"]
    young = ".checkpoint_epoch_7.zzzzzzzz.tmp.pt"
    for name in (*ours, *others, young):
        (tmp_path / name).write_text("x")
        os.utime(tmp_path / name, (hour, hour))
    os.utime(tmp_path / young)
    with checkpoints(tmp_path):
        assert {path.name for path in tmp_path.iterdir()} == {*others, young}


def test_strays_have_the_names_that_are_looked_for(tmp_path, monkeypatch):
    """The pattern of temporary names is written twice, so it is checked against the names that come to be."""
    seen = set()
    replace = os.replace
    monkeypatch.setattr(os, "replace", lambda old, new: (seen.add(os.fspath(old)), replace(old, new)))
    with checkpoints(tmp_path, best_by="heldout_loss") as saver:
        save(saver, 1, heldout_loss=0.5)
        saver.write_in_background(state_of(2), step=2, epoch=1, at_epoch=False)
    assert len(seen) == 6
    for name in seen:
        with open(name, "w"):
            os.utime(name, (0, 0))
    with checkpoints(tmp_path):
        assert not list(tmp_path.glob(".*"))


def test_stopping_at_once_does_not_wait_for_a_save(tmp_path):
    gate = threading.Event()
    saver = checkpoints(tmp_path, write=lambda path, state: gate.wait(9))
    with pytest.raises(KeyboardInterrupt), saver:
        save(saver, 1)
        raise KeyboardInterrupt
    assert not gate.is_set()
    gate.set()
