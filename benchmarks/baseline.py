"""The baseline for poolctl: a plain loop that launches one `uvicorn` process per server."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

from . import answers, processes


class BareLoop:
    """`with BareLoop(directory, ports) as loop`: N processes of `uvicorn app:app`, killed at the latest on exit."""

    def __init__(self, directory: Path, ports: list[int]) -> None:
        self.directory = directory
        self.ports = ports
        self.children: list[subprocess.Popen[bytes]] = []

    def __enter__(self) -> BareLoop:
        return self

    def __exit__(self, *_: object) -> None:
        processes.end(self.pids)
        for child in self.children:
            child.wait()

    @property
    def pids(self) -> list[int]:
        return [child.pid for child in self.children]

    def start_seconds(self) -> float:
        """The time from the first launch until every server has answered a request."""
        started = time.perf_counter()
        with open(self.directory / "uvicorn.log", "ab") as log:
            for port in self.ports:
                argv = [sys.executable, "-m", "uvicorn", "app:app", "--port", str(port)]
                child = subprocess.Popen(
                    argv, cwd=self.directory, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=os.environ
                )
                self.children.append(child)
        answers.wait_for_all(self.ports)
        return time.perf_counter() - started

    def stop_seconds(self) -> float:
        """The time from the first SIGTERM until every process has exited."""
        started = time.perf_counter()
        for child in self.children:
            child.terminate()
        for child in self.children:
            child.wait()
        self.children.clear()
        return time.perf_counter() - started
