"""What is written is read back as the same tree, whatever its settings are."""

import tomllib

from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from t2im.cli.main import app
from t2im.config import Config
from t2im.errors import UsageError
from t2im.migrate import CONFIG_SCHEMA
from t2im.recipe import load_config, recipe_names
from t2im.toml import dump_toml, write_config

POSITIVE = st.floats(min_value=1e-300, max_value=1e300)
TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
TRAINING = st.fixed_dictionaries(
    {
        "learning_rate": POSITIVE,
        "steps": st.none() | st.integers(1, 10**18),
        "minutes": st.none() | POSITIVE,
        "seed": st.integers(0, 2**62),
        "compile": st.booleans(),
        "preview_prompts": st.lists(TEXT, max_size=3).map(tuple),
        "ema_sigmas": st.lists(st.floats(0.001, 0.28), max_size=3).map(tuple),
    }
)
UNET = st.fixed_dictionaries(
    {
        "sample_size": st.none() | st.integers(1, 99) | st.tuples(st.integers(1, 99), st.integers(1, 99)),
        "layers_per_block": st.integers(1, 4) | st.tuples(*[st.integers(1, 4)] * 3),
        "addition_embed_type": st.sampled_from([None, "text"]),
        "norm_eps": POSITIVE,
    }
)
OBJECTIVE = st.fixed_dictionaries({"logit_mean": st.floats(-1e300, 1e300), "stratified": st.booleans()})


@settings(deadline=None)
@given(TRAINING, UNET, OBJECTIVE)
def test_every_tree_survives_being_written(training, unet, objective):
    config = Config(training=training, unet=unet, objective=objective)
    tree = tomllib.loads(dump_toml(config))
    assert tree.pop("schema") == CONFIG_SCHEMA
    assert Config.model_validate(tree) == config


def test_a_recipe_and_its_complete_tree_are_one(tmp_path):
    for name in recipe_names():
        write_config(load_config(name), tmp_path / "config.toml")
        assert load_config(str(tmp_path / "config.toml")) == load_config(name)


def test_the_file_leaves_nothing_out_and_says_how_to_repeat_the_run(tmp_path):
    write_config(Config(), tmp_path / "config.toml")
    text = (tmp_path / "config.toml").read_text()
    assert text.startswith("# All settings of this run.") and 'steps = "none"' in text
    tree = tomllib.loads(text)
    assert {group: set(tree[group]) for group in tree if group != "schema"} == {
        group: set(fields) for group, fields in Config().model_dump().items()
    }


def dry_run(*arguments):
    return CliRunner().invoke(app, ["train", "nowhere", "--dry-run", *arguments])


def test_a_dry_run_prints_what_a_run_would_use_and_touches_nothing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = dry_run(
        "--recipe", "emoji", "--steps", "7", "--seed", "5", "--set", "objective.stratified=true", "--skip-bad"
    )
    assert result.exit_code == 0 and list(tmp_path.iterdir()) == []
    lines = result.stdout.splitlines()
    for line in (
        "seed = 5  # command line",
        "steps = 7  # command line",
        "stratified = true  # command line",
        "skip_bad = true  # command line",
        'type = "v_prediction"  # nano.toml',
        "cross_attention_dim = 256  # decided by the encoders",
        "min_snr_gamma = 5.0",
    ):
        assert line in lines
    config = Config.model_validate(
        {key: value for key, value in tomllib.loads(result.stdout).items() if key != "schema"}
    )
    chosen = ["training.steps=7", "training.seed=5", "objective.stratified=true", "data.skip_bad=true"]
    assert config == load_config("emoji", settings=chosen)


def test_a_dry_run_refuses_what_a_run_would():
    for arguments, error in (
        (["--steps", "5", "--epochs", "2"], "both say how long"),
        (["--resume"], "config.toml"),
        (["--steps", "0"], "it must be a whole number above 0"),
    ):
        result = dry_run(*arguments)
        assert isinstance(result.exception, UsageError) and error in str(result.exception)
