"""Probes of targets outside the pool, and what they report to the gateway."""

from __future__ import annotations

import asyncio
import random
import ssl
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from poolctl.config import Probe, Tables, load
from poolctl.features.gateway.supervision.outside_targets import (
    TargetProbes,
    UrlProbes,
    probe_url,
)  # fmt: skip
from poolctl.features.gateway.target import Target, TargetState
from poolctl.probes.worker_probes import Hysteresis
from poolctl.routing.route_report import SERVING, STARTING
from tests.asyncio_server import hang_up, listening, start_server
from tests.certificates import certificate
from tests.coroutines import staged_by
from tests.ports import claim_port
from tests.virtual_loop import VirtualLoop

FAST = "interval = 0.05, timeout = 60, jitter = 0, fall_count_warn = 1, fall_count_ko = 1"


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

    async def until(self, url: str, wanted: Target) -> None:
        async with asyncio.timeout(60):
            while self.probes.targets.get(url) != wanted:
                self.changed.clear()
                await self.changed.wait()


def run(work: Any) -> None:
    async def whole() -> None:
        stage, service = Stage(), Service()
        async with listening(service.answer, "127.0.0.1", 0) as server:
            service.port = server.sockets[0].getsockname()[1]
            with closing(stage.probes):
                await work(stage, service)

    asyncio.run(whole())


@pytest.mark.parametrize("table", ["[[route]]", '[[stream]]\nbind = ":5432"'])
@staged_by(run)
async def test_target_that_accepts_no_connection_fails_and_one_that_does_has_answered(
    stage: Stage, service: Service, /, table: str
) -> None:
    scheme = "http://" if table == "[[route]]" else ""
    gone, there = f"{scheme}127.0.0.1:{claim_port()}", f"{scheme}127.0.0.1:{service.port}"
    text = f'{table}\nto = ["{gone}", "{there}"]\nhealth = {{ tcp = true, {FAST} }}\n'
    stage.probes.apply_tables(tables(text))
    assert stage.probes.targets[gone] == Target(answers=None), "not known yet"
    await stage.until(there, Target())
    async with asyncio.timeout(60):
        while not stage.probes.targets[gone].reason:
            stage.changed.clear()
            await stage.changed.wait()
    assert stage.probes.targets[gone].reason.startswith("no connection")
    assert stage.probes.latency_seconds(gone) is None
    latency = stage.probes.latency_seconds(there)
    assert latency is not None
    assert 0 < latency < 20


@staged_by(run)
async def test_target_is_out_after_its_failures_and_back_after_a_success(
    stage: Stage, service: Service, /
) -> None:
    url = f"http://127.0.0.1:{service.port}"
    one = f'[[route]]\nto = "{url}"\nhealth = {{ http = "/up", {FAST} }}\n'
    stage.probes.apply_tables(tables(one))
    await stage.until(url, Target())
    service.status = "503 Service Unavailable"
    await stage.until(url, Target(TargetState.DOWN, "GET /up: status 503"))
    service.status = "204 No Content"
    await stage.until(url, Target())
    stage.probes.apply_tables(tables(one))
    assert stage.probes.targets[url].answers, "the same probe: what is known stays"
    stage.probes.apply_tables(tables(one.replace("/up", "/other")))
    assert stage.probes.targets == {url: Target(answers=None)}
    stage.probes.apply_tables(tables(f'[[route]]\nto = "{url}"\n'))
    assert stage.probes.targets == {}


class Listener:
    """A Unix socket that answers each request with `answer`; `heads` are the requests, `open` the connections."""

    def __init__(self, path: Path) -> None:
        self.url = f"unix:{path}"
        self.answer = b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"
        self.heads: list[str] = []
        self.open = 0
        self._path = path
        self._server: asyncio.Server

    async def start(self) -> None:
        self._server = await start_server(self._connected, self._path)

    async def aclose(self) -> None:
        await hang_up(self._server)

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.open += 1
        try:
            self.heads.append((await reader.readuntil(b"\r\n\r\n")).decode())
            writer.write(self.answer)
            await reader.read()
        except (OSError, asyncio.IncompleteReadError):
            pass
        finally:
            self.open -= 1
            writer.close()


@pytest.fixture
def loop() -> Iterator[VirtualLoop]:
    loop = VirtualLoop()
    asyncio.set_event_loop(loop)
    yield loop
    loop.pass_time()
    asyncio.set_event_loop(None)
    loop.close()


@pytest.fixture
def listener(loop: VirtualLoop, tmp_path: Path) -> Iterator[Listener]:
    made = Listener(tmp_path / "s")
    loop.run_until_complete(made.start())
    yield made
    loop.run_until_complete(made.aclose())


def probe(**keys: Any) -> Probe:
    given = {} if keys.get("tcp") else {"http": "/up"}
    return Probe(**{**given, "jitter": 0.0, **keys})


@pytest.mark.parametrize(
    ("keys", "head"),
    [
        ({}, "GET /up HTTP/1.1\r\nHost: localhost\r\nUser-Agent: poolctl\r\nConnection: close\r\n\r\n"),
        (
            {"http": "/é?c=%20", "method": "HEAD", "headers": {"Host": "shop", "X-A": "1"}},
            "HEAD /%C3%A9?c=%20 HTTP/1.1\r\nHost: shop\r\nUser-Agent: poolctl\r\nX-A: 1\r\nConnection: close\r\n\r\n",
        ),
    ],
)
def test_probe_sends_one_request_with_its_method_path_and_headers(
    loop: VirtualLoop, listener: Listener, keys: dict[str, Any], head: str
) -> None:
    assert loop.run_until_complete(probe_url(listener.url, probe(**keys))) == ""
    assert listener.heads == [head]


async def test_probe_of_an_address_names_it_as_the_host() -> None:
    heads: list[bytes] = []

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        heads.append(await reader.readuntil(b"\r\n\r\n"))
        writer.write(b"HTTP/1.1 204 No Content\r\n\r\n")
        writer.close()

    async with listening(answer, "127.0.0.1", 0) as server:
        where = f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
        assert await probe_url(f"http://{where}", probe(timeout=60.0)) == ""
    assert f"Host: {where}\r\n".encode() in heads[0]


@pytest.mark.parametrize(
    ("keys", "answer", "problem"),
    [
        ({}, b"HTTP/1.1 399 Odd\r\n\r\n", ""),
        ({}, b"HTTP/1.1 400 Bad Request\r\n\r\n", "GET /up: status 400"),
        ({"status": "200,404"}, b"HTTP/1.1 404 Not Found\r\n\r\n", ""),
        ({"method": "HEAD", "status": "204"}, b"HTTP/1.1 200 OK\r\n\r\n", "HEAD /up: status 200"),
        ({"timeout": 0.25}, b"HTTP/1.1 200 OK\r\n", "no answer within 250ms"),
        ({}, b"SSH-2.0\r\n\r\n", "GET /up: the response is not valid HTTP: "),
        ({"tcp": True}, b"", ""),
    ],
)
def test_problem_of_a_probe_is_what_the_target_answers(
    loop: VirtualLoop, listener: Listener, keys: dict[str, Any], answer: bytes, problem: str
) -> None:
    listener.answer = answer
    found = loop.run_until_complete(probe_url(listener.url, probe(**keys)))
    assert found.startswith(problem)
    assert bool(found) == bool(problem)
    loop.pass_time()
    assert (listener.open, len(listener.heads)) == (0, 0 if "tcp" in keys else 1)


@pytest.mark.parametrize("keys", [{}, {"tcp": True}])
def test_target_that_is_not_there_is_a_problem(
    loop: VirtualLoop, tmp_path: Path, keys: dict[str, Any]
) -> None:
    url = f"unix:{tmp_path}/gone"
    assert (
        loop.run_until_complete(probe_url(url, probe(**keys))) == "no connection: No such file or directory"
    )


class Watched:
    """A service that is watched; `state` stays as the test sets it."""

    def __init__(self, url: str, probe: Probe | None) -> None:
        self.url, self.probe = url, probe
        self.hysteresis: Hysteresis | None = None if probe is None else Hysteresis(probe)
        self.state = STARTING


class Probing:
    """Probes whose results are kept: when, and for which service."""

    def __init__(self, loop: VirtualLoop) -> None:
        self.results: list[tuple[float, Watched, str, float]] = []
        self._loop = loop
        self.probes = loop.run_until_complete(self._made())

    async def _made(self) -> UrlProbes[Watched]:
        return UrlProbes(self._probed)

    def _probed(self, service: Watched, problem: str, latency_seconds: float) -> None:
        self.results.append((self._loop.time(), service, problem, latency_seconds))

    def watch(self, service: Watched) -> None:
        async def watch() -> None:
            self.probes.watch(service, service.probe)

        self._loop.run_until_complete(watch())

    def times(self) -> list[float]:
        """When results came since the last time."""
        found = [round(at, 3) for at, *_ in self.results]
        self.results.clear()
        return found


@pytest.fixture
def probing(loop: VirtualLoop) -> Iterator[Probing]:
    made = Probing(loop)
    yield made
    made.probes.close()


def test_target_that_starts_is_probed_more_and_more_rarely_up_to_its_interval(
    loop: VirtualLoop, probing: Probing, tmp_path: Path
) -> None:
    service = Watched(f"unix:{tmp_path}/gone", probe(interval=0.3))
    probing.watch(service)
    loop.pass_time(1.41)
    # Pauses of 0.1, 0.15, 0.225 and then 0.3 s.
    assert probing.times() == [0.0, 0.1, 0.25, 0.475, 0.775, 1.075, 1.375]
    service.state = SERVING
    loop.pass_time(0.6)
    assert probing.times() == [1.675, 1.975]


def test_target_that_serves_is_probed_at_its_interval_from_the_start_of_a_probe(
    loop: VirtualLoop, probing: Probing, listener: Listener
) -> None:
    listener.answer = b""
    service = Watched(listener.url, probe(interval=2.0, timeout=0.5))
    service.state = SERVING
    probing.watch(service)
    loop.pass_time(5.0)
    assert [(at, problem, latency) for at, _, problem, latency in probing.results] == [
        (0.5, "no answer within 500ms", 0.5),
        (2.5, "no answer within 500ms", 0.5),
        (4.5, "no answer within 500ms", 0.5),
    ]


def test_jitter_makes_a_pause_shorter_by_a_random_share(
    loop: VirtualLoop, probing: Probing, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(random, "random", lambda: 0.5)
    service = Watched(f"unix:{tmp_path}/gone", probe(interval=2.0, jitter=0.4))
    service.state = SERVING
    probing.watch(service)
    loop.pass_time(5.0)
    assert probing.times() == [0.0, 1.6, 3.2, 4.8]


def test_watched_target_is_probed_as_before_unless_its_probe_changes(
    loop: VirtualLoop, probing: Probing, tmp_path: Path
) -> None:
    service = Watched(f"unix:{tmp_path}/gone", probe(interval=2.0))
    service.state = SERVING
    probing.watch(service)
    loop.pass_time(1.0)
    service.probe = probe(interval=2.0)
    probing.watch(service)
    loop.pass_time(2.0)
    assert probing.times() == [0.0, 2.0]
    service.probe = probe(interval=2.0, timeout=1.0)
    probing.watch(service)
    loop.pass_time(2.5)
    assert probing.times() == [3.0, 5.0], "from now on, and no longer as before"
    service.probe = None
    probing.watch(service)
    loop.pass_time(10.0)
    assert probing.times() == []


def test_target_without_a_hysteresis_is_probed_once(
    loop: VirtualLoop, probing: Probing, tmp_path: Path
) -> None:
    service = Watched(f"unix:{tmp_path}/gone", probe(interval=2.0))
    service.hysteresis = None
    probing.watch(service)
    loop.pass_time(10.0)
    assert probing.times() == [0.0]


def test_result_of_a_probe_whose_target_was_forgotten_meanwhile_is_dropped(
    loop: VirtualLoop, probing: Probing, listener: Listener
) -> None:
    listener.answer = b""
    service, other = (Watched(listener.url, probe(timeout=1.0)) for _ in range(2))
    service.state = other.state = SERVING
    probing.watch(service)
    probing.watch(other)
    loop.pass_time(0.5)
    probing.probes.forget(service)
    probing.probes.forget(service)
    loop.pass_time(1.0)
    assert [found[1] for found in probing.results] == [other]
    assert len(listener.heads) == 2


def test_at_most_32_probes_run_at_once(loop: VirtualLoop, probing: Probing, listener: Listener) -> None:
    listener.answer = b""
    services = [Watched(listener.url, probe(timeout=1.0, interval=100.0)) for _ in range(40)]
    for service in services:
        service.state = SERVING
        probing.watch(service)
    loop.pass_time(0.9)
    assert len(listener.heads) == 32
    loop.pass_time(0.2)
    assert (len(listener.heads), len(probing.results)) == (40, 32)
    loop.pass_time(1.0)
    assert {found[1] for found in probing.results} == {*services}


async def test_certificate_of_a_target_is_verified(tmp_path: Path) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*certificate(tmp_path))
    async with listening(lambda _, writer: writer.close(), "127.0.0.1", 0, ssl=context) as server:
        port = server.sockets[0].getsockname()[1]
        found = await probe_url(f"https://127.0.0.1:{port}", probe(timeout=60.0))
    assert found.startswith("no connection: ")
    assert "certificate verify failed" in found


@pytest.mark.parametrize("answer", [b"HTTP/1.1 400 Bad Request\r\n\r\n", b"220 mail.example\r\n"])
async def test_target_without_tls_is_told_from_one_with_another_certificate(answer: bytes) -> None:
    ended = asyncio.Event()

    async def respond(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(answer)
        await reader.read()
        writer.close()
        await writer.wait_closed()
        ended.set()

    async with listening(respond, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        found = await probe_url(f"https://127.0.0.1:{port}", probe(timeout=60.0))
        await ended.wait()
    assert found == "no connection: the target does not speak TLS: write http://"
