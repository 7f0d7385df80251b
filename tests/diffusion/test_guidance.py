import pytest
import torch

from t2im.diffusion.guidance import guide, rescale


def normal(seed):
    return torch.randn(3, 2, 5, 7, generator=torch.Generator().manual_seed(seed))


def test_scale_one_is_the_conditional_model_and_zero_the_unconditional_one():
    unconditional, conditional = normal(0), normal(1)
    torch.testing.assert_close(guide(unconditional, conditional, 1.0), conditional)
    assert torch.equal(guide(unconditional, conditional, 0.0), unconditional)


@pytest.mark.parametrize("scale", [0.5, 2.0, 7.5])
def test_guidance_walks_along_the_difference(scale):
    unconditional, conditional = normal(0), normal(1)
    expected = (1 - scale) * unconditional + scale * conditional
    torch.testing.assert_close(guide(unconditional, conditional, scale), expected, rtol=1e-5, atol=1e-5)


def test_full_rescale_gives_each_sample_the_contrast_of_its_conditional_prediction():
    conditional = normal(1) * torch.tensor([0.5, 1.0, 2.0]).view(3, 1, 1, 1)
    guided = 5 * normal(0)
    rescaled = rescale(guided, conditional, 1.0)
    torch.testing.assert_close(rescaled.std(dim=(1, 2, 3)), conditional.std(dim=(1, 2, 3)))
    torch.testing.assert_close(rescaled / guided, (rescaled / guided)[:, :1, :1, :1].expand_as(guided))


def test_no_rescale_changes_nothing_and_half_lies_in_between():
    conditional, guided = normal(1), 5 * normal(0)
    assert torch.equal(rescale(guided, conditional, 0.0), guided)
    between = (rescale(guided, conditional, 0.0) + rescale(guided, conditional, 1.0)) / 2
    torch.testing.assert_close(rescale(guided, conditional, 0.5), between)
