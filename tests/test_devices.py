import pytest
import torch

from t2im.devices import available_device
from t2im.errors import UsageError


@pytest.fixture
def machine(monkeypatch):
    def has(*, cuda, mps):
        monkeypatch.setattr(torch.cuda, "device_count", lambda: cuda)
        monkeypatch.setattr(torch.backends.mps, "is_available", lambda: mps)

    return has


@pytest.mark.parametrize(
    ("cuda", "mps", "wanted", "chosen"),
    [
        (2, False, "auto", "cuda"),
        (0, True, "auto", "mps"),
        (0, False, "auto", "cpu"),
        (2, False, "cuda:1", "cuda:1"),
        (2, False, "cpu", "cpu"),
        (0, True, "mps", "mps"),
    ],
)
def test_what_is_there_is_taken(machine, cuda, mps, wanted, chosen):
    machine(cuda=cuda, mps=mps)
    assert available_device(wanted) == torch.device(chosen)


@pytest.mark.parametrize(
    ("cuda", "mps", "wanted", "chosen"),
    [
        (0, True, "cuda", "mps"),
        (0, False, "cuda", "cpu"),
        (1, False, "cuda:1", "cuda"),
        (1, False, "mps", "cuda"),
    ],
)
def test_what_is_missing_is_replaced_aloud(machine, cuda, mps, wanted, chosen):
    machine(cuda=cuda, mps=mps)
    with pytest.warns(UserWarning, match=f'no device "{wanted}" here; using "{chosen}" instead'):
        assert available_device(wanted) == torch.device(chosen)


@pytest.mark.parametrize("wanted", ["cuad", "cuda:", "cuda:x", "gpu", ""])
def test_what_is_no_device_is_refused(wanted):
    with pytest.raises(UsageError, match="Valid: auto, cuda, mps, cpu"):
        available_device(wanted)
