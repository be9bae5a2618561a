"""The two programs that can serve the gateway's clients: poolctl's own, and HAProxy with the configuration of the pool.

Each has a pool of its own with the same route, which it proxies, and one processor together with its worker; the
clients run on the others. HTTP/2 is measured where h2load is installed.
"""

from __future__ import annotations

import json
import re
import shutil
import ssl
import subprocess
from argparse import Namespace
from collections.abc import Callable, Iterator
from contextlib import ExitStack

from tests.certificates import certificate

from . import answers, peers
from .gateway import (
    APP,
    MODES,
    PROXY,
    ROUNDS,
    TLS_MODES,
    Turn,
    Way,
    all_descriptors,
    in_short_turns,
    on_one_processor,
)
from .project import Project
from .report import Row

_START_SECONDS = 30.0
_REQUESTS, _FEW_REQUESTS = 20_000, 200
_CLIENTS, _STREAMS = 8, 10
POOLCTL, HAPROXY = "poolctl", "HAProxy"


def run(options: Namespace) -> Iterator[Row]:
    rounds = 2 if options.quick else ROUNDS
    with ExitStack() as stack:
        stack.enter_context(all_descriptors())
        engines = [POOLCTL, *filter(peers.is_installed, (HAPROXY,))]
        found = [_plane(stack, engine) for engine in engines]
        pids = [pid for plain, _ in found for pid in (plain.pid, plain.before and plain.before.pid) if pid]
        answers.wait_for_all([plain.port for plain, _ in found], _START_SECONDS)
        stack.enter_context(on_one_processor(pids))
        for modes, ways in (MODES, [plain for plain, _ in found]), (TLS_MODES, [tls for _, tls in found]):
            for mode, ask in modes.items():
                yield from _rows(mode, in_short_turns(ways, ask, rounds))
        if shutil.which("h2load"):
            count = _FEW_REQUESTS if options.quick else _REQUESTS
            yield from _rows("TLS, HTTP/2", _http2([tls for _, tls in found], rounds, count))
        else:
            print("  h2load is not installed, and HTTP/2 left out: apt-get install nghttp2-client")


def _plane(stack: ExitStack, engine: str) -> tuple[Way, Way]:
    """The ways to a worker through this program, without and with TLS."""
    project = stack.enter_context(Project(1, app=APP))
    pem, key = certificate(project.directory)
    plain, tls = answers.free_ports(2)
    path = project.directory / "pool.toml"
    path.write_text(
        f'[gateway]\nengine = "{engine.lower()}"\nbind = [{{ bind = "127.0.0.1:{plain}" }},'
        f' {{ bind = "127.0.0.1:{tls}", tls = {{ cert = "{pem}", key = "{key}" }} }}]\n'
        f'[[route]]\nto = "s0"\nmode = "{PROXY}"\n' + path.read_text()
    )
    project.run("start")
    (item,) = json.loads(project.run("list", "-o", "json"))["items"]
    (worker,) = item["pids"]
    mark = "-db" if engine == HAPROXY else "gateway"
    (serving,) = [pid for pid, arguments in project.processes().items() if mark in arguments]
    context = ssl.create_default_context(cafile=str(pem))
    return Way(engine, plain, worker, serving), Way(engine, tls, worker, serving, context)


def _http2(ways: list[Way], rounds: int, count: int) -> dict[str, list[Turn]]:
    """Requests in several streams of several connections at once."""
    found: dict[str, list[Turn]] = {way.name: [] for way in ways}
    for number in range(rounds):
        for way in ways[number % 2 :] + ways[: number % 2]:
            worker, before = way.processor_ns(), way.before.processor_ns() if way.before else 0
            argv = [
                "h2load",
                f"-n{count}",
                f"-c{_CLIENTS}",
                f"-m{_STREAMS}",
                f"https://localhost:{way.port}/",
            ]
            output = subprocess.run(argv, capture_output=True, text=True, check=True, timeout=120).stdout
            rate = re.search(r"([\d.]+) req/s", output)
            succeeded = re.search(r"(\d+) succeeded", output)
            if rate is None or succeeded is None or int(succeeded[1]) != count:
                raise RuntimeError(f"h2load: {output[-500:]}")
            spent = (way.before.processor_ns() if way.before else 0) - before
            worker = way.processor_ns() - worker
            found[way.name].append(Turn(float(rate[1]), worker / 1000 / count, spent / 1000 / count))
    return found


def _rows(mode: str, found: dict[str, list[Turn]]) -> Iterator[Row]:
    figures: tuple[tuple[str, str, Callable[[Turn], float]], ...] = (
        ("{}, {}", "requests/s", lambda turn: turn.rate),
        ("processor time, {}, {}", "µs", lambda turn: turn.before_microseconds),
    )
    for what, unit, of in figures:
        for name, turns in found.items():
            others = [] if name == POOLCTL else [of(turn) for turn in found[POOLCTL]]
            yield Row(
                what.format(mode, name), unit, [of(turn) for turn in turns], POOLCTL if others else "", others
            )
