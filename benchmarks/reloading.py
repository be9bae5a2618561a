"""Reload of one changed server among a thousand: its duration, and the longest answer of the supervisor meanwhile."""

from __future__ import annotations

import time
from argparse import Namespace
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from poolctl.control.client import Client

from .project import Project
from .report import Row

SERVERS = 1000
QUIET_SECONDS = 1.0


def run(options: Namespace) -> Iterator[Row]:
    servers = 30 if options.quick else SERVERS
    took: list[float] = []
    silence: list[float] = []
    quiet: list[float] = []
    with Project(1, disabled=servers - 1) as project, ThreadPoolExecutor(1) as beside:
        project.run("start")
        file = project.directory / "pool.toml"
        text = file.read_text()
        socket = next((project.directory / "run").glob("*/control.sock"))
        for number in range(options.repeat):
            quiet.append(_longest_answer(socket, _over(QUIET_SECONDS)))
            file.write_text(f'{text}\nenv = {{ NUMBER = "{number}" }}\n')  # of the last server
            reload = beside.submit(project.seconds, "reload")
            silence.append(_longest_answer(socket, reload.done))
            took.append(reload.result())
    yield Row(f"reload of one change among {servers}", "s", took, most=1)
    yield Row(
        "the supervisor's longest answer meanwhile", "ms", silence, "without a reload", quiet, most=50,
    )  # fmt: skip


def _over(seconds: float) -> Callable[[], bool]:
    end = time.perf_counter() + seconds
    return lambda: time.perf_counter() > end


def _longest_answer(socket: Path, is_over: Callable[[], bool]) -> float:
    """The longest of the answers to pings that follow each other, in milliseconds."""
    client, longest = Client(str(socket)), 0.0
    while not is_over():
        began = time.perf_counter()
        client.ping()
        longest = max(longest, time.perf_counter() - began)
    return 1000 * longest
