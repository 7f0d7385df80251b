import json

import pytest
from PIL import Image
from typer.testing import CliRunner

from t2im import model_folder
from t2im.cli.main import app, main
from t2im.errors import ModelError


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    """Work in a folder of our own, with a package that holds no model."""

    def none():
        raise ModelError("no built-in model")

    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    monkeypatch.setattr(model_folder, "builtin_folder", none)


@pytest.fixture
def folder(tmp_path):
    images = tmp_path / "photos/images"
    images.mkdir(parents=True)
    captions = {}
    for name, colour in {"a.png": "red", "b.png": "blue"}.items():
        Image.new("RGB", (16, 16), colour).save(images / name)
        captions[name] = f"a {colour} square"
    (images.parent / "captions.json").write_text(json.dumps(captions))
    return images.parent


def run(*arguments):
    return CliRunner().invoke(app, ["data", "check", *map(str, arguments)])


def test_a_sound_folder_is_ready_and_gets_a_contact_sheet(folder, tmp_path):
    result = run(folder)
    assert result.exit_code == 0, result.output
    assert "captions as json dict ({file: caption})" in result.stdout
    assert "2 usable images with 2 captions, from 16x16 to 16x16 pixels" in result.stdout
    assert "caption length in words (--text-encoder counts tokens):" in result.stdout
    assert result.stdout.endswith("contact sheet: contact-sheet.png\nready for training.\n")
    with Image.open(tmp_path / "work/contact-sheet.png") as sheet:
        assert sheet.width > 300
    assert "contact sheet: contact-sheet-2.png" in run(folder).stdout


def test_what_would_stop_training_is_exit_code_3(folder):
    (folder / "images/b.png").write_bytes(b"")
    (folder / "images/a.png").rename(folder / "images/A1.png")
    result = run(folder)
    assert result.exit_code == 3
    assert '"a.png" does not exist' in result.stdout
    assert "images/b.png: is empty (0 bytes)" in result.stdout
    assert "training would stop: 1 caption has no usable image" in result.stdout
    assert "contact sheet: none" in result.stdout


@pytest.mark.parametrize(("flags", "code"), [([], 3), (["--skip-bad"], 0), (["--skip-missing"], 3)])
def test_skipping_makes_a_problem_none(flags, code, folder):
    (folder / "images/b.png").write_bytes(b"")
    assert run(folder, *flags).exit_code == code


def test_json_is_complete_and_alone_on_stdout(folder):
    (folder / "captions.json").write_text(json.dumps({f"{i}.png": "x" for i in range(99)} | {"a.png": "a red square"}))
    result = run(folder, "--json")
    assert result.exit_code == 3
    report = json.loads(result.stdout)
    assert len(report["missing"]) == 99
    assert report["problems"] == ["99 captions have no usable image: fix the names or pass --skip-missing"]
    assert report["contact_sheet"] == "contact-sheet.png"
    assert report["orphans"] == ["images/b.png"]


def test_nothing_is_written_into_the_folder(folder, monkeypatch):
    before = sorted(folder.rglob("*"))
    assert run(folder, "--contact-sheet", folder / "sheet.png").exit_code != 0
    monkeypatch.chdir(folder)
    result = run(".")
    assert result.exit_code == 0
    assert "contact sheet: none; say where with --contact-sheet" in result.stdout
    assert sorted(folder.rglob("*")) == before


def test_an_error_of_ours_is_one_line(folder, monkeypatch, capsys):
    (folder / "captions.json").write_text('{"a.png": ')
    monkeypatch.setattr("sys.argv", ["t2im", "data", "check", str(folder)])
    with pytest.raises(SystemExit) as exit_:
        main()
    assert exit_.value.code == 3
    assert "captions.json:1:11: not valid JSON (Expecting value)." in capsys.readouterr().err


def test_a_text_encoder_counts_tokens(folder, tiny_model, tmp_path):
    tiny_model.text_encoder.save(tmp_path / "encoder")
    result = run(folder, "--text-encoder", tmp_path / "encoder", "--json")
    report = json.loads(result.stdout)
    assert report["length_unit"] == "tokens"
    assert report["context_length"] == tiny_model.text_encoder.context_length
    encoder = tiny_model.text_encoder
    expected = sorted(len(encoder.tokenize(f"a {colour} square")) for colour in ("red", "blue"))
    assert sorted(int(length) for length in report["lengths"]) == sorted(set(expected))


def test_the_built_in_model_counts_tokens_where_there_is_one(folder, tiny_model, tmp_path, monkeypatch):
    tiny_model.text_encoder.save(tmp_path / "builtin")
    monkeypatch.setattr(model_folder, "builtin_folder", lambda: tmp_path / "builtin")
    assert json.loads(run(folder, "--json").stdout)["length_unit"] == "tokens"
