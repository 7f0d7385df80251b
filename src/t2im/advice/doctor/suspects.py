"""Eight images could not be learned by heart: what is to blame?

First what can be seen without training: captions that never reach the model, latents of the wrong size. Then what the
failed attempt itself shows: weights that know the images while their average does not, clean latents that are known
while the pictures are wrong. And last by experiment: the same steps again with another learning rate. If that learns
better, the accusation is proved, not guessed.

The bounds come from the recipe `nano` on eight emoji, whose learning rate is 1e-3. Errors of clean latents after the same
60 steps:

    learning rate   1e-6    3e-5    1e-4    3e-3    1e-2   3e-2   1e-1
    error           0.53    0.32    0.25    0.21    0.41   0.46   0.48

A thousandth of a good rate learns nothing, a tenth learns well, ten times as much learns badly; so a factor of 100 leads from any rate that fails to
one that is seen to do better.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from t2im.advice.doctor.findings import Finding
from t2im.advice.doctor.overfit import FEWEST_STEPS, KNOWN, ROUGH_COPY, Attempt, Bench
from t2im.shapes import TextStates
from t2im.training.precision import precision_for

DROPOUT_WORTH_A_LOOK, DROPOUT_WRONG = 0.3, 0.9
LATENT_STD = (1 / 3, 3.0)
"""Standard deviation of eight images' latents; 1 is right, and eight images are few."""
ALIKE = 0.01
"""Relative difference of text states below which two captions are the same to the model."""
TOLD_APART = 2.0
"""How many times larger the error must be with the captions of other images, if the text is read; we saw 7."""
BETTER = 0.75
"""Another learning rate is better if it leaves less than this share of the error at equal steps."""
FACTOR = 100.0
"""By how much it is changed."""


def before_training(bench: Bench) -> list[Finding]:
    """Look for what no training can mend: it costs nothing to look."""
    dropout = bench.config.training.caption_dropout
    findings = []
    if dropout >= DROPOUT_WORTH_A_LOOK:
        what = f"training.caption_dropout {dropout:g} hides the captions of {dropout:.0%} of the samples"
        findings.append(
            Finding(
                "training",
                "wrong" if dropout >= DROPOUT_WRONG else "look",
                f"{what}: the model hardly learns what words mean",
                "--set training.caption_dropout=0.1",
            )
        )
    std = bench.latents.std().item()
    if not torch.isfinite(bench.latents).all():
        findings.append(Finding("training", "wrong", "the latents are not finite", "use another VAE"))
    elif not LATENT_STD[0] <= std <= LATENT_STD[1]:
        what = f"the latents are not scaled: their standard deviation is {std:.2f}, and noise is made for 1"
        findings.append(Finding("training", "wrong", what, "let train choose the VAE (--vae auto), which scales it"))
    if alike(bench.text) and len({bench.store.captions(row) for row in bench.rows.tolist()}) > 1:
        what = "the text encoder says the same of different captions: words cannot steer such a model"
        findings.append(Finding("training", "wrong", what, "use another text encoder, or --text-encoder train"))
    return findings


def alike(text: TextStates) -> bool:
    """Say whether all prompts have the same states, within a hundredth of their size."""
    states = text.hidden_states if text.mask is None else text.hidden_states * text.mask[..., None]
    size: Tensor = states.flatten(1).norm(dim=1).max()
    return bool((states - states[:1]).flatten(1).norm(dim=1).max() <= ALIKE * size)


def verdict(bench: Bench, attempt: Attempt, again: Callable[[float], Attempt]) -> Finding:
    """Say whether the images were learned, and if not, what is to blame.

    again: makes the first quarter of the attempt once more, with the learning rate times a factor.
    """
    drawn, images = attempt.averaged, len(bench.rows)
    came_to = (
        f"after {attempt.steps:,} steps ({attempt.seconds:.0f} s) on {images} images, {drawn.found} of {images} captions "
        f"draw their own image, at {drawn.psnr:.1f} dB"
    )
    known = f"clean latents are known to {max(0.0, 1 - 2 * attempt.final):.0%}"
    if drawn.copied:
        return Finding("training", "OK", f"{came_to}: these settings learn")
    if attempt.steps < FEWEST_STEPS:
        return Finding("training", "look", f"{came_to}: so few steps say nothing", "give it more --minutes")
    if attempt.not_finite > attempt.steps // 10:
        what = f"{attempt.not_finite} of {attempt.steps} steps were not finite"
        calmer = again(1 / FACTOR)
        if calmer.not_finite == 0:
            return _rate(bench, f"{what}; with less learning rate none was", "too high", 1 / FACTOR)
        if precision_for(bench.compute.mixed_precision, bench.compute.device) == "no":
            mend = "look for numbers that are not finite in the encoders: try another --vae, another --text-encoder"
            return Finding("training", "wrong", what, mend)
        return Finding("training", "wrong", what, "--set training.mixed_precision=no")
    if attempt.raw.copied:
        what = (
            f"{came_to}, but the weights themselves draw {attempt.raw.found} at {attempt.raw.psnr:.1f} dB: the moving "
        )
        decay = bench.config.training.ema_decay
        mend = f"lower training.ema_decay (now {decay:g}: it remembers {1 / (1 - decay):,.0f} steps)"
        return Finding("training", "wrong", f"{what}average of the weights (EMA) lags too far behind", mend)
    if attempt.final <= KNOWN and images > 1 and attempt.mistaken < TOLD_APART * attempt.final:
        what = f"{came_to}, though {known}, and with the captions of other images as well: the text is not read"
        mend = "give the UNet cross-attention blocks (unet.down_block_types), lower training.caption_dropout"
        return Finding("training", "wrong", what, mend)
    if attempt.final <= KNOWN:
        sampling = bench.config.sampling
        what = f"{came_to}, though {known}: sampling does not fit what was trained"
        mend = (
            f"check sampling.scheduler ({sampling.scheduler}), sampling.num_inference_steps "
            f"({sampling.num_inference_steps}), objective.type and schedule: try --set sampling.scheduler=ddim"
        )
        return Finding("training", "wrong", what, mend)
    for factor, name in ((FACTOR, "too low"), (1 / FACTOR, "too high")):
        other = again(factor)
        if other.final < BETTER * attempt.early:
            what = (
                f"{came_to}; in {other.steps} steps, {factor:g} times the learning rate leaves an error of "
                f"{other.final:.2f}, not {attempt.early:.2f}"
            )
            return _rate(bench, what, name, factor)
    what = f"{came_to} (a rough copy has {ROUGH_COPY:g} dB), {known}"
    if attempt.final < BETTER * attempt.early:
        return Finding("training", "look", f"{what}, and it was still learning", "give it more --minutes")
    mend = "no learning rate helps: check the UNet's settings, begin with a recipe as it is, give more --minutes"
    return Finding("training", "wrong", what, mend)


def _rate(bench: Bench, what: str, name: str, factor: float) -> Finding:
    now = bench.config.training.learning_rate
    mend = f"--set training.learning_rate={now * factor:.1g} or near it (now {now:g})"
    return Finding("training", "wrong", f"{what}: the learning rate is {name}", mend)
