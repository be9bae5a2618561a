"""What a client notices when a process of the pool is killed: how long it waits, and how many requests are lost."""

from __future__ import annotations

import json
import os
import signal
import time
from argparse import Namespace
from collections.abc import Callable, Iterator

from tests.load import Load

from . import answers
from .project import Project
from .report import Row

KILLS = 40
OWN = ("supervisor", "keeper")
OWN_KILLS = 3  # each in a pool of its own: for one that dies often the keeper makes pauses
ADOPTED_SECONDS = 30.0


def run(options: Namespace) -> Iterator[Row]:
    kills = 2 if options.quick else KILLS
    with Project(kills) as project:  # one each: a worker that dies often waits before it is replaced
        project.run("start")
        pids = [pid for _, (pid,) in _known(project).items()]
        served = [_kill_worker(pid, port) for pid, port in zip(pids, project.ports, strict=True)]
    yield Row("SIGKILL of a worker until its replacement answered", "ms", served, most=50)
    for role in OWN:
        adopted, lost, sent = [], 0, 0
        for _ in range(1 if options.quick else OWN_KILLS * options.repeat):
            with Project(1) as project:
                project.run("start")
                with Load(project.ports, "keep_alive", connections=8, echo=False) as load:
                    adopted.append(_kill_own(project, role))
                    report = load.stop()
                lost, sent = lost + report.failed, sent + report.sent
        yield Row(f"SIGKILL of the {role} until its successor answered", "ms", adopted, most=1000)
        text = f"requests lost over {len(adopted)} deaths of the {role}"
        yield Row(text, "", [lost], most=0, note=f"{sent} were sent")


def _kill_worker(pid: int, port: int) -> float:
    """How many milliseconds a request waits that is sent when the only worker of its server has been killed."""
    os.kill(pid, signal.SIGKILL)
    started = time.perf_counter()
    while not answers.answers(port):  # at most in the moment in which the kernel ends it
        continue
    return 1000 * (time.perf_counter() - started)


def _kill_own(project: Project, role: str) -> float:
    """How many milliseconds until commands are answered again, by another process, with the same workers."""
    info, pids = _info(project), _known(project)
    os.kill(info[f"{role}_pid"], signal.SIGKILL)
    started = time.perf_counter()
    _until(lambda: _info(project).get(f"{role}_pid") not in (None, info[f"{role}_pid"]))
    same = _known(project)
    took = 1000 * (time.perf_counter() - started)
    if same != pids:
        raise RuntimeError(f"the workers are {same}, not {pids}")
    return took


def _known(project: Project) -> dict[str, list[int]]:
    """The pids of the workers, by server."""
    listed = json.loads(project.run("list", "-o", "json"))
    return {item["name"]: item["pids"] for item in listed["items"]}


def _info(project: Project) -> dict[str, int]:
    """What the supervisor has written down; nothing while there is none."""
    for path in (project.directory / "run").glob("[!@]*/info.json"):
        found: dict[str, int] = json.loads(path.read_text())
        return found
    return {}


def _until(condition: Callable[[], bool]) -> None:
    deadline = time.perf_counter() + ADOPTED_SECONDS
    while not condition():
        if time.perf_counter() > deadline:
            raise TimeoutError("nothing took over")
        time.sleep(0.001)
