"""Compares connections passed by the gateway with connections that a worker accepts from its own port.

Short turns on both ports; processor time from the kernel, as in `serving`.
"""

from __future__ import annotations

import json
from argparse import Namespace
from collections.abc import Callable, Iterator

from . import answers
from .project import Project
from .report import Row
from .serving import APP, ROUND_SECONDS, ROUNDS, Side, another_field, keep_alive, new_connection

# Targets for the ratio of rates: 0.97 for kept connections, 0.9 for a new connection per request.
_ANOTHER_FIELD = "keep-alive, other fields"
_MOST_RATIOS = {"keep-alive": 1 / 0.97, _ANOTHER_FIELD: 1 / 0.9, "new connection": 1 / 0.9}
_MOST_GATEWAY_MICROSECONDS = 40
_MODES: dict[str, Callable[[Side], int]] = {
    "keep-alive": keep_alive,
    _ANOTHER_FIELD: another_field,
    "new connection": new_connection,
}


def run(options: Namespace) -> Iterator[Row]:
    rounds = 2 if options.quick else ROUNDS
    with Project(1, app=APP) as project:
        (port,) = answers.free_ports(1)
        path = project.directory / "pool.toml"
        gateway = f'[gateway]\nbind = "127.0.0.1:{port}"\n[[route]]\nto = "s0"\n'
        path.write_text(gateway + path.read_text())
        project.run("start")
        answers.wait_for_all([port])
        (item,) = json.loads(project.run("list", "-o", "json"))["items"]
        gateway_pid = project.gateway()
        passed, own = (Side(each, item["pids"][0]) for each in (port, project.ports[0]))
        process = Side(port, gateway_pid)
        for mode, ask in _MODES.items():
            yield from _measured(mode, ask, passed, own, process, rounds)


def _measured(
    mode: str, ask: Callable[[Side], int], passed: Side, own: Side, gateway: Side, rounds: int
) -> Iterator[Row]:
    spent: list[float] = []
    counted = 0

    def counting(side: Side) -> int:
        nonlocal counted
        asked = ask(side)
        counted += asked
        return asked

    found: tuple[list[float], list[float]] = ([], [])
    for turn in range(-1, rounds):
        for number in (0, 1) if turn % 2 else (1, 0):
            before, counted = gateway.processor_ns(), 0
            taken = (passed, own)[number].request_microseconds(counting, ROUND_SECONDS)
            if turn >= 0:  # the first requests are slower
                found[number].append(taken)
                if number == 0:
                    spent.append((gateway.processor_ns() - before) / 1000 / counted)
    for side in (passed, own):
        side.close()
    yield Row(
        f"processor time of the worker, {mode}", "µs", found[0], "its own port", found[1],
        most_ratio=_MOST_RATIOS[mode],
    )  # fmt: skip
    yield Row(f"processor time of the gateway, {mode}", "µs", spent, most=_MOST_GATEWAY_MICROSECONDS)
