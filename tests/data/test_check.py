import json
import shutil

import numpy as np
import pytest
from PIL import Image

from t2im.data.check import Ruler, check, lines


@pytest.fixture
def folder(tmp_path):
    """Return a folder with a bit of everything that can be wrong."""
    images = tmp_path / "photos/images"
    images.mkdir(parents=True)
    rng = np.random.default_rng(3)
    for name, size in {"a.png": (16, 8), "b.jpg": (64, 48), "c.webp": (20, 20), "left over.png": (9, 9)}.items():
        Image.fromarray(rng.integers(0, 256, (*size[::-1], 3), dtype=np.uint8)).save(images / name)
    frames = [Image.new("RGB", (16, 16), colour) for colour in ("red", "blue")]
    frames[0].save(images / "moving.gif", save_all=True, append_images=frames[1:])
    shutil.copy(images / "a.png", images / "twin.png")
    (images / "empty.png").touch()
    whole = (images / "b.jpg").read_bytes()
    (images / "half.jpg").write_bytes(whole[: len(whole) // 2])
    (images / "photo.heic").touch()
    (images / "outside.png").symlink_to(tmp_path)
    captions = {
        "a.png": ["a red apple", "an apple"],
        "b.jpg": "a blue owl in the snow",
        "c.webp": "a red apple",
        "moving.gif": "first red, then blue",
        "twin.png": "an apple again",
        "empty.png": "nothing",
        "half.jpg": "half of an owl",
        "left_over.png": "left over",
        "nobody.png": "nobody",
        "odd.png": 5,
    }
    (tmp_path / "photos/captions.json").write_text(json.dumps(captions))
    return tmp_path / "photos"


def contents(folder):
    return {path: (path.lstat().st_mtime_ns, path.lstat().st_size) for path in sorted(folder.rglob("*"))}


def test_everything_that_is_wrong_is_named_with_its_reason(folder):
    report, usable = check(folder)
    assert report.format == "json dict"
    assert report.usable == len(usable) == 5
    assert report.captions == 6
    assert report.faults == ('"odd.png": got the number 5, expected a caption or a list of captions',)
    assert report.missing == (
        '"left_over.png" does not exist (did you mean "left over.png"?)',
        '"nobody.png" does not exist',
    )
    assert report.unreadable[0] == "images/empty.png: is empty (0 bytes)"
    assert report.unreadable[1].startswith("images/half.jpg: image file is truncated")
    assert report.orphans == ("images/left over.png",)
    assert report.never_opened == ("images/outside.png is a symbolic link to a folder",)
    assert report.other_files == {".heic": 1}
    assert report.animated == ("images/moving.gif",)
    assert [twins.images for twins in report.repeated_images] == [("images/a.png", "images/twin.png")]
    assert [(shared.what, shared.images) for shared in report.repeated_captions] == [
        ("a red apple", ("images/a.png", "images/c.webp"))
    ]
    assert (report.smallest, report.largest) == ((16, 8), (64, 48))


def test_every_image_is_accounted_for(folder):
    report, _ = check(folder)
    files = [path for path in (folder / "images").iterdir() if path.is_file()]
    accounted = report.usable + len(report.unreadable) + len(report.orphans) + sum(report.other_files.values())
    assert accounted == len(files)


def test_nothing_is_written_into_the_folder(folder):
    before = contents(folder)
    check(folder)
    assert contents(folder) == before


def test_lengths_are_counted_in_words_without_a_text_encoder(folder):
    report, _ = check(folder)
    assert report.length_unit == "words"
    assert report.lengths == {2: 1, 3: 3, 4: 1, 6: 1}
    assert report.too_long == ()
    assert "caption length in words (--text-encoder counts tokens):" in list(lines(report))


def test_captions_beyond_the_context_are_listed(folder):
    report, _ = check(folder, ruler=Ruler("tokens", len, context_length=19))
    assert report.length_unit == "tokens"
    assert report.too_long == (
        'images/b.jpg: 22 tokens: "a blue owl in the snow"',
        'images/moving.gif: 20 tokens: "first red, then blue"',
    )
    assert "captions longer than the 19 tokens that are read: 2" in list(lines(report))


def test_problems_stop_unless_they_are_to_be_skipped(folder):
    report, _ = check(folder)
    assert [problem.split(":")[0] for problem in report.problems()] == [
        f"1 entry of {folder}/captions.json cannot be used",
        "2 captions have no usable image",
        "2 images cannot be read",
    ]
    assert len(report.problems(skip_bad=True)) == 2
    assert len(report.problems(skip_missing=True)) == 2
    assert len(report.problems(skip_bad=True, skip_missing=True)) == 1  # what cannot be understood is never skipped


def test_a_sound_folder_has_no_problems_and_orphans_are_none(folder):
    (folder / "captions.json").write_text('{"a.png": "an apple"}')
    assert check(folder)[0].problems() == []


def test_no_usable_image_is_a_problem_whatever_is_skipped(folder):
    (folder / "captions.json").write_text('{"empty.png": "nothing"}')
    report, usable = check(folder)
    assert not usable
    assert report.problems(skip_bad=True, skip_missing=True) == ["no image is left to train on"]
    assert list(lines(report))  # a histogram of nothing


def test_a_long_list_is_cut_on_the_terminal_and_says_so(folder):
    (folder / "captions.json").write_text(json.dumps({f"{index}.png": "nobody" for index in range(25)}))
    report, _ = check(folder)
    text = list(lines(report, limit=10))
    start = text.index("captions without a usable image: 25")
    assert text[start + 10] == '  "9.png" does not exist'
    assert text[start + 11] == "  ... and 15 more (--json lists all)"
    assert len(report.as_dict()["missing"]) == 25


def test_the_report_is_valid_json_and_prints_on_single_lines(folder):
    name = "new\nline\udcff\x1b[1m.png"
    shutil.copy(folder / "images/a.png", folder / "images" / name)
    (folder / "captions.json").write_text('{"a.png": "an apple\\nand \\u001b[31m a leaf", "x\\n.png": "x"}')
    report, _ = check(folder)
    assert json.loads(json.dumps(report.as_dict()))["usable"] == 1
    assert all(line.isprintable() for line in lines(report))
    assert "images/new\\nline\\udcff\\x1b[1m.png" in report.orphans


def test_a_nested_data_set_is_mentioned_and_is_none_of_ours(folder):
    (folder / "heldout/images").mkdir(parents=True)
    (folder / "heldout/captions.json").write_text("{}")
    shutil.copy(folder / "images/a.png", folder / "heldout/images/z.png")
    report, _ = check(folder)
    assert report.nested == ("heldout/",)
    assert report.orphans == ("images/left over.png",)
    assert report.other_files == {".heic": 1}


def test_text_files_are_captions_only_where_captions_are_text_files(folder):
    (folder / "captions.json").unlink()
    (folder / "images/a.txt").write_text("an apple")
    (folder / "README.txt").write_text("about")
    report, _ = check(folder)
    assert report.format == "txt"
    assert ".txt" not in report.other_files
    (folder / "images/a.txt").unlink()
    (folder / "captions.json").write_text('{"a.png": "an apple"}')
    assert check(folder)[0].other_files[".txt"] == 1


def test_progress_counts_to_the_end(folder):
    seen = []
    check(folder, progress=lambda done, of: seen.append((done, of)))
    assert seen == [(done, 7) for done in range(1, 8)]


def test_the_histogram_counts_every_caption_once(folder):
    lengths = {f"{index}.png": " ".join(["word"] * index) for index in range(1, 38)}
    for name in lengths:
        shutil.copy(folder / "images/a.png", folder / "images" / name)
    (folder / "captions.json").write_text(json.dumps(lengths))
    report, _ = check(folder)
    text = list(lines(report))
    rows = text[next(index for index, line in enumerate(text) if line.startswith("caption length")) + 1 :]
    assert len(rows) <= 10
    assert sum(int(row.split()[1]) for row in rows) == 37
    assert rows[0].split()[0] == "1-4"
    assert rows[-1].split()[0] == "37"
