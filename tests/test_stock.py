import importlib

import pytest

from t2im.networks import BEYOND_STOCK, UNetConfig
from t2im.samplers import SCHEDULERS
from t2im.stock import stock_obstacle


def obstacle(padding="attend", prediction_type="epsilon", scheduler="ddim", **unet):
    return stock_obstacle(UNetConfig(**unet), padding=padding, prediction_type=prediction_type, scheduler=scheduler)


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction", "sample"])
@pytest.mark.parametrize("scheduler", ["ddim", "Euler", "heun", "lcm"])
def test_nothing_is_in_the_way_of_a_plain_model(prediction_type, scheduler):
    assert obstacle(prediction_type=prediction_type, scheduler=scheduler) is None


@pytest.mark.parametrize("name", [name for name, sampler in SCHEDULERS.items() if sampler.flow])
def test_flow_runs_with_samplers_that_have_what_the_pipeline_calls(name):
    module, class_name = SCHEDULERS[name].flow
    scheduler_class = getattr(importlib.import_module(f"diffusers.schedulers.{module}"), class_name)
    assert (obstacle(prediction_type="flow", scheduler=name) is None) == hasattr(scheduler_class, "scale_model_input")


def test_the_way_out_of_flow_without_a_stock_sampler_is_named():
    assert 'flow with the sampler "euler" (sampling.scheduler = "dpm++2m"' in obstacle(
        prediction_type="flow", scheduler="k_euler"
    )


@pytest.mark.parametrize("option", BEYOND_STOCK)
def test_options_of_the_unet_that_diffusers_lacks_are_named(option):
    assert obstacle(**{option: True}) == f"the UNet was built with {option}, which diffusers' UNet does not have"


def test_all_reasons_are_given_at_once():
    reason = obstacle(padding="mask", qk_norm=True, prediction_type="flow", scheduler="heun")
    assert [word in reason for word in ("padding", "qk_norm", "heun")] == [True] * 3
    assert reason.count("; ") == 2
