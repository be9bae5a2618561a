"""Servers with a heavy framework, imported by each or shared with `preload`: start, wake, crash."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from argparse import Namespace
from collections.abc import Iterator

from . import answers, processes
from .project import Project
from .report import Row

SERVERS = 100
CRASHES = 40
_IMPORT_SECONDS = 30.0

# Modules with two routes and their models: a medium-sized service, and a large one.
MIDDLING, LARGE = 20, 90


def application(routers: int) -> str:
    """The source of a FastAPI application."""
    numbers = range(routers)
    return "".join((_HEAD, *(_router(n) for n in numbers), "\napp = FastAPI()\n",
                    *(f"app.include_router(router{n})\n" for n in numbers), _TAIL))  # fmt: skip


_HEAD = """
from typing import Annotated
from cryptography import x509  # as for tokens
from fastapi import APIRouter, Depends, FastAPI, Query
from pydantic import BaseModel, Field
"""
_TAIL = """
@app.get("/")
async def root() -> dict[str, str]:
    return {"hello": "world"}
"""


def _router(n: int) -> str:
    return f"""
class In{n}(BaseModel):
    name: Annotated[str, Field(min_length=1, max_length=80)]
    count: int = Field(default=1, ge=0)
    tags: list[str] = []
    parent: "In{max(n - 1, 0)} | None" = None
class Out{n}(In{n}):
    id: int
router{n} = APIRouter(prefix="/r{n}", tags=["r{n}"])
@router{n}.get("/{{id}}")
async def read{n}(id: int, q: Annotated[str | None, Query(max_length=50)] = None) -> Out{n}:
    return Out{n}(id=id, name=q or "x")
@router{n}.post("/")
async def write{n}(item: In{n}) -> Out{n}:
    return Out{n}(id=1, **item.model_dump())
"""


def run(options: Namespace) -> Iterator[Row]:
    servers, crashes = (3, 2) if options.quick else (SERVERS, CRASHES)
    replaced, woken = [], []
    sizes = [("middling", MIDDLING, None), ("large", LARGE, 0.05)]
    for size, routers, most in sizes[:1] if options.quick else sizes:
        app = application(routers)
        imports, without, with_it = [], [], []
        for _ in range(options.repeat):
            with Project(servers, app=app) as project:
                imports.append(_import_milliseconds(project))
                without.append(project.start_seconds()[1])
            with Project(servers, app=app, defaults="preload = true") as project:
                with_it.append(project.start_seconds()[1])
                replaced += _crash_milliseconds(project, crashes)
        yield Row(f"import of a {size} FastAPI application in a fresh interpreter", "ms", imports)
        yield Row(
            f"start {servers} × {size} FastAPI with preload, until all answered", "s", with_it,
            "without preload", without, most_ratio=most,
        )  # fmt: skip
    for _ in range(options.repeat):
        with Project(servers, app=app, defaults="preload = true\nscale = { min = 0 }") as project:
            project.run("start")
            _wait_for_the_import(project)
            woken += [_answer_milliseconds(port) for port in project.ports]
    worst = [sorted(woken)[round(0.99 * (len(woken) - 1))]]
    yield Row("wake of a preloaded FastAPI server, first answer", "ms", woken)
    yield Row("wake of a preloaded FastAPI server, p99 of the first answers", "ms", worst, most=50)
    yield Row("SIGKILL of a preloaded worker until its replacement answered", "ms", replaced, most=50)


def _import_milliseconds(project: Project) -> float:
    look = "import time; t = time.perf_counter(); import app; print(1000 * (time.perf_counter() - t))"
    argv = [sys.executable, "-c", look]
    return min(
        float(subprocess.run(argv, cwd=project.directory, capture_output=True, check=True).stdout)
        for _ in range(3)
    )


def _crash_milliseconds(project: Project, servers: int) -> list[float]:
    """The time a request waits if sent just after its server's only worker was killed, for each server."""
    pids = [item["pids"][0] for item in json.loads(project.run("list", "-o", "json"))["items"]]
    found = []
    for pid, port in list(zip(pids, project.ports, strict=True))[:servers]:
        os.kill(pid, signal.SIGKILL)
        found.append(_answer_milliseconds(port))
    return found


def _answer_milliseconds(port: int) -> float:
    started = time.perf_counter()
    while not answers.answers(port):  # happens at most while the kernel terminates the process
        continue
    return 1000 * (time.perf_counter() - started)


def _wait_for_the_import(project: Project) -> None:
    """Return when the application has been preloaded, that is, its zygote is idle."""
    deadline, used = time.monotonic() + _IMPORT_SECONDS, -1.0
    while time.monotonic() < deadline:
        time.sleep(0.5)
        before, used = used, processes.processor_seconds(project.processes())
        if used - before < 0.01:
            return
    raise TimeoutError("the application is still being imported")
