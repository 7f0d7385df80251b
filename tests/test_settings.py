"""What a group of settings takes, and that what it takes is what was meant."""

import pytest

from t2im.config import Config, OptimizationConfig, TrainingConfig
from t2im.errors import ConfigError
from t2im.networks import UNetConfig
from t2im.settings import parse_settings


def test_lists_and_whole_numbers_are_good_for_tuples_and_numbers():
    training = parse_settings(TrainingConfig, {"betas": [0, 1], "learning_rate": 1})
    assert training.betas == (0.0, 1.0) and isinstance(training.learning_rate, float)


def test_none_is_nothing_only_where_nothing_is_possible():
    config = parse_settings(Config, {"unet": {"sample_size": "none"}, "objective": {"loss_weighting": "none"}})
    assert config.unet.sample_size is None and config.objective.loss_weighting == "none"
    with pytest.raises(ConfigError, match='learning_rate: "none" is not valid'):
        parse_settings(Config, {"training": {"learning_rate": "none"}})


@pytest.mark.parametrize("value", ["1", True, None, [1], float("nan"), float("inf"), 10**400])
def test_a_number_is_nothing_else(value):
    with pytest.raises(ConfigError, match=r"learning_rate: .* is not valid.*it must be a number above 0"):
        parse_settings(OptimizationConfig, {"learning_rate": value})


def test_settings_do_not_change():
    with pytest.raises(Exception, match="frozen"):
        Config().training.seed = 3


def test_every_setting_says_what_it_is_for():
    silent = [
        f"{group}.{name}"
        for group, field in Config.model_fields.items()
        for name, setting in field.annotation.model_fields.items()
        if not (setting.description or OptimizationConfig.model_fields.get(name, setting).description)
    ]
    assert silent == []


def test_settings_that_contradict_each_other_are_named_with_both_values():
    with pytest.raises(ConfigError, match=r"^unet: down_block_types has 3 entries, but block_out_channels has 2$"):
        parse_settings(Config, {"unet": {"block_out_channels": [8, 16]}})
    with pytest.raises(ConfigError, match=r"epsilon cannot be combined with schedule\.rescale_betas_zero_snr"):
        parse_settings(Config, {"schedule": {"rescale_betas_zero_snr": True}})


def test_groups_that_are_built_already_are_taken_as_they_are():
    unet = UNetConfig(dropout=0.5)
    assert parse_settings(Config, {"unet": unet}).unet == unet
