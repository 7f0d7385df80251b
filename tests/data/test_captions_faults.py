"""Captions from a stranger: names that lead elsewhere open nothing, and a million entries are read in seconds."""

import json
import subprocess
import sys
import unicodedata

import pytest
from PIL import Image

from t2im.data import folder as folder_module
from t2im.data.captions import find, read
from t2im.data.check import check, lines
from t2im.errors import CaptionError

opened: list[str] | None = None


def _listen(event, arguments):
    if opened is not None and event in ("open", "os.scandir", "os.listdir", "os.stat", "os.readlink"):
        opened.append(str(arguments[0]))


sys.addaudithook(_listen)

LEADING_ELSEWHERE = (
    "../secret.png",
    "images/../../secret.png",
    "images/../../../etc/passwd",
    "..\\secret.png",
    "images\\..\\..\\secret.png",
    "..",
    "/etc/passwd",
    "/dev/zero",
    "//host/share/a.png",
    "C:\\secret.png",
    "C:secret.png",
    "\\\\host\\secret.png",
    "\\\\?\\C:\\secret.png",
    "a.png\0",
    "\0",
)
NOWHERE = (
    "file:///etc/passwd",
    "%2e%2e/secret.png",
    "https://example.com/a.png",
    "~/secret.png",
    "$HOME/a.png",
    "│" * 300,
)


@pytest.fixture
def inside(tmp_path):
    inside = tmp_path / "inside"
    (inside / "images").mkdir(parents=True)
    Image.new("RGB", (16, 16), "red").save(inside / "images" / "a.png")
    Image.new("RGB", (16, 16), "red").save(tmp_path / "secret.png")
    return inside


@pytest.mark.parametrize("name", LEADING_ELSEWHERE, ids=ascii)
def test_a_name_that_leads_elsewhere_is_a_fault_whatever_is_skipped(name, inside):
    (inside / "captions.json").write_text(json.dumps({"a.png": "red", name: "a secret"}))
    (fault,) = find(inside).faults
    assert fault.isprintable() and ("leads out" in fault or "absolute" in fault or "NUL" in fault)
    with pytest.raises(CaptionError):
        read(inside, skip_missing=True)


def test_no_name_opens_anything_outside_the_folder_even_when_all_images_are_decoded(inside, monkeypatch):
    (inside / "captions.json").write_text(
        json.dumps(dict.fromkeys(("a.png", *LEADING_ELSEWHERE, *NOWHERE), "a secret"))
    )
    monkeypatch.setitem(globals(), "opened", [])
    report, usable = check(inside)
    assert [example.path.name for example in usable] == ["a.png"]
    assert len(report.faults) == len(LEADING_ELSEWHERE) and len(report.missing) == len(NOWHERE)
    touched = [
        name for name in opened if not name.isdigit() and "site-packages" not in name and "/lib/python" not in name
    ]
    assert touched and all(name.startswith(str(inside)) for name in touched)


def test_without_the_list_of_files_a_name_would_be_opened(inside, monkeypatch):
    (inside / "captions.json").write_text(json.dumps({"../secret.png": "a secret"}))
    monkeypatch.setattr(folder_module.Listing, "locate", lambda self, name: name)
    monkeypatch.setitem(globals(), "opened", [])
    check(inside)
    assert any(name.endswith("secret.png") for name in opened)


@pytest.mark.parametrize(
    "keys",
    [("A.PNG",), ("./A.png", "b.png"), ("cafe\u0301.png", "café.png"), ("a.png", "./a.png", "images/a.png")],
    ids=ascii,
)
def test_missing_and_repeated_names_are_counted_exactly(keys, inside):
    (inside / "captions.json").write_text(json.dumps(dict.fromkeys(keys, "a thing")))
    found = find(inside)
    there = [key for key in keys if unicodedata.normalize("NFC", key).split("/")[-1] == "a.png"]
    assert len(found.examples) == min(1, len(there))
    assert len(found.faults) == max(0, len(there) - 1)
    assert [missing.name for missing in found.missing] == [key for key in keys if key not in there]


def test_the_first_ten_missing_images_are_shown_and_all_are_counted(inside):
    (inside / "captions.json").write_text(json.dumps({f"{index:02}.png": "nobody" for index in range(37)}))
    report, _ = check(inside)
    shown = [line for line in lines(report, limit=10) if "does not exist" in line]
    assert len(report.missing) == 37 and len(shown) == 10 and '"09.png"' in shown[-1]
    with pytest.raises(CaptionError, match=r'37 captions name no usable image \(first: "00\.png"'):
        read(inside)


@pytest.mark.parametrize("key", ["\ud83d.png", "a\ud83d", "\udcff.png"], ids=ascii)
def test_half_a_character_in_a_name_can_be_told(key, inside):
    (inside / "captions.json").write_text(json.dumps({key: "a thing"}))
    with pytest.raises(CaptionError) as caught:
        read(inside)
    assert str(caught.value).isprintable()
    str(caught.value).encode()


@pytest.mark.parametrize(
    ("content", "place"),
    [
        ('{"a.png": "a cat", "b.png"', ":1:27: not valid JSON"),
        ('{"a.png": "a cat",\n  "b.png": "a dog",\n}', ":2:19|:3:1"),
        ('{"a.png":\n' + "[" * 100_000, ":2:100: nested deeper than 100 levels"),
        ('{"a.png": "a cat"}\n{"b.png": "a dog"}', ":2:1: not valid JSON"),
        ("{'a.png': 'a cat'}", ":1:2: not valid JSON"),
        ('{"a.png": undefined}', ":1:11: not valid JSON"),
        ('{"a.png": "\\x"}', ":1:1[12]: not valid JSON"),
    ],
    ids=range(7),
)
def test_broken_json_is_one_line_with_line_and_column(content, place, inside):
    (inside / "captions.json").write_text(content)
    with pytest.raises(CaptionError, match=place) as caught:
        find(inside)
    assert str(caught.value).isprintable() and len(str(caught.value)) < 300


MILLION = """
import json, resource, sys, time
from pathlib import Path
from t2im.data import captions
from t2im.data.folder import Listing
root = Path(sys.argv[1])
names = frozenset(f"images/{index:07}.png" for index in range(1_000_000)) | {"captions.json"}
captions.scan = lambda folder: Listing(folder, names, {})  # a million files would only test the disk
started = time.process_time()
examples = captions.read(root)
assert len(examples) == 1_000_000
print(time.process_time() - started, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6)
"""


@pytest.mark.slow
def test_a_million_captions_are_read_in_seconds_and_a_gigabyte(inside):
    """In an interpreter of its own, which does not check the types of every call as the tests do."""
    tree = {f"{index:07}.png": f"{index:07}: a small picture of something" for index in range(1_000_000)}
    (inside / "captions.json").write_text(json.dumps(tree))
    done = subprocess.run([sys.executable, "-c", MILLION, str(inside)], capture_output=True, text=True, check=True)
    seconds, gigabytes = map(float, done.stdout.split())
    assert seconds <= 10 and gigabytes <= 1
