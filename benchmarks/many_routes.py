"""A gateway with ten thousand routes beside one with ten: its start, a changed route, and what that loses."""

from __future__ import annotations

import http.client
import time
from argparse import Namespace
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from tests.load import Load, apps

from . import answers, processes
from .project import Project
from .report import Row

SERVERS = 300
FEW, MANY = 10, 10_000
GATEWAY = '[gateway]\nbind = "127.0.0.1:{port}"\n'
ROUTE = '[[route]]\nalias = "r{number}"\nhost = "{host}"\nto = "s{server}"\n'
# For requests to all other hosts, such as those that the load sends.
OTHERS = '[[route]]\nalias = "others"\nto = "s0"\n'
STARTED_SECONDS = 60.0


class Figures(NamedTuple):
    """`changes`, in seconds: from the order until it returned, and the processor time that HAProxy took for it.

    `sent` and `failed` are the requests of a load during one more change.
    """

    start_seconds: float
    megabytes: float
    changes: list[tuple[float, float]]
    sent: int
    failed: int


def run(options: Namespace) -> Iterator[Row]:
    servers, many = (3, 100) if options.quick else (SERVERS, MANY)
    few, found = (_figures(servers, count, options.repeat) for count in (FEW, many))
    beside = f"{FEW} routes"
    yield Row(
        f"start of HAProxy with {many} routes to {servers} servers until it answers", "s",
        [found.start_seconds], beside, [few.start_seconds], most=8,
    )  # fmt: skip
    yield Row(f"memory of HAProxy with {FEW} routes", "MB", [few.megabytes], most=12 * 1.048576)
    yield Row(f"memory of HAProxy with {many} routes", "MB", [found.megabytes])
    for number, what in enumerate(
        ("reload of a file with a changed route", "processor time of HAProxy for that")
    ):
        yield Row(
            what, "ms", [1000 * each[number] for each in found.changes],
            beside, [1000 * each[number] for each in few.changes],
        )  # fmt: skip
    yield Row(f"requests lost meanwhile of {found.sent}", "", [found.failed], most=0)


def _figures(servers: int, routes: int, changes: int) -> Figures:
    with Project(
        servers, app=Path(apps.__file__).read_text(), defaults='scale = { min = 0, idle = "1h" }'
    ) as project:
        file, (port,) = project.directory / "pool.toml", answers.free_ports(1)
        hosts = [ROUTE.format(number=n, host=f"h{n}.example.com", server=n % servers) for n in range(routes)]
        file.write_text("".join([GATEWAY.format(port=port), *hosts, OTHERS]) + file.read_text())
        project.run("start")
        _wait_for_answer(port, f"h{routes - 1}.example.com")
        started = _seconds_of_next_haproxy(project, port, f"h{routes - 1}.example.com")
        haproxy = project.process("gateway")
        taken = [_change(project, file, port, haproxy, number) for number in range(1, changes + 1)]
        with Load([port], "keep_alive", connections=8) as load:
            _change(project, file, port, haproxy, changes + 1)
            report = load.stop()
        assert project.process("gateway") == haproxy, "another HAProxy was started for a changed route"
        return Figures(started, processes.pss_bytes(haproxy) / 1e6, taken, report.sent, report.failed)


def _seconds_of_next_haproxy(project: Project, port: int, host: str) -> float:
    """The seconds until a request to this host is answered after HAProxy was killed."""
    processes.end([project.process("gateway")])
    began = time.perf_counter()
    _wait_for_answer(port, host)
    return time.perf_counter() - began


def _change(project: Project, file: Path, port: int, haproxy: int, number: int) -> tuple[float, float]:
    """Change the host of one route, and reload; returns once the new host is served: see Figures."""
    file.write_text(file.read_text().replace(f'"h{number}.example.com"', f'"changed{number}.example.com"'))
    used, began = processes.processor_seconds([haproxy]), time.perf_counter()
    project.run("reload")
    taken = time.perf_counter() - began, processes.processor_seconds([haproxy]) - used
    _wait_for_answer(port, f"changed{number}.example.com")
    return taken


def _wait_for_answer(port: int, host: str) -> None:
    deadline = time.perf_counter() + STARTED_SECONDS
    while True:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=STARTED_SECONDS)
        try:
            connection.request("GET", "/", headers={"Host": host})
            if connection.getresponse().status == http.client.OK:
                return
        except OSError:
            pass
        finally:
            connection.close()
        if time.perf_counter() > deadline:
            raise TimeoutError(f"no answer for {host}")
