"""The one command that replaces the built-in model replaces it whole, or not at all."""

import importlib.util
from pathlib import Path

import pytest

import t2im
from t2im.errors import ModelError, T2IMError

SCRIPT = Path(__file__).parents[2] / "tools" / "install_builtin.py"


@pytest.fixture(scope="module")
def tool():
    specification = importlib.util.spec_from_file_location("install_builtin", SCRIPT)
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


@pytest.fixture
def trained(tiny_model, tmp_path):
    return tiny_model.save(tmp_path / "model")


def test_a_trained_model_becomes_the_built_in_one(tool, trained, tmp_path):
    attribution = tmp_path / "ATTRIBUTION.md"
    attribution.write_text("drawn by somebody")
    place = tmp_path / "package" / "builtin"
    size = tool.install(trained, place, attribution=attribution)
    assert size == sum(path.stat().st_size for path in place.rglob("*") if path.is_file())
    weights = [
        path.stat().st_size for path in (trained / "unet", place / "unet") for path in path.glob("*.safetensors")
    ]
    assert weights[1] < 0.6 * weights[0]
    assert (place / "ATTRIBUTION.md").read_text() == "drawn by somebody"
    model = t2im.load(place)
    assert (model.facts.name, model.facts.license) == ("t2im-emoji", "apache-2.0")
    assert model("a red apple", seed=3).image.size == (16, 16)


def test_a_newer_model_takes_the_place_of_the_old_one(tool, trained, tmp_path):
    place = tmp_path / "builtin"
    tool.install(trained, place)
    (place / "left over.txt").touch()
    tool.install(trained, place)
    assert not (place / "left over.txt").exists()
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]


def test_a_model_that_is_too_large_changes_nothing(tool, trained, tmp_path):
    place = tmp_path / "builtin"
    tool.install(trained, place)
    before = (place / "t2im.json").stat().st_mtime_ns
    with pytest.raises(ModelError, match=r"MB in fp16, and 0\.001 are allowed"):
        tool.install(trained, place, largest=1000)
    assert (place / "t2im.json").stat().st_mtime_ns == before


def test_a_damaged_model_changes_nothing(tool, trained, tmp_path):
    (trained / "vae" / "config.json").write_text("{}")
    with pytest.raises(T2IMError):
        tool.install(trained, tmp_path / "builtin")
    assert not (tmp_path / "builtin").exists()
