"""The memory of a worker beside a fork of stock uvicorn, and beside a uvicorn process.

The fork is from a process that has imported uvicorn and its modules and has called `gc.freeze()`: without a manager,
no plain Python server shares more. All have the same application, h11 and asyncio, and run at the same time as their
like, because PSS divides shared pages among the processes.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from argparse import Namespace
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from . import answers, processes
from .baseline import BareLoop
from .project import Project
from .report import Row

_SIZE = 40
_MIB = 1024 * 1024

# Forks a server for each port in its arguments, and waits for the end of its input.
_FORKS = """
import gc, importlib, os, signal, sys
import uvicorn
from poolctl.worker.serving.uvicorn_parts import MODULES
for name in MODULES:
    importlib.import_module(name)
sys.path.insert(0, os.getcwd())
gc.collect()
gc.freeze()
for port in map(int, sys.argv[1:]):
    if os.fork() == 0:
        uvicorn.run("app:app", port=port, http="h11", loop="asyncio", log_level="warning", access_log=False)
        os._exit(0)
sys.stdin.read()
"""


def run(options: Namespace) -> Iterator[Row]:
    size = 3 if options.quick else _SIZE
    http = 'http = { implementation = "h11", loop = "asyncio" }'
    with Project(size, defaults=http) as project:
        project.run("start")
        workers = [
            pid for item in json.loads(project.run("list", "-o", "json"))["items"] for pid in item["pids"]
        ]
        answers.wait_for_all(project.ports)
        worker = _mebibytes(workers)
        project.run("stop")
        with _forks(project.directory, project.ports) as forks:
            fork = _mebibytes(forks)
        with BareLoop(project.directory, project.ports) as loop:
            loop.start_seconds()
            process = _mebibytes(loop.pids)
    yield Row(
        f"PSS of a worker, of {size} (asyncio and h11)",
        "MiB",
        worker,
        "fork of stock uvicorn",
        fork,
        most_ratio=1.05,
    )
    yield Row(f"PSS of a fork of stock uvicorn, of {size}", "MiB", fork, "a uvicorn process", process)


def _mebibytes(pids: list[int]) -> list[float]:
    return [processes.pss_bytes(pid) / _MIB for pid in pids]


@contextmanager
def _forks(directory: Path, ports: list[int]) -> Iterator[list[int]]:
    argv = [sys.executable, "-c", _FORKS, *map(str, ports)]
    with open(directory / "forks.log", "ab") as log:
        parent = subprocess.Popen(
            argv, cwd=directory, stdin=subprocess.PIPE, stdout=log, stderr=log, env=os.environ
        )
    pids: list[int] = []
    try:
        answers.wait_for_all(ports)
        pids = processes.children(parent.pid)
        yield pids
    finally:
        processes.end([*pids, parent.pid])
        assert parent.stdin is not None
        parent.stdin.close()
        parent.wait()
