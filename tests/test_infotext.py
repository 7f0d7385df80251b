import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from t2im.errors import DataError
from t2im.infotext import SCHEMA, parameters_text, parse_parameters, read_settings

SETTINGS = {
    "schema": SCHEMA,
    "request": {
        "prompt": "a red fox\nin the snow",
        "negative_prompt": "blurry",
        "num_inference_steps": 30,
        "guidance_scale": 4.5,
        "scheduler": "euler_a",
        "eta": 0.25,
        "width": 64,
        "height": 48,
    },
    "resolved_seed": 7,
    "model": {"name": "tiny", "sha256": "0123456789abcdef"},
    "versions": {"t2im": "0.1.0"},
}
TEXT = (
    "a red fox\nin the snow\nNegative prompt: blurry\n"
    "Steps: 30, Sampler: Euler a, Schedule type: Automatic, CFG scale: 4.5, Seed: 7, Size: 64x48, "
    "Model hash: 0123456789, Model: tiny, Eta DDIM: 0.25, RNG: CPU, Version: t2im 0.1.0"
)


def write(path, **texts):
    info = PngInfo()
    for name, text in texts.items():
        info.add_text(name, text)
    Image.new("RGB", (5, 3)).save(path, pnginfo=info)
    return path


def test_the_common_text_has_the_three_parts_in_order():
    assert parameters_text(SETTINGS) == TEXT


def test_an_empty_prompt_keeps_its_line_so_that_readers_find_the_steps():
    assert parameters_text({"request": {"prompt": "", "num_inference_steps": 5}}).startswith("\nSteps: 5, ")


def test_a_model_name_cannot_forge_pairs():
    text = parameters_text({"request": {}, "model": {"name": 'a, Seed: 1, "b"'}})
    assert "Model: a_Seed_1_b_" in text


def test_the_common_text_reads_back():
    parsed = parse_parameters(TEXT)
    assert parsed["request"] == SETTINGS["request"]
    assert parsed["resolved_seed"] == 7
    assert parsed["model"] == {"name": "tiny", "sha256": "0123456789"}


def test_text_of_another_tool_reads_as_far_as_it_goes():
    parsed = parse_parameters('cat\nSteps: 20, Sampler: DPM++ 3M SDE, Seed: 5, Lora hashes: "a: 1, b: 2", Odd: "x')
    assert parsed["request"] == {
        "prompt": "cat",
        "negative_prompt": "",
        "num_inference_steps": 20,
        "scheduler": "DPM++ 3M SDE",
    }


def test_a_bare_prompt_is_not_taken_for_settings():
    with pytest.raises(DataError, match="does not end in a line"):
        parse_parameters("a sign that says: hello, Steps: 3")


prompts = st.text(st.characters(exclude_categories=["Cs"])).filter(lambda text: "Negative prompt: " not in text)


@given(prompt=prompts, negative=prompts, seed=st.integers(0, 2**63 - 1), scale=st.floats(0, 100, allow_subnormal=False))
def test_every_prompt_without_the_marker_line_survives_the_common_text(prompt, negative, seed, scale):
    request = {"prompt": prompt, "negative_prompt": negative, "num_inference_steps": 3, "guidance_scale": scale}
    parsed = parse_parameters(parameters_text({"request": request, "resolved_seed": seed}))
    assert parsed["request"] == request
    assert parsed["resolved_seed"] == seed


def test_our_json_wins_over_the_common_text(tmp_path):
    path = write(tmp_path / "x.png", parameters="a\nSteps: 1, Seed: 2, Size: 3x4", t2im=json.dumps(SETTINGS))
    assert read_settings(path) == SETTINGS


def test_a_picture_of_another_tool_is_read(tmp_path):
    path = write(tmp_path / "x.png", parameters=TEXT)
    assert read_settings(path)["request"]["scheduler"] == "euler_a"


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        ({}, "holds no settings"),
        ({"parameters": "only a prompt"}, r"x\.png: .*does not end"),
        ({"t2im": "{"}, "damaged"),
        ({"t2im": "[]"}, "damaged"),
        ({"t2im": '{"schema": 99}'}, "schema 99"),
    ],
)
def test_what_cannot_be_read_is_said_in_one_line(tmp_path, texts, message):
    with pytest.raises(DataError, match=message) as caught:
        read_settings(write(tmp_path / "x.png", **texts))
    assert "\n" not in str(caught.value)


def test_no_picture_is_said_in_one_line(tmp_path):
    with pytest.raises(DataError, match="no such file"):
        read_settings(tmp_path / "x.png")
    (tmp_path / "y.png").write_bytes(b"\x89PNG")
    with pytest.raises(DataError, match="not a readable picture"):
        read_settings(tmp_path / "y.png")
