"""Servers with triggers: the time until a new worker answers, and the cost of watching a hundred of them."""

from __future__ import annotations

import contextlib
import socket
import statistics
import time
from argparse import Namespace
from collections.abc import Iterator

from . import processes
from .project import Project
from .report import Row

SERVERS, WATCHED = 20, 100
IN_FLIGHT = 2
TRIGGERS = f"scale = {{ max = 4, triggers = {{ in_flight = {IN_FLIGHT} }} }}"
EACH = 'in_flight = 20, queue = 10, requests_per_second = 500, p50 = "50ms", p99 = "300ms", cpu = 0.8'
ALL_TRIGGERS = f"scale = {{ max = 4, triggers = {{ {EACH} }} }}"
SETTLED_SECONDS = 3.0  # until deferred imports are done and averages are available
PATIENCE_SECONDS = 20.0
PAUSE_SECONDS = 0.005
# Answers with the pid; a request for /slow takes a minute.
APP = """
import asyncio, os

async def app(scope, receive, send):
    if scope["type"] == "lifespan":
        while True:
            kind = (await receive())["type"]
            await send({"type": kind + ".complete"})
            if kind == "lifespan.shutdown":
                return
    if scope["path"] == "/slow":
        gone = asyncio.ensure_future(receive())
        while (await gone)["type"] != "http.disconnect":
            gone = asyncio.ensure_future(receive())
        return
    body = b"%d" % os.getpid()
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"%d" % len(body))]})
    await send({"type": "http.response.body", "body": body})
"""


def run(options: Namespace) -> Iterator[Row]:
    middle, most = [], []
    for _ in range(options.repeat):
        taken = _first_answers(3 if options.quick else SERVERS)
        middle.append(statistics.median(taken))
        most.append(max(taken))
    yield Row("first answer of a worker that triggers started, median", "s", middle)
    yield Row(f"first answer of a worker that triggers started, longest of {SERVERS}", "s", most, most=1.5)
    servers = 5 if options.quick else WATCHED
    for what, scale in (("in_flight", TRIGGERS), ("all triggers", ALL_TRIGGERS)):
        with_them, without = [], []
        for _ in range(options.repeat):
            without.append(_supervisor_percent(servers, "", options.idle_seconds))
            with_them.append(_supervisor_percent(servers, scale, options.idle_seconds))
        yield Row(
            f"supervisor of {servers} servers, {what}",
            "% of a core",
            with_them,
            "no triggers",
            without,
            most=1.0,
        )


def _first_answers(servers: int) -> list[float]:
    """The time from the load to the first answer of a second worker, for each server in turn."""
    with Project(servers, app=APP, defaults=TRIGGERS) as project:
        project.run("start")
        time.sleep(SETTLED_SECONDS)
        return [_first_answer_seconds(port) for port in project.ports]


def _first_answer_seconds(port: int) -> float:
    first = _pid(port)
    with contextlib.ExitStack() as clients:
        began = time.monotonic()
        for _ in range(IN_FLIGHT + 2):
            client = clients.enter_context(socket.create_connection(("127.0.0.1", port)))
            client.sendall(b"GET /slow HTTP/1.1\r\nhost: a\r\n\r\n")
        while _pid(port) == first:
            if time.monotonic() - began > PATIENCE_SECONDS:
                raise TimeoutError("no other worker has answered")
            time.sleep(PAUSE_SECONDS)
        return time.monotonic() - began


def _pid(port: int) -> bytes:
    with socket.create_connection(("127.0.0.1", port), PATIENCE_SECONDS) as client:
        client.sendall(b"GET / HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n")
        with client.makefile("rb") as answer:
            return answer.read().rpartition(b"\r\n")[2]


def _supervisor_percent(servers: int, scale: str, idle_seconds: float) -> float:
    with Project(servers, defaults=scale) as project:
        project.run("start")
        time.sleep(min(SETTLED_SECONDS, 10 * idle_seconds))
        return processes.idle_percent(project.roles()["supervisor"], idle_seconds)
