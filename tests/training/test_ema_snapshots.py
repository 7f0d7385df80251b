"""Snapshots are whole, kept once, of one run, and forgotten where a resumed run will make them again."""

import errno

import pytest
import torch

from t2im.errors import ModelError, TrainingError, UsageError
from t2im.training.ema_snapshots import EMASnapshots, identity, series
from t2im.training.power_ema import PowerEMA


def averages(updates, value=1.0, sigmas=(0.05, 0.1)):
    """Return averages of a model that has had one value from its first update on."""
    model = torch.nn.Linear(3, 2)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(value)
    ema = PowerEMA(model, sigmas)
    for _ in range(updates):
        ema.update(model)
    return ema


def kept(folder):
    return sorted(path.name for path in folder.iterdir())


def test_a_snapshot_says_in_its_header_what_it_is(tmp_path):
    paths = EMASnapshots(tmp_path, "a run").write(averages(7, value=0.25))
    assert kept(tmp_path) == ["step_00000007_sigma_0.05.safetensors", "step_00000007_sigma_0.1.safetensors"]
    found = series(tmp_path)
    assert [(one.path, one.sigma, one.step, one.run) for one in found] == [
        (paths[0], 0.05, 7, "a run"),
        (paths[1], 0.1, 7, "a run"),
    ]
    weights = found[0].weights()
    assert set(weights) == {"weight", "bias"} and weights["weight"].dtype == torch.float16
    assert torch.equal(weights["weight"].float(), torch.full((2, 3), 0.25))


def test_a_run_that_goes_on_forgets_the_snapshots_that_it_will_make_again(tmp_path):
    snapshots = EMASnapshots(tmp_path, "a run")
    for updates in (5, 10, 15):
        snapshots.write(averages(updates))
    (tmp_path / "strip.png").touch()
    older = [path.stat().st_mtime_ns for path in sorted(tmp_path.glob("step_0000000[05]*"))]
    snapshots.go_on_from(10)
    assert sorted({one.step for one in series(tmp_path)}) == [5, 10]
    assert [path.stat().st_mtime_ns for path in sorted(tmp_path.glob("step_0000000[05]*"))] == older
    snapshots.go_on_from(0)
    assert kept(tmp_path) == ["strip.png"]


def test_no_folder_is_needed_to_begin(tmp_path):
    EMASnapshots(tmp_path / "ema", "a run").go_on_from(0)
    assert not (tmp_path / "ema").exists()


def test_the_same_snapshot_twice_is_the_same_file_to_the_bit(tmp_path):
    first = [path.read_bytes() for path in EMASnapshots(tmp_path, "a run").write(averages(4))]
    second = [path.read_bytes() for path in EMASnapshots(tmp_path, "a run").write(averages(4))]
    assert first == second and len(kept(tmp_path)) == 2


def test_a_crash_while_writing_leaves_no_snapshot(tmp_path, monkeypatch):
    def crash(weights, path, metadata):
        path.write_bytes(b"half of it")
        raise KeyboardInterrupt

    monkeypatch.setattr("safetensors.torch.save_file", crash)
    with pytest.raises(KeyboardInterrupt):
        EMASnapshots(tmp_path, "a run").write(averages(1))
    assert kept(tmp_path) == []


def test_a_full_disk_leaves_a_gap_and_a_warning(tmp_path, monkeypatch):
    def full(weights, path, metadata):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("safetensors.torch.save_file", full)
    with pytest.warns(UserWarning, match=r"sigma_0.*this snapshot is not kept .*No space left"):
        assert EMASnapshots(tmp_path, "a run").write(averages(1)) == []
    assert kept(tmp_path) == []


def test_weights_beyond_fp16_are_refused_and_not_kept_as_infinities(tmp_path):
    with pytest.raises(TrainingError, match='"weight" does not fit into fp16'):
        EMASnapshots(tmp_path, "a run").write(averages(1, value=70_000.0))
    assert kept(tmp_path) == []


def test_without_snapshots_the_error_names_the_setting(tmp_path):
    with pytest.raises(UsageError, match=r"no snapshots.*--set training.ema_sigmas=\(0.05,0.10\)"):
        series(tmp_path / "ema")


def test_snapshots_of_two_runs_are_not_mixed(tmp_path):
    EMASnapshots(tmp_path, "a run").write(averages(1))
    EMASnapshots(tmp_path, "another").write(averages(2))
    with pytest.raises(ModelError, match=r"step_00000001_sigma_0.05.safetensors: of another run than step_00000002"):
        series(tmp_path)


@pytest.mark.parametrize("size", [0, 5, -9])
def test_a_damaged_snapshot_is_named(tmp_path, size):
    path = EMASnapshots(tmp_path, "a run").write(averages(1))[1]
    path.write_bytes(path.read_bytes()[:size])
    with pytest.raises(
        ModelError, match=r"sigma_0.1.safetensors: cannot be read .*Or delete it; the others are enough"
    ):
        series(tmp_path)


def test_the_identity_is_that_of_seed_and_encoders():
    state = {"config": {"training": {"seed": 1, "steps": 9}}, "encoders": {"vae": {"sha256": "abc", "source": "here"}}}
    assert identity(state) == identity(state | {"config": {"training": {"seed": 1, "steps": 99}}})
    assert identity(state) != identity(state | {"config": {"training": {"seed": 2}}})
    assert identity(state) != identity(state | {"encoders": {"vae": {"sha256": "abd"}}})
