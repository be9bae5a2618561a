"""What a manager needs to start, stop, restart and watch N servers, and what its clients lose meanwhile."""

from __future__ import annotations

import contextlib
import os
import signal
import tempfile
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path

from benchmarks import answers
from benchmarks.processes import pss_bytes
from tests.load import Load, Report

from .control_group import ControlGroup
from .managers import Manager

Figures = dict[str, float | str | None]
IDLE_SECONDS = 10.0
AFTER_RESTART_SECONDS = 1.0
RECOVERY_SECONDS = 30.0


def manager_figures(kind: type[Manager], servers: int) -> Figures:
    """Times and processor time are seconds, memory is bytes, and the load's figures are requests.

    What a tool cannot do is None.
    """
    found: Figures = {}
    with (
        tempfile.TemporaryDirectory(prefix="poolpeers-", dir="/tmp") as directory,
        ControlGroup(kind.name) as group,
    ):
        manager = kind(Path(directory), answers.free_ports(servers), group)

        def timed(what: str, act: Callable[[], object], done: Callable[[], object]) -> None:
            used, started = group.processor_seconds(), time.perf_counter()
            act()
            done()
            found[f"{what} seconds"] = time.perf_counter() - started
            found[f"{what} processor seconds"] = group.processor_seconds() - used

        def all_answer() -> None:
            answers.wait_for_all(manager.ports)

        timed("start", manager.start, all_answer)
        found["memory bytes"] = group.memory_bytes()
        found["manager memory bytes"] = sum(map(pss_bytes, manager.manager_pids()))
        used = group.processor_seconds()
        time.sleep(IDLE_SECONDS)
        found["idle percent of a core"] = 100 * (group.processor_seconds() - used) / IDLE_SECONDS
        if manager.status:
            timed("status", lambda: manager.run(*manager.status), lambda: None)
        if manager.restart:
            before = {port: _pid(port) for port in manager.ports}
            timed("restart", lambda: manager.run(*manager.restart), lambda: _all_replaced(before))
            report = _restarted_under_load(manager)
            found |= {"restart requests": report.sent, "restart failed": report.failed}
        timed("stop", manager.stop, group.wait_until_empty)
        manager.start()
        all_answer()
        found |= _crash(manager)
        manager.stop()
        group.wait_until_empty()
        found |= _manager_killed(manager)
    return found


def _restarted_under_load(manager: Manager) -> Report:
    load = Load(manager.ports, mode="new_connection", connections=8, pause=0.005, echo=False)
    load.start()
    manager.run(*manager.restart)
    time.sleep(AFTER_RESTART_SECONDS)
    answers.wait_for_all(manager.ports)
    return load.stop()


def _crash(manager: Manager) -> Figures:
    """A server that is killed under load: until another process answers, and what failed."""
    port = manager.ports[0]
    pid = _pid(port)
    load = Load([port], mode="new_connection", connections=2, pause=0.005, echo=False)
    load.start()
    started = time.perf_counter()
    os.kill(pid, signal.SIGKILL)
    seconds = _replaced_after(port, pid, started)
    report = load.stop()
    return {"crash seconds": seconds, "crash requests": report.sent, "crash failed": report.failed}


def _manager_killed(manager: Manager) -> Figures:
    """What decides is killed: whether servers go on, and whether one that dies then is replaced."""
    manager.start()
    answers.wait_for_all(manager.ports)
    os.kill(manager.manager_pids()[0], signal.SIGKILL)
    time.sleep(1.0)
    serving = sum(answers.answers(port) for port in manager.ports)
    found: Figures = {"manager killed: servers that go on": serving}
    if serving:
        port = next(port for port in manager.ports if answers.answers(port))
        pid, started = _pid(port), time.perf_counter()
        os.kill(pid, signal.SIGKILL)
        found["manager killed: crash seconds"] = _replaced_after(port, pid, started)
    return found


def _replaced_after(port: int, pid: int, started: float) -> float | None:
    """The seconds until another process answers; None if there is none in time."""
    while time.perf_counter() < started + RECOVERY_SECONDS:
        with contextlib.suppress(OSError):
            if _pid(port) != pid:
                return time.perf_counter() - started
        time.sleep(0.005)
    return None


def _all_replaced(before: dict[int, int]) -> None:
    deadline = time.monotonic() + 120
    for port, pid in before.items():
        while True:
            with contextlib.suppress(OSError):
                if _pid(port) != pid:
                    break
            if time.monotonic() > deadline:
                raise TimeoutError(f"port {port} is served by the same process after a restart")
            time.sleep(0.005)


def _pid(port: int) -> int:
    """The process that answers. Raises OSError."""
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/pid", timeout=5) as response:
        return int(response.read())
