"""A file that one can read at a sitting."""

from pathlib import Path

ROOT = Path(__file__).parents[2]
LONGEST = 400  # lines


def test_no_file_is_longer_than_a_sitting():
    files = [path for folder in ("src", "tests", "tools") for path in (ROOT / folder).rglob("*.py")]
    lengths = {path.relative_to(ROOT).as_posix(): len(path.read_text("utf-8").splitlines()) for path in files}
    assert len(lengths) > 50
    assert {name: lines for name, lines in lengths.items() if lines > LONGEST} == {}
