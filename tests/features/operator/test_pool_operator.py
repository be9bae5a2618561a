"""The pool as an operator: what reports of requests do, who may send them, what is recorded; and its metrics."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import socket
import ssl
import stat
from collections.abc import AsyncIterator, Callable, Coroutine
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import pytest

from poolctl.clock import Clock
from poolctl.config import Tables
from poolctl.features.operator.client import OperatorClient, OperatorSettings
from poolctl.features.operator.pool_operator import PoolOperator, settings_of
from poolctl.features.operator.site import OperatorSite
from poolctl.features.operator.table import OperatorTable
from poolctl.monitor.event_queue import EventBus
from poolctl.monitor.journal import JournalEvent
from poolctl.monitor.metrics import render
from poolctl.platform import process_start
from poolctl.supervisor.web_addresses import WebServer
from poolctl.web.bearer_tokens import MAX_WRONG_TOKENS, WRONG_TOKEN_SECONDS
from tests.certificates import certificate
from tests.coroutines import staged_by
from tests.deadline import until
from tests.manual_clock import ManualClock
from tests.ports import claim_port
from tests.unit.supervisor.desk import part_context
from tests.unit.web.web_stage import Spawner, WebStage

from .operator_stage import Operator

DEADLINE = 30.0
TOKEN = {"POOL_TOKEN": "s3cret"}


class Servers:
    """Scales "users" and "stopped"; `demanded` is what it was asked for."""

    def __init__(self) -> None:
        self.demanded: list[tuple[str, int]] = []
        self.clock = ManualClock(100.0)

    def wake_for_requests(self, server_name: str, requests: int) -> int:
        workers = {"users": 2, "stopped": 0}[server_name]
        self.demanded.append((server_name, requests))
        return workers


class Pool:
    """A pool that is an operator: its address, its servers and its events."""

    def __init__(self, env: dict[str, str], keeper: Spawner | None = None) -> None:
        self.events = EventBus(Clock())
        self._heard: list[JournalEvent] = []
        self.events.subscribe(self._heard.append)
        self.servers = Servers()
        self.stage = WebStage(self.events, env, keeper)
        self.part = self.another_part()
        self.stage.verbs |= self.part.verbs
        self.address = self.part.address

    def another_part(self) -> PoolOperator:
        core: Any = self.servers
        return PoolOperator(
            part_context(core, self.events, self.stage.environment)._replace(web=self.stage.web)
        )

    async def serve(self, table: OperatorTable | None) -> None:
        self.part.apply_tables(Tables() if table is None else Tables(operator=table))
        async with asyncio.timeout(DEADLINE):
            await self.address.wait_until_served()

    @property
    def recorded(self) -> list[tuple[str, str, str]]:
        self.events.flush()
        return [(each.event, each.server, each.message) for each in self._heard]

    async def has_recorded(self, *events: tuple[str, str, str]) -> None:
        await until(lambda: self.recorded == [*events])

    @property
    def endpoint(self) -> OperatorSite:
        found = self.stage.keeper.served["operator"]
        assert isinstance(found, OperatorSite)
        return found


def play(test: Callable[[Pool], Coroutine[Any, Any, None]], env: dict[str, str] = TOKEN) -> None:
    async def run() -> None:
        pool = Pool(env)
        try:
            await test(pool)
        finally:
            await pool.part.stop_serving()
            await pool.stage.close()
            for _ in range(3):
                await asyncio.sleep(0)

    asyncio.run(run())


class Answer(NamedTuple):
    status: int
    fields: str
    message: str


REPORT = {"count": 1, "svc": "users", "namespace": "default"}


def request(
    body: object = REPORT, *, method: str = "POST", path: str = "/informer/incoming-request", more: str = ""
) -> bytes:
    """As Go's client sends it."""
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    head = (
        f"{method} {path} HTTP/1.1\r\nHost: operator:8013\r\nUser-Agent: Go-http-client/1.1\r\n"
        f"Content-Length: {len(data)}\r\nContent-Type: application/json\r\nAccept-Encoding: gzip\r\n{more}\r\n"
    )
    return head.encode() + data


@contextlib.asynccontextmanager
async def connected(bind: str, **options: Any) -> AsyncIterator[Callable[..., Coroutine[Any, Any, Answer]]]:
    """A client's connection, on which requests are asked and answered."""
    async with asyncio.timeout(DEADLINE):
        if bind.startswith("unix:"):
            reader, writer = await asyncio.open_unix_connection(bind.removeprefix("unix:"))
        else:
            host, _, port = bind.rpartition(":")
            reader, writer = await asyncio.open_connection(host, int(port), **options)

        async def ask(data: bytes) -> Answer:
            writer.write(data)
            head = (await reader.readuntil(b"\r\n\r\n")).decode()
            length = int(head.lower().partition("content-length: ")[2].partition("\r\n")[0])
            body = json.loads(await reader.readexactly(length))
            return Answer(int(head.split(" ")[1]), head, body["message"])

        try:
            yield ask
        finally:
            writer.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()


async def ask(bind: str, data: bytes, **options: Any) -> Answer:
    async with connected(bind, **options) as asking:
        return await asking(data)


def trusted(*, networks: tuple[str, ...] = ("127.0.0.0/8",), **keys: Any) -> tuple[OperatorTable, str]:
    bind = f"127.0.0.1:{claim_port()}"
    return OperatorTable(bind=bind, trusted=networks, **keys), bind


@staged_by(play)
async def test_resolver_of_kubeelasti_scales_a_server_up_over_a_kept_connection(pool: Pool, /) -> None:
    table, bind = trusted()
    await pool.serve(table)
    async with connected(bind) as asking:
        for report in (REPORT, {"svc": "users"}):
            answer = await asking(request(report))
            assert (answer.status, answer.message) == (200, "Request received successfully!")
            assert "content-type: application/json\r\n" in answer.fields.lower()
            assert "connection: close" not in answer.fields.lower()
    assert pool.servers.demanded == [("users", 1), ("users", 1)], "a missing count is one request"


@staged_by(play)
async def test_invalid_reports_say_what_is_wrong_with_them(pool: Pool, /) -> None:
    table, bind = trusted()
    await pool.serve(table)
    async with connected(bind) as asking:
        for body, status, message in (
            (b"{", 400, "it is not JSON"),
            (b"[" * 16_000, 400, "it is not JSON"),
            ([1], 400, "it is not a JSON object"),
            ({"count": 1}, 400, "svc is not the name"),
            ({"svc": ""}, 400, "svc is not the name"),
            ({"svc": "users", "count": -1}, 400, "count is not a number"),
            ({"svc": "users", "count": True}, 400, "count is not a number"),
            ({"svc": "users", "count": "1"}, 400, "count is not a number"),
            ({"svc": "users", "count": 2**53 + 1}, 400, "count is not a number"),
            ({"svc": "mail", "count": 2**53}, 404, "unknown service: 'mail'"),
            ({"svc": "mail", "count": 0}, 404, "unknown service: 'mail'"),
            (b" " * 16_384, 400, "it is not JSON"),
            ({"svc": "users", "namespace": 1}, 400, "namespace is not a name"),
            ({"svc": "mail", "count": 1}, 404, "unknown service: 'mail'"),
        ):
            answer = await asking(request(body))
            assert (answer.status, message in answer.message) == (status, True), (body, answer)
        answer = await asking(request(method="GET"))
        assert (answer.status, "allow: post\r\n" in answer.fields.lower()) == (405, True)
        assert (await asking(request(path="/"))).status == 404
    assert (await ask(bind, request(b" " * 16_385))).status == 413
    assert (await ask(bind, b"HELO\r\n\r\n")).status == 400
    assert pool.servers.demanded == []


@staged_by(play)
async def test_namespace_of_the_file_is_the_only_one_that_is_served(pool: Pool, /) -> None:
    table, bind = trusted(namespace="shop")
    await pool.serve(table)
    assert (await ask(bind, request())).status == 404
    assert (await ask(bind, request({**REPORT, "namespace": "shop"}))).status == 200


@staged_by(play)
async def test_address_that_is_not_trusted_is_refused_before_anything_else(pool: Pool, /) -> None:
    table, bind = trusted(networks=("10.0.0.0/8", "::1/128"))
    await pool.serve(table)
    for data in (request(), request(b"{"), request(path="/")):
        assert (await ask(bind, data)).status == 403
    assert pool.servers.demanded == []
    message = "1 reports of requests refused, the last one from 127.0.0.1"
    await pool.has_recorded(("operator client refused", "", message))


@staged_by(play)
async def test_client_of_ipv4_is_trusted_on_an_address_for_both_versions(pool: Pool, /) -> None:
    port = claim_port()
    await pool.serve(OperatorTable(bind=f"[::]:{port}", trusted=("127.1.2.3/8",)))
    assert (await ask(f"127.0.0.1:{port}", request())).status == 200


@pytest.mark.parametrize(
    ("field", "status"),
    [
        ("", 401),
        ("Authorization: Bearer wrong\r\n", 401),
        ("Authorization: Basic s3cret\r\n", 401),
        ("Authorization: Bearer s3cret\r\n", 200),
        ("authorization: bearer s3cret\r\n", 200),
    ],
)
@staged_by(play)
async def test_token_lets_a_client_in(pool: Pool, /, field: str, status: int) -> None:
    bind = f"127.0.0.1:{claim_port()}"
    await pool.serve(OperatorTable(bind=bind, token_env="POOL_TOKEN"))
    answer = await ask(bind, request(more=field))
    assert answer.status == status
    assert ("www-authenticate: bearer" in answer.fields.lower()) == (status == 401)
    assert "s3cret" not in str(pool.recorded)


@staged_by(play)
async def test_wrong_tokens_of_an_address_are_few(pool: Pool, /) -> None:
    bind, port = f"127.0.0.1:{claim_port()}", claim_port()
    await pool.serve(OperatorTable(bind=bind, token_env="POOL_TOKEN"))
    pool.endpoint.clock = clock = ManualClock()
    right, wrong = (request(more=f"Authorization: Bearer {token}\r\n") for token in ("s3cret", "guess"))
    statuses = [(await ask(bind, wrong)).status for _ in range(MAX_WRONG_TOKENS + 1)]
    assert statuses == [401] * MAX_WRONG_TOKENS + [429]
    answer = await ask(bind, right)
    assert (answer.status, answer.message) == (429, "too many wrong tokens; wait 7 s")
    assert "retry-after: 7" in answer.fields.lower()
    clock.advance(WRONG_TOKEN_SECONDS + 0.1)
    assert (await ask(bind, right)).status == 200
    # Who needs no token is not counted, and not refused.
    await pool.serve(OperatorTable(bind=f"127.0.0.1:{port}", token_env="POOL_TOKEN", trusted=("127.0.0.1",)))
    for data in [wrong] * (MAX_WRONG_TOKENS + 1):
        assert (await ask(f"127.0.0.1:{port}", data)).status == 200


def test_wrong_tokens_of_the_same_address_keep_no_long_one_out() -> None:
    async def test(pool: Pool) -> None:
        bind = f"127.0.0.1:{claim_port()}"
        await pool.serve(OperatorTable(bind=bind, token_env="POOL_TOKEN"))
        right, wrong = (request(more=f"Authorization: Bearer {token}\r\n") for token in ("x" * 32, "x" * 31))
        for _ in range(2 * MAX_WRONG_TOKENS):
            await ask(bind, wrong)
            assert (await ask(bind, right)).status == 200
        assert (await ask(bind, wrong)).status == 429

    play(test, env={"POOL_TOKEN": "x" * 32})


def test_token_that_is_not_set_keeps_the_address_from_being_served() -> None:
    async def test(pool: Pool) -> None:
        bind = f"127.0.0.1:{claim_port()}"
        await pool.serve(OperatorTable(bind=bind, token_env="POOL_TOKEN"))
        assert "POOL_TOKEN is not set" in pool.address.problem
        assert [event for event, _, _ in pool.recorded] == ["operator not served"]

    play(test, env={})


def client_context(tmp_path: Path, own: tuple[Path, Path] | None = None) -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=str(tmp_path / "localhost.pem"))
    if own is not None:
        context.load_cert_chain(*own)
    return context


@staged_by(play)
async def test_certificate_of_a_client_lets_it_in(pool: Pool, /, tmp_path: Path) -> None:
    cert, key = certificate(tmp_path)
    known, other = certificate(tmp_path, "client"), certificate(tmp_path, "stranger")
    bind = f"127.0.0.1:{claim_port()}"
    tls = {"cert": str(cert), "key": str(key), "ca": str(known[0])}
    await pool.serve(OperatorTable(bind=bind, tls=tls))
    assert (await ask(bind, request(), ssl=client_context(tmp_path, known))).status == 200
    for context in (client_context(tmp_path), client_context(tmp_path, other)):
        with pytest.raises((OSError, asyncio.IncompleteReadError)):
            await ask(bind, request(), ssl=context)
    # Next to a token the certificate may be left out.
    await pool.serve(OperatorTable(bind=bind, tls=tls, token_env="POOL_TOKEN"))
    bearer = request(more="Authorization: Bearer s3cret\r\n")
    assert (await ask(bind, request(), ssl=client_context(tmp_path))).status == 401
    assert (await ask(bind, bearer, ssl=client_context(tmp_path))).status == 200
    assert (await ask(bind, request(), ssl=client_context(tmp_path, known))).status == 200


@staged_by(play)
async def test_client_of_a_gateway_presents_its_certificate(pool: Pool, /, tmp_path: Path) -> None:
    cert, key = certificate(tmp_path)
    bind = f"127.0.0.1:{claim_port()}"
    await pool.serve(OperatorTable(bind=bind, tls={"cert": str(cert), "key": str(key), "ca": str(cert)}))
    settings = OperatorSettings(url=f"https://{bind}", ca=str(cert), cert=str(cert), key=str(key))
    client = OperatorClient(settings)
    client.count("users", 3)
    async with asyncio.timeout(DEADLINE):
        while client.unsent:
            assert not client.snapshot()["failing"]
            await asyncio.sleep(0.001)
    client.close()
    assert pool.servers.demanded == [("users", 3)]


@pytest.mark.parametrize("mode", ["0600", "0660", "0666"])
@staged_by(play)
async def test_unix_socket_has_the_mode_whatever_the_umask(pool: Pool, /, tmp_path: Path, mode: str) -> None:
    path, before = tmp_path / "operator.sock", os.umask(0o077)
    try:
        await pool.serve(OperatorTable(bind=f"unix:{path}", mode=mode))
    finally:
        os.umask(before)
    assert oct(stat.S_IMODE(path.stat().st_mode)) == f"0o{mode[1:]}"
    assert (await ask(f"unix:{path}", request())).status == 200
    await pool.serve(None)
    assert not path.exists()


@staged_by(play)
async def test_successor_continues_with_the_listener_and_the_process(pool: Pool, /, tmp_path: Path) -> None:
    path = tmp_path / "operator.sock"
    table = OperatorTable(bind=f"unix:{path}")
    await pool.serve(table)
    inode = path.stat().st_ino
    await until(lambda: pool.stage.web.process is not None)
    successor = pool.another_part()
    successor.context._replace(web=WebServer(pool.stage.environment, pool.events))
    successor.apply_tables(Tables(operator=table))
    await successor.address.wait_until_served()
    assert path.stat().st_ino == inode
    assert (await ask(f"unix:{path}", request())).status == 200
    assert pool.servers.demanded == [("users", 1)]
    await successor.stop_serving()


@staged_by(play)
async def test_taken_port_is_a_problem_until_it_is_free(pool: Pool, /) -> None:
    table, bind = trusted()
    with socket.create_server(("127.0.0.1", int(bind.rpartition(":")[2]))):
        await pool.serve(table)
        assert pool.address.problem.startswith("operator cannot be served: ")
    await pool.serve(table)
    assert pool.address.problem == ""
    assert (await ask(bind, request())).status == 200


@staged_by(play)
async def test_renewed_certificate_is_used_and_a_broken_one_is_not(pool: Pool, /, tmp_path: Path) -> None:
    cert, key = certificate(tmp_path)
    table, bind = trusted(tls={"cert": str(cert), "key": str(key)})
    await pool.serve(table)
    assert (await ask(bind, request(), ssl=client_context(tmp_path))).status == 200
    previous = cert.read_bytes()
    certificate(tmp_path)
    assert cert.read_bytes() != previous
    await pool.serve(table)
    assert (await ask(bind, request(), ssl=client_context(tmp_path))).status == 200
    key.write_text("broken")
    await pool.serve(table)
    assert "its certificate cannot be used" in pool.address.problem
    assert (await ask(bind, request(), ssl=client_context(tmp_path))).status == 200


@staged_by(play)
async def test_events_are_bounded_and_their_counts_are_whole(pool: Pool, /) -> None:
    table, bind = trusted()
    await pool.serve(table)
    clock = pool.servers.clock
    async with connected(bind) as asking:
        for _ in range(20):
            await asking(request({**REPORT, "count": 5}))
        clock.advance(60.0)
        await asking(request())
        await asking(request({**REPORT, "svc": "stopped"}))
    assert pool.recorded == [
        ("requests reported", "users", "5 requests wait elsewhere"),
        ("requests reported", "users", "96 requests wait elsewhere"),
        (
            "requests reported",
            "stopped",
            "1 request waits elsewhere; the server is not to run, and stays as it is",
        ),
    ]


@staged_by(play)
async def test_pool_serves_the_address_of_its_table_and_closes_it_without_one(pool: Pool, /) -> None:
    part = pool.part
    part.apply_tables(Tables())
    await part.wait_for_opening_attempt()
    assert [*part.problems] == []
    table, bind = trusted()
    async with asyncio.timeout(DEADLINE):
        with socket.create_server(("127.0.0.1", int(bind.rpartition(":")[2]))):
            part.apply_tables(Tables(operator=table))
            await part.wait_for_opening_attempt()
            (problem,) = part.problems
            assert problem.startswith("[operator]: operator cannot be served: ")
        part.apply_tables(Tables(operator=table))
        await part.wait_for_opening_attempt()
        assert [*part.problems] == []
        assert (await ask(bind, request())).status == 200
        part.apply_tables(Tables(operator=OperatorTable(url="http://127.0.0.1:1")))
        await part.wait_for_opening_attempt()
        with pytest.raises(ConnectionRefusedError):
            await ask(bind, request())


def test_client_has_the_settings_of_the_operator_that_it_informs() -> None:
    assert settings_of(OperatorTable(endpoint="/unused"), TOKEN, "shop") is None
    table = OperatorTable(url="http://op:1", endpoint="/in", retry=7, token_env="POOL_TOKEN")
    assert settings_of(table, TOKEN, "shop") == OperatorSettings(
        url="http://op:1", endpoint="/in", retry_seconds=7.0, namespace="shop", token="s3cret"
    )


class Gateway:
    """A gateway whose HAProxy has counted what the test says."""

    def __init__(self) -> None:
        self.figures = self
        self.counted: Callable[..., None] = lambda process, requests: None

    def count(self, start: int, **requests: int) -> None:
        """Let a process of this machine that was started then have counted these requests of routes."""
        self.counted(SimpleNamespace(identity={"pid": os.getpid(), "start": start}), requests)


async def informed(part: PoolOperator, requests: int) -> None:
    """Return when the operator has confirmed this many requests, and all of them."""
    lines = (f"requests_total {requests}", "unsent_requests 0", "failing_services 0")
    await until(
        lambda: all(f"poolctl_gateway_operator_{line}\n" in render(part.gateway_metrics()) for line in lines)
    )


@staged_by(play)
async def test_each_request_that_haproxy_counts_is_reported_once(pool: Pool, /) -> None:
    start = process_start(os.getpid())
    assert start is not None
    async with Operator().serving() as operator:
        table = OperatorTable(url=operator.url, retry=0.001)
        gateway: Any = Gateway()
        gateway_before: Any = Gateway()
        pool.part.connect(gateway_before)
        gateway_before.count(start, users=100)  # nobody is to be informed yet
        pool.part.apply_tables(Tables(operator=table))
        for requests in (102, 102, 105):
            gateway_before.count(start, users=requests, mail=1)
        await informed(pool.part, 6)
        await pool.part.stop_serving()
        # A successor continues with the same HAProxy, then with another one.
        part = pool.another_part()
        part.apply_tables(Tables(operator=table))
        part.connect(gateway)
        gateway.count(start, users=106, mail=1)
        gateway.count(start + 1, users=2)
        await informed(part, 3)
        part.apply_tables(Tables())
        gateway.count(start + 1, users=9)
        part.apply_tables(Tables(operator=table))
        gateway.count(start + 1, users=10)
        await informed(part, 1)
        assert operator.confirmed == {"users": 9, "mail": 1}
        await part.stop_serving()
        assert [*part.gateway_metrics()] == []
