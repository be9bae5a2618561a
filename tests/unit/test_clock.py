"""Time as a parameter."""

from __future__ import annotations

import pytest

from poolctl.clock import ManualClock, SystemClock


def test_the_systems_time_goes_on() -> None:
    clock = SystemClock()
    assert clock.monotonic() <= clock.monotonic()
    assert clock.time() > 1_700_000_000


def test_manual_clock_moves_only_when_advanced() -> None:
    clock = ManualClock()
    began = clock.time()
    clock.advance(3600)
    assert (clock.monotonic(), clock.time() - began) == (3600.0, 3600.0)


def test_time_does_not_go_back() -> None:
    with pytest.raises(ValueError, match="does not go back"):
        ManualClock().advance(-1)
