"""Probes of targets outside the pool, and what they report to the gateway."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from poolctl.config import Tables, load
from poolctl.features.gateway.process.settings import ProbeState
from poolctl.features.gateway.supervision.outside_targets import TargetProbes
from tests.ports import claim_port

FAST = "interval = 0.05, jitter = 0, fall_count_warn = 1, fall_count_ko = 1"


def tables(text: str) -> Tables:
    configuration = load("/pool/pool.toml", {}, {"/pool/pool.toml": f"[gateway]\n{text}"})
    assert not configuration.problems
    return configuration.tables


class Service:
    """Answers every request with `status`."""

    def __init__(self) -> None:
        self.status = "200 OK"
        self.asked = 0
        self.port = 0

    async def answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            if await reader.read(4096):
                self.asked += 1
                writer.write(f"HTTP/1.1 {self.status}\r\nContent-Length: 0\r\n\r\n".encode())
                await writer.drain()
        finally:
            writer.close()


class Stage:
    """Probes, and what they have reported; `until` waits for a report."""

    def __init__(self) -> None:
        self.changed = asyncio.Event()
        self.probes = TargetProbes(self.changed.set)

    async def until(self, url: str, **found: Any) -> None:
        wanted = ProbeState(host=url, **found)
        async with asyncio.timeout(60):
            while self.probes.reports.get(url) != wanted:
                self.changed.clear()
                await self.changed.wait()


def run(work: Any) -> None:
    async def whole() -> None:
        stage, service = Stage(), Service()
        server = await asyncio.start_server(service.answer, "127.0.0.1", 0)
        service.port = server.sockets[0].getsockname()[1]
        try:
            await work(stage, service)
        finally:
            stage.probes.close()
            server.close()

    asyncio.run(whole())


@pytest.mark.parametrize("table", ["[[route]]", '[[stream]]\nbind = ":5432"'])
def test_target_that_accepts_no_connection_fails_and_one_that_does_has_answered(table: str) -> None:
    async def work(stage: Stage, service: Service) -> None:
        scheme = "http://" if table == "[[route]]" else ""
        gone, there = f"{scheme}127.0.0.1:{claim_port()}", f"{scheme}127.0.0.1:{service.port}"
        text = f'{table}\nto = ["{gone}", "{there}"]\nhealth = {{ tcp = true, {FAST} }}\n'
        stage.probes.follow(tables(text))
        assert stage.probes.reports[gone] == ProbeState(host=gone), "not known yet"
        await stage.until(there, answered=True)
        async with asyncio.timeout(60):
            while not stage.probes.reports[gone].why:
                stage.changed.clear()
                await stage.changed.wait()
        assert stage.probes.reports[gone].why.startswith("no connection")
        assert stage.probes.latency_seconds(gone) is None
        latency = stage.probes.latency_seconds(there)
        assert latency is not None
        assert 0 < latency < 20

    run(work)


def test_target_is_out_after_its_failures_and_back_after_a_success() -> None:
    async def work(stage: Stage, service: Service) -> None:
        url = f"http://127.0.0.1:{service.port}"
        one = f'[[route]]\nto = "{url}"\nhealth = {{ http = "/up", {FAST} }}\n'
        stage.probes.follow(tables(one))
        await stage.until(url, answered=True)
        service.status = "503 Service Unavailable"
        await stage.until(url, why="GET /up: status 503")
        service.status = "204 No Content"
        await stage.until(url, answered=True)
        stage.probes.follow(tables(one))
        assert stage.probes.reports[url].answered, "the same probe: what is known stays"
        stage.probes.follow(tables(one.replace("/up", "/other")))
        assert stage.probes.reports == {url: ProbeState(host=url)}
        stage.probes.follow(tables(f'[[route]]\nto = "{url}"\n'))
        assert stage.probes.reports == {}

    run(work)


def test_only_a_changed_result_is_reported() -> None:
    async def work(stage: Stage, service: Service) -> None:
        url = f"http://127.0.0.1:{service.port}"
        stage.probes.follow(tables(f'[[route]]\nto = "{url}"\nhealth = {{ http = "/up", {FAST} }}\n'))
        await stage.until(url, answered=True)
        stage.changed.clear()
        asked = service.asked
        async with asyncio.timeout(60):
            while service.asked < asked + 5:
                await asyncio.sleep(0)
        assert not stage.changed.is_set()

    run(work)
