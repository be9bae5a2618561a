"""The logs of the pool's own processes: bounded while the process runs."""

from __future__ import annotations

import asyncio
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
from tests.descriptors import free_descriptors, no_descriptor_left
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
def test_a_line_that_is_repeated_is_counted(log: Log, clock: ManualClock) -> None:
    logger, lines = log
    for _ in range(12_346):
        logger.error("no %s", "way")
    logger.error("another")
    assert lines() == ["no way", "the last message was repeated 12,345 times", "another"]
    logger.error("another")
    clock.advance(11)
    logger.error("another")
    assert lines() == ["the last message was repeated 2 times"], "while it goes on, too"
    logger.error("another")
    logger.handlers[0].close()
    assert lines() == ["the last message was repeated 1 time"]


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
def test_a_flood_of_pairs_is_bounded_as_well(log: Log) -> None:
    logger, lines = log
    for number in range(20_000):
        logger.error("%d", number // 2)
    assert sum(map(len, lines())) < 300_000


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


async def rotated(path: Path) -> None:
    path.write_bytes(b"x" * (MAX_SIZE_BYTES + 1))  # noqa: ASYNC240
    async with asyncio.timeout(60):
        while path.stat().st_size:  # noqa: ASYNC240
            await asyncio.sleep(0.01)


async def test_log_is_rotated_after_its_directory_was_created_again(tmp_path: Path) -> None:
    directory = tmp_path / "runtime"
    directory.mkdir()
    logs = InternalLogRotator(str(directory))
    await rotated(directory / "helpers.log")
    await rotated(directory / "logger.log")
    shutil.rmtree(directory)
    await asyncio.sleep(0.2)  # it may be missing for a while
    directory.mkdir()
    await rotated(directory / "helpers.log")
    logs.close()


def large(path: Path) -> Path:
    path.write_bytes(b"x" * (MAX_SIZE_BYTES + 1))
    return path


def test_logs_are_looked_at_again_a_second_after_a_watch_was_impossible(tmp_path: Path) -> None:
    first, other = large(tmp_path / "first.log"), large(tmp_path / "other.txt")
    loop = VirtualLoop()

    async def make() -> InternalLogRotator:
        with free_descriptors(0):
            return InternalLogRotator(str(tmp_path))

    logs = loop.run_until_complete(make())
    loop.pass_time(0.9)
    assert first.stat().st_size
    loop.pass_time(0.2)
    assert (first.stat().st_size, other.stat().st_size) == (0, MAX_SIZE_BYTES + 1)
    logs.close()
    loop.close()


def test_watch_that_is_closed_leaves_no_descriptor_and_rotates_nothing_more(tmp_path: Path) -> None:
    async def main() -> None:
        logs = InternalLogRotator(str(tmp_path))
        large(tmp_path / "a.log")
        logs.close()
        logs.close()

    with no_descriptor_left():
        loop = VirtualLoop()
        loop.run_until_complete(main())
        loop.pass_time(100)
        loop.close()
    assert os.listdir(tmp_path) == ["a.log"]
