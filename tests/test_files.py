"""Files are there whole or not at all, whatever happens in the middle, and no two processes take one name."""

import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest

from t2im.errors import T2IMError
from t2im.files import (
    alone_in,
    atomic_folder,
    atomic_path,
    numbered_path,
    require_writable,
    sha256_of_file,
    sha256_of_folder,
    write_json,
    write_text,
)


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_a_failure_in_the_middle_leaves_the_old_file_and_nothing_else(tmp_path):
    write_text(tmp_path / "a.txt", "old")
    with pytest.raises(ZeroDivisionError), atomic_path(tmp_path / "a.txt") as temporary:
        temporary.write_text("half")
        raise ZeroDivisionError
    assert (tmp_path / "a.txt").read_text() == "old" and names(tmp_path) == ["a.txt"]


def test_a_failure_in_the_middle_leaves_the_old_folder_and_nothing_else(tmp_path):
    (tmp_path / "model").mkdir()
    write_text(tmp_path / "model" / "old", "whole")
    with pytest.raises(ZeroDivisionError), atomic_folder(tmp_path / "model") as temporary:
        (temporary / "new").write_text("half")
        raise ZeroDivisionError
    assert names(tmp_path) == ["model"] and names(tmp_path / "model") == ["old"]
    with atomic_folder(tmp_path / "model") as temporary:
        (temporary / "new").write_text("whole")
    assert names(tmp_path) == ["model"] and names(tmp_path / "model") == ["new"]


def test_a_process_killed_in_the_middle_leaves_the_old_file(tmp_path):
    write_text(tmp_path / "a.txt", "old")
    script = (
        "import os; from t2im.files import atomic_path\n"
        f"with atomic_path({str(tmp_path / 'a.txt')!r}) as path: path.write_text('half'); os._exit(9)"
    )
    assert subprocess.run([sys.executable, "-c", script]).returncode == 9
    assert (tmp_path / "a.txt").read_text() == "old"


def test_a_file_has_the_rights_of_any_new_file_and_keeps_its_suffix_while_it_is_written(tmp_path):
    (tmp_path / "plain").touch()
    with atomic_path(tmp_path / "deep" / "a.png") as temporary:
        assert temporary.suffix == ".png" and temporary.parent == tmp_path / "deep"
    assert (tmp_path / "deep" / "a.png").stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_json_keeps_its_letters(tmp_path):
    write_json(tmp_path / "a.json", {"ключ": "雪"})
    assert json.loads((tmp_path / "a.json").read_text("utf-8")) == {"ключ": "雪"}
    assert "雪" in (tmp_path / "a.json").read_text("utf-8")


def test_a_folders_checksum_follows_names_and_bytes_only(tmp_path):
    for name in ("one", "two"):
        write_text(tmp_path / name / "b" / "x", "1")
        write_text(tmp_path / name / "a", "2")
    os.utime(tmp_path / "two" / "a", (1, 1))
    assert sha256_of_folder(tmp_path / "one") == sha256_of_folder(tmp_path / "two")
    (tmp_path / "two" / "a").rename(tmp_path / "two" / "c")
    assert sha256_of_folder(tmp_path / "one") != sha256_of_folder(tmp_path / "two")
    assert sha256_of_file(tmp_path / "one" / "a").startswith("d4735e3a265e16ee")


def test_numbers_go_on_above_all_that_are_taken(tmp_path):
    folder = tmp_path / "outputs"
    with numbered_path(folder, "7.png") as first:
        assert first == folder / "00001-7.png"
    (folder / "00041-7.png").touch()
    (folder / "123456-7.png").touch()
    (folder / "notes.txt").touch()
    with numbered_path(folder, "7.png") as one, numbered_path(folder, "7.png") as another:
        assert (one.name, another.name) == ("123457-7.png", "123458-7.png")  # reserved, though not yet there


def test_a_number_leaves_no_trace_whether_it_is_used_or_not(tmp_path):
    with numbered_path(tmp_path, "x") as path:
        path.touch()
    with pytest.raises(ZeroDivisionError), numbered_path(tmp_path, "x"):
        raise ZeroDivisionError
    assert names(tmp_path) == ["00001-x"]


def test_no_two_takers_get_one_number(tmp_path):
    def take(number):
        with numbered_path(tmp_path, f"{number}.png") as path:
            path.touch()
        return path.name[:5]

    with ThreadPoolExecutor(8) as pool:
        taken = list(pool.map(take, range(64)))
    assert len(set(taken)) == len(names(tmp_path)) == 64


def test_a_place_that_cannot_be_written_is_named_before_any_work(tmp_path):
    assert require_writable(tmp_path / "a" / "b").is_dir()
    (tmp_path / "file").touch()
    with pytest.raises(T2IMError, match=r"file.*: cannot write there \(.+\)\. Choose another folder"):
        require_writable(tmp_path / "file" / "below")


@pytest.mark.skipif(sys.platform == "win32", reason="no such lock there")
def test_one_process_at_a_time_works_in_a_folder(tmp_path):
    with (
        alone_in(tmp_path, "training there"),
        pytest.raises(T2IMError, match=f"process {os.getpid()} is training there"),
        alone_in(tmp_path, "training there"),
    ):
        pass
    with alone_in(tmp_path, "training there"):
        pass
