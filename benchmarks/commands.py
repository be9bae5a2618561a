"""Wall time of commands compared to the start of a bare interpreter."""

from __future__ import annotations

import subprocess
import sys
import time
from argparse import Namespace
from collections.abc import Iterator

from .project import Project
from .report import Row

SERVERS = 100
MANY_SERVERS = 1000
TURNS = 7  # commands are short, so each repetition runs several


def run(options: Namespace) -> Iterator[Row]:
    repeat = TURNS * options.repeat
    servers, many = (3, 30) if options.quick else (SERVERS, MANY_SERVERS)
    with Project(servers) as project:
        without = _alternately(project, {"validate": ("validate",), "list": ("list",)}, repeat)
        project.run("start")
        commands = {"list": ("list",), "status": ("status",), "list -o json": ("list", "-o", "json")}
        running = _alternately(project, commands, repeat)
        project.run("stop")
    for name, samples in running.items():
        if name != "bare":
            yield _row(f"{name} of {servers} running", samples, running["bare"], most_ratio=3)
    for name in ("validate", "list"):
        yield _row(f"{name} of {servers}, no supervisor", without[name], without["bare"])
    with Project(1, disabled=many - 1) as project:
        project.run("start")
        running = _alternately(project, {"json": ("list", "-o", "json")}, repeat)
        project.run("stop")
    yield _row(f"list -o json of {many}", running["json"], running["bare"], most=100)


def _alternately(
    project: Project, commands: dict[str, tuple[str, ...]], repeat: int
) -> dict[str, list[float]]:
    """Milliseconds of each command and of a bare interpreter, interleaved so that noise affects all of them."""
    found: dict[str, list[float]] = {name: [] for name in ("bare", *commands)}
    for _ in range(repeat):
        started = time.perf_counter()
        subprocess.run(
            [sys.executable, "-I", "-c", "pass"], stdin=subprocess.DEVNULL, capture_output=True, check=True
        )
        found["bare"].append(1000 * (time.perf_counter() - started))
        for name, arguments in commands.items():
            found[name].append(1000 * project.seconds(*arguments))
    return found


def _row(
    what: str,
    samples: list[float],
    bare: list[float],
    *,
    most: float | None = None,
    most_ratio: float | None = None,
) -> Row:
    return Row(what, "ms", samples, "python -I -c pass", bare, most=most, most_ratio=most_ratio)
