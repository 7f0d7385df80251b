import sys

import pytest
import torch

from t2im.training.memory import peak_memory


@pytest.mark.skipif(sys.platform == "win32", reason="this system does not tell")
def test_the_peak_grows_with_what_was_needed_and_stays():
    before = peak_memory()["memory_gb"]
    big = torch.ones(int(before * 1e9 / 4) + 50_000_000)
    during = peak_memory()["memory_gb"]
    del big
    assert during > before + 0.15
    assert peak_memory()["memory_gb"] == during


def test_a_gpu_is_named_where_one_was_used(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    for used, named in ((0, {}), (2_500_000_000, {"gpu_memory_gb": 2.5})):
        monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda used=used: used)
        assert {name: value for name, value in peak_memory().items() if name != "memory_gb"} == named
