"""The processes of one peer: a control group, which also counts the processor time of those that have ended."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from benchmarks.processes import pss_bytes

_ROOTS = (Path("/sys/fs/cgroup/cpuacct"), Path("/sys/fs/cgroup"), Path("/sys/fs/cgroup/unified"))
_END_SECONDS = 30.0


class ControlGroup:
    """`with ControlGroup(name) as group`: kills what is left. Raises OSError where groups may not be made."""

    def __init__(self, name: str) -> None:
        usable = [
            root for root in _ROOTS if (root / "cpuacct.usage").exists() or (root / "cpu.stat").exists()
        ]
        if not usable:
            raise OSError("processor time cannot be counted: there is no control group for it")
        self._parent_reference = usable[0]
        self._path = self._parent_reference / f"poolctl-peers-{os.getpid()}-{name}"

    def __enter__(self) -> ControlGroup:
        self._path.mkdir()
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()
        self._path.rmdir()

    @property
    def pids(self) -> list[int]:
        return [int(line) for line in (self._path / "cgroup.procs").read_text().split()]

    def processor_seconds(self) -> float:
        """Of all processes that are, or were, in the group."""
        usage = self._path / "cpuacct.usage"
        if usage.exists():
            return int(usage.read_text()) / 1e9
        return int((self._path / "cpu.stat").read_text().split()[1]) / 1e6

    def memory_bytes(self) -> int:
        """Of all its processes, with shared pages divided among their users (PSS)."""
        total = 0
        for pid in self.pids:
            with contextlib.suppress(OSError):
                total += pss_bytes(pid)
        return total

    def popen(self, argv: Sequence[str], **options: Any) -> subprocess.Popen[bytes]:
        """Start a process in the group; its descendants are in it too."""
        with self._entered():
            return subprocess.Popen(argv, stdin=subprocess.DEVNULL, **options)

    def run(self, argv: Sequence[str], **options: Any) -> float:
        """The seconds that a command took. Raises RuntimeError with its output if it fails."""
        started = time.perf_counter()
        process = self.popen(argv, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, **options)
        output, _ = process.communicate(timeout=300)
        if process.returncode:
            raise RuntimeError(f"{' '.join(argv)}: exit {process.returncode}: {output.decode()[-2000:]}")
        return time.perf_counter() - started

    @contextlib.contextmanager
    def _entered(self) -> Iterator[None]:
        (self._path / "cgroup.procs").write_text(str(os.getpid()))
        try:
            yield
        finally:
            (self._parent_reference / "cgroup.procs").write_text(str(os.getpid()))

    def wait_until_empty(self) -> None:
        """Raises TimeoutError when processes are left."""
        deadline = time.monotonic() + _END_SECONDS
        while self.pids:
            if time.monotonic() > deadline:
                raise TimeoutError(f"{self._path.name}: {len(self.pids)} processes are left")
            time.sleep(0.005)

    def kill(self) -> None:
        """Kill everything in the group."""
        while pids := self.pids:
            for pid in pids:
                with contextlib.suppress(OSError):
                    os.kill(pid, signal.SIGKILL)
            time.sleep(0.01)
