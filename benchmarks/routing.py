"""The gateway's route table: writing, opening, look-up and memory at many routes."""

from __future__ import annotations

import os
import random
import subprocess
import sys
import time
from argparse import Namespace
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path

from poolctl.routing.registry import TableRegistry
from poolctl.routing.route import Route, Target
from poolctl.routing.route_table import RouteTable, write_table

from .report import Row

ROUTES = 100_000
FEW = 10
PROCESSES = 10
CACHED_LOOKUPS = 20_000
OTHER_LOOKUPS = 2_000
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
assert table.find("h7.example.com", "/v1/users") is not None
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
        yield Row(
            "opening it, and the first look-up", "ms", [_open_milliseconds(large) for _ in range(repeat)], most=1.0
        )  # fmt: skip
        yield Row(
            f"look-up at {count} routes, cached", "µs",
            [_lookup_microseconds(large, ["h7.example.com"], CACHED_LOOKUPS) for _ in range(repeat)],
            f"at {FEW}", [_lookup_microseconds(small, ["h7.example.com"], CACHED_LOOKUPS) for _ in range(repeat)],
            most=2.0,
        )  # fmt: skip
        chosen = random.Random(1).sample(range(count), min(count, OTHER_LOOKUPS))
        for what, hosts in (
            ("each for the first time", [f"h{number}.example.com" for number in chosen]),
            ("hosts without a route", [f"x{number}.y.example.com" for number in chosen]),
        ):
            samples = [_lookup_microseconds(large, hosts, len(hosts)) for _ in range(repeat)]
            yield Row(f"look-up at {count} routes, {what}", "µs", samples)
        yield Row(
            f"look-up of an alias in a registry of {count} routes", "µs",
            [_alias_microseconds(large, count) for _ in range(repeat)],
            f"of {FEW}", [_alias_microseconds(small, FEW) for _ in range(repeat)],
            most=2.0,
        )  # fmt: skip
        own, resident = _memory_kib(large)
        yield Row(f"memory that each of {PROCESSES} readers has of its own", "KiB", own, most=1024)
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
    table = RouteTable(fd)
    table.find("h7.example.com", "/v1/users")
    seconds = time.perf_counter() - started
    table.close()
    return 1000 * seconds


def _lookup_microseconds(fd: int, hosts: list[str], count: int) -> float:
    with closing(RouteTable(fd)) as table:
        if len(hosts) == 1:
            table.find(hosts[0], "/v1/users")
            hosts *= count
        return 1e6 * _cpu_seconds(lambda: [table.find(host, "/v1/users") for host in hosts]) / count


def _cpu_seconds(work: Callable[[], object]) -> float:
    started = time.process_time()
    work()
    return time.process_time() - started


def _alias_microseconds(fd: int, count: int) -> float:
    with closing(RouteTable(fd)) as table:
        registry = TableRegistry(lambda: table)
        aliases = [f"r{number * 7919 % count}" for number in range(OTHER_LOOKUPS)]
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
