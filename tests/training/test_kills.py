"""Kill -9 at fifty random moments of a run, half of them aimed into a save. The script has the details."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPTS = Path(__file__).parents[2] / "scripts"


@pytest.fixture(scope="module")
def report():
    """Run the script once, in a process that knows nothing of these tests."""
    done = subprocess.run(
        [sys.executable, SCRIPTS / "crashes.py", "--kills", "50", "--seed", "0"],
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout)


def test_fifty_kills_lose_nothing_and_change_no_bit(report):
    assert report["faults"] == []
    assert report["kills"] == 50
    assert report["inside_a_save"] >= 15  # else this would have proved little


@pytest.mark.parametrize("broken", ["random_state_forgotten", "written_in_place"])
def test_a_broken_trainer_does_not_survive_two(report, broken):
    assert report["broken"][broken]["faults"]
