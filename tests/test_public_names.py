import subprocess
import sys

import pytest

import t2im

LOADED = (
    "import sys, {}; print(sorted({{name.partition('.')[0] for name in sys.modules}} & {{'torch', 'pydantic', 'PIL'}}))"
)


@pytest.mark.parametrize("module", ["t2im", "t2im.cli.main"])
def test_saying_hello_imports_nothing_heavy(module):
    run = [sys.executable, "-c", LOADED.format(module)]
    assert subprocess.run(run, capture_output=True, text=True, check=True).stdout.strip() == "[]"


@pytest.mark.parametrize("name", t2im.__all__)
def test_every_public_name_is_there_and_listed(name):
    assert getattr(t2im, name) is not None
    assert name in dir(t2im)


def test_an_unknown_name_is_an_ordinary_attribute_error():
    with pytest.raises(AttributeError, match="'t2im' has no attribute 'lod'"):
        _ = t2im.lod
