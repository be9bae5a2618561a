"""The route table that applications read: writing, opening, look-up and memory at many routes."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from argparse import Namespace
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from poolctl.routing.registry import TableRegistry
from poolctl.routing.route import Route, Target
from poolctl.routing.route_table import RouteTable, write_table

from .report import Row

ROUTES = 100_000
FEW = 10
PROCESSES = 10
LOOKUPS = 200
# Opens the table, looks up one route, and reports the increase of private and of mapped memory.
_READER = """
import sys
from poolctl.routing.route_table import RouteTable

def memory_kib():
    lines = [line.split() for line in open("/proc/self/smaps_rollup")]
    sizes = {line[0]: int(line[1]) for line in lines if line[-1] == "kB"}
    return sizes["Private_Clean:"] + sizes["Private_Dirty:"], sizes["Rss:"]

before = memory_kib()
table = RouteTable(int(sys.argv[1]))
assert table.get("r7") is not None
print(*(after - earlier for earlier, after in zip(before, memory_kib())), flush=True)
sys.stdin.read()
"""


def run(options: Namespace) -> Iterator[Row]:
    count, repeat = 1000 if options.quick else ROUTES, options.repeat
    few, many = _routes(FEW), _routes(count)
    written = []
    for _ in range(repeat):
        started = time.process_time()
        os.close(write_table(many, 1))
        written.append(time.process_time() - started)
    yield Row(f"writing a table of {count} routes", "s CPU", written, most=1.5)
    with _table(few) as small, _table(many) as large:
        yield Row("size of the table", "MB", [os.fstat(large).st_size / 1e6])
        yield Row("opening it", "ms", [_open_milliseconds(large) for _ in range(repeat)])
        yield Row(
            f"look-up of an alias in a registry of {count} routes", "µs",
            [_alias_microseconds(large, count) for _ in range(repeat)],
            f"of {FEW}", [_alias_microseconds(small, FEW) for _ in range(repeat)],
        )  # fmt: skip
        own, resident = _memory_kib(large)
        yield Row(f"memory that each of {PROCESSES} readers has of its own", "KiB", own)
        yield Row(f"memory that each of {PROCESSES} readers maps", "KiB", resident)


def _routes(count: int) -> list[Route]:
    return [
        Route(alias=f"r{n}", host=f"h{n}.example.com", path="/v1", to=(Target(server=f"s{n}"),)) for n in range(count)
    ]  # fmt: skip


@contextmanager
def _table(routes: list[Route]) -> Iterator[int]:
    fd = write_table(routes, 1)
    try:
        yield fd
    finally:
        os.close(fd)


def _open_milliseconds(fd: int) -> float:
    started = time.perf_counter()
    RouteTable(fd)
    return 1000 * (time.perf_counter() - started)


def _alias_microseconds(fd: int, count: int) -> float:
    table = RouteTable(fd)
    registry = TableRegistry(lambda: table)
    aliases = [f"r{number * 7919 % count}" for number in range(LOOKUPS)]
    began = time.process_time()
    for alias in aliases:
        assert registry.get(alias) is not None
    return (time.process_time() - began) / len(aliases) * 1e6


def _memory_kib(fd: int) -> tuple[list[float], list[float]]:
    """The private memory and resident pages that opening the table adds to each of several processes."""
    readers = [
        subprocess.Popen(
            [sys.executable, "-c", _READER, str(fd)], pass_fds=[fd], cwd=Path(__file__).parent.parent,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )
        for _ in range(PROCESSES)
    ]  # fmt: skip
    try:
        lines = [reader.stdout.readline().split() for reader in readers if reader.stdout]
    finally:
        for reader in readers:
            reader.communicate()
    return [float(own) for own, _ in lines], [float(resident) for _, resident in lines]
