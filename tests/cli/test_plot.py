"""`t2im plot` draws recipes, checkpoints and folders, and refuses what would write something else."""

import pytest
import torch
from typer.testing import CliRunner

from t2im.cli.main import app
from t2im.errors import UsageError
from t2im.explain.architecture import architecture_svg
from t2im.nn.unet import ConditionalUNet
from t2im.recipe import load_config


def plot(*arguments):
    result = CliRunner().invoke(app, ["plot", "architecture", *map(str, arguments)])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


def test_a_recipe_is_drawn_without_any_weights(tmp_path):
    path = tmp_path / "new" / "nano.svg"
    result = plot("--recipe", "nano", "-o", path)
    assert result.exit_code == 0
    assert result.output.strip() == str(path)
    with torch.device("meta"):
        unet = ConditionalUNet(load_config("nano").unet)
    assert path.read_text(encoding="utf-8") == architecture_svg(unet)


def test_a_checkpoint_is_drawn_as_the_model_it_holds(tiny_checkpoint, tiny_model, tmp_path):
    path = tmp_path / "tiny.svg"
    assert plot("--model", tiny_checkpoint, "-o", path).exit_code == 0
    assert path.read_text(encoding="utf-8") == architecture_svg(tiny_model.unet)


def test_another_kind_of_file_is_never_overwritten(tmp_path):
    precious = tmp_path / "model.safetensors"
    precious.write_text("weights")
    with pytest.raises(UsageError, match=r"name it model\.svg"):
        plot("--recipe", "nano", "-o", precious)
    assert precious.read_text() == "weights"


def test_a_model_and_a_recipe_at_once_are_refused(tmp_path):
    with pytest.raises(UsageError, match="give one of them"):
        plot("--recipe", "nano", "--model", "somewhere", "-o", tmp_path / "both.svg")


def test_a_place_to_draw_to_is_needed():
    result = plot("--recipe", "nano")
    assert result.exit_code == 2
    assert "--output" in result.output
