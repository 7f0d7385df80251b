"""Files of every older schema load for ever: one of each is kept in `fixtures/`."""

import json
import re
from pathlib import Path

import pytest

from t2im.config import Config
from t2im.errors import ConfigError
from t2im.migrate import CONFIG_SCHEMA, MOVED, STEPS, migrate_config, schema_without_number
from t2im.recipe import load_config
from t2im.settings import parse_settings

FIXTURES = Path(__file__).parent / "fixtures"


def test_a_complete_tree_of_schema_1_loads_as_it_was_meant():
    tree = json.loads((FIXTURES / "config_schema_1.json").read_text())
    before = json.dumps(tree)
    config = parse_settings(Config, migrate_config(tree, 1))
    assert json.dumps(tree) == before
    assert config.objective.type == "v_prediction" and config.schedule.rescale_betas_zero_snr
    assert config.unet.block_out_channels == (32, 64) and config.training.learning_rate == 0.002
    # Nothing else was lost: what today's tree calls by the same name has kept its value.
    after = config.model_dump(mode="json")
    moved = {key for step in MOVED.values() for key in step}
    kept = [(g, n, value) for g, fields in tree.items() for n, value in fields.items() if f"{g}.{n}" not in moved]
    assert len(kept) > 80 and all(after[group][name] == value for group, name, value in kept)


def test_a_recipe_of_schema_1_loads_without_a_word():
    assert load_config(str(FIXTURES / "recipe_schema_1.toml")).objective.type == "sample"


def test_an_old_key_without_a_number_is_taken_with_its_new_name(tmp_path):
    (tmp_path / "mine.toml").write_text('[schedule]\nprediction_type = "sample"\n')
    with pytest.warns(UserWarning, match=r'mine.toml: "schedule.prediction_type" is now "objective.type"'):
        assert load_config(str(tmp_path / "mine.toml")).objective.type == "sample"
    with pytest.warns(UserWarning, match="command line"):
        assert load_config(settings=["schedule.prediction_type=sample"]).objective.type == "sample"


def test_an_old_key_under_todays_number_is_an_error(tmp_path):
    (tmp_path / "mine.toml").write_text(f'schema = {CONFIG_SCHEMA}\n[schedule]\nprediction_type = "sample"\n')
    with pytest.raises(ConfigError, match=r'"schedule\.prediction_type" is unknown'):
        load_config(str(tmp_path / "mine.toml"))


@pytest.mark.parametrize(
    ("schema", "error"),
    [
        (CONFIG_SCHEMA + 1, "update t2im"),
        (0, "valid are 1 to"),
        (-1, "valid are 1 to"),
        (True, "valid are 1 to"),
        ("2", "valid are 1 to"),
        (1.0, "valid are 1 to"),
    ],
)
def test_other_numbers_are_refused(schema, error):
    with pytest.raises(ConfigError, match=error):
        migrate_config({}, schema)


def test_both_names_of_one_setting_contradict_each_other():
    tree = {"schedule": {"prediction_type": "sample"}, "objective": {"type": "epsilon"}}
    with pytest.raises(ConfigError, match=r'"schedule\.prediction_type" is the old name of "objective\.type"'):
        migrate_config(tree, 1)


def test_a_tree_that_is_no_tree_is_left_to_the_errors_of_its_settings(tmp_path):
    for content in ("objective = 5", "[schedule]\nprediction_type = 'sample'\n[[objective]]\na = 1"):
        (tmp_path / "mine.toml").write_text(f"schema = 1\n{content}")
        with pytest.raises(ConfigError, match="objective"):
            load_config(str(tmp_path / "mine.toml"))


def test_every_schema_has_a_step_to_the_next_and_its_new_names_exist():
    assert set(STEPS) == set(range(1, CONFIG_SCHEMA))
    newest = Config().model_dump()
    for moved in MOVED.values():
        for before, after in moved.items():
            assert re.fullmatch(r"\w+\.\w+", before)
            group, name = after.split(".")
            assert name in newest[group]


def test_the_newest_tree_is_not_touched():
    tree = Config().model_dump(mode="json")
    assert migrate_config(tree, CONFIG_SCHEMA) == tree and schema_without_number(tree) == (CONFIG_SCHEMA, [])
