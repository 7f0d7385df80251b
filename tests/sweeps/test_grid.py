"""All combinations, each checked before any is trained."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from t2im.errors import ConfigError, UsageError
from t2im.sweeps.grid import budget_settings, grid, require_comparable, values_of


def test_a_grid_has_every_combination_once_and_names_what_varies():
    variants = grid(
        ["nano", "small"],
        ["objective.type=epsilon,v_prediction", "training.betas=(0.9,0.99),(0.9,0.999)", "data.resolution=64"],
        budget_settings("20m"),
    )
    assert len({variant.name for variant in variants}) == len({variant.slug for variant in variants}) == 8
    first, last = variants[0], variants[-1]
    assert first.name == "nano, objective.type=epsilon, training.betas=(0.9,0.99)"
    assert first.slug == "nano_epsilon_0.9_0.99"
    assert (last.recipe, last.config.objective.type, last.config.training.betas) == (
        "small",
        "v_prediction",
        (0.9, 0.999),
    )
    assert all(variant.config.training.minutes == 20 and variant.config.data.resolution == 64 for variant in variants)


@pytest.mark.parametrize(("bases", "name"), [([], "defaults"), (["emoji"], "emoji")])
def test_a_single_setting_is_called_by_its_recipe(bases, name):
    (only,) = grid(bases, ["training.batch_size=32"], ())
    assert (only.name, only.slug) == (name, name)


WORDS = st.text("abc 0.=-", min_size=1, max_size=5).map(str.strip).filter(bool)
VALUES = st.one_of(
    WORDS, st.lists(WORDS, max_size=3).map(lambda parts: f"({','.join(parts)})"), WORDS.map("'{},'".format)
)


@given(st.lists(VALUES, min_size=1, max_size=4))
def test_values_are_split_at_outer_commas_only(values):
    assert values_of(",".join(values)) == values


@pytest.mark.parametrize("text", ["(1,2", "1,2)", "'a,b", "a,,b", "", ","])
def test_unclosed_brackets_and_missing_values_are_refused(text):
    with pytest.raises(ConfigError, match="is no list of values"):
        values_of(text)


@pytest.mark.parametrize(
    ("text", "name", "value"),
    [
        ("20m", "minutes", 20.0),
        ("90s", "minutes", 1.5),
        ("0.5h", "minutes", 30.0),
        ("500steps", "steps", 500),
        ("500 steps", "steps", 500),
        ("3epochs", "epochs", 3),
    ],
)
def test_a_budget_is_the_one_length_of_every_run(text, name, value):
    (variant,) = grid([], [], budget_settings(text))
    training = variant.config.training
    assert getattr(training, name) == value
    assert sum(length is not None for length in (training.steps, training.minutes)) == (name != "epochs")


@pytest.mark.parametrize("text", ["", "20", "m", "-1m", "0m", "1.5steps", "20 m 3 s", "1e3m", "nanm"])
def test_other_budgets_are_refused(text):
    with pytest.raises(UsageError, match="--budget"):
        budget_settings(text)


def test_every_impossible_combination_is_named_before_anything_is_trained():
    with pytest.raises(ConfigError) as caught:
        fixed = ("schedule.rescale_betas_zero_snr=true", "sampling.scheduler=ddim")
        grid(["emoji"], ["objective.type=epsilon,v_prediction,flow"], fixed)
    assert str(caught.value).startswith("objective.type=epsilon: objective.type epsilon cannot")
    assert "; objective.type=flow: " in str(caught.value)


def test_a_fault_of_all_combinations_is_told_once():
    with pytest.raises(ConfigError, match=r'^setting "objectve" is unknown \(did you mean "objective"\?\)[^;]*$'):
        grid([], ["objectve.type=epsilon,sample", "training.batch_size=8,16"], ())


@pytest.mark.parametrize(
    ("settings", "error"),
    [
        (["training.seed=1,2"], "Use --seeds"),
        (["training.steps=10,20"], "Use --budget"),
        (["training.minutes=10"], "Use --budget"),
        (["training.batch_size"], 'has no "="'),
        (["training.batch_size=8,8"], "would both be called 8"),
    ],
)
def test_what_cannot_be_swept_is_refused_with_the_reason(settings, error):
    with pytest.raises((ConfigError, UsageError), match=error):
        grid([], settings, ())


@pytest.mark.parametrize("setting", ["vae.latent_channels=3,4", "data.resolution=64,128", "clip.width=128,256"])
def test_runs_that_see_other_latents_are_not_compared(setting):
    with pytest.raises(UsageError, match=f"these differ: {setting.partition('=')[0]}"):
        require_comparable(grid([], [setting], ()))


def test_flips_may_be_compared():
    require_comparable(grid([], ["data.horizontal_flip=true,false", "text.padding=attend,mask"], ()))
