import re
from pathlib import Path

import pytest
import torch

from t2im.config import ScheduleConfig
from t2im.diffusion.schedule import Schedule
from t2im.training.expected import expected


def noised(schedule, count=400):
    """Return (x_t, target) of latents that are noise themselves, `count` at each of 50 timesteps."""
    generator = torch.Generator().manual_seed(3)
    timesteps = torch.tensor(schedule.timesteps)[10::20].repeat_interleave(count)
    latents, noise = (torch.randn(len(timesteps), 1, 1, 1, generator=generator) for _ in range(2))
    return timesteps, schedule.add_noise(latents, noise, timesteps), schedule.target(latents, noise, timesteps)


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction", "sample", "flow"])
def test_marks_are_the_losses_of_students_that_are_tried(kind):
    schedule = Schedule(ScheduleConfig(), kind)
    timesteps, noisy, target = noised(schedule)
    marks = expected(schedule)
    assert target.square().mean().item() == pytest.approx(marks.zero, rel=0.03)
    left = []
    for timestep in timesteps.unique():  # the best line through the data, found without any schedule
        x, y = noisy[timesteps == timestep].flatten(), target[timesteps == timestep].flatten()
        left.append((y - (x @ y) / (x @ x) * x).square().mean().item())
    assert sum(left) / len(left) == pytest.approx(marks.blind, rel=0.03)


def test_the_marks_that_one_knows_by_heart():
    for kind in ("epsilon", "v_prediction", "sample"):
        assert expected(Schedule(ScheduleConfig(), kind)).zero == pytest.approx(1)
    table = Schedule(ScheduleConfig(), "epsilon").alpha_sigma(torch.arange(1000))[0].square()
    assert expected(Schedule(ScheduleConfig(), "epsilon")).blind == pytest.approx(table.mean().item(), abs=1e-5)
    assert expected(Schedule(ScheduleConfig(), "sample")).blind == pytest.approx(1 - table.mean().item(), abs=1e-5)
    assert expected(Schedule(ScheduleConfig(), "v_prediction")).blind == pytest.approx(1)
    flow = expected(Schedule(ScheduleConfig(), "flow"))
    # E[1 / (t^2 + (1 - t)^2)] over t in (0, 1) is pi / 2
    assert (flow.zero, flow.blind) == pytest.approx((2, torch.pi / 2), abs=1e-3)
    assert flow.blind_x0 == 0.5


def test_the_document_says_what_the_code_does():
    text = (Path(__file__).parents[2] / "docs" / "watching.md").read_text(encoding="utf-8")
    marks = [expected(Schedule(ScheduleConfig(), kind)) for kind in ("epsilon", "v_prediction", "sample", "flow")]
    for words, numbers in (
        ("always answers 0", [mark.zero for mark in marks]),
        ("knows the noise level", [mark.blind for mark in marks]),
    ):
        (row,) = re.findall(rf"^\| {words}.*$", text, re.MULTILINE)
        assert [float(cell) for cell in row.split("|")[2:-1]] == pytest.approx(numbers, abs=0.005)
