"""Servers without a process: the latency of the first request, and the cost of a thousand of them."""

from __future__ import annotations

import json
import statistics
import time
from argparse import Namespace
from collections.abc import Iterator

from . import answers, processes
from .preload import MIDDLING, application
from .project import APP, Project
from .report import Row

WAKES = 150
SLEEPERS = 1000
WATCHED_SECONDS = 5.0
OWN_PORT = "its own port"
GATEWAY = "the gateway"
GATEWAY_MS = 5  # the allowed additional time of a wake through the gateway
SETTLED_SECONDS = 2.0  # until deferred imports are done


def run(options: Namespace) -> Iterator[Row]:
    wakes, sleepers = (3, 5) if options.quick else (WAKES, SLEEPERS)
    for what, app, defaults, limit_ms in (
        ("a server", APP, "", 20),
        ("a FastAPI server with preload", application(MIDDLING), "preload = true\n", 50),
    ):
        for again, idle_seconds, which in ((False, 60, "slept"), (True, 5, "slept again")):
            middle, most = [], []
            for _ in range(options.repeat):
                taken = _wake_milliseconds(wakes, app, defaults, idle_seconds, again=again)
                middle.append(statistics.median(taken))
                most.append(statistics.quantiles(taken, n=100)[-1])
            yield Row(f"first answer of {what} that {which}, p50", "ms", middle)
            yield Row(f"first answer of {what} that {which}, p99", "ms", most, most=limit_ms)
    yield from _through_the_gateway(3 if options.quick else WAKES, options.repeat)
    armed, idle, memory = [], [], []
    for _ in range(options.repeat):
        with Project(sleepers, defaults="scale = { min = 0, idle = 60 }") as project:
            armed.append(project.seconds("start"))
            roles = project.roles()
            assert not roles["worker"]
            pid = roles["supervisor"]
            time.sleep(min(SETTLED_SECONDS, options.idle_seconds))
            idle.append(processes.idle_percent(pid, min(WATCHED_SECONDS, options.idle_seconds)))
            memory.append(processes.pss_bytes(pid[0]) / 1024**2)
            assert answers.answers(project.ports[-1])
    yield Row(f"start {sleepers} that sleep, until the command returned", "s", armed, most=1.0)
    yield Row(f"supervisor of {sleepers} that sleep", "% of a core", idle, most=0.5)
    yield Row(f"PSS of the supervisor of {sleepers} that sleep", "MiB", memory)


def _wake_milliseconds(
    servers: int, app: str, defaults: str, idle_seconds: int = 60, *, again: bool = False
) -> list[float]:
    """The time each server takes to answer the request that wakes it, one after another.

    Except the first one, which may have to wait for imports deferred by `start`. With `again` it is the second wake
    of each, with listeners that an application has already used.
    """
    scale = f"scale = {{ min = 0, idle = {idle_seconds} }}"
    with Project(servers + 1, app=app, defaults=f"{defaults}{scale}") as project:
        project.run("start")
        found = [_answered_after_milliseconds(port) for port in project.ports]
        if again:
            _wait_until_asleep(project, time.monotonic() + 4 * idle_seconds)
            found = [_answered_after_milliseconds(port) for port in project.ports]
    return found[1:]


def _through_the_gateway(wakes: int, repeat: int) -> Iterator[Row]:
    """The same through the gateway, interleaved with servers on their own ports."""
    found: dict[str, tuple[list[float], list[float]]] = {way: ([], []) for way in (OWN_PORT, GATEWAY)}
    for _ in range(repeat):
        for way, taken in _wake_milliseconds_by_way(wakes).items():
            found[way][0].append(statistics.median(taken))
            found[way][1].append(statistics.quantiles(taken, n=100)[-1])
    for name, taken, own in zip(("p50", "p99"), found[GATEWAY], found[OWN_PORT], strict=True):
        limit_ms = statistics.median(own) + GATEWAY_MS
        what = f"first answer of a server that slept, through the gateway, {name}"
        yield Row(what, "ms", taken, OWN_PORT, own, most=round(limit_ms, 1))


def _wake_milliseconds_by_way(wakes: int) -> dict[str, list[float]]:
    ways = (OWN_PORT, GATEWAY)
    with Project((wakes + 1) * len(ways), defaults="scale = { min = 0, idle = 60 }") as project:
        (gateway,) = answers.free_ports(1)
        path = project.directory / "pool.toml"
        routes = [
            f'[[route]]\nto = "s{number}"\npath = "/s{number}"\n'
            for number in range(len(project.ports))
            if ways[number % len(ways)] == GATEWAY
        ]
        path.write_text(f'[gateway]\nbind = "127.0.0.1:{gateway}"\n{"".join(routes)}{path.read_text()}')
        project.run("start")
        found: dict[str, list[float]] = {way: [] for way in ways}
        for number, own in enumerate(project.ports):
            way = ways[number % len(ways)]
            port = own if way == OWN_PORT else gateway
            found[way].append(_answered_after_milliseconds(port, f"/s{number}"))
    return {way: taken[1:] for way, taken in found.items()}


def _answered_after_milliseconds(port: int, path: str = "/") -> float:
    started = time.perf_counter()
    if not answers.answers(port, path):
        raise RuntimeError(f"the server of port {port} did not wake")
    return 1000 * (time.perf_counter() - started)


def _wait_until_asleep(project: Project, deadline: float) -> None:
    while any(item["state"] != "sleeping" for item in json.loads(project.run("list", "-o", "json"))["items"]):
        if time.monotonic() > deadline:
            raise RuntimeError("not every server went to sleep again")
        time.sleep(0.2)
