import torch

from t2im.training.environment import changes_since, environment


def test_the_same_machine_is_no_change():
    assert changes_since(environment()) == ""


def test_a_checkpoint_that_does_not_know_is_no_change():
    assert changes_since({}) == ""


def test_what_changed_is_named_with_both_values():
    then = {**environment(), "threads": 37, "torch": "1.0"}
    line = changes_since(then)
    assert "threads 37 then" in line and f"torch 1.0 then, {torch.__version__} now" in line
    assert "processor" not in line and "\n" not in line


def test_what_is_remembered_can_be_saved(tmp_path):
    torch.save(environment(), tmp_path / "x.pt")
    assert torch.load(tmp_path / "x.pt", weights_only=True) == environment()
