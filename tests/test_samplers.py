import pytest

from t2im.errors import UsageError
from t2im.samplers import SCHEDULERS, require_able, scheduler_name


@pytest.mark.parametrize(
    ("spelling", "name"),
    [
        ("ddim", "ddim"),
        ("DDPM", "ddpm"),
        ("Euler a", "euler_a"),
        ("euler_ancestral", "euler_a"),
        ("k_euler", "euler"),
        ("DPM++ 2M", "dpm++2m"),
        ("dpmpp_2m", "dpm++2m"),
        ("uni_pc", "unipc"),
        ("PLMS", "pndm"),
        ("EulerAncestralDiscreteScheduler", "euler_a"),
        ("LCM", "lcm"),
        ("k-lms", "lms"),
    ],
)
def test_samplers_answer_to_every_usual_spelling(spelling, name):
    assert scheduler_name(spelling) == name


def test_an_unknown_sampler_names_the_nearest():
    with pytest.raises(UsageError, match=r'"eulerb" is unknown \(did you mean "euler"\?\)\. Valid: ddim, '):
        scheduler_name("eulerb")


@pytest.mark.parametrize(
    ("name", "prediction_type", "zero_snr", "message"),
    [
        ("ddim", "flow", False, r"straight path of flow; use euler, heun, dpm\+\+2m or unipc\."),
        ("deis", "flow", False, "straight path of flow"),
        ("PLMS", "sample", False, r'"pndm" cannot run a model that predicts "sample"; use ddim, .*or lms\.'),
        ("heun", "v_prediction", True, r"zero terminal SNR; use ddim, ddpm, euler, euler_a, dpm\+\+2m or unipc\."),
    ],
)
def test_a_sampler_that_cannot_names_those_that_can(name, prediction_type, zero_snr, message):
    with pytest.raises(UsageError, match=message):
        require_able(name, prediction_type, zero_snr=zero_snr)


@pytest.mark.parametrize("name", SCHEDULERS)
def test_every_sampler_can_run_epsilon(name):
    assert require_able(name, "epsilon", zero_snr=False) is SCHEDULERS[name]
