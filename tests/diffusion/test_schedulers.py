import importlib.util

import pytest
import torch

from t2im.config import ScheduleConfig
from t2im.diffusion.schedule import Schedule
from t2im.errors import UsageError
from t2im.samplers import SCHEDULERS

ZERO_SNR = ScheduleConfig(rescale_betas_zero_snr=True)
RUNNABLE = [name for name in SCHEDULERS if name != "lms" or importlib.util.find_spec("scipy")]


@pytest.mark.parametrize("name", RUNNABLE)
def test_schedulers_are_built_from_the_training_settings(name):
    config = ScheduleConfig(
        num_train_timesteps=997,
        beta_start=0.001,
        beta_end=0.02,
        beta_schedule="linear",
        timestep_spacing="leading",
    )
    schedule = Schedule(config, "v_prediction")
    scheduler = schedule.scheduler(name)
    built = scheduler.config
    assert {key: built[key] for key in config.model_dump() if key in built} == {
        key: value for key, value in config.model_dump().items() if key in built
    }
    assert built["prediction_type"] == "v_prediction"
    assert built.get("timestep_spacing", "leading") == "leading"
    assert built["steps_offset"] == 1
    assert not built.get("clip_sample", False)
    assert not built.get("set_alpha_to_one", False)
    torch.testing.assert_close(scheduler.alphas_cumprod, schedule.path.alphas_cumprod.float(), rtol=0, atol=1e-6)


def test_each_call_builds_a_fresh_scheduler():
    # Multistep samplers carry the history of their run; a second run must not see it.
    schedule = Schedule(ScheduleConfig())
    assert schedule.scheduler("pndm") is not schedule.scheduler("pndm")


@pytest.mark.parametrize("name", RUNNABLE)
def test_zero_terminal_snr_runs_rescaled_or_not_at_all(name):
    schedule = Schedule(ZERO_SNR, "v_prediction")
    if name in ("heun", "pndm", "deis", "lms"):
        with pytest.raises(UsageError, match=f'"{name}" cannot run zero terminal SNR'):
            schedule.scheduler(name)
    else:
        assert schedule.scheduler(name).alphas_cumprod[-1] < 1e-7


@pytest.mark.parametrize("name", ["euler_a", "pndm"])
def test_samplers_that_cannot_take_a_picture_prediction_say_so(name):
    with pytest.raises(UsageError, match=f'"{name}" cannot run a model that predicts "sample"'):
        Schedule(ScheduleConfig(), "sample").scheduler(name)


def test_lms_without_scipy_says_what_to_install(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UsageError, match=r'"lms" needs scipy: pip install scipy'):
        Schedule(ScheduleConfig()).scheduler("lms")
