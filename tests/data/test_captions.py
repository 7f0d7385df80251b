import csv
import json
import sys
import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from t2im.data import captions
from t2im.data.captions import Example, find, read
from t2im.errors import CaptionError


@pytest.fixture
def write(tmp_path):
    """Return a function that makes a folder of (empty) images with a captions file and returns it."""

    def write(content, name="captions.json", images=("images/a.png", "images/b.jpg")):
        for image in images:
            (tmp_path / image).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / image).touch()
        if not isinstance(content, str | bytes):
            content = json.dumps(content)
        (tmp_path / name).write_bytes(content.encode() if isinstance(content, str) else content)
        return tmp_path

    return write


def said(examples):
    return {example.path.name: example.captions for example in examples}


ONE_EACH = {"a.png": ("a cat",), "b.jpg": ("two, dogs",)}
FORMS = {
    "json dict": ("captions.json", '{"a.png": "a cat", "b.jpg": ["two, dogs"]}'),
    "json list": (
        "captions.json",
        '[{"image": "a.png", "caption": "a cat"}, {"path": "b.jpg", "captions": ["two, dogs"], "width": 3}]',
    ),
    "jsonl": ("metadata.jsonl", '{"file_name": "a.png", "text": "a cat"}\n\n{"file": "b.jpg", "text": "two, dogs"}\n'),
    "csv": ("metadata.csv", 'file_name,height,text\na.png,5,a cat\nb.jpg,5,"two, dogs"\n'),
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("place", ["images/", ""])
@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
def test_each_form_is_recognised_and_read_from_both_places(form, place, mark, write):
    name, content = FORMS[form]
    folder = write(mark + content.encode(), name, images=(f"{place}a.png", f"{place}b.jpg"))
    found = find(folder)
    assert found.format == form
    assert found.source == folder / name
    assert said(read(folder)) == ONE_EACH
    assert [example.path for example in found.examples] == [folder / place / "a.png", folder / place / "b.jpg"]


def test_a_captions_file_among_the_images_names_its_neighbours(write):
    assert said(read(write(*reversed(("images/metadata.csv", FORMS["csv"][1]))))) == ONE_EACH


def test_a_text_file_beside_an_image_holds_one_caption_a_line(write):
    folder = write("a cat\n\n  the cat \r\n", "images/a.txt")
    (folder / "images/b.txt").write_text("a dog")
    (folder / "README.txt").write_text("about these pictures")
    found = find(folder)
    assert found.format == "txt"
    assert said(found.examples) == {"a.png": ("a cat", "the cat"), "b.jpg": ("a dog",)}
    assert not found.missing
    assert not found.faults


def test_a_text_file_without_an_image_is_missing_one(write):
    folder = write("a cat", "images/a.txt")
    (folder / "images/c.txt").write_text("a cow")
    assert [missing.name for missing in find(folder).missing] == ["images/c"]


def test_an_empty_text_file_is_a_fault(write):
    assert find(write(" \n", "images/a.txt")).faults == (
        "images/a.txt: got an empty text, expected a caption or a list of captions",
    )


def test_a_list_gives_an_image_several_captions_by_naming_it_again(write):
    folder = write([{"image": "a.png", "text": "a cat"}, {"image": "./images/a.png", "text": "the cat"}])
    assert read(folder) == [Example(folder / "images/a.png", ("a cat", "the cat"))]


def test_order_is_that_of_the_captions_file(write):
    assert list(said(read(write({"b.jpg": "2", "a.png": "1"})))) == ["b.jpg", "a.png"]


def test_the_path_of_a_captions_file_may_stand_for_the_folder(write):
    folder = write({"a.png": "a cat"}, "mine.json")
    assert said(read(folder / "mine.json")) == {"a.png": ("a cat",)}


NAMES = st.text("abcXYZ019 _-éß日🦊", min_size=1, max_size=12).map(lambda stem: f"{stem.strip() or 'x'}.png")
WORDS = st.text(
    st.characters(exclude_categories=("Cs", "Cc", "Zl", "Zp"), exclude_characters="\ufeff"), min_size=1, max_size=30
)
CAPTIONS = st.lists(WORDS.map(str.strip).filter(bool), min_size=1, max_size=3).map(tuple)


@given(said_=st.dictionaries(NAMES, CAPTIONS, min_size=1, max_size=5), form=st.sampled_from([*FORMS, "txt"]))
@settings(max_examples=60, deadline=None)
def test_what_is_written_is_what_is_read(said_, form):
    rows = [(name, text) for name, texts in said_.items() for text in texts]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for image in said_:
            (folder / image).touch()
        match form:
            case "json dict":
                (folder / "captions.json").write_text(json.dumps(said_), encoding="utf-8")
            case "json list":
                tree = [{"file": image, "captions": texts} for image, texts in said_.items()]
                (folder / "captions.json").write_text(json.dumps(tree, ensure_ascii=False), encoding="utf-8")
            case "jsonl":
                lines = [json.dumps({"file_name": image, "text": text}) for image, text in rows]
                (folder / "metadata.jsonl").write_text("\n".join(lines), encoding="utf-8")
            case "csv":
                with open(folder / "metadata.csv", "w", encoding="utf-8", newline="") as handle:
                    csv.writer(handle).writerows([("file_name", "text"), *rows])
            case "txt":
                for image, texts in said_.items():
                    (folder / image).with_suffix(".txt").write_text("\n".join(texts), encoding="utf-8")
        assert said(read(folder)) == said_


FAULTY = {
    "null": "null",
    "true": "true",
    "NaN": "the number nan",
    "17": "the number 17",
    "9" * 100_000: "the number inf",
    '""': "an empty text",
    '" "': "an empty text",
    "[]": "an empty list",
    "{}": "an empty object",
    '{"de": "Katze"}': "an object",
    "[1]": "a list with the number 1",
    '["a", null]': "a list with null",
    '["a", ["b"]]': "a list with a list",
    '"\\ud83d"': "half a character (a lone surrogate) at position 0",
    json.dumps("x" * 1_000_000): "a caption of 1,000,000 characters",
}


@pytest.mark.parametrize("value", FAULTY, ids=range(len(FAULTY)))
def test_what_is_no_caption_is_a_fault_that_names_key_and_kind(value, write):
    folder = write(f'{{"b.jpg": "a dog", "a.png": {value}}}')
    (fault,) = find(folder).faults
    assert fault.startswith(f'"a.png": got {FAULTY[value]}')
    assert "expected" in fault
    with pytest.raises(CaptionError) as error:
        read(folder)
    assert str(error.value).count("\n") == 0
    assert "1 entry cannot be used" in str(error.value)


@pytest.mark.parametrize(
    ("entry", "words"),
    [
        (5, "got the number 5, expected an object"),
        ({"image": "a.png"}, "has none of the keys caption, text, captions"),
        ({"image": "a.png", "capton": "a cat"}, 'did you mean "caption"?'),
        ({"image": "a.png", "path": "b.jpg", "text": "a cat"}, 'has both "image" and "path"'),
        ({"image": None, "text": "a cat"}, "the image's name is null"),
        ({"image": "", "text": "a cat"}, "the image's name is an empty text"),
    ],
)
def test_a_faulty_object_is_named_by_its_number(entry, words, write):
    (fault,) = find(write([{"image": "a.png", "text": "a cat"}, entry])).faults
    assert fault.startswith("entry 2: ")
    assert words in fault


DAMAGED = {
    '{"a.png": "x",}': ":1:1",  # column 14 or 15, as the version of Python has it
    '{"a.png": "x",\n "b.jpg": ': ":2:11: not valid JSON",
    '{"a.png": "a\ncat"}': ":1:13: not valid JSON",
    "[" * 100_000: ":1:101: nested deeper than 100 levels",
    '{"a]]": \n' * 100_000: ":101:1: nested deeper than 100 levels",
    '{"a.png": "x", "b.jpg": "y", "a.png": "z"}': 'the key "a.png" appears 2 times',
    '{"a": 1, "a": 2, "b": 1, "b": 2, "b": 3}': 'the key "a" appears 2 times in one object, as do 1 other keys',
    '[{"image": "a.png", "image": "b.jpg", "text": "x"}]': 'the key "image" appears 2 times',
    "17": "got the number 17, expected {file: caption} or a list",
    "{}": "got an empty object",
    "[]": "got an empty list",
    "": ":1:1: not valid JSON",
    b'{"a.png": "caf\xe9"}': ":1: byte 0xe9 at offset 14 is not UTF-8",
    b'{\n\n"a.png": "caf\xe9"}': ":3: byte 0xe9 at offset 16 is not UTF-8",
    '{"a.png": "x"}'.encode("utf-16"): "It looks like UTF-16",
}


@pytest.mark.parametrize("content", DAMAGED, ids=range(len(DAMAGED)))
def test_a_damaged_captions_file_is_one_line_with_the_place(content, write):
    with pytest.raises(CaptionError) as error:
        find(write(content))
    assert "captions.json" in str(error.value)
    assert DAMAGED[content] in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("metadata.jsonl", '{"image": "a.png", "text": "x"}\n{"image": "b.jpg",\n', "metadata.jsonl:2:19: not valid"),
        ("metadata.csv", 'image,text\na.png,"x\n', "metadata.csv:2: not valid CSV"),
        ("metadata.csv", "image,text,text\na.png,x,y\n", 'the column "text" appears more than once'),
        ("metadata.csv", "image,text\na.png\n", "line 2: got 1 values, expected 2"),
        ("metadata.csv", "image;text\na.png;x\n", "line 2: has none of the keys"),
        ("metadata.jsonl", "\n\n[]\n", "line 3: got an empty list, expected an object"),
    ],
)
def test_a_damaged_line_is_named_by_its_number(name, content, words, write):
    with pytest.raises(CaptionError) as error:
        read(write(content, name))
    assert words in str(error.value)


def test_captions_in_two_places_are_refused(write):
    folder = write({"a.png": "a cat"})
    write("image,text\na.png,the cat\n", "images/metadata.csv")
    with pytest.raises(CaptionError, match=r'more than one place: "captions.json" and "images/metadata.csv"'):
        read(folder)
    assert said(read(folder / "captions.json")) == {"a.png": ("a cat",)}
    (folder / "images/metadata.csv").rename(folder / "images/a.txt")
    with pytest.raises(CaptionError, match=r'"captions.json" and "images/a.txt"'):
        read(folder)


def test_two_spellings_of_one_key_are_refused(write):
    (fault,) = find(write({"a.png": "a cat", "./a.png": "the cat"})).faults
    assert fault == '"./a.png": the image "images/a.png" already has an entry under another spelling'


@pytest.mark.parametrize("stored", ["café.png", "cafe\u0301.png"])
@pytest.mark.parametrize("named", ["café.png", "cafe\u0301.png", "images\\café.png", "./café.png", "images//café.png"])
def test_one_name_in_another_spelling_finds_its_image(stored, named, write):
    folder = write({named: "a bar"}, images=(f"images/{stored}",))
    assert [example.path for example in read(folder)] == [folder / "images" / stored]


def test_a_missing_image_stops_with_the_nearest_name(write, caplog):
    folder = write({"a.png": "a cat", "b.jpeg": "a dog", "zzz.png": "nobody"})
    with pytest.raises(CaptionError) as error:
        read(folder)
    assert str(error.value) == (
        f'{folder}/captions.json: 2 captions name no usable image (first: "b.jpeg" does not exist '
        '(did you mean "b.jpg"?)). Fix the names or pass --skip-missing.'
    )
    assert said(read(folder, skip_missing=True)) == {"a.png": ("a cat",)}
    assert "2 captions name no usable image" in caplog.text
    assert '1 image has no caption (first: "images/b.jpg")' in caplog.text


def test_nothing_left_is_an_error_even_when_missing_images_are_skipped(write):
    with pytest.raises(CaptionError, match="no caption has an image"):
        read(write({"c.png": "a cow"}), skip_missing=True)


def test_images_without_captions_are_orphans_but_hidden_files_and_nested_data_sets_are_not(write):
    folder = write({"a.png": "a cat"}, images=("images/a.png", "images/.b.png", "images/deep/c.gif", "d.webp"))
    write({}, "captions2.json", images=("heldout/images/e.png",))
    (folder / "heldout/captions.json").write_text("{}")
    assert find(folder).orphans == ("d.webp", "images/deep/c.gif")


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("../secret.png", 'leads out of the folder with ".."'),
        ("images/../../secret.png", 'leads out of the folder with ".."'),
        ("..\\secret.png", 'leads out of the folder with ".."'),
        ("/etc/passwd", "is an absolute path"),
        ("C:\\secret.png", "is an absolute path"),
        ("\\\\host\\secret.png", "is an absolute path"),
        ("a.png\0.txt", "holds a NUL character"),
    ],
)
def test_names_that_leave_the_folder_are_refused(name, reason, write, tmp_path):
    inside = tmp_path / "inside"
    inside.mkdir()
    (tmp_path / "secret.png").touch()
    (inside / "captions.json").write_text(json.dumps({name: "a secret"}))
    (fault,) = find(inside).faults
    assert reason in fault
    with pytest.raises(CaptionError):
        read(inside, skip_missing=True)


opened: list[str] | None = None


def _listen(event, arguments):
    if opened is not None and event in ("open", "os.scandir", "os.listdir"):
        opened.append(str(arguments[0]))


sys.addaudithook(_listen)


def test_nothing_outside_the_folder_is_opened(tmp_path, monkeypatch):
    inside = tmp_path / "inside"
    (inside / "images").mkdir(parents=True)
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside/s.png").touch()
    (tmp_path / "outside/s.txt").write_text("a secret")
    (inside / "images/link").symlink_to(tmp_path / "outside", target_is_directory=True)
    (inside / "images/s.png").symlink_to(tmp_path / "outside/s.png")
    (inside / "images/s.txt").symlink_to(tmp_path / "outside/s.txt")
    names = ["../outside/s.png", str(tmp_path / "outside/s.png"), "s.png", "link/s.png", "images/link/s.png"]
    (inside / "captions.json").write_text(json.dumps(dict.fromkeys(names, "a secret")))
    monkeypatch.setitem(globals(), "opened", [])
    found = find(inside)
    assert not found.examples
    assert opened
    assert all(name.startswith(str(inside)) for name in opened)
    assert {missing.reason for missing in found.missing} == {"is a symbolic link out of the folder", "does not exist"}


def test_a_captions_file_that_links_out_of_the_folder_is_refused(write, tmp_path):
    (tmp_path / "real.json").write_text("{}")
    inside = tmp_path / "inside"
    inside.mkdir()
    (inside / "captions.json").symlink_to(tmp_path / "real.json")
    with pytest.raises(CaptionError, match="is a symbolic link out of the folder"):
        find(inside)


def test_a_link_inside_the_folder_is_followed(write):
    folder = write({"c.png": "a cat"})
    (folder / "images/c.png").symlink_to(folder / "images/a.png")
    assert said(read(folder)) == {"c.png": ("a cat",)}


@pytest.mark.parametrize(
    ("name", "words"),
    [("photoz", 'no such folder or captions file (did you mean "photos"?)'), ("photos", "1 images, but no captions")],
)
def test_a_folder_without_captions_says_what_was_expected(name, words, tmp_path):
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos/a.png").touch()
    with pytest.raises(CaptionError) as error:
        read(tmp_path / name)
    assert words in str(error.value)


def test_an_unusual_file_name_is_offered(write):
    with pytest.raises(CaptionError, match=r'If it is "caption\.json", give that path'):
        read(write({"a.png": "a cat"}, "caption.json"))


def test_a_captions_file_must_be_of_a_known_kind(write):
    folder = write("x", "captions.yaml")
    with pytest.raises(CaptionError, match=r"are read from \.json, \.jsonl and \.csv"):
        read(folder / "captions.yaml")


def test_a_captions_file_that_the_disk_does_not_give_says_so(write, monkeypatch):
    folder = write({"a.png": "a cat"})

    def fail(path):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "read_bytes", fail)
    with pytest.raises(CaptionError, match=r"captions.json: cannot be read \(Permission denied\)"):
        read(folder)


def test_an_example_is_a_small_record():
    example = Example(Path("a.png"), ("a cat",))
    assert not hasattr(example, "__dict__")
    assert sys.getsizeof(example) <= 64
    with pytest.raises(AttributeError):
        example.path = Path("b.png")
    assert captions.MAX_CHARACTERS == 10_000


def test_ten_thousand_wrong_names_are_counted_in_seconds(write):
    from time import process_time

    images = tuple(f"{index}.png" for index in range(50))
    folder = write({f"{index}.jpeg": f"number {index}" for index in range(10_000)}, images=images)
    start = process_time()
    found = find(folder)
    hints = found.suggestions()
    assert process_time() - start < 3
    assert len(found.missing) == len(hints) == 10_000
    assert hints[49] == ' (did you mean "49.png"?)'
    assert hints[9_000] == ""
