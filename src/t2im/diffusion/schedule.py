"""How much noise is there at time t?

A noisy picture is a mixture, and two numbers say of what: how much of the picture is left, and how much noise is in it.

    x_t = alpha_t x_0 + sigma_t eps,    eps ~ N(0, 1)

Two paths lead from picture to noise. On the curved one alpha^2 + sigma^2 = 1, so x_t keeps its variance; its steps come
from a table of betas (Ho et al. 2020, arXiv 2006.11239). On the straight one alpha = 1 - sigma and sigma = t / T: the
rectified flow (Liu et al. 2022, arXiv 2209.03003; Esser et al. 2024, arXiv 2403.03206).

What the UNet predicts is another mixture of the same two, so that x_0 can always be worked out from it:

    target = p_t x_0 + q_t eps          epsilon        p, q = 0, 1             the noise
                                        v_prediction   p, q = -sigma, alpha    the direction of the curved path at t
                                        sample         p, q = 1, 0             the picture
                                        flow           p, q = -1, 1            the direction of the straight path

Two equations in two unknowns: this file sets them up and solves them. Training and samplers are built on it alone.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from t2im.config import PredictionType, ScheduleConfig
from t2im.diffusion.schedulers import Scheduler, new_scheduler
from t2im.errors import UsageError
from t2im.shapes import Latents, PerSample, Times, Timesteps


class CurvedPath:
    """The variance-preserving path of a `ScheduleConfig`: tables of length T on the CPU, in float64.

    >>> path = CurvedPath(ScheduleConfig())
    >>> [round(path.alphas_cumprod[t].item(), 4) for t in (0, 500, 999)]
    [0.9991, 0.2763, 0.0047]
    """

    def __init__(self, config: ScheduleConfig) -> None:
        self.betas = _betas(config)
        self.alphas_cumprod = torch.cumprod(1 - self.betas, dim=0)
        """alpha_bar_t = alpha_t^2: the share of the picture's variance that is left."""
        self.timesteps = range(config.num_train_timesteps)
        """0 is almost the clean picture, T - 1 almost pure noise."""

    def alpha_sigma(self, timesteps: Timesteps) -> tuple[PerSample, PerSample]:
        """Return sqrt(alpha_bar_t) and sqrt(1 - alpha_bar_t) (Ho et al. 2020, eq. 4)."""
        alpha_bar = self.alphas_cumprod[timesteps]
        return alpha_bar.sqrt(), (1 - alpha_bar).sqrt()


@dataclass(frozen=True)
class StraightPath:
    """The straight line from picture to noise; it needs no table, so a sampler may stand anywhere on it."""

    num_train_timesteps: int

    @property
    def timesteps(self) -> range:
        """Return 1 to T, where training visits it: at t = 0 there is no noise to learn from, T is pure noise."""
        return range(1, self.num_train_timesteps + 1)

    def alpha_sigma(self, timesteps: Times) -> tuple[PerSample, PerSample]:
        """Return 1 - sigma and sigma = t / T."""
        sigma = timesteps.double() / self.num_train_timesteps
        return 1 - sigma, sigma


class Schedule:
    """A path from picture to noise, and what is predicted on it.

    The methods take latents on any device. Timesteps are cheapest on the CPU, where the tables are.
    """

    def __init__(self, config: ScheduleConfig, prediction_type: PredictionType = "epsilon") -> None:
        self.config = config
        self.prediction_type = prediction_type
        flow = prediction_type == "flow"
        self.path: CurvedPath | StraightPath = StraightPath(config.num_train_timesteps) if flow else CurvedPath(config)

    def __len__(self) -> int:
        """Return T, the number of timesteps."""
        return self.config.num_train_timesteps

    @property
    def timesteps(self) -> range:
        """Return the timesteps of training, from the least noise to the most: 0 to T - 1, for flow 1 to T."""
        return self.path.timesteps

    def alpha_sigma(self, timesteps: Times) -> tuple[PerSample, PerSample]:
        """Return how much picture and how much noise there is at each time, in float64 on the CPU.

        Raises: UsageError for a time outside the schedule.
        """
        timesteps = timesteps.cpu()
        last = self.timesteps[-1]
        # A negative one must not wrap round to the noisy end of a table, as indexing alone would have it.
        wrong = timesteps[(timesteps < 0) | (timesteps > last)]
        if len(wrong):
            raise UsageError(
                f"timestep {wrong[0].item():g} is outside the schedule; timesteps are {self.timesteps[0]} to {last}."
            )
        return self.path.alpha_sigma(timesteps)

    def snr(self, timesteps: Times) -> PerSample:
        """Return the signal-to-noise ratio alpha^2 / sigma^2: large where t is small, near 0 at the end."""
        alpha, sigma = self.alpha_sigma(timesteps)
        return (alpha / sigma).square().float().to(timesteps.device)

    def timestep_at_snr(self, snr: PerSample) -> Timesteps:
        """Return the timesteps whose log-SNR is nearest to that of each given ratio."""
        steps = torch.tensor(self.timesteps)
        # Ratios below the floor are pure noise; their logarithms would be too far from everything.
        there, wanted = (ratio.cpu().double().clamp(1e-12).log() for ratio in (self.snr(steps), snr))
        return steps[(there - wanted[:, None]).abs().argmin(dim=1)].to(snr.device)

    def target_mix(self, timesteps: Times) -> tuple[PerSample, PerSample]:
        """Return p and q of the target p x_0 + q eps, in float64 on the CPU (v: Salimans & Ho 2022, arXiv 2202.00512)."""
        alpha, sigma = self.alpha_sigma(timesteps)
        zero, one = torch.zeros_like(alpha), torch.ones_like(alpha)
        match self.prediction_type:
            case "epsilon":
                return zero, one
            case "v_prediction":
                return -sigma, alpha
            case "sample":
                return one, zero
            case "flow":
                return -one, one

    def add_noise(self, latents: Latents, noise: Latents, timesteps: Times) -> Latents:
        """Jump from clean latents to time t in one step: x_t = alpha_t x_0 + sigma_t eps."""
        return _mix(self.alpha_sigma(timesteps), latents, noise)

    def target(self, latents: Latents, noise: Latents, timesteps: Times) -> Latents:
        """Return what the UNet shall predict: p_t x_0 + q_t eps."""
        return _mix(self.target_mix(timesteps), latents, noise)

    def pred_original_sample(self, prediction: Latents, noisy: Latents, timesteps: Times) -> Latents:
        """Return the clean latents x_0 that a prediction at x_t = `noisy` implies.

        x_0 = (q x_t - sigma prediction) / (alpha q - sigma p)
        """
        (alpha, sigma), (p, q) = self.alpha_sigma(timesteps), self.target_mix(timesteps)
        determinant = alpha * q - sigma * p
        return _mix((q / determinant, -sigma / determinant), noisy, prediction)

    def noise_from(self, prediction: Latents, noisy: Latents, timesteps: Times) -> Latents:
        """Return the noise eps that a prediction at x_t = `noisy` implies.

        eps = (alpha prediction - p x_t) / (alpha q - sigma p)
        """
        (alpha, sigma), (p, q) = self.alpha_sigma(timesteps), self.target_mix(timesteps)
        determinant = alpha * q - sigma * p
        return _mix((-p / determinant, alpha / determinant), noisy, prediction)

    def scheduler(self, name: str) -> Scheduler:
        """Build one of diffusers' schedulers for this schedule, so that no sampler can disagree with what was trained.

        Raises: UsageError if the name is unknown, or if that sampler cannot run this schedule.
        """
        return new_scheduler(name, self.config, self.prediction_type)


def _mix(shares: tuple[PerSample, PerSample], first: Latents, second: Latents) -> Latents:
    """Add two latents in the given shares, one pair for each sample."""
    a, b = (share.to(first.dtype).to(first.device)[:, None, None, None] for share in shares)
    return a * first + b * second


def _betas(config: ScheduleConfig) -> Tensor:
    """Return beta_t = 1 - alpha_bar_t / alpha_bar_(t-1) for all t, in float64."""
    steps, start, end = config.num_train_timesteps, config.beta_start, config.beta_end
    match config.beta_schedule:
        case "linear":  # Ho et al. 2020, section 4
            betas = torch.linspace(start, end, steps, dtype=torch.float64)
        case "scaled_linear":  # linear in sqrt(beta), as in Stable Diffusion (Rombach et al. 2022)
            betas = torch.linspace(start**0.5, end**0.5, steps, dtype=torch.float64) ** 2
        case "squaredcos_cap_v2":  # Nichol & Dhariwal 2021, eq. 17
            edges = torch.arange(steps + 1, dtype=torch.float64) / steps
            alpha_bar = torch.cos((edges + 0.008) / 1.008 * math.pi / 2) ** 2
            betas = (1 - alpha_bar[1:] / alpha_bar[:-1]).clamp(max=0.999)
    return _rescale_zero_terminal_snr(betas) if config.rescale_betas_zero_snr else betas


def _rescale_zero_terminal_snr(betas: Tensor) -> Tensor:
    """Shift and scale sqrt(alpha_bar) so that its end is exactly 0 and its start stays (Lin et al. 2023, algorithm 1).

    Stable Diffusion's own table ends at sqrt(alpha_bar) = 0.068: a little of every training picture's mean brightness
    shines through, and sampling, which starts from pure noise, then always returns to middling grey. arXiv 2305.08891
    """
    root = torch.cumprod(1 - betas, dim=0).sqrt()
    root = (root - root[-1]) * (root[0] / (root[0] - root[-1]))
    alpha_bar = root**2
    return 1 - alpha_bar / torch.cat([alpha_bar.new_ones(1), alpha_bar[:-1]])
