import os

import pytest

from t2im.data import folder as folders
from t2im.data.folder import is_image, printable, scan, suggestions, unsafe
from t2im.errors import DataError


def test_a_listing_holds_regular_files_of_all_depths(tmp_path):
    for name in ("a.png", "images/b.png", "images/deep/c.png", ".hidden/d.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    assert scan(tmp_path).files == {"a.png", "images/b.png", "images/deep/c.png"}


def test_what_is_never_opened_is_listed_with_the_reason(tmp_path):
    inside = tmp_path / "inside"
    inside.mkdir()
    (tmp_path / "secret.png").touch()
    (inside / "a.png").mkdir()
    (inside / "out.png").symlink_to(tmp_path / "secret.png")
    (inside / "up.png").symlink_to(tmp_path)
    (inside / "gone.png").symlink_to(inside / "nothing.png")
    os.mkfifo(inside / "pipe.png")
    listing = scan(inside)
    assert not listing.files
    assert listing.refused == {
        "a.png": "is a folder",
        "out.png": "is a symbolic link out of the folder",
        "up.png": "is a symbolic link to a folder",
        "gone.png": "is a broken symbolic link",
        "pipe.png": "is no regular file",
    }
    assert listing.locate("out.png") is None
    assert listing.why_not("pipe.png") == "is no regular file"
    assert listing.why_not("other.png") == "does not exist"


def test_a_name_is_looked_up_beside_the_captions_before_images(tmp_path):
    (tmp_path / "images").mkdir()
    (tmp_path / "images/a.png").touch()
    assert scan(tmp_path).locate("a.png") == "images/a.png"
    (tmp_path / "a.png").touch()
    assert scan(tmp_path).locate("a.png") == "a.png"
    assert scan(tmp_path).locate("images/a.png") == "images/a.png"


@pytest.mark.parametrize("name", ["../a.png", "/a.png", "a/../a.png", "a.png\0", "C:\\a.png", "C:a.png", "a\\..\\b"])
def test_unsafe_names_have_a_reason_and_no_file(name, tmp_path):
    (tmp_path / "a.png").touch()
    assert unsafe(name)
    assert scan(tmp_path).locate(name) is None


@pytest.mark.parametrize("name", ["a.png", "..a.png", "a..png", "deep/a.png", "deep\\a.png", "~/a.png", "a b\n.png"])
def test_odd_names_are_safe(name):
    assert unsafe(name) is None


def test_an_image_is_known_by_its_ending():
    assert all(map(is_image, ("a.png", "A.JPG", "deep/a.jpeg", "a.b.webp")))
    assert not any(map(is_image, ("png", "a.png.txt", "a.heic", "a.svg")))


@pytest.mark.parametrize("name", ["a\nb", "a\x1b[31m", "a\u202eb", "a\udcff", "a\x9b"])
def test_names_are_printed_on_one_line_and_steer_nothing(name):
    assert printable(name).isprintable()
    printable(name).encode()


def test_suggestions_know_other_endings_folders_and_slips():
    names = ["cat.jpeg", "dogs/DOG.png", "hors.png", "zebra.png"]
    assert suggestions(names, ["images/cat.jpg", "dog.png", "horse.png"]) == [
        ' (did you mean "cat.jpg"?)',
        ' (did you mean "dog.png"?)',
        ' (did you mean "horse.png"?)',
        "",
    ]


def test_slips_are_looked_for_among_neighbours_when_there_are_many(monkeypatch):
    monkeypatch.setattr(folders, "WINDOW", 3)
    candidates = [f"image_{index:04d}.png" for index in range(1000)]
    assert suggestions(["image_0500x.png"], candidates) == [' (did you mean "image_0500.png"?)']


def test_slips_are_looked_for_in_the_first_names_only(monkeypatch):
    monkeypatch.setattr(folders, "SPELLED", 2)
    hints = suggestions(["hors.png", "hors.png", "hors.png", "horse.gif"], ["horse.png"])
    assert [bool(hint) for hint in hints] == [True, True, False, True]


def test_a_folder_that_cannot_be_listed_says_so(tmp_path, monkeypatch):
    def fail(path):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(folders.os, "scandir", fail)
    with pytest.raises(DataError, match=r"cannot be listed \(Permission denied\)"):
        scan(tmp_path)
