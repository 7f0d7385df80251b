"""Each thing that a model cannot learn from captions is found, and sound captions are left alone."""

import json

import pytest
from PIL import Image, ImageDraw

from t2im.advice.doctor.captions import caption_findings, head_of_template, image_findings
from t2im.data.check import Ruler, check
from t2im.recipe import load_config

COLOURS = ("red", "green", "blue", "black", "white", "yellow", "purple")
WORDS = Ruler("tokens", lambda caption: len(caption.split()), 7)


def build(folder, captions, draw=None):
    (folder / "images").mkdir(parents=True)
    for number, name in enumerate(captions):
        picture = draw(number) if draw else Image.new("RGB", (40, 40), COLOURS[number % 7])
        picture.save(folder / "images" / name)
    (folder / "captions.json").write_text(json.dumps(captions))
    return folder


def levels(folder, *settings):
    report, usable = check(folder, ruler=WORDS)
    found = caption_findings(report, usable, load_config(settings=("data.resolution=16", *settings)))
    return {finding.what: finding.level for finding in found}, found


def level_of(folder, words, *settings):
    return next((level for what, level in levels(folder, *settings)[0].items() if words in what), None)


def captions_of(texts):
    return {f"{number:03}.png": text for number, text in enumerate(texts)}


def test_sound_captions_are_fine(tmp_path):
    texts = [f"{one} ball on {other} grass" for one in COLOURS for other in COLOURS]
    found, _ = levels(build(tmp_path / "sound", captions_of(texts)), "data.horizontal_flip=true")
    assert set(found.values()) == {"OK"}


def test_captions_beyond_the_context_are_listed(tmp_path):
    folder = build(tmp_path / "long", captions_of(["one two three four five six seven eight", "short"]))
    finding = next(finding for finding in levels(folder)[1] if "never seen" in finding.what)
    assert finding.level == "look" and finding.details == (
        'images/000.png: 8 tokens: "one two three four five six seven eight"',
    )


@pytest.mark.parametrize(("alike", "level"), [(1, "OK"), (5, "look"), (20, "wrong")])
def test_images_without_a_caption_of_their_own_are_counted(tmp_path, alike, level):
    texts = ["a thing"] * alike + [f"thing {number}" for number in range(20 - alike)]
    assert level_of(build(tmp_path / "alike", captions_of(texts)), "have no caption of their own") == level


def test_a_shared_caption_beside_an_own_one_does_no_harm(tmp_path):
    folder = build(tmp_path / "two", captions_of([["a thing", f"thing {number}"] for number in range(9)]))
    assert level_of(folder, "have no caption of their own") == "OK"


def test_a_template_is_found_to_its_last_word():
    captions = [f"a photo of {colour} things" for colour in COLOURS] + ["something else", "another"]
    assert head_of_template(captions) == ("a photo of", pytest.approx(7 / 9))
    assert head_of_template(["a cat", "a dog", "a bird"]) is None
    assert head_of_template(["a photo of x", "one", "two"]) is None


def test_words_that_occur_once_are_worth_a_look(tmp_path):
    texts = [f"object number{number}" for number in range(9)]
    finding = next(
        finding for finding in levels(build(tmp_path / "rare", captions_of(texts)))[1] if "words" in finding.what
    )
    assert finding.level == "look" and "number3" in finding.details and "object" not in finding.details


def test_left_and_right_contradict_mirror_images_only(tmp_path):
    folder = build(tmp_path / "sides", captions_of(["a cat to the Left of a dog", "leftovers on a plate"]))
    assert level_of(folder, "say left or right", "data.horizontal_flip=true") == "wrong"
    assert levels(folder, "data.horizontal_flip=true")[1][-1].details == ('000.png: "a cat to the Left of a dog"',)
    assert level_of(folder, "left or right") is None


def test_what_would_stop_training_is_wrong(tmp_path):
    folder = build(tmp_path / "broken", captions_of(["one", "two"]))
    (folder / "images" / "001.png").write_bytes(b"no picture")
    assert level_of(folder, "cannot be read") == "wrong"


def smiling(number):
    """Draw a face: 0 smiles, 1 is the same saved smaller, 2 frowns, 3 is a copy of 0."""
    face = Image.new("RGB", (64, 64), "yellow")
    pen = ImageDraw.Draw(face)
    pen.arc(
        (24, 30, 40, 46) if number != 2 else (24, 40, 40, 56), *((20, 160) if number != 2 else (200, 340)), "black", 2
    )
    return face.resize((48, 48)) if number == 1 else face


def test_a_picture_saved_again_is_found_but_another_expression_is_another_picture(tmp_path):
    folder = build(tmp_path / "faces", captions_of(["smiling", "a face", "frowning", "happy"]), smiling)
    report, usable = check(folder)
    copies, alike = image_findings(report, usable, load_config())
    assert copies.details == ("images/000.png = images/003.png",)
    assert [detail.split(" ")[0] for detail in alike.details] == ["000.png", "001.png"]
    assert all("frowning" not in detail for detail in alike.details)


def test_different_pictures_are_fine(tmp_path):
    report, usable = check(build(tmp_path / "plain", captions_of(COLOURS)))
    assert [finding.level for finding in image_findings(report, usable, load_config())] == ["OK"]
