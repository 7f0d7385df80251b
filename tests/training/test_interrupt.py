"""Signals, as a terminal and a batch system send them, to a process that trains for ever."""

import os
import signal
import time

import pytest

from t2im.training.interrupt import Interruption


def child(work):
    """Fork a process that works; return its id and a pipe on which it says what happens."""
    reading, writing = os.pipe()
    pid = os.fork()
    if pid:
        os.close(writing)
        return pid, os.fdopen(reading)
    try:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        os._exit(work(lambda text: os.write(writing, f"{text}\n".encode())))
    except KeyboardInterrupt:
        os._exit(99)
    os._exit(98)


def train(say, seconds=0.0):
    """Take steps until asked to stop, then save for a while."""
    with Interruption(lambda text: say("asked")) as interruption:
        while not interruption.requested:
            say("step")
            time.sleep(0.01)
        say("saving")
        time.sleep(seconds)
        say("saved")
    return interruption.exit_code


@pytest.mark.filterwarnings("ignore:.*multi-threaded")
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_the_first_signal_finishes_the_step_and_saves(number, code):
    pid, said = child(train)
    with said:
        assert said.readline() == "step\n"
        os.kill(pid, number)
        assert said.read().replace("step\n", "") == "asked\nsaving\nsaved\n"
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == code


@pytest.mark.filterwarnings("ignore:.*multi-threaded")
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 99), (signal.SIGTERM, -signal.SIGTERM)])
def test_the_second_signal_stops_at_once(number, code):
    pid, said = child(lambda say: train(say, seconds=60))
    with said:
        assert said.readline() == "step\n"
        os.kill(pid, signal.SIGTERM)
        while said.readline() != "saving\n":
            pass
        started = time.monotonic()
        os.kill(pid, number)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == code
        assert time.monotonic() - started < 10 and said.read() == ""


def test_afterwards_signals_do_what_they_did_before():
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    with Interruption(lambda text: None) as interruption:
        assert not interruption.requested and interruption.exit_code == 0
        assert signal.getsignal(signal.SIGINT) != before[0]
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before
