import numpy as np
import pytest
from PIL import Image

from t2im.data.captions import Example
from t2im.data.contact_sheet import MARGIN, SIDE, draw, free_beside, require_free, write
from t2im.errors import UsageError


@pytest.fixture
def example(tmp_path):
    (tmp_path / "photos").mkdir()

    def example(colour="red", caption="a red square", size=(60, 40)):
        path = tmp_path / "photos" / f"{colour}.png"
        Image.new("RGB", size, colour).save(path)
        return Example(path, (caption,))

    return example


def cell(sheet, column, row):
    left, top = MARGIN + column * (SIDE + MARGIN), MARGIN + row * (SIDE + 45 + MARGIN)
    return np.asarray(sheet)[top : top + SIDE, left : left + SIDE]


def test_pictures_stand_in_order_with_their_words_below(example):
    sheet = draw([example("red"), example("lime"), example("blue")])
    assert sheet.size == (3 * (SIDE + MARGIN) + MARGIN, SIDE + 45 + 2 * MARGIN)
    for column, colour in enumerate([(255, 0, 0), (0, 255, 0), (0, 0, 255)]):
        assert (cell(sheet, column, 0) == colour).all()
    words = np.asarray(sheet)[MARGIN + SIDE + 2 :, MARGIN:]
    assert (words < 100).any()


def test_many_examples_are_sampled_evenly(example):
    many = [example("red")] * 24 + [example("blue")] * 24
    sheet = draw(many)
    assert sheet.width == 6 * (SIDE + MARGIN) + MARGIN
    assert (cell(sheet, 5, 1) == (255, 0, 0)).all()
    assert (cell(sheet, 0, 2) == (0, 0, 255)).all()


@pytest.mark.parametrize(
    "caption", ["x" * 5000, "word " * 2000, "日本語の長い説明" * 40, "é", "a\nb\tc", "🦊" * 90, "\0"]
)
def test_any_caption_stays_under_its_picture(caption, example):
    sheet = draw([example(), example("lime", caption), example("blue", "")])
    margins = np.asarray(sheet)[:, [MARGIN + SIDE + 3, 2 * MARGIN + 2 * SIDE + 3]]
    assert (margins[MARGIN + SIDE + 2 :] == 255).all()


def test_a_sheet_is_written_whole(example, tmp_path):
    path = tmp_path / "sheets/new.png"
    write([example()], path)
    with Image.open(path) as sheet:
        assert sheet.size == (SIDE + 2 * MARGIN, SIDE + 45 + 2 * MARGIN)


@pytest.mark.parametrize("name", ["photos/sheet.png", "photos/deep/sheet.png", "photos/../photos/sheet.png"])
def test_nothing_is_written_into_the_image_folder(name, example, tmp_path):
    example()
    with pytest.raises(UsageError, match="is inside the image folder"):
        require_free(tmp_path / name, tmp_path / "photos")
    assert free_beside(tmp_path / name, tmp_path / "photos") is None


def test_a_link_into_the_image_folder_is_seen_through(example, tmp_path):
    example()
    (tmp_path / "elsewhere").symlink_to(tmp_path / "photos", target_is_directory=True)
    with pytest.raises(UsageError, match="is inside the image folder"):
        require_free(tmp_path / "elsewhere/sheet.png", tmp_path / "photos")


def test_nothing_is_overwritten(example, tmp_path):
    taken = tmp_path / "sheet.png"
    taken.write_text("mine")
    with pytest.raises(UsageError, match="exists already"):
        require_free(taken, tmp_path / "photos")
    (tmp_path / "sheet-2.png").touch()
    assert free_beside(taken, tmp_path / "photos") == tmp_path / "sheet-3.png"
    assert require_free(tmp_path / "free.png", tmp_path / "photos") == tmp_path / "free.png"


def test_a_sheet_is_a_picture(tmp_path):
    with pytest.raises(UsageError, match=r"name it with \.png"):
        require_free(tmp_path / "sheet.pdf", tmp_path / "photos")
