"""`t2im --help` is instant because nothing that needs torch is imported before there is work for it."""

import os
import subprocess
import sys

import pytest

HEAVY = ("torch", "numpy", "PIL", "diffusers", "transformers", "accelerate", "tokenizers")


def loaded_by(code):
    """Run code in a fresh interpreter; return its output and which heavy packages it has loaded."""
    program = f"""
import sys
try:
    {code}
finally:
    print("LOADED", *sorted(set({HEAVY!r}) & sys.modules.keys()))
"""
    environment = {**os.environ, "COLUMNS": "200", "NO_COLOR": "1"}
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=environment, check=False)
    output, mark, loaded = done.stdout.rpartition("LOADED")
    assert mark, done.stderr
    return output, loaded.split()


def test_importing_the_package_loads_nothing_heavy():
    assert loaded_by("import t2im; print(t2im.__version__, *dir(t2im))")[1] == []


@pytest.mark.parametrize(
    ("arguments", "answer"),
    [
        (["--version"], "t2im 0."),
        (["--help"], "generate"),
        (["generate", "--help"], "--cfg-scale"),
        (["train", "--help"], "--resume"),
        (["data", "check", "--help"], "--contact-sheet"),
    ],
)
def test_help_and_version_load_nothing_heavy(arguments, answer):
    output, loaded = loaded_by(f"from t2im.cli.main import main; sys.argv = ['t2im', *{arguments!r}]; main()")
    assert answer in output
    assert loaded == []


def test_the_watch_sees_what_is_loaded():
    assert "PIL" in loaded_by("import t2im; t2im.read_settings")[1]
