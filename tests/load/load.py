"""A load in a process of its own, steered from here: start, look, stop."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from .report import Report

ROOT = Path(__file__).parents[2]
FIRST_ANSWER_SECONDS = 30.0


class Load:
    """`with Load([port]) as load: …` and then `load.stop()`, or `load.report` after the block.

    `targets` are ports of 127.0.0.1, "HOST:PORT", "[V6]:PORT" or "unix:/path"; connections are spread over them. The
    other options are those of `Settings`. A request that is not answered at the stop is waited for, up to `patience`.
    """

    def __init__(self, targets: Iterable[int | str], mode: str = "keep_alive", **options: Any) -> None:
        spelled = [f"127.0.0.1:{target}" if isinstance(target, int) else target for target in targets]
        self.settings: dict[str, Any] = {"targets": spelled, "mode": mode, **options}
        self.report = Report()
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Load:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start(self, *, answered: bool = True) -> None:
        """Begin; returns when there has been a first answer or failure (`answered=False`: at once)."""
        ours, theirs = socket.socketpair()
        environment = {name: value for name, value in os.environ.items() if not name.startswith("COV")}
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-m", __package__, "--steered", str(theirs.fileno()), json.dumps(self.settings)],
                cwd=ROOT, env=environment, pass_fds=[theirs.fileno()], stdin=subprocess.DEVNULL,
            )  # fmt: skip
        ours.settimeout(FIRST_ANSWER_SECONDS + self.settings.get("patience", 30.0))
        self._sock, self._lines = ours, ours.makefile("rb")
        if answered:
            self._ask("begun")

    def look(self) -> Report:
        """What it has counted so far."""
        return self._ask("report")

    def stop(self) -> Report:
        """Begin nothing new, wait for what is under way; the final counts. Again: the same."""
        if self._process is not None:
            try:
                self.report = self._ask("stop")
            finally:
                self._lines.close()
                self._sock.close()
                try:
                    self._process.wait(5)
                except subprocess.TimeoutExpired:
                    self._process.kill()
                    self._process.wait()
                self._process = None
        return self.report

    def _ask(self, word: str) -> Report:
        self._sock.sendall(word.encode() + b"\n")
        line = self._lines.readline()
        if not line:
            raise RuntimeError("the process of the load has ended; its words are on stderr")
        return Report(**json.loads(line))
