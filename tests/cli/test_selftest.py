"""`t2im selftest resume`, on settings so small that three runs take seconds."""

import pytest
import torch

from t2im.cli import selftest
from t2im.errors import TrainingError
from t2im.training.selftest import Proof, difference, prove_resume

TINY = (
    "data.resolution=16",
    "training.batch_size=4",
    "unet.block_out_channels=(8,)",
    "unet.norm_num_groups=4",
    "unet.attention_head_dim=4",
    "unet.down_block_types=('DownBlock2D',)",
    "unet.up_block_types=('UpBlock2D',)",
    "unet.dropout=0.1",
)


@pytest.mark.slow
def test_a_run_that_is_killed_ends_as_one_that_is_not():
    said = []
    proof = prove_resume(None, settings=TINY, steps=6, device="cpu", say=said.append)
    assert proof.equal and 3 <= proof.resumed_at < 6
    assert proof.differences == {"weights": 0, "averages": 0, "optimizer": 0}
    assert "6 steps without a break" in said[0] and "SIGKILL" in said[1]


@pytest.mark.slow
def test_a_run_that_fails_is_told_in_its_own_words():
    with pytest.raises(TrainingError, match=r"exit code 2: t2im: .*training\.batch_sise"):
        prove_resume(None, settings=["training.batch_sise=4"], device="cpu")


def proof(**differences):
    return Proof(differences, resumed_at=4, steps=8, seconds=12.3)


def test_equal_runs_are_success_and_others_exit_code_5(monkeypatch, capsys):
    monkeypatch.setattr(
        "t2im.training.selftest.prove_resume", lambda *args, **options: proof(weights=0.0, averages=0.0)
    )
    selftest.resume()
    assert "equal to the bit: killed, went on at step 4 of 8 (12 s)" in capsys.readouterr().out
    monkeypatch.setattr("t2im.training.selftest.prove_resume", lambda *args, **options: proof(weights=1e-9))
    with pytest.raises(TrainingError, match="went on at step 4 of 8 and ended elsewhere") as caught:
        selftest.resume()
    assert caught.value.exit_code == 5 and "largest difference 1e-09" in capsys.readouterr().out


def test_differences_are_found_wherever_they_are():
    state = {"a": torch.tensor([1.0, 2.0]), "b": [(0.9, torch.tensor([3]))], "c": None}
    assert difference(state, {**state, "a": state["a"].clone()}) == 0
    assert difference(state, {**state, "a": torch.tensor([1.0, 2.25])}) == 0.25
    assert difference(state, {**state, "b": [(0.9, torch.tensor([7]))]}) == 4
    for other in ({"a": 1}, {**state, "b": []}, {**state, "c": 0}, {**state, "b": [(0.8, torch.tensor([3]))]}):
        assert difference(state, other) == float("inf")
