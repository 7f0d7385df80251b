"""The drawing of the noise levels shows the numbers that training uses."""

from xml.etree import ElementTree

import pytest
import torch

from t2im.config import ObjectiveConfig, ScheduleConfig
from t2im.diffusion.schedule import Schedule
from t2im.diffusion.timesteps import probabilities
from t2im.diffusion.weighting import loss_weight, target_per_x0
from t2im.explain import chart, noise_levels
from t2im.explain.chart import linear_axis, log_axis
from t2im.explain.noise_levels import noise_levels_svg

SVG = "{http://www.w3.org/2000/svg}"
CURVES = ("picture", "noise")


def curves(svg):
    """Return the styles and points of the curves; the short lines of legends are left out."""
    paths = [path for path in ElementTree.fromstring(svg).iter(f"{SVG}path") if path.get("class") in CURVES]
    found = [
        (path.get("class"), [tuple(map(float, p.split())) for p in path.get("d")[1:].split(" L")]) for path in paths
    ]
    return [(style, points) for style, points in found if len(points) > 2]


def heights(points, axis):
    """Read values off a curve, by the top and bottom of its plot."""
    row = points[0][1] > noise_levels.HEADER + noise_levels.PANEL_HEIGHT
    top = noise_levels.HEADER + row * (noise_levels.PANEL_HEIGHT + noise_levels.GAP)
    high, low = top + chart.HEADER, top + noise_levels.PANEL_HEIGHT - chart.LABELS
    ups = torch.tensor([(low - y) / (low - high) for _, y in points], dtype=torch.float64)
    if axis.logarithmic:
        return axis.low * (axis.high / axis.low) ** ups
    return axis.low + ups * (axis.high - axis.low)


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction", "sample", "flow"])
def test_the_curves_are_the_numbers_of_training(prediction_type):
    schedule = Schedule(ScheduleConfig(num_train_timesteps=101), prediction_type)
    objective = ObjectiveConfig(timestep_sampling="logit_normal", loss_weighting="min_snr")
    drawn = curves(noise_levels_svg(schedule, objective))
    assert [style for style, _ in drawn] == ["picture", "noise", "picture", "noise", "noise", "picture"]
    t = torch.tensor(schedule.timesteps)
    often = probabilities(schedule, objective) * 101
    weight = loss_weight(t, schedule, objective).double()
    in_x0 = weight * target_per_x0(t, schedule).double()
    log_snr = schedule.snr(t).double().log()
    expected = [*schedule.alpha_sigma(t), log_snr, often, weight, in_x0]
    levels, counts = linear_axis([0, 1]), log_axis([*weight.tolist(), *in_x0.tolist()])
    axes = [levels, levels, linear_axis(log_snr.tolist()), linear_axis([0, 1.5, *often.tolist()]), counts, counts]
    for (_, points), values, axis in zip(drawn, expected, axes, strict=True):
        finite = values[values.isfinite() & (values > 0 if axis.logarithmic else values.isfinite())]
        tolerance = (
            {"rtol": 1e-2, "atol": 1e-9} if axis.logarithmic else {"rtol": 0, "atol": 1e-3 * (axis.high - axis.low)}
        )
        torch.testing.assert_close(heights(points, axis), finite, **tolerance)


def test_the_drawing_says_what_it_shows():
    objective = ObjectiveConfig(timestep_sampling="logit_normal", loss_weighting="debiased", stratified=True)
    text = noise_levels_svg(Schedule(ScheduleConfig(rescale_betas_zero_snr=True), "v_prediction"), objective)
    assert "predicts v_prediction · scaled_linear betas from 0.00085 to 0.012, T = 1000, zero terminal SNR" in text
    assert "logit-normal, mean 0, std 1, 10% of them uniform, stratified · debiased weights, at least 0.05" in text
    assert "the straight path of rectified flow" in noise_levels_svg(Schedule(ScheduleConfig(), "flow"), objective)


def test_what_is_not_known_is_not_drawn():
    text = noise_levels_svg(Schedule(ScheduleConfig()), None)
    assert "Signal to noise" in text
    assert "practised" not in text
    assert len(curves(text)) == 3


def test_every_class_has_its_colours_by_day_and_by_night():
    assert noise_levels.LIGHT.keys() == noise_levels.DARK.keys()
    assert all(noise_levels.LIGHT[style].keys() == noise_levels.DARK[style].keys() for style in noise_levels.LIGHT)


@pytest.mark.parametrize("steps", [1, 2, 997])
def test_schedules_of_any_length_can_be_drawn(steps):
    ElementTree.fromstring(noise_levels_svg(Schedule(ScheduleConfig(num_train_timesteps=steps)), ObjectiveConfig()))
