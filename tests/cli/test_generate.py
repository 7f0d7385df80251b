import io
import json
import sys
from datetime import date

import pytest
from PIL import Image, ImageChops

from t2im.cli.main import main
from t2im.model import TextToImage


@pytest.fixture
def model(tiny_model, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return str(tiny_model.save(tmp_path / "model"))


@pytest.fixture
def t2im(monkeypatch, capsys):
    def run(*words):
        monkeypatch.setattr(sys, "argv", ["t2im", *words])
        with pytest.raises(SystemExit) as ended:
            main()
        out, err = capsys.readouterr()
        return ended.value.code, out, err

    return run


def test_the_documented_line_draws_and_says_where(t2im, model, tmp_path, tiny_model):
    line = ["generate", "a red apple", "-n", "2", "--steps", "5", "--cfg-scale", "2", "--seed", "7", "-o", "apples/"]
    code, out, err = t2im(*line, "--model", model)
    assert code == 0
    assert out == "apples/00001-7.png  16x16  seed 7\napples/00002-8.png  16x16  seed 8\n"
    assert "tiny, 0.1 M parameters · cpu · ddim, 5 steps, guidance 2" in err
    expected = tiny_model("a red apple", seed=8, num_inference_steps=5, guidance_scale=2)
    with Image.open(tmp_path / "apples" / "00002-8.png") as image:
        difference = ImageChops.difference(image, expected.image)
    assert max(highest for _, highest in difference.getextrema()) <= 1  # a batch rounds in another order


def test_pictures_are_numbered_on_and_never_overwritten(t2im, model, tmp_path):
    for _ in range(2):
        assert t2im("generate", "an owl", "-m", model, "--seed", "3")[0] == 0
    folder = tmp_path / "outputs" / date.today().isoformat()
    assert sorted(path.name for path in folder.iterdir()) == ["00001-3.png", "00002-3.png"]


def test_a_random_seed_is_printed(t2im, model):
    _, out, _ = t2im("generate", "an owl", "-m", model)
    seed = out.split()[-1]
    assert out.split()[0].endswith(f"00001-{seed}.png")
    assert int(seed) >= 0


def test_one_file_can_be_named_once(t2im, model):
    assert t2im("generate", "an owl", "-m", model, "-o", "new/owl.png")[1].startswith("new/owl.png")
    code, _, err = t2im("generate", "an owl", "-m", model, "-o", "new/owl.png")
    assert (code, err) == (2, "t2im: new/owl.png: exists already. Choose another name.\n")
    code, _, err = t2im("generate", "an owl", "-m", model, "-o", "x.png", "-n", "2")
    assert (code, err) == (2, "t2im: x.png: one file cannot hold 2 pictures. Name a folder.\n")


def test_prompts_come_from_standard_input(t2im, model, monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.StringIO("a red apple\n\n  a blue owl\n"))
    code, out, _ = t2im("generate", "-", "-m", model, "--seed", "5", "--json")
    lines = [json.loads(line) for line in out.splitlines()]
    assert code == 0
    assert [line["request"]["prompt"] for line in lines] == ["a red apple", "a blue owl"]
    assert [line["resolved_seed"] for line in lines] == [5, 6]
    monkeypatch.setattr(sys, "stdin", io.StringIO("\n"))
    code, _, err = t2im("generate", "-", "-m", model)
    assert (code, err) == (2, 't2im: no prompts on standard input; "-" expects one a line.\n')


def test_every_option_reaches_the_picture(t2im, model):
    options = ["--negative-prompt", "red", "--sampler", "Euler a", "--width", "20", "--height", "24", "--device", "cpu"]
    _, out, _ = t2im("generate", "an owl", "-m", model, *options, "--json")
    request = json.loads(out)["request"]
    assert (request["negative_prompt"], request["scheduler"]) == ("red", "euler_a")
    assert (request["width"], request["height"]) == (20, 24)


@pytest.mark.parametrize(
    ("options", "code", "message"),
    [
        (["--sampler", "eulr"], 2, 'did you mean "euler"'),
        (["--width", "17"], 2, "take 16 or 20"),
        (["-n", "0"], 2, "num_images"),
        (["--device", "gpu"], 2, 'device "gpu" is unknown'),
        (["-m", "modle"], 4, 'did you mean "model"'),
    ],
)
def test_errors_are_one_line_and_an_exit_code(t2im, model, tmp_path, options, code, message):
    ended, out, err = t2im("generate", "an owl", "-m", model, "-o", "out", *options)
    assert (ended, out) == (code, "")
    assert err.count("\n") == 1
    assert err.startswith("t2im: ")
    assert message in err
    assert list((tmp_path / "out").iterdir()) == []


@pytest.mark.filterwarnings("always")
def test_a_prompt_that_is_too_long_is_one_line_too(t2im, model):
    code, _, err = t2im("generate", "an owl " * 20 + "everest", "-m", model)
    (line,) = [line for line in err.splitlines() if "not seen" in line]
    assert code == 0
    assert line.startswith("t2im: prompt")
    assert line.endswith("everest")


def test_a_cancelled_command_keeps_whole_pictures_only(t2im, model, tmp_path, monkeypatch):
    draw = TextToImage.draw

    def cancelled_after_one(self, request, on_step):
        yield next(draw(self, request, on_step))
        raise KeyboardInterrupt

    monkeypatch.setattr(TextToImage, "draw", cancelled_after_one)
    code, out, err = t2im("generate", "an owl", "-n", "3", "-m", model, "-o", "out", "--seed", "3")
    assert code == 130
    assert out == "out/00001-3.png  16x16  seed 3\n"
    assert "Traceback" not in err
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["00001-3.png"]


def test_info_tells_how_a_picture_was_made(t2im, model):
    t2im("generate", "an owl", "-m", model, "-o", "owl.png", "--seed", "3")
    code, out, _ = t2im("info", "owl.png")
    assert code == 0
    assert "prompt               an owl\n" in out
    assert "seed                 3\n" in out
    assert "model name           tiny\n" in out
    _, out, _ = t2im("info", "owl.png", "--json")
    assert json.loads(out)["resolved_seed"] == 3


def test_info_of_something_else_is_one_line(t2im, tmp_path):
    Image.new("RGB", (3, 5)).save(tmp_path / "x.png")
    code, _, err = t2im("info", str(tmp_path / "x.png"))
    assert code == 3
    assert err.startswith("t2im: ")
    assert "holds no settings" in err
