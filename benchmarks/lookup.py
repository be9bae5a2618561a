"""The pool as a Python object: look-up, filter and memory at many entries."""

from __future__ import annotations

import gc
import re
import time
import tracemalloc
from argparse import Namespace
from collections.abc import Callable, Iterator
from typing import Any

from poolctl import Field, Pool, Server, ServerConfig

from .report import Row

ENTRIES = 100_000
FEW = 1_000
LOADS = 20_000
# With a hundred times the entries the time is constant except for cache effects, unlike a linear search.
GROWTH = 5


def run(options: Namespace) -> Iterator[Row]:
    entries, repeat = 2000 if options.quick else ENTRIES, 2 * options.repeat
    servers = [Server(config) for config in _configs(entries)]
    pool, overhead_bytes = _pool_and_overhead(servers)
    few = Pool(servers[:FEW])
    yield Row(
        f"Pool.load at {entries}", "µs",
        [_load_microseconds(pool, servers) for _ in range(repeat)],
        f"at {FEW}", [_load_microseconds(few, servers[:FEW]) for _ in range(repeat)], most_ratio=GROWTH,
    )  # fmt: skip
    for what, regex in (("a tenth matches", "-[0-9]*7$"), ("nothing matches", "^x")):
        ours, bare = [], []
        for _ in range(repeat):
            bare.append(1000 * _seconds(lambda r=regex: _comprehension(servers, r)))
            ours.append(1000 * _seconds(lambda r=regex: pool.filter(Field.NAME, regex=r)))
        yield Row(f"Pool.filter at {entries}, {what}", "ms", ours, "comprehension", bare, most_ratio=1.2)
    yield Row("bytes a server that the pool adds", "B", [overhead_bytes / entries], most=150)


def _configs(count: int) -> Iterator[ServerConfig]:
    async def app(scope: Any, receive: Any, send: Any) -> None: ...

    for number in range(count):
        bind = f"10.{number >> 16}.{number >> 8 & 255}.{number & 255}:8080"
        yield ServerConfig(name=f"server-{number}", bind=bind, app=app)


def _pool_and_overhead(servers: list[Server]) -> tuple[Pool, int]:
    """A pool of existing servers, and its additional memory."""
    gc.collect()
    tracemalloc.start()
    before, _ = tracemalloc.get_traced_memory()
    pool = Pool(servers)
    gc.collect()
    after, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    return pool, after - before


def _load_microseconds(pool: Pool, servers: list[Server]) -> float:
    binds = [server.bind for server in servers[:: max(1, len(servers) // LOADS)]]
    seconds = _seconds(lambda: [pool.load(bind) for bind in binds])
    return 1e6 * seconds / len(binds)


def _comprehension(servers: list[Server], regex: str) -> dict[str, Server]:
    search = re.compile(regex).search
    return {server.bind: server for server in servers if search(server.name)}


def _seconds(work: Callable[[], Any]) -> float:
    gc.collect()
    started = time.perf_counter()
    work()
    return time.perf_counter() - started
