"""`t2im plot` draws recipes, checkpoints and folders, and refuses what would write something else."""

import pytest
import torch
from typer.testing import CliRunner

from t2im.cli.main import app
from t2im.config import ObjectiveConfig
from t2im.diffusion.schedule import Schedule
from t2im.errors import UsageError
from t2im.explain.architecture import architecture_svg
from t2im.explain.noise_levels import noise_levels_svg
from t2im.nn.unet import ConditionalUNet
from t2im.recipe import load_config


def plot(*arguments, what="architecture"):
    result = CliRunner().invoke(app, ["plot", what, *map(str, arguments)])
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


@pytest.mark.parametrize("what", ["architecture", "schedule"])
@pytest.mark.parametrize(
    ("name", "message"),
    [("model.safetensors", r"name it model\.svg"), ("drawn.svg", r"drawn\.svg: exists already\. Name")],
)
def test_no_file_is_ever_overwritten(tmp_path, what, name, message):
    precious = tmp_path / name
    precious.write_text("precious")
    with pytest.raises(UsageError, match=message):
        plot("--recipe", "nano", "-o", precious, what=what)
    assert precious.read_text() == "precious"


def test_a_model_and_a_recipe_at_once_are_refused(tmp_path):
    with pytest.raises(UsageError, match="give one of them"):
        plot("--recipe", "nano", "--model", "somewhere", "-o", tmp_path / "both.svg")


def test_a_schedule_is_drawn_with_the_settings_of_recipe_and_command(tmp_path):
    path = tmp_path / "new" / "levels.svg"
    settings = ("objective.type=flow", "objective.loss_weighting=min_snr", "sampling.scheduler=euler")
    words = [word for setting in settings for word in ("--set", setting)]
    assert plot("--recipe", "nano", *words, "-o", path, what="schedule").output.strip() == str(path)
    config = load_config("nano", settings=settings)
    assert path.read_text(encoding="utf-8") == noise_levels_svg(Schedule(config.schedule, "flow"), config.objective)


def test_a_checkpoint_tells_how_its_schedule_was_used_and_a_folder_does_not(tiny_checkpoint, tiny_model, tmp_path):
    whole, half = tmp_path / "whole.svg", tmp_path / "half.svg"
    plot("--model", tiny_checkpoint, "-o", whole, what="schedule")
    plot("--model", tiny_model.save(tmp_path / "model"), "-o", half, what="schedule")
    assert whole.read_text(encoding="utf-8") == noise_levels_svg(tiny_model.schedule, ObjectiveConfig())
    assert half.read_text(encoding="utf-8") == noise_levels_svg(tiny_model.schedule, None)


def test_a_model_leaves_nothing_to_set(tmp_path):
    with pytest.raises(UsageError, match="give the one or the others"):
        plot("--model", "x.pt", "--set", "objective.type=flow", "-o", tmp_path / "both.svg", what="schedule")


def test_a_place_to_draw_to_is_needed():
    result = plot("--recipe", "nano")
    assert result.exit_code == 2
    assert "--output" in result.output
