"""Compares the two programs that can serve the gateway's clients: poolctl's own, and HAProxy with the pool's routes.

Each has its own pool with the same proxied route, and shares one processor with its worker; the clients run on the
other processors.
"""

from __future__ import annotations

import json
import ssl
from argparse import Namespace
from collections.abc import Callable, Iterator
from contextlib import ExitStack

from tests.certificates import certificate

from . import answers, proxies
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
POOLCTL, HAPROXY = "poolctl", "HAProxy"


def run(options: Namespace) -> Iterator[Row]:
    rounds = 2 if options.quick else ROUNDS
    with ExitStack() as stack:
        stack.enter_context(all_descriptors())
        engines = [POOLCTL, *filter(proxies.is_installed, (HAPROXY,))]
        found = [_plane(stack, engine) for engine in engines]
        pids = [pid for plain, _ in found for pid in (plain.pid, plain.before and plain.before.pid) if pid]
        answers.wait_for_all([plain.port for plain, _ in found], _START_SECONDS)
        stack.enter_context(on_one_processor(pids))
        for modes, ways in (MODES, [plain for plain, _ in found]), (TLS_MODES, [tls for _, tls in found]):
            for mode, ask in modes.items():
                yield from _rows_with_string_at(mode, in_short_turns(ways, ask, rounds))


def _plane(stack: ExitStack, engine: str) -> tuple[Way, Way]:
    """The ways to a worker through this program, with and without TLS."""
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
    serving = project.gateway()
    if engine == HAPROXY:
        (serving,) = [pid for pid, arguments in project.processes().items() if "-db" in arguments]
    context = ssl.create_default_context(cafile=str(pem))
    return Way(engine, plain, worker, serving), Way(engine, tls, worker, serving, context)


def _rows_with_string_at(mode: str, found: dict[str, list[Turn]]) -> Iterator[Row]:
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
