"""What is on the disk is whole and checked, or it is not there."""

import errno
import os
import warnings

import numpy as np
import pytest

from t2im import blocks
from t2im.blocks import CacheRebuilt, Table, Writer, read_arrays, write_arrays
from t2im.errors import ModelError, T2IMError


def keys(*numbers):
    """Make distinct keys; some end in zero bytes, which numpy's strings do not show."""
    return np.frombuffer(b"".join(number.to_bytes(32, "little") for number in numbers), "S32")


def records(*lengths, seed=0):
    generator = np.random.default_rng(seed)
    return [generator.normal(size=(length, 3)).astype(np.float16) for length in lengths]


def names(folder):
    return sorted(entry.name for entry in folder.iterdir())


def equal(taken, expected):
    return len(taken) == len(expected) and all(np.array_equal(a, b) for a, b in zip(taken, expected, strict=True))


def filled(folder):
    table = Table(folder)
    table.append(keys(5, 1, 256), records(2, 1, 7))
    table.append(keys(65536, 2), records(3, 2, seed=1))
    return table


EXPECTED = {5: 0, 1: 1, 256: 2, 65536: 3, 2: 4}
RECORDS = [*records(2, 1, 7), *records(3, 2, seed=1)]


@pytest.mark.parametrize("reopened", [False, True])
def test_records_are_found_by_key_and_taken_by_row(tmp_path, reopened):
    table = filled(tmp_path)
    table = Table(tmp_path) if reopened else table
    assert table.find(keys(2, 3, 5, 256, 0, 65536, 1)).tolist() == [4, -1, 0, 2, -1, 3, 1]
    assert equal(table.take(np.array([4, 0, 3, 2, 4])), [RECORDS[row] for row in (4, 0, 3, 2, 4)])
    assert len(table) == 5


def test_an_empty_table_finds_nothing(tmp_path):
    table = Table(tmp_path / "new")
    assert (len(table), table.find(keys(1, 2)).tolist()) == (0, [-1, -1])


def test_records_cannot_be_changed(tmp_path):
    with pytest.raises(ValueError, match="read-only"):
        filled(tmp_path).take(np.array([0]))[0][0] = 0


@pytest.mark.parametrize("file", ["keys.npy", "offsets.npy", "data.npy", "sha256.json"])
def test_one_flipped_bit_anywhere_costs_its_block_and_nothing_else(tmp_path, file):
    filled(tmp_path)
    path = tmp_path / "000000" / file
    whole = path.read_bytes()
    for place in np.linspace(0, len(whole) - 1, 11).astype(int):
        damaged = bytearray(whole)
        damaged[place] ^= 4
        path.write_bytes(damaged)
        kept = {name: (tmp_path / "000000" / name).read_bytes() for name in names(tmp_path / "000000")}
        with pytest.warns(CacheRebuilt, match="000000: damaged"):
            table = Table(tmp_path)
        assert table.find(keys(*EXPECTED)).tolist() == [-1, -1, -1, 0, 1]
        assert equal(table.take(np.array([0, 1])), RECORDS[3:])
        (tmp_path / "000000").mkdir()
        for name, content in kept.items():
            (tmp_path / "000000" / name).write_bytes(content)


@pytest.mark.parametrize("cut", [0, 1, 100, -1])
def test_a_truncated_file_costs_its_block(tmp_path, cut):
    filled(tmp_path)
    path = tmp_path / "000001" / "data.npy"
    os.truncate(path, cut if cut >= 0 else path.stat().st_size + cut)
    with pytest.warns(CacheRebuilt):
        assert len(Table(tmp_path)) == 3
    assert not (tmp_path / "000001").exists()


def test_what_was_lost_can_be_appended_again(tmp_path):
    filled(tmp_path)
    (tmp_path / "000000" / "data.npy").unlink()
    with pytest.warns(CacheRebuilt):
        table = Table(tmp_path)
    table.append(keys(5, 1, 256), records(2, 1, 7))
    again = Table(tmp_path)
    assert equal(again.take(again.find(keys(*EXPECTED))), RECORDS)


def test_the_remains_of_a_crash_are_removed_in_silence(tmp_path):
    filled(tmp_path)
    (tmp_path / ".000002.abc.tmp").mkdir()
    (tmp_path / ".000002.abc.tmp" / "data.npy").write_bytes(b"half")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert len(Table(tmp_path)) == 5
    assert names(tmp_path) == ["000000", "000001"]


def test_a_full_disk_is_one_line_and_leaves_nothing(tmp_path, monkeypatch):
    table = filled(tmp_path)

    def full(handle, array, **_):
        handle.write(b"half")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(np, "save", full)
    with pytest.raises(T2IMError, match=r"No space left on device.*Free space"):
        table.append(keys(9), records(2))
    monkeypatch.undo()
    assert names(tmp_path) == ["000000", "000001"] and len(Table(tmp_path)) == 5


def test_arrays_that_are_absent_are_none(tmp_path):
    assert read_arrays(tmp_path / "nowhere", ("a",)) is None
    write_arrays(tmp_path / "some", {"a": np.arange(3)})
    assert read_arrays(tmp_path / "some", ("a", "b")) is None
    assert read_arrays(tmp_path / "some", ("a",))[0].tolist() == [0, 1, 2]


def test_a_writer_commits_by_size_and_at_the_end(tmp_path, monkeypatch):
    monkeypatch.setattr(blocks, "BLOCK_BYTES", 40)
    table = Table(tmp_path)
    with Writer(table) as writer:
        for number, record in enumerate(records(2, 2, 2, 2, 2)):  # 12 bytes each
            writer.add(keys(number), record.astype(np.float32), "test")
        assert len(table) == 4
    assert len(table) == 5 and names(tmp_path) == ["000000", "000001"]


def test_a_writer_commits_by_time(tmp_path, monkeypatch):
    monkeypatch.setattr(blocks, "BLOCK_SECONDS", 0.0)
    table = Table(tmp_path)
    with Writer(table) as writer:
        writer.add(keys(1), records(2)[0], "test")
        assert len(table) == 1


def test_a_writer_keeps_what_it_has_when_the_work_is_interrupted(tmp_path):
    with pytest.raises(KeyboardInterrupt), Writer(Table(tmp_path)) as writer:
        writer.add(keys(1), records(2)[0], "test")
        raise KeyboardInterrupt
    assert Table(tmp_path).find(keys(1)).tolist() == [0]


def test_numbers_too_large_for_float16_are_kept_in_float32(tmp_path):
    small, large = np.full((2, 3), 1.5, np.float32), np.full((1, 3), 70_000.0, np.float32)
    table = Table(tmp_path)
    with Writer(table) as writer:
        writer.add(keys(1), small, "test")
        writer.flush()
        writer.add(keys(2), small, "test")
        writer.add(keys(3), large, "test")
    taken = table.take(table.find(keys(1, 2, 3)))
    assert [record.dtype for record in taken] == [np.float16, np.float32, np.float32]
    assert equal(taken, [small, small, large])


def test_numbers_that_are_not_finite_are_refused_by_name(tmp_path):
    with (
        pytest.raises(ModelError, match=r"cat\.png: the encoder's answer is not finite"),
        Writer(Table(tmp_path)) as writer,
    ):
        writer.add(keys(1), np.array([[np.nan]], np.float32), "cat.png")
    assert len(Table(tmp_path)) == 0


@pytest.mark.slow
def test_a_million_records_are_found_and_taken_quickly(tmp_path):
    import time

    count = 1_000_000
    wide = np.frombuffer(np.random.default_rng(0).bytes(32 * count), "S32")
    table = Table(tmp_path)
    for start in range(0, count, 100_000):
        part = wide[start : start + 100_000]
        table.append(part, list(np.arange(start, start + 100_000, dtype=np.float32).reshape(-1, 1, 1)))
    start = time.perf_counter()
    table = Table(tmp_path)
    wanted = np.random.default_rng(1).integers(0, count, 64)
    assert table.find(wide).tolist() == list(range(count))
    assert time.perf_counter() - start < 30
    start = time.perf_counter()
    assert [record.item() for record in table.take(wanted)] == wanted.tolist()
    assert time.perf_counter() - start < 0.01
