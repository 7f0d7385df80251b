import pytest
import torch

from t2im.config import ObjectiveConfig, ScheduleConfig
from t2im.diffusion import objective
from t2im.diffusion.schedule import Schedule
from t2im.diffusion.timesteps import draw_timesteps
from t2im.diffusion.weighting import loss_weight

SCHEDULE = Schedule(ScheduleConfig())


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_a_sample_is_noised_alike_in_every_batch():
    latents = normal(5, 3, 7, 11)
    indices = torch.tensor([13, 2, 1009, 5, 0])
    together = objective.noise(latents, indices, SCHEDULE, seed=7)
    for i, index in enumerate(indices.tolist()):
        alone = objective.noise(latents[i : i + 1], [index], SCHEDULE, seed=7)
        for name in ("latents", "timesteps", "noise", "target", "weight"):
            assert torch.equal(getattr(together, name)[i : i + 1], getattr(alone, name)), name


def test_draws_differ_by_seed_and_by_sample():
    first, second = (objective.draw_noise((3, 7, 11), [0, 1], seed) for seed in (0, 1))
    assert not torch.equal(first, second)
    assert not torch.equal(first[0], first[1])


def test_draws_never_change_between_versions():
    # A run that is resumed years later must see the same noise.
    noise = objective.draw_noise((1, 4, 5), [0], seed=0)
    torch.testing.assert_close(
        noise.flatten()[:4], torch.tensor([0.074709, -0.945858, 0.477967, 0.712547]), rtol=0, atol=1e-5
    )


def test_draws_leave_the_global_generator_alone():
    before = torch.get_rng_state()
    objective.noise(normal(2, 1, 2, 3), [0, 1], SCHEDULE, seed=0)
    assert torch.equal(torch.get_rng_state(), before)


def test_noise_is_standard_normal_and_uncorrelated_between_samples():
    noise = objective.draw_noise((3, 31, 37), range(29), seed=0).flatten(1)
    assert noise.mean().abs() < 0.01
    assert noise.std() == pytest.approx(1, abs=0.01)
    assert (noise**4).mean() == pytest.approx(3, abs=0.1)
    off_diagonal = torch.corrcoef(noise) - torch.eye(29)
    assert off_diagonal.abs().max() < 5 / noise.shape[1] ** 0.5


def test_noised_latents_follow_the_schedule():
    latents = normal(3, 2, 5, 7)
    noised = objective.noise(latents, [0, 1, 2], SCHEDULE, seed=3)
    assert torch.equal(noised.timesteps, draw_timesteps([0, 1, 2], SCHEDULE, 3, objective.PLAIN))
    assert torch.equal(noised.noise, objective.draw_noise((2, 5, 7), [0, 1, 2], 3))
    assert torch.equal(noised.latents, SCHEDULE.add_noise(latents, noised.noise, noised.timesteps))


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction", "sample", "flow"])
def test_the_target_is_the_one_of_the_prediction_type(prediction_type):
    schedule = Schedule(ScheduleConfig(), prediction_type)
    latents = normal(3, 2, 5, 7)
    noised = objective.noise(latents, [0, 1, 2], schedule, seed=3)
    assert torch.equal(noised.target, schedule.target(latents, noised.noise, noised.timesteps))
    restored = schedule.pred_original_sample(noised.target, noised.latents, noised.timesteps)
    torch.testing.assert_close(restored, latents, rtol=0, atol=1e-4)


def test_noise_can_be_given():
    latents, noise, timesteps = normal(2, 1, 2, 3), normal(2, 1, 2, 3, seed=1), torch.tensor([0, 999])
    noised = objective.noise_at(latents, noise, timesteps, SCHEDULE)
    assert torch.equal(noised.noise, noise)
    assert torch.equal(noised.latents, SCHEDULE.add_noise(latents, noise, timesteps))


def test_noised_latents_keep_the_dtype_of_the_latents():
    noised = objective.noise(normal(2, 1, 2, 3).bfloat16(), [0, 1], SCHEDULE, seed=0)
    assert {noised.latents.dtype, noised.noise.dtype, noised.target.dtype} == {torch.bfloat16}


def test_loss_is_the_mean_squared_error():
    noised = objective.noise(normal(3, 2, 5, 7), [0, 1, 2], SCHEDULE, seed=0)
    assert objective.loss(noised.target, noised) == 0
    off = torch.tensor([1.0, 2.0, 3.0]).view(3, 1, 1, 1)
    torch.testing.assert_close(objective.per_sample_loss(noised.target + off, noised), torch.tensor([1.0, 4.0, 9.0]))
    torch.testing.assert_close(objective.loss(noised.target + off, noised), torch.tensor(14 / 3))


def test_every_noise_level_has_its_weight():
    config = ObjectiveConfig(loss_weighting="min_snr")
    noised = objective.noise(normal(3, 2, 5, 7), [0, 1, 2], SCHEDULE, seed=0, config=config)
    assert torch.equal(noised.weight, loss_weight(noised.timesteps, SCHEDULE, config))
    assert len(set(noised.weight.tolist())) > 1
    off = torch.tensor([1.0, 2.0, 3.0]).view(3, 1, 1, 1)
    torch.testing.assert_close(objective.per_sample_loss(noised.target + off, noised), torch.tensor([1.0, 4.0, 9.0]))
    expected = (noised.weight * torch.tensor([1.0, 4.0, 9.0])).sum() / 3
    torch.testing.assert_close(objective.loss(noised.target + off, noised), expected)


def test_the_settings_say_which_timesteps_are_drawn():
    config = ObjectiveConfig(timestep_sampling="logit_normal", logit_mean=9.0, uniform_share=0.0)
    noised = objective.noise(normal(3, 2, 5, 7), [0, 1, 2], SCHEDULE, seed=0, config=config)
    assert (noised.timesteps > 900).all()


def test_loss_of_a_blind_denoiser_is_the_variance_of_the_noise():
    noised = objective.noise(normal(31, 3, 11, 13), range(31), SCHEDULE, seed=0)
    assert objective.loss(torch.zeros_like(noised.target), noised) == pytest.approx(1, abs=0.03)


def test_loss_is_float32_whatever_the_unet_computed_in():
    noised = objective.noise(normal(2, 1, 2, 3), [0, 1], SCHEDULE, seed=0)
    # 300 squared is beyond float16; a loss computed in it would be infinite.
    prediction = torch.full_like(noised.target, 300).half()
    assert objective.loss(prediction, noised).dtype == torch.float32
    assert objective.loss(prediction, noised) == pytest.approx(90_000, rel=0.02)


def test_loss_has_the_gradient_of_the_mean_squared_error():
    noised = objective.noise(normal(2, 1, 2, 3), [0, 1], SCHEDULE, seed=0)
    prediction = normal(2, 1, 2, 3, seed=1).requires_grad_()
    objective.loss(prediction, noised).backward()
    torch.testing.assert_close(prediction.grad, 2 * (prediction.detach() - noised.target) / 12)
