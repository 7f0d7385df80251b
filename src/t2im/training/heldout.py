"""Does the model learn, or only remember? And does it listen to the text? An exam on images it never trained on.

The training loss of diffusion jumps with every draw of timesteps, so it shows little. Here everything is fixed once: the
images, their captions, the noise levels and the noise. Two evaluations differ by the weights alone. The exam has two
parts, each a grid of rows:

The first asks what training asks, over timesteps spread evenly: `heldout_loss`, and the same by quarters of the time
axis, `heldout_loss_t0` (little noise: detail) to `heldout_loss_t3` (much noise: composition). Targets differ in size, so
it compares runs of one objective and one schedule only.

The second compares runs of any objective and any schedule: `heldout_x0` is the squared error of the clean latents that
the prediction implies, at fixed signal-to-noise ratios

    log SNR = log (alpha^2 / sigma^2) = -4, -3, ..., 4,       E |x_0 - x_0(x_t, t, text)|^2

for a noise level is its SNR, and all that schedules differ in is when they visit it (Kingma et al. 2021, arXiv
2107.00630, section 3). The same rows are asked again with the captions of other images, and with none. How much worse
it then gets is the text gain, the share of the error that only the right caption removes:

    text_gain = 1 - heldout_x0 / heldout_x0_shuffled

0 says that the text is not read, long before one can tell from pictures.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from t2im.batches import Batch, Indices, Store
from t2im.diffusion import objective
from t2im.diffusion.objective import Noised
from t2im.diffusion.schedule import Schedule
from t2im.seeds import seed_for
from t2im.shapes import Latents, PerSample, TextStates, Timesteps

LOSS_ROWS = 144
"""Pairs of an image and a timestep in the first part; few images are shown at several timesteps, of many a share."""
LOG_SNRS = (-4.0, -3.0, -2.0, -1.0, 0.0, 1.0, 2.0, 3.0, 4.0)
"""Noise levels of the second part: from the first outlines of a picture to its last details."""
ROWS_PER_LEVEL = 16
"""So both parts take 144 + 3 * 9 * 16 = 576 passes of a latent, however many images are held out."""
AT_ONCE = 48
QUARTERS = 4
SEED = seed_for(0, 0, "heldout")  # one exam for all runs, and none of training's noise is met again in it

Denoiser = Callable[[Latents, Timesteps, TextStates], Latents]


@dataclass(frozen=True)
class Rows:
    """Rows of a grid: which example, under the noise of which sample number, at which timestep."""

    examples: Indices
    samples: Indices
    timesteps: Timesteps

    def __len__(self) -> int:
        """Return the number of rows."""
        return len(self.samples)

    def __getitem__(self, rows: slice) -> "Rows":
        """Take some of the rows."""
        return Rows(self.examples[rows], self.samples[rows], self.timesteps[rows])


class HeldOut:
    """A fixed grid of held-out examples, captions, timesteps and noise."""

    def __init__(self, store: Store, examples: Indices, schedule: Schedule) -> None:
        self._store, self._schedule = store, schedule
        even = (torch.arange(LOSS_ROWS) * 2 + 1) * len(schedule) // (2 * LOSS_ROWS)
        self._loss_rows = _rows(examples, schedule.timesteps[0] + even, first_sample=0)
        levels = schedule.timestep_at_snr(torch.tensor(LOG_SNRS).exp())
        self._x0_rows = _rows(examples, levels.repeat_interleave(ROWS_PER_LEVEL), first_sample=LOSS_ROWS)
        self._others = dict(zip(examples.tolist(), others(store, examples).tolist(), strict=True))

    def measure(self, denoiser: Denoiser, device: torch.device) -> dict[str, float]:
        """Return all numbers of the exam by their names; a pure function of the weights."""
        loss = self._loss(denoiser, device)
        quarter = (self._loss_rows.timesteps - self._schedule.timesteps[0]) * QUARTERS // len(self._schedule)
        true, shuffled, empty = (error.mean().item() for error in self._x0_errors(denoiser, device))
        return {
            "heldout_loss": loss.mean().item(),
            **{f"heldout_loss_t{part}": loss[quarter == part].mean().item() for part in range(QUARTERS)},
            "heldout_x0": true,
            "heldout_x0_shuffled": shuffled,
            "heldout_x0_empty": empty,
            "text_gain": gain(true, shuffled),
            "text_gain_empty": gain(true, empty),
        }

    @torch.no_grad()
    def _loss(self, denoiser: Denoiser, device: torch.device) -> PerSample:
        losses: list[Tensor] = []
        for rows in _parts(self._loss_rows, AT_ONCE):
            batch, noised = self._noised(rows, device)
            prediction = denoiser(noised.latents, noised.timesteps, batch.text.to(device))
            losses.append(objective.per_sample_loss(prediction, noised).double().cpu())
        return torch.cat(losses)

    @torch.no_grad()
    def _x0_errors(self, denoiser: Denoiser, device: torch.device) -> Float[Tensor, "3 rows"]:
        """Return the errors of each row with its own caption, with another's and with the empty one."""
        errors: list[Tensor] = []
        for rows in _parts(self._x0_rows, AT_ONCE // 3):
            batch, noised = self._noised(rows, device)
            other = np.array([self._others[example] for example in rows.examples.tolist()])
            shuffled = replace(self._store.batch(other, rows.samples, SEED).text, sizes=batch.text.sizes)
            empty = self._store.batch(rows.examples, rows.samples, SEED, caption_dropout=1.0).text
            # One batch for the three questions: what is compared then went through the same kernels.
            text = TextStates.stack(batch.text, shuffled, empty).to(device)
            noisy, timesteps = noised.latents.repeat(3, 1, 1, 1), noised.timesteps.repeat(3)
            prediction = denoiser(noisy, timesteps, text).float()
            x0 = self._schedule.pred_original_sample(prediction, noisy, timesteps)
            error = F.mse_loss(x0, batch.latents.to(device).repeat(3, 1, 1, 1), reduction="none").flatten(1).mean(1)
            errors.append(error.view(3, -1).double().cpu())
        return torch.cat(errors, dim=1)

    def _noised(self, rows: Rows, device: torch.device) -> tuple[Batch, Noised]:
        batch = self._store.batch(rows.examples, rows.samples, SEED)
        noise = objective.draw_noise(batch.latents.shape[1:], rows.samples.tolist(), SEED)
        return batch, objective.noise_at(batch.latents.to(device), noise, rows.timesteps, self._schedule)


def others(store: Store, examples: Indices) -> Indices:
    """Return for each example another one that says something else: the same examples in another order.

    Sorted by caption and moved on by half, no example meets its own caption, unless more than half of all share it.
    """
    captions = [tuple(caption.strip().casefold() for caption in store.captions(index)) for index in examples.tolist()]
    order = np.array(sorted(range(len(examples)), key=captions.__getitem__), dtype=np.int64)
    partners = np.empty_like(examples)
    partners[order] = examples[np.roll(order, -(len(examples) // 2))]
    return partners


def gain(error: float, without: float) -> float:
    """Return the share of an error `without` help that the help removes; 0 where there is no error to remove."""
    return 1 - error / without if without else 0.0


def _rows(examples: Indices, timesteps: Timesteps, first_sample: int) -> Rows:
    """Give every timestep an example: all examples as often as each other, or as many as fit, evenly chosen."""
    count = len(timesteps)
    chosen = examples[np.arange(count) * len(examples) // count]
    # In an order that has nothing to do with the order of the images.
    order = torch.from_numpy(np.random.RandomState(count).permutation(count))
    return Rows(chosen, np.arange(first_sample, first_sample + count, dtype=np.int64), timesteps[order])


def _parts(rows: Rows, size: int) -> Iterator[Rows]:
    for start in range(0, len(rows), size):
        yield rows[start : start + size]
