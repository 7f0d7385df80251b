import io
import json

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from t2im.errors import SamplingError, UsageError
from t2im.infotext import parse_parameters, read_settings
from t2im.picture import Picture, grid, to_pil

RED = Image.new("RGB", (7, 5), "red")


def opened(source):
    with Image.open(source) as image:
        image.load()
    return image


def picture(**request):
    request = {"prompt": "a red fox", "num_inference_steps": 3, "guidance_scale": 4.0, "scheduler": "ddim", **request}
    return Picture(RED, {"schema": 1, "request": request, "resolved_seed": 11})


def test_pixels_and_settings_survive_the_file(tmp_path):
    path = picture().save(tmp_path / "new" / "fox.png")
    assert read_settings(path) == picture().settings
    assert opened(path).tobytes() == RED.tobytes()


@given(prompt=st.text(), negative=st.text())
@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_every_prompt_survives_the_file(tmp_path, prompt, negative):
    drawn = picture(prompt=prompt, negative_prompt=negative)
    assert read_settings(drawn.save(tmp_path / "x.png", overwrite=True)) == drawn.settings


def test_the_common_text_in_the_file_is_unicode(tmp_path):
    path = picture(prompt="красная лиса 狐").save(tmp_path / "x.png")
    assert parse_parameters(opened(path).info["parameters"])["request"]["prompt"] == "красная лиса 狐"


def test_a_file_is_never_overwritten_by_accident(tmp_path):
    path = tmp_path / "fox.png"
    path.write_text("precious")
    with pytest.raises(UsageError, match="exists already"):
        picture().save(path)
    assert path.read_text() == "precious"
    assert opened(picture().save(path, overwrite=True)).size == (7, 5)


def test_a_failed_save_leaves_nothing(tmp_path):
    with pytest.raises(TypeError):
        picture(prompt=object()).save(tmp_path / "x.png")
    assert list(tmp_path.iterdir()) == []


def test_a_format_that_would_lose_the_settings_is_refused(tmp_path):
    with pytest.raises(UsageError, match=r"Name it fox\.png"):
        picture().save(tmp_path / "fox.jpg")


def test_a_notebook_shows_the_file_itself(tmp_path):
    shown = picture()._repr_png_()
    assert shown == picture().save(tmp_path / "x.png").read_bytes()
    assert json.loads(opened(io.BytesIO(shown)).info["t2im"]) == picture().settings
    assert repr(picture()) == "Picture('a red fox', 7x5 pixels, seed=11)"


def test_the_range_becomes_pixels():
    images = torch.tensor([-1.0, 0.0, 1.0, -3.0, 3.0]).reshape(1, 1, 1, 5).expand(2, 3, 3, 5)
    first, second = to_pil(images)
    assert first.size == (5, 3)
    assert [first.getpixel((x, 0))[0] for x in range(5)] == [0, 128, 255, 0, 255]
    assert first.tobytes() == second.tobytes()


def test_channels_stay_in_order():
    (image,) = to_pil(torch.tensor([1.0, -1.0, -1.0]).reshape(1, 3, 1, 1))
    assert image.getpixel((0, 0)) == (255, 0, 0)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_black_picture_never_hides_an_overflow(bad):
    images = torch.zeros(1, 3, 2, 2)
    images[0, 1, 0, 1] = bad
    with pytest.raises(SamplingError, match="not finite"):
        to_pil(images)


def test_a_grid_shows_every_picture_over_its_caption():
    colours = ["red", "green", "blue"]
    pictures = [Image.new("RGB", (31, 17), colour) for colour in colours]
    plain = grid(pictures)
    assert plain.size == (2 * 31 + 2, 2 * 17 + 2)
    assert plain.getpixel((0, 19)) == (0, 0, 255)
    captioned = grid(pictures, columns=3, captions=["a", "an endless caption " * 9, ""])
    strip = captioned.crop((33, 17, 33 + 31, captioned.height))
    assert strip.getextrema() != ((255, 255),) * 3
    gap = captioned.crop((64, 17, 66, captioned.height))
    assert gap.getextrema() == ((255, 255),) * 3


def test_a_grid_without_pictures_is_refused():
    with pytest.raises(UsageError):
        grid([])
    with pytest.raises(UsageError):
        grid([RED], captions=["a", "b"])
