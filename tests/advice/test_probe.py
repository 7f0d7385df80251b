"""What is measured is what happened: operations, seconds, bytes."""

import subprocess
import sys
import time
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from t2im.advice.probe import Memory, Trial, available_memory, flops_per_sample, trial
from t2im.config import OptimizationConfig
from t2im.training.trainer import Compute

CPU = torch.device("cpu")
WIDTH, OUT = 7, 13


class Lines:
    """A task that learns a matrix, slowly if asked to."""

    name, examples = "lines", 5

    def __init__(self, seconds=0.0, keep=0):
        torch.manual_seed(1)
        self.model, self.seconds, self.keep = nn.Linear(WIDTH, OUT, bias=False), seconds, keep
        self.asked = []

    def loss(self, model, samples):
        self.asked.append(samples)
        time.sleep(self.seconds * len(samples))
        torch.ones(self.keep * len(samples))
        return model(torch.ones(len(samples), WIDTH, requires_grad=True)).square().mean(), {}


def test_flops_of_a_matrix_are_two_for_each_weight_and_sample_forward_and_four_backward():
    assert flops_per_sample(Lines()) == 6 * WIDTH * OUT


def test_flops_of_attention_are_counted_on_the_cpu():
    class Attention(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.ones(1, 2, 11, 8))

        def forward(self):
            return nn.functional.scaled_dot_product_attention(self.weight, self.weight, self.weight)

    task = SimpleNamespace(model=Attention(), loss=lambda model, samples: (model().sum(), {}))
    products = 2 + 4  # q k^T and p v forward; each has two gradients
    assert flops_per_sample(task) == products * 2 * (2 * 11 * 8 * 11)


def test_speed_is_the_median_without_the_first_step():
    task = Lines(seconds=0.01)
    sleep, task.slow = task.loss, [0.3]

    def loss(model, samples):
        time.sleep(task.slow.pop() if task.slow else 0)
        return sleep(model, samples)

    task.loss = loss
    tried = trial(task, OptimizationConfig(), Compute("cpu"), batch_size=3, steps=3)
    assert tried.steps == 3
    assert 30 < tried.samples_per_second < 100.1


def test_a_trial_ends_with_its_time_and_takes_one_step_at_least():
    tried = trial(Lines(seconds=0.05), OptimizationConfig(), Compute("cpu"), batch_size=2, steps=50, seconds=0.01)
    assert tried.steps == 1


def test_a_trial_accumulates_as_the_run_will():
    task = Lines()
    trial(task, OptimizationConfig(), Compute("cpu"), batch_size=6, accumulation=3, steps=1)
    assert [len(samples) for samples in task.asked] == [2] * 6


def test_a_checkpoint_holds_weights_average_and_two_moments():
    tried = trial(Lines(), OptimizationConfig(), Compute("cpu"), batch_size=1, steps=1)
    assert tried.checkpoint_bytes == pytest.approx(4 * WIDTH * OUT * 4 + torch.get_rng_state().nbytes, abs=64)


needs_linux = pytest.mark.skipif(available_memory(CPU) is None, reason="this system does not tell")


@needs_linux
def test_peak_memory_sees_what_was_freed_again_and_forgets_older_peaks():
    """In a process of its own: in one that ran other tests, freed memory lies about that a block may fit into."""
    script = """
import torch
from t2im.advice.probe import PeakMemory

peaks = []
for size in (1, 60_000_000, 1):
    with PeakMemory(torch.device("cpu")) as memory:
        block = torch.ones(size)
        del block
    peaks.append(memory.peak)
print(*peaks)
"""
    printed = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout
    small, large, after = map(int, printed.split())
    assert large - small > 0.9 * 240e6
    assert after < large - 0.5 * 240e6


@needs_linux
@pytest.mark.slow  # quick, but only to be trusted in a process that ran nothing before
def test_memory_is_a_line_over_the_samples_at_once():
    task = Lines(keep=4_000_000)  # 16 MB for each sample
    one, other = (trial(task, OptimizationConfig(), Compute("cpu"), batch_size=size, steps=1) for size in (1, 9))
    memory = Memory.through(one, other)
    assert memory.per_sample == pytest.approx(16e6, rel=0.3)


def test_the_largest_batch_is_where_the_line_meets_nine_tenths_of_the_memory():
    memory = Memory.through(Trial(1, 1, 1.0, 1, 1100, 0), Trial(8, 4, 1.0, 1, 1400, 0))
    assert (memory.fixed, memory.per_sample) == (1000, 100)
    assert memory.largest_batch(5000) == 35
    assert memory.largest_batch(500) == 0


@pytest.mark.parametrize("peak", [None, 1100, 900])
def test_memory_that_did_not_grow_says_nothing_of_larger_batches(peak):
    assert Memory.through(Trial(1, 1, 1.0, 1, 1100, 0), Trial(8, 8, 1.0, 1, peak, 0)) is None
