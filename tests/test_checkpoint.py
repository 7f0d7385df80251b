import copy
import subprocess

import pytest
import torch

from t2im.checkpoint import config_of, read_checkpoint, weights_of, write_checkpoint
from t2im.errors import ModelError


@pytest.fixture
def state(tiny_state):
    return copy.deepcopy(tiny_state)


def same(left, right):
    if isinstance(left, torch.Tensor):
        return torch.equal(left, right)
    if isinstance(left, dict):
        return left.keys() == right.keys() and all(same(left[key], right[key]) for key in left)
    return left == right


def refused(path, message):
    with pytest.raises(ModelError, match=message) as caught:
        read_checkpoint(path)
    assert "\n" not in str(caught.value)
    assert str(path) in str(caught.value)


def test_what_is_written_is_read(state, tmp_path):
    write_checkpoint(tmp_path / "new" / "c.pt", state)
    read = read_checkpoint(tmp_path / "new" / "c.pt")
    assert read.pop("format") == "t2im-checkpoint"
    assert read.pop("schema") == 2
    assert same(read, state)
    assert config_of(read, tmp_path).unet.sample_size == 8
    assert sorted(entry.name for entry in (tmp_path / "new").iterdir()) == ["c.pt", "c.pt.sha256"]


def test_the_average_is_preferred_and_the_raw_weights_can_be_had(state):
    name = "conv_in.weight"
    assert torch.equal(weights_of(state)[name], state["ema"][name])
    assert torch.equal(weights_of(state, "raw")[name], state["unet"][name])
    assert "updates" not in weights_of(state)
    assert torch.equal(weights_of({**state, "ema": None})[name], state["unet"][name])


def test_a_run_without_an_average_is_sound(state, tmp_path):
    write_checkpoint(tmp_path / "c.pt", {**state, "ema": None})
    assert read_checkpoint(tmp_path / "c.pt")["ema"] is None


def test_the_checksum_is_that_of_sha256sum(state, tmp_path):
    write_checkpoint(tmp_path / "c.pt", state)
    subprocess.run(["sha256sum", "--check", "--status", "c.pt.sha256"], cwd=tmp_path, check=True)


def test_a_checkpoint_is_replaced_together_with_its_checksum(state, tmp_path):
    write_checkpoint(tmp_path / "c.pt", state)
    state["progress"]["step"] = 8
    write_checkpoint(tmp_path / "c.pt", state)
    assert read_checkpoint(tmp_path / "c.pt")["progress"]["step"] == 8


@pytest.mark.parametrize("position", [0, 1000, -1000, -1])
def test_one_flipped_bit_is_noticed(tiny_checkpoint, position):
    content = bytearray(tiny_checkpoint.read_bytes())
    content[position] ^= 1
    tiny_checkpoint.write_bytes(content)
    refused(tiny_checkpoint, "its checksum is not that of")


def test_a_cut_file_is_noticed_even_without_its_checksum(tiny_checkpoint):
    content = tiny_checkpoint.read_bytes()
    tiny_checkpoint.with_name(f"{tiny_checkpoint.name}.sha256").unlink()
    for size in (0, 1, len(content) // 2, len(content) - 1):
        tiny_checkpoint.write_bytes(content[:size])
        with pytest.warns(UserWarning, match="cannot be verified"):
            refused(tiny_checkpoint, "not a checkpoint, or a damaged one")


def test_a_missing_checksum_is_said_but_no_obstacle(tiny_checkpoint):
    tiny_checkpoint.with_name(f"{tiny_checkpoint.name}.sha256").unlink()
    with pytest.warns(UserWarning, match="cannot be verified"):
        assert read_checkpoint(tiny_checkpoint)["progress"]["step"] == 7


def test_a_checkpoint_cannot_run_code(tmp_path):
    class Trap:
        def __reduce__(self):
            return (open, (str(tmp_path / "sprung"), "w"))

    torch.save({"format": "t2im-checkpoint", "schema": 1, "unet": Trap()}, tmp_path / "c.pt")
    with pytest.warns(UserWarning, match="cannot be verified"):
        refused(tmp_path / "c.pt", "not a checkpoint, or a damaged one")
    assert not (tmp_path / "sprung").exists()


def test_a_wrong_name_is_answered_with_the_nearest(tiny_checkpoint):
    refused(tiny_checkpoint.with_name("checkpoint_epoch_2.pt"), r'did you mean "checkpoint_epoch_1\.pt"')
    refused(tiny_checkpoint.with_name("x.pt"), r"there are checkpoint_epoch_1\.pt")
    refused(tiny_checkpoint.parent / "no" / "x.pt", "and none in")


def sparse(weight):
    return weight.to_sparse()


def nan(weight):
    return weight.clone().fill_(float("nan"))


def wider(weight):
    return torch.cat([weight, weight])


@pytest.mark.parametrize("part", ["unet", "ema"])
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (sparse, "no dense tensor"),
        (nan, "not finite"),
        (wider, "has shape"),
        (lambda weight: 7, "has shape"),
    ],
)
def test_a_weight_that_cannot_be_used_is_never_written(state, tmp_path, part, change, message):
    name = "conv_in.bias"
    state[part] = {**state[part], name: change(state[part][name])}
    with pytest.raises(ModelError, match=message):
        write_checkpoint(tmp_path / "c.pt", state)
    assert list(tmp_path.iterdir()) == []


def test_names_of_weights_must_be_those_of_the_configuration(state, tmp_path):
    state["unet"]["conv_inn.bias"] = state["unet"].pop("conv_in.bias")
    with pytest.raises(ModelError, match=r'"conv_in\.bias" is missing \(did you mean "conv_inn\.bias"\?\)'):
        write_checkpoint(tmp_path / "c.pt", state)
    state["unet"]["conv_in.bias"] = state["unet"]["conv_inn.bias"]
    with pytest.raises(ModelError, match=r'"conv_inn\.bias" is unknown'):
        write_checkpoint(tmp_path / "c.pt", state)


def test_an_optimizer_state_that_is_not_finite_is_never_written(state, tmp_path):
    state["optimizer"]["state"][0]["exp_avg"][1] = float("inf")
    with pytest.raises(ModelError, match=r'"optimizer\.state\.0\.exp_avg"'):
        write_checkpoint(tmp_path / "c.pt", state)


def test_a_part_that_is_missing_or_of_the_wrong_kind_is_named(state, tmp_path):
    for change in ({"rng": None}, {"unet": [1]}):
        with pytest.raises(ModelError, match=f'part "{next(iter(change))}"'):
            write_checkpoint(tmp_path / "c.pt", {**state, **change})
    del state["summary"]
    with pytest.raises(ModelError, match='part "summary"'):
        write_checkpoint(tmp_path / "c.pt", state)


@pytest.mark.parametrize("part", ["vae", "text_encoder"])
def test_a_checkpoint_must_name_its_encoders(state, tmp_path, part):
    for entry in (None, {"folder": "encoders"}):
        with pytest.raises(ModelError, match=f'folder and sha256 of its "{part}"'):
            write_checkpoint(tmp_path / "c.pt", {**state, "encoders": {**state["encoders"], part: entry}})


def test_a_configuration_of_another_version_is_named(state, tmp_path):
    state["config"]["unet"]["sample_sise"] = 3
    with pytest.raises(ModelError, match=r'"unet\.sample_sise" is unknown \(did you mean "sample_size"\?\)'):
        write_checkpoint(tmp_path / "c.pt", state)


@pytest.mark.parametrize(("content", "message"), [([1], "not a checkpoint of t2im"), ({}, "not a checkpoint of t2im")])
def test_other_files_of_torch_are_refused(tmp_path, content, message):
    torch.save(content, tmp_path / "c.pt")
    with pytest.warns(UserWarning):
        refused(tmp_path / "c.pt", message)


def test_a_newer_schema_is_refused(state, tmp_path):
    torch.save({"format": "t2im-checkpoint", "schema": 3, **state}, tmp_path / "c.pt")
    with pytest.warns(UserWarning):
        refused(tmp_path / "c.pt", "schema 3, this version reads 2")


def test_a_checkpoint_of_the_first_schema_is_read_as_one_of_today(state, tmp_path):
    config = {**state["config"]}
    objective = config.pop("objective")
    config["schedule"] = {**config["schedule"], "prediction_type": objective["type"]}
    old = {name: part for name, part in state.items() if name not in ("judged_by", "environment")}
    torch.save({"format": "t2im-checkpoint", "schema": 1, **old, "config": config}, tmp_path / "c.pt")
    with pytest.warns(UserWarning, match="cannot be verified"):
        read = read_checkpoint(tmp_path / "c.pt")
    assert read["schema"] == 2 and read["judged_by"] == read["environment"] == read["loss_scale"] == {}
    assert config_of(read, tmp_path).objective.type == objective["type"]
    assert "prediction_type" not in read["config"]["schedule"]


def test_old_settings_that_contradict_themselves_are_named(state, tmp_path):
    config = {**state["config"], "schedule": {**state["config"]["schedule"], "prediction_type": "epsilon"}}
    torch.save({"format": "t2im-checkpoint", "schema": 1, **state, "config": config}, tmp_path / "c.pt")
    with pytest.warns(UserWarning):
        refused(tmp_path / "c.pt", '"schedule.prediction_type" is the old name')


def test_a_crash_while_saving_leaves_the_older_checkpoint(state, tmp_path, monkeypatch):
    write_checkpoint(tmp_path / "c.pt", state)

    def crash(*args):
        raise OSError("No space left on device")

    monkeypatch.setattr(torch, "save", crash)
    with pytest.raises(OSError, match="No space left"):
        write_checkpoint(tmp_path / "c.pt", state)
    assert read_checkpoint(tmp_path / "c.pt")["progress"]["step"] == 7
