"""The effects on clients when processes of the pool are killed or replaced: waiting times and lost requests."""

from __future__ import annotations

import json
import os
import signal
import time
from argparse import Namespace
from collections.abc import Callable, Iterator
from pathlib import Path

from tests.load import Load, apps

from . import answers
from .project import Project
from .report import Row

KILLS = 40
TURNS = 3
SERVERS = 4
ADOPTED_SECONDS = 30.0
GATEWAY_KILLS = 20
CALM_SECONDS = 2.0
ROUTES = """
[gateway]
bind = "127.0.0.1:{port}"
[[route]]
to = "s0"
"""


def run(options: Namespace) -> Iterator[Row]:
    kills = 2 if options.quick else KILLS
    with Project(
        kills
    ) as project:  # one kill per server, because repeated deaths of a worker delay its replacement
        project.run("start")
        pids = [pid for _, (pid,) in _known(project).items()]
        served = [_answered_after_kill(pid, port) for pid, port in zip(pids, project.ports, strict=True)]
    yield Row("SIGKILL of a worker until its replacement answered", "ms", served, most=50)
    stalls = _kill_gateway(2 if options.quick else GATEWAY_KILLS)
    yield Row("SIGKILL of HAProxy until a new connection's request was answered", "ms", stalls, most=200)
    turns = 1 if options.quick else TURNS * options.repeat
    for what, (act, most) in EXCHANGES.items():
        taken, lost, sent = [], 0, 0
        for _ in range(
            turns
        ):  # each in a separate pool, because repeated deaths of a supervisor delay its restart
            with Project(SERVERS, app=Path(apps.__file__).read_text()) as project:
                project.run("start")
                with Load(project.ports, "keep_alive", connections=8) as load:
                    taken.append(_same_workers(project, act))
                    report = load.stop()
                lost, sent = lost + report.failed, sent + report.sent
        yield Row(what, "ms", taken, most=most)
        yield Row(f"{what}: requests lost of {sent}", "", [lost], most=0)


def _kill_gateway(kills: int) -> list[float]:
    """The milliseconds that a request waits if it is sent just after HAProxy was killed."""
    stalls, before = list[float](), None
    with Project(1) as project:
        (port,) = answers.free_ports(1)
        path = project.directory / "pool.toml"
        path.write_text(ROUTES.format(port=port) + path.read_text())
        project.run("start")
        for _ in range(kills):
            _until(lambda before=before: _gateway(project) not in (None, before))
            time.sleep(CALM_SECONDS)  # a process that ends soon after its start is not replaced at once
            before = _gateway(project)
            assert before is not None
            stalls.append(_answered_after_kill(before, port))
    return stalls


def _gateway(project: Project) -> int | None:
    """The pid of the gateway's process, if it is running."""
    pid: int | None = json.loads(project.run("status", "-o", "json"))["gateway"].get("pid")
    return pid


def _same_workers(project: Project, act: Callable[[Project], None]) -> float:
    """The milliseconds until `act` has returned and commands are answered, with unchanged workers."""
    pids = _known(project)
    started = time.perf_counter()
    act(project)
    same = _known(project)
    took = 1000 * (time.perf_counter() - started)
    if same != pids:
        raise RuntimeError(f"the workers are {same}, not {pids}")
    return took


def _kill(*roles: str) -> Callable[[Project], None]:
    """Send SIGKILL, and wait for a successor that has identified itself."""

    def kill(project: Project) -> None:
        before = _info(project)
        for role in roles:
            os.kill(before[f"{role}_pid"], signal.SIGKILL)
        if len(roles) > 1:
            project.run("start")
        for role in roles:
            _until(lambda key=f"{role}_pid": _info(project).get(key) not in (None, before[key]))

    return kill


def _upgrade(project: Project) -> None:
    project.run("upgrade", "--allow-same-version")


EXCHANGES: dict[str, tuple[Callable[[Project], None], float | None]] = {
    "SIGKILL of the supervisor until its successor answered": (_kill("supervisor"), 1000),
    "SIGKILL of the keeper until another one answered": (_kill("keeper"), None),
    "SIGKILL of both, and start, until the workers were adopted": (_kill("keeper", "supervisor"), None),
    "upgrade until the other supervisor answered": (_upgrade, None),
}


def _answered_after_kill(pid: int, port: int) -> float:
    """The milliseconds that a request waits if it is sent just after the process that serves the port was killed."""
    os.kill(pid, signal.SIGKILL)
    started = time.perf_counter()
    while not answers.answers(port):  # refused at most while the kernel terminates it
        continue
    return 1000 * (time.perf_counter() - started)


def _known(project: Project) -> dict[str, list[int]]:
    """The pids of the workers, by server."""
    listed = json.loads(project.run("list", "-o", "json"))
    return {item["name"]: item["pids"] for item in listed["items"]}


def _info(project: Project) -> dict[str, int]:
    """The supervisor's own record; empty while none runs."""
    for path in (project.directory / "run").glob("[!@]*/info.json"):
        found: dict[str, int] = json.loads(path.read_text())
        return found
    return {}


def _until(condition: Callable[[], object]) -> None:
    deadline = time.perf_counter() + ADOPTED_SECONDS
    while not condition():
        if time.perf_counter() > deadline:
            raise TimeoutError("nothing took over")
        time.sleep(0.001)
