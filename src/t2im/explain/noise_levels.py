"""At which noise levels does the UNet learn, and what does it see there? Four curves over time, from the live schedule.

The upper two belong to the noise schedule: how much picture and how much noise there is at each timestep, and the
logarithm of their ratio, on which schedules are compared. The lower two belong to the objective: how often training
visits a timestep, and how much an error counts there, for the target as it is predicted and for the picture that it
implies. Only the last one can be compared between prediction types.
"""

import torch

from t2im.config import ObjectiveConfig
from t2im.diffusion.schedule import Schedule
from t2im.diffusion.timesteps import probabilities
from t2im.diffusion.weighting import loss_weight, target_per_x0
from t2im.explain.chart import Axis, Chart, linear_axis, log_axis
from t2im.explain.svg import Drawing

PANEL_WIDTH, PANEL_HEIGHT, GAP, EDGE, HEADER = 520, 330, 16, 22, 92
POINTS = 241
"""Timesteps of a curve; more could not be told apart."""
X_LABEL = "timestep t: from the picture to noise"

LIGHT, DARK = (
    {
        "page": {"fill": page},
        "band": {"fill": band},
        "grid": {"fill": "none", "stroke": edge},
        "heading": {"fill": ink, "font-size": "22", "font-weight": "700"},
        "name": {"fill": ink, "font-size": "15", "font-weight": "600"},
        "note": {"fill": muted, "font-size": "12"},
        "picture": {"fill": "none", "stroke": blue, "stroke-width": "2.2"},
        "noise": {"fill": "none", "stroke": amber, "stroke-width": "2.2"},
        "plain": {"fill": "none", "stroke": muted, "stroke-width": "1.5", "stroke-dasharray": "5 4"},
    }
    for page, band, edge, ink, muted, blue, amber in (
        ("#ffffff", "#f3f5f8", "#c2cad6", "#1c2330", "#586274", "#2f6bd8", "#c47d00"),
        ("#0f141b", "#1a212b", "#465266", "#e9edf3", "#a3aebd", "#74a2f5", "#e3a43c"),
    )
)


def noise_levels_svg(schedule: Schedule, objective: ObjectiveConfig | None) -> str:
    """Draw a noise schedule and, if it is known, how an objective uses it, as an SVG."""
    rows = 1 if objective is None else 2
    drawing = Drawing(
        2 * PANEL_WIDTH + GAP + 2 * EDGE,
        HEADER + rows * (PANEL_HEIGHT + GAP) - GAP + EDGE,
        f"Curves over the {len(schedule)} timesteps of a model that predicts {schedule.prediction_type}.",
        light=LIGHT,
        dark=DARK,
    )
    drawing.text(EDGE + 8, 42, "The noise levels", "heading")
    for line, text in enumerate(_summary(schedule, objective)):
        drawing.text(EDGE + 8, 64 + 17 * line, text, "note")
    first, last = schedule.timesteps[0], schedule.timesteps[-1]
    timesteps = torch.tensor(sorted({first + (last - first) * i // (POINTS - 1) for i in range(POINTS)}))
    _draw_path(drawing, schedule, timesteps)
    if objective is not None:
        _draw_use(drawing, schedule, objective, timesteps)
    return str(drawing)


def _summary(schedule: Schedule, objective: ObjectiveConfig | None) -> list[str]:
    config = schedule.config
    path = f"the straight path of rectified flow, T = {len(schedule)}"
    if schedule.prediction_type != "flow":
        betas = f"{config.beta_schedule} betas from {config.beta_start:g} to {config.beta_end:g}"
        if config.beta_schedule == "squaredcos_cap_v2":  # which has no ends to choose
            betas = config.beta_schedule
        path = f"{betas}, T = {len(schedule)}" + (", zero terminal SNR" if config.rescale_betas_zero_snr else "")
    lines = [f"predicts {schedule.prediction_type} · {path}"]
    if objective is not None:
        drawn = "timesteps uniform"
        if objective.timestep_sampling == "logit_normal":
            spread = f"mean {objective.logit_mean:g}, std {objective.logit_std:g}"
            drawn = f"timesteps logit-normal, {spread}, {objective.uniform_share:.0%} of them uniform"
        weighted = {
            "none": "every noise level counts by the plain loss",
            "min_snr": f"min-SNR weights, gamma {objective.min_snr_gamma:g}, at least {objective.min_loss_weight:g}",
            "debiased": f"debiased weights, at least {objective.min_loss_weight:g}",
        }
        stratified = ", stratified" if objective.stratified else ""
        lines.append(f"{drawn}{stratified} · {weighted[objective.loss_weighting]}")
    return lines


def _draw_path(drawing: Drawing, schedule: Schedule, timesteps: torch.Tensor) -> None:
    times = timesteps.tolist()
    alpha, sigma = (share.tolist() for share in schedule.alpha_sigma(timesteps))
    chart = _chart(drawing, 0, 0, schedule, linear_axis([0, 1]))
    chart.frame("What is in a noisy picture", "x at time t = alpha · picture + sigma · noise", X_LABEL)
    chart.curve(times, alpha, "picture")
    chart.curve(times, sigma, "noise")
    chart.legend(("picture", "alpha"), ("noise", "sigma"))

    log_snr = schedule.snr(timesteps).double().log().tolist()
    chart = _chart(drawing, 0, 1, schedule, linear_axis(log_snr))
    chart.frame(
        "Signal to noise", "log SNR = log (alpha² / sigma²): at 0 there is as much of one as of the other", X_LABEL
    )
    chart.curve([times[0], times[-1]], [0, 0], "plain")
    chart.curve(times, log_snr, "picture")


def _draw_use(drawing: Drawing, schedule: Schedule, objective: ObjectiveConfig, timesteps: torch.Tensor) -> None:
    times = timesteps.tolist()
    often = probabilities(schedule, objective)[timesteps - schedule.timesteps[0]] * len(schedule)
    chart = _chart(drawing, 1, 0, schedule, linear_axis([0, 1.5, *often.tolist()]))
    chart.frame("How often it is practised", "share of the training samples; at 1 as often as a uniform draw", X_LABEL)
    chart.curve([times[0], times[-1]], [1, 1], "plain")
    chart.curve(times, often.tolist(), "noise")

    weight = loss_weight(timesteps, schedule, objective)
    in_x0 = weight * target_per_x0(timesteps, schedule)
    chart = _chart(drawing, 1, 1, schedule, log_axis([*weight.tolist(), *in_x0.tolist()]))
    chart.frame(
        "How much an error counts", "factor on the squared error of the target, and of the picture it implies", X_LABEL
    )
    chart.curve(times, weight.tolist(), "noise")
    chart.curve(times, in_x0.tolist(), "picture")
    chart.legend(("noise", "target"), ("picture", "picture"))


def _chart(drawing: Drawing, row: int, column: int, schedule: Schedule, y: Axis) -> Chart:
    ticks = linear_axis([0, len(schedule)]).ticks
    x = Axis(0, len(schedule), tuple(tick for tick in ticks if tick <= len(schedule)))
    left, top = EDGE + column * (PANEL_WIDTH + GAP), HEADER + row * (PANEL_HEIGHT + GAP)
    return Chart(drawing, left, top, PANEL_WIDTH, PANEL_HEIGHT, x, y)
