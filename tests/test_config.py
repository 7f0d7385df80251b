import pytest

from t2im.errors import ConfigError
from t2im.recipe import load_config


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            ["objective.type=flow", "sampling.scheduler=ddim"],
            r'sampling\.scheduler "ddim" cannot run the straight path of flow; use euler, .*dpm',
        ),
        (
            ["objective.type=flow", "sampling.scheduler=deis"],
            r'sampling\.scheduler "deis" cannot run the straight path',
        ),
        (["objective.type=flow", "schedule.rescale_betas_zero_snr=true"], "flow has no betas"),
        (
            ["objective.type=flow", "sampling.scheduler=euler", "schedule.timestep_spacing=leading"],
            "leave schedule.timestep_spacing",
        ),
        (["objective.type=sample", "sampling.scheduler=plms"], r'"pndm" cannot run a model that predicts "sample"'),
        (["schedule.rescale_betas_zero_snr=true"], "epsilon cannot be combined"),
        (
            ["objective.type=sample", "schedule.rescale_betas_zero_snr=true", "sampling.scheduler=heun"],
            r'sampling\.scheduler "heun" cannot run zero terminal SNR; use ddim',
        ),
        (["sampling.scheduler=eulr"], r'sampling\.scheduler "eulr" is unknown \(did you mean "euler"\?\)'),
    ],
)
def test_a_model_that_nobody_could_sample_is_refused_before_it_is_trained(settings, message):
    with pytest.raises(ConfigError, match=message):
        load_config("plain", settings=settings)


@pytest.mark.parametrize("scheduler", ["euler", "Heun", "DPM++ 2M", "unipc"])
def test_flow_with_a_sampler_that_can_run_it_is_welcome(scheduler):
    config = load_config("plain", settings=["objective.type=flow", f"sampling.scheduler={scheduler}"])
    assert config.sampling.scheduler == scheduler
