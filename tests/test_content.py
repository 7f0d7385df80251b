"""A file that changed is seen; a file that did not is not read again."""

import os

import numpy as np
import pytest

from t2im import content
from t2im.content import hashes_of_files
from t2im.errors import DataError
from t2im.files import sha256_of_file


@pytest.fixture
def paths(tmp_path, monkeypatch):
    monkeypatch.setattr(content, "SETTLED", -(10**18))  # files may be trusted as soon as they are written
    paths = [tmp_path / f"{number}.png" for number in range(5)]
    for number, path in enumerate(paths):
        path.write_bytes(b"picture %d" % number)
    return paths


@pytest.fixture
def read(monkeypatch):
    names = []

    def remember(path):
        names.append(path.name)
        return sha256_of_file(path)

    monkeypatch.setattr(content, "sha256_of_file", remember)
    return names


def expected(paths):
    return [bytes.fromhex(sha256_of_file(path)) for path in paths]


def as_bytes(keys):
    return [keys[index : index + 1].tobytes() for index in range(len(keys))]


def test_hashes_are_those_of_the_bytes_and_unchanged_files_are_not_read(tmp_path, paths, read):
    assert as_bytes(hashes_of_files(paths, tmp_path / "index")) == expected(paths)
    assert len(read) == 5
    assert as_bytes(hashes_of_files(paths[::-1], tmp_path / "index")) == expected(paths[::-1])
    assert len(read) == 5


def test_a_changed_file_of_equal_size_and_date_is_read_again(tmp_path, paths, read):
    hashes_of_files(paths, tmp_path / "index")
    status = paths[2].stat()
    paths[2].write_bytes(b"picturE 2")
    os.utime(paths[2], ns=(status.st_atime_ns, status.st_mtime_ns))  # the change time cannot be set back
    read.clear()
    assert as_bytes(hashes_of_files(paths, tmp_path / "index")) == expected(paths)
    assert read == ["2.png"]


def test_a_file_replaced_by_another_is_read_again(tmp_path, paths, read):
    hashes_of_files(paths, tmp_path / "index")
    os.replace(paths[1], paths[0])
    read.clear()
    assert as_bytes(hashes_of_files([paths[0], *paths[2:]], tmp_path / "index")) == expected([paths[0], *paths[2:]])
    assert read == ["0.png"]


def test_a_file_that_was_just_written_is_not_trusted(tmp_path, paths, read, monkeypatch):
    monkeypatch.setattr(content, "SETTLED", 3600 * 10**9)
    hashes_of_files(paths, tmp_path / "index")
    hashes_of_files(paths, tmp_path / "index")
    assert len(read) == 10


def test_a_damaged_index_is_not_believed(tmp_path, paths, read):
    hashes_of_files(paths, tmp_path / "index")
    damaged = bytearray((tmp_path / "index" / "content.npy").read_bytes())
    damaged[-1] ^= 1
    (tmp_path / "index" / "content.npy").write_bytes(damaged)
    assert as_bytes(hashes_of_files(paths, tmp_path / "index")) == expected(paths)
    assert len(read) == 10


def test_a_path_given_twice_is_hashed_twice_and_remembered_once(tmp_path, paths):
    twice = [paths[0], paths[1], paths[0]]
    for _ in range(2):
        assert as_bytes(hashes_of_files(twice, tmp_path / "index")) == expected(twice)
    assert len(np.load(tmp_path / "index" / "names.npy")) == 2


def test_a_file_that_cannot_be_read_is_named(tmp_path, paths):
    paths[3].unlink()
    with pytest.raises(DataError, match=r"3\.png: cannot be read \(No such file"):
        hashes_of_files(paths, tmp_path / "index")
