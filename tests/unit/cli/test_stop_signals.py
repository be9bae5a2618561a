"""Signals that end a `run`: none is lost, whenever it comes."""

from __future__ import annotations

import os
import signal
import threading

import pytest

from poolctl.cli.run_signals import StopSignals


def test_a_signal_that_came_just_before_the_wait_ends_the_wait_in_the_kernel() -> None:
    reads, writes = os.pipe()
    handled: list[int] = []
    with StopSignals() as signals:
        # As if the handler had run between the last instruction and poll(2): only the pipe tells of it.
        signal.signal(signal.SIGTERM, lambda number, frame: handled.append(number))
        os.kill(os.getpid(), signal.SIGTERM)
        closing = threading.Timer(0.1, os.close, [reads])
        closing.start()
        signals.wait_for_end(writes)
        closing.join()
        assert os.get_blocking(signals.wakeup)
    os.close(writes)
    assert handled == [signal.SIGTERM]


def test_a_signal_during_the_wait_raises() -> None:
    reads, writes = os.pipe()
    interrupt = threading.Timer(0.1, signal.pthread_kill, [threading.main_thread().ident, signal.SIGINT])
    with StopSignals() as signals:
        interrupt.start()
        with pytest.raises(KeyboardInterrupt):
            signals.wait_for_end(writes)
        interrupt.join()
    os.close(reads)
    os.close(writes)
    assert signal.set_wakeup_fd(-1) == -1


def test_a_signal_that_another_thread_has_taken_raises_too() -> None:
    reads, writes = os.pipe()
    over = threading.Event()
    other = threading.Thread(target=over.wait)
    other.start()
    with StopSignals() as signals:
        interrupt = threading.Timer(0.1, signal.pthread_kill, [other.ident, signal.SIGINT])
        interrupt.start()
        with pytest.raises(KeyboardInterrupt):
            signals.wait_for_end(writes)
        interrupt.join()
    over.set()
    other.join()
    os.close(reads)
    os.close(writes)
