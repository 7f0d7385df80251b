"""Recipes, what they build on, and single settings over them; each fault is one line that helps."""

import pytest

from t2im.config import Config
from t2im.errors import ConfigError
from t2im.recipe import COMMAND_LINE, LARGEST_RECIPE, load_config, recipe_names, resolve


@pytest.fixture
def write(tmp_path):
    def write(text, name="mine.toml"):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return str(path)

    return write


def test_later_ones_win_and_each_setting_knows_where_it_comes_from(write):
    write("[training]\nbatch_size = 8\nseed = 8\nwarmup_steps = 8\n[data]\nresolution = 32", "base/grand.toml")
    write('extends = "grand.toml"\n[training]\nseed = 9\nwarmup_steps = 9', "base/parent.toml")
    mine = write('extends = "base/parent.toml"\n[training]\nwarmup_steps = 10')
    found = resolve(mine, settings=["training.seed=1", "training.seed=11"])
    training = found.config.training
    assert (training.batch_size, training.warmup_steps, training.seed) == (8, 10, 11)
    assert found.config.data.resolution == 32 and training.epochs == Config().training.epochs
    told = {name: origin for name, origin in found.origins.items() if origin != "nano.toml"}
    assert told == {
        "data.resolution": "grand.toml",
        "training.batch_size": "grand.toml",
        "training.warmup_steps": "mine.toml",
        "training.seed": COMMAND_LINE,
    }


def test_without_a_recipe_and_under_an_own_one_lies_nano(write):
    assert load_config() == load_config("nano") != Config()
    assert load_config(write("[training]\nseed = 3")) == load_config("nano", settings=["training.seed=3"])
    assert load_config(write('extends = "plain"\n')) == load_config("plain")


@pytest.mark.parametrize(
    ("kind", "zero_snr", "sampler"),
    [
        ("epsilon", False, "ddim"),
        ("v_prediction", True, "ddim"),
        ("sample", True, "ddim"),
        ("flow", False, "dpm++2m"),
    ],
)
def test_what_follows_from_the_objective_is_decided_by_it(write, kind, zero_snr, sampler):
    mine = write('[schedule]\nrescale_betas_zero_snr = "auto"\n[sampling]\nscheduler = "auto"')
    config = load_config(mine, settings=[f"objective.type={kind}"])
    assert (config.schedule.rescale_betas_zero_snr, config.sampling.scheduler) == (zero_snr, sampler)
    with pytest.raises(ConfigError, match="rescale_betas_zero_snr"):
        load_config("sd15", settings=["schedule.rescale_betas_zero_snr=perhaps"])


def test_recipes_build_on_those_of_the_package_too(write):
    found = resolve(write('extends = "emoji"\n[sampling]\nguidance_scale = 2.0')).config
    assert found == load_config("emoji", settings=["sampling.guidance_scale=2.0"])


def test_a_shipped_recipe_is_found_with_and_without_its_suffix_and_an_own_file_comes_first(
    write, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    assert load_config("small.toml") == load_config("small")
    write("[training]\nseed = 5", "small.toml")
    assert load_config("small.toml").training.seed == 5 and load_config("small").training.seed == 0


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("training.learning_rate=1e-4", 1e-4),
        ("training.learning_rate = 3", 3.0),
        ("training.compile=True", True),
        ("training.compile=true", True),
        ("training.steps=none", None),
        ("training.steps=None", None),
        ("unet.block_out_channels=[64,128,192]", (64, 128, 192)),
        ("training.preview_prompts=('a fox, red',)", ("a fox, red",)),
        ("data.background=#ff8800", "#ff8800"),
    ],
)
def test_values_are_written_as_in_python_or_toml(text, value):
    config = load_config(settings=[text])
    group, name = text.partition("=")[0].strip().split(".")
    assert getattr(getattr(config, group), name) == value


FAULTS = {  # E5 of the test matrix: what is set -> what the error must say
    "training.learning_rat=1": r'"training\.learning_rat" is unknown \(did you mean "learning_rate"\?\)',
    "trainig.seed=1": r'"trainig" is unknown \(did you mean "training"\?\)',
    "caption_dropout=1": r'did you mean "training\.caption_dropout"',
    "training=5": "training is a group of settings, not a value; set one of batch_size",
    "training.seed.x=1": r'training\.seed: {"x": 1} is not valid; it must be a whole number of at least 0',
    "training.learning_rate='1e-4'": r'"1e-4" is not valid \(a text; leave its quotes out\); .* a number above 0',
    "training.learning_rate=fast": r'"fast" is not valid; it must be a number above 0$',
    "training.learning_rate=nan": r'"nan" is not valid; it must be a number above 0$',
    "training.learning_rate=1e999": "Infinity is not valid; it must be a number above 0",
    "training.weight_decay=1e999": "Infinity is not valid; it must be a number of at least 0",
    "training.learning_rate=-1e-3": "-0.001 is not valid; it must be a number above 0",
    "training.learning_rate=0": "0 is not valid; it must be a number above 0",
    "training.epochs=0": "0 is not valid; it must be a whole number above 0",
    "training.epochs=1.5": "1.5 is not valid; it must be a whole number above 0",
    "training.epochs=true": "true is not valid; it must be a whole number above 0",
    "training.epochs=1+2j": "is not valid; it must be a whole number",
    "training.compile=1": "1 is not valid; it must be true or false",
    "data.background=5": "5 is not valid; it must be text",
    "objective.type=v_predicton": r'\(did you mean "v_prediction"\?\); it must be "epsilon", "v_prediction"',
    "unet.layers_per_block=x": '"x" is not valid; it must be a whole number above 0 or a list with each entry a whole',
    "unet.layers_per_block=(1,-2,1)": r"\[1, -2, 1\] is not valid; it must be a whole number above 0 or a list",
    "unet.layers_per_block=(1,2)": "layers_per_block has 2 entries, but block_out_channels has 3",
    "unet.block_out_channels=()": r"\[\] is not valid; it must be a list of at least 1",
    "training.betas=(0.9,)": r"\[0.9\] is not valid; it must be a list of 2",
    "unet.sample_size=wide": '"wide" is not valid; .* or "none"',
    "training.seed": 'has no "="; write it as group.name=value',
    "training.preview_prompts=" + "[" * 5000: "is not valid; it must be a list with each entry text",
    "objective.type=" + "x" * 5000: r'"x+\.\.\. is not valid; it must be',
}


@pytest.mark.parametrize("setting", FAULTS, ids=lambda setting: setting[:40])
def test_a_faulty_setting_is_one_line_that_says_what_is_valid(setting):
    with pytest.raises(ConfigError, match=FAULTS[setting]) as caught:
        load_config(settings=[setting])
    assert "\n" not in str(caught.value)
    assert caught.value.exit_code == 2 and len(str(caught.value)) < 700


def test_all_faults_are_named_at_once():
    with pytest.raises(ConfigError) as caught:
        load_config(settings=["training.epochs=0", "objective.typ=sample", "unet.layers_per_block=x", "vea.x=1"])
    assert all(part in str(caught.value) for part in ("training.epochs", "objective.typ", "layers_per_block", '"vea"'))
    assert str(caught.value).count("layers_per_block") == 1


@pytest.mark.parametrize(
    ("content", "error"),
    [
        (b"\xff\xfe[\x00t\x00", r"mine.toml: not UTF-8 text \(byte 0\)"),
        (b"[training]\nseed = 1\nseed = 2\n", r"not valid TOML \(.*line 3"),
        (b"[training]\nseed = 1\n[training]\nseed = 2\n", "not valid TOML"),
        (b"training: {seed: 1}", "not valid TOML"),
        (b"a = " + b"[" * 20_000, "nested too deeply|not valid TOML"),
        (b"# " + b"x" * LARGEST_RECIPE, "larger than 1024 KiB"),
        (b"schema = 99", "mine.toml: these settings have schema 99, .*: update t2im"),
        (b'schema = "two"', "is not the number of a schema"),
        (b"extends = 5", "extends must be the name of one recipe, not 5"),
        (b'extends = "nanno"', r'recipe "nanno" is unknown \(did you mean "nano"\?\)'),
        (b'extends = "mine.toml"', "extends itself"),
        (b"training = 5", "training is a group of settings"),
        (b"[[training]]\nseed = 1", "training is a group of settings"),
        (b"seed = 1", r'"seed" is unknown \(did you mean "training\.seed"\?\)'),
        (b"[training]\nlearning_rate = nan", "NaN is not valid"),
        (b"[training]\nlearning_rate = inf", "Infinity is not valid"),
        (b'[training]\nlearning_rate = "1e-4"', "leave its quotes out"),
        (b"[training]\nseed = 1979-05-27", "is not valid; it must be a whole number"),
    ],
)
def test_a_faulty_file_is_named_with_what_is_wrong_in_it(content, error, write):
    with pytest.raises(ConfigError, match=error) as caught:
        load_config(write(content))
    assert "\n" not in str(caught.value)


def test_a_byte_order_mark_is_no_fault(write):
    assert load_config(write(b"\xef\xbb\xbf[training]\nseed = 3")).training.seed == 3


@pytest.mark.parametrize(
    ("name", "error"),
    [
        ("nanno", 'did you mean "nano"'),
        ("mina.toml", 'did you mean "mine.toml"'),
        (".", "Valid: base, "),
        ("", "Valid"),
    ],
)
def test_an_unknown_recipe_names_the_nearest(name, error, write, tmp_path, monkeypatch):
    write("")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match=error):
        resolve(name or "x/y")
    assert "nano" in recipe_names()
