"""The logs of the pool's own processes: bounded while the process runs."""

from __future__ import annotations

import logging
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from poolctl.clock import RateLimit
from poolctl.keeper.spawn import MAX_SIZE_BYTES
from poolctl.logs.internal_log import InternalLog, InternalLogRotator
from tests.manual_clock import ManualClock
from tests.virtual_loop import VirtualLoop


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock(1000.0)


Log = tuple[logging.Logger, Callable[[], list[str]]]


@pytest.fixture
def log(clock: ManualClock, capfd: pytest.CaptureFixture[str]) -> Log:
    """A logger, and the lines that it has written since the last call, without their time."""
    logger = logging.Logger("test")
    logger.addHandler(InternalLog("/nowhere", clock))
    return logger, lambda: [line.split(" ", 3)[3] for line in capfd.readouterr().err.splitlines()]


@pytest.mark.slow
def test_a_flood_of_lines_that_differ_is_bounded_and_says_so(log: Log, clock: ManualClock) -> None:
    logger, lines = log
    for number in range(20_000):
        logger.error("%d %s", number, "x" * 60_000)
    written = lines()
    assert 100_000 < sum(map(len, written)) < 300_000
    assert written[0].endswith("… (55906 characters more)")
    clock.advance(60)
    logger.error("later")
    assert lines() == [f"{20_000 - len(written):,} messages were left out: too many at once", "later"]
    for number in range(2_000):
        logger.error("%d %s", number, "y" * 60_000)
    logger.handlers[0].close()
    *kept, last = lines()
    assert last == f"{2_000 - len(kept):,} messages were left out: too many at once"


@pytest.mark.slow
def test_the_file_is_put_aside_while_the_process_runs(tmp_path: Path) -> None:
    path = tmp_path / "supervisor.log"
    program = (
        "import itertools, logging, sys\n"
        "from poolctl.clock import Clock\n"
        "from poolctl.logs.internal_log import InternalLog\n"
        "class FastClock(Clock):\n"
        "    times = itertools.count(step=1000)\n"
        "    def monotonic(self): return float(next(self.times))\n"
        "logging.basicConfig(handlers=[InternalLog(sys.argv[1], FastClock())])\n"
        "for number in range(1000): logging.error('%d %s', number, 'x' * 4000)\n"
        "print('printed')\n"
    )
    with path.open("ab") as output:
        subprocess.run([sys.executable, "-c", program, str(path)], check=True, stdout=output, stderr=output)
    assert sorted(os.listdir(tmp_path)) == ["supervisor.log", "supervisor.log.1"]
    assert all((tmp_path / name).stat().st_size < MAX_SIZE_BYTES + 8192 for name in os.listdir(tmp_path))
    assert path.read_text().endswith("printed\n")
    assert "ERROR 999 xxx" in path.read_text()


def test_an_allowance_fills_up_again_with_time() -> None:
    allowance = RateLimit(10, 2)
    assert [allowance.take(5, 0.0) for _ in range(3)] == [True, True, False]
    assert not allowance.take(5, 2.0)
    assert allowance.take(5, 2.5)
    assert allowance.take(10, 1000.0)
    assert not allowance.take(1, 999.0), "a clock that is set back gives nothing"


def test_large_logs_are_rotated_once_a_minute_until_closed(tmp_path: Path) -> None:
    directory = tmp_path / "runtime"

    def write() -> None:
        directory.mkdir(exist_ok=True)
        for name in ("helpers.log", "other.txt"):
            (directory / name).write_bytes(b"x" * (MAX_SIZE_BYTES + 1))

    def is_rotated() -> bool:
        assert (directory / "other.txt").stat().st_size
        return not (directory / "helpers.log").stat().st_size

    async def make() -> InternalLogRotator:
        return InternalLogRotator(str(directory))

    write()
    loop = VirtualLoop()
    logs = loop.run_until_complete(make())
    assert is_rotated()
    write()
    loop.pass_time(59)
    assert not is_rotated()
    loop.pass_time(2)
    assert is_rotated()
    shutil.rmtree(directory)
    loop.pass_time(60)
    write()
    loop.pass_time(60)
    assert is_rotated()
    logs.close()
    write()
    loop.pass_time(60)
    assert not is_rotated()
    loop.close()
