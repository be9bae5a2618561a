"""Registrations from elsewhere: who may register what, and what a client without a token can do."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import socket
from collections.abc import Callable, Coroutine
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import pytest

from poolctl.clock import Clock
from poolctl.config import Tables
from poolctl.config.model.pool_tables import MetricsTable
from poolctl.control.answers import Result
from poolctl.features.gateway.table import GatewayConfig, StreamConfig
from poolctl.features.registration import registrations
from poolctl.features.registration._services import registration_of
from poolctl.features.registration.registrations import (
    MOST_WRONG_TOKENS,
    WRONG_TOKEN_SECONDS,
    Client,
    Peer,
    RegistrationEndpoint,
    WrongTokens,
    target_problem,
)
from poolctl.features.registration.table import RegistrationTable
from poolctl.monitor.event_queue import Events
from poolctl.monitor.journal import JournalEvent
from poolctl.supervisor.verbs.verb import Call
from tests.manual_clock import ManualClock

TOKEN, OTHER = "0123456789abcdef", "fedcba9876543210"
HERE = {"name": "users", "to": "http://127.0.0.1:9000"}


class Services:
    """Takes every registration; `asked` are their verbs, options and owners."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, dict[str, Any], str]] = []
        self.exit_code = 0

    async def register(self, call: Call, owner: str = "") -> Result:
        self.asked.append(("register", call.options, owner))
        return Result(exit_code=self.exit_code)

    async def unregister(self, call: Call, owner: str = "") -> Result:
        self.asked.append(("unregister", call.options, owner))
        return Result(exit_code=self.exit_code)


class Stage:
    def __init__(self) -> None:
        self.events = Events(Clock())
        self.recorded: list[JournalEvent] = []
        self.events.subscribe(self.recorded.append)
        self.services = Services()
        self.endpoint = RegistrationEndpoint(self.services, self.events)
        self.endpoint.clock = self.clock = ManualClock()
        self.endpoint.clients = (
            Client("web", TOKEN, ("users", "reports")),
            Client("far", OTHER, ("users",), ("10.0.0.0/8",)),
        )
        listener = socket.create_server(("127.0.0.1", 0))
        self.port = listener.getsockname()[1]
        self.endpoint.serve([listener], 16)

    async def send(self, data: bytes) -> bytes:
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        try:
            writer.write(data)
            async with asyncio.timeout(30):
                return await reader.read()
        finally:
            writer.close()
            with contextlib.suppress(ConnectionError):
                await writer.wait_closed()

    async def ask(
        self, options: object, verb: str = "register", token: str | None = TOKEN, method: str = "POST"
    ) -> tuple[int, dict[str, Any]]:
        body = json.dumps({"options": options}) if not isinstance(options, str) else options
        bearer = "" if token is None else f"Authorization: Bearer {token}\r\n"
        fields = f"Host: x\r\nConnection: close\r\n{bearer}Content-Length: {len(body)}\r\n"
        head = f"{method} /v1/{verb} HTTP/1.1\r\n{fields}\r\n"
        answer = await self.send((head + body).encode())
        head, _, found = answer.decode().partition("\r\n\r\n")
        return int(head.split()[1]), json.loads(found)


def play(test: Callable[[Stage], Coroutine[Any, Any, None]]) -> None:
    async def run() -> None:
        stage = Stage()
        try:
            await asyncio.wait_for(test(stage), 60)
        finally:
            stage.endpoint.close()
            await asyncio.sleep(0)

    asyncio.run(run())


def test_client_registers_and_unregisters_as_itself_and_gets_a_time_to_live() -> None:
    async def work(stage: Stage) -> None:
        assert (await stage.ask(HERE))[0] == 200
        assert (await stage.ask({**HERE, "ttl": "10s", "weight": 2, "probe": "/health"}))[0] == 200
        assert (await stage.ask({"name": "users"}, "unregister"))[0] == 200
        assert stage.services.asked == [
            ("register", {**HERE, "ttl": "1m"}, "web"),
            ("register", {**HERE, "ttl": "10s", "weight": 2, "probe": "/health"}, "web"),
            ("unregister", {"name": "users"}, "web"),
        ]
        for code, status in ((5, 400), (4, 404), (8, 409), (1, 500)):
            stage.services.exit_code = code
            assert (await stage.ask(HERE))[0] == status

    play(work)


@pytest.mark.parametrize(
    ("options", "given", "status", "message"),
    [
        (HERE, {"token": None}, 401, "token missing or wrong"),
        (HERE, {"token": ""}, 401, "token missing or wrong"),
        (HERE, {"token": TOKEN[:-1]}, 401, "token missing or wrong"),
        (HERE, {"token": TOKEN + " "}, 200, ""),
        (HERE, {"token": OTHER}, 403, "far may not register from 127.0.0.1"),
        (HERE, {"method": "GET"}, 405, "only POST"),
        (HERE, {"verb": "stop"}, 404, "the endpoints are"),
        (HERE, {"verb": "../stop"}, 404, "the endpoints are"),
        ({**HERE, "name": "secret"}, {}, 403, "may not register for the route 'secret'"),
        ({**HERE, "name": ["users"]}, {}, 400, "'name' is missing"),
        ({"name": "users"}, {}, 400, "'to' is missing"),
        ({**HERE, "to": 7}, {}, 400, "'to' is missing"),
        ({"name": "users", "to": 7}, {"verb": "unregister"}, 400, "'to' is no URL"),
        ({**HERE, "ttl": 0}, {}, 400, "needs a ttl"),
        ({**HERE, "host": "bank.example.com"}, {}, 400, "'host' cannot be given here"),
        ({**HERE, "path": "/"}, {}, 400, "'path' cannot be given here"),
        ({**HERE, "timeout": 9e9}, {}, 400, "'timeout' cannot be given here"),
        ("[]", {}, 400, "the body is not"),
        ("[" * 10_000, {}, 400, "no JSON"),
        ({**HERE, "to": "unix:/run/app.sock"}, {}, 403, "a Unix socket is of this machine"),
        ({**HERE, "to": "UNIX:/run/app.sock"}, {}, 403, "a Unix socket is of this machine"),
        ({**HERE, "to": "http://users.example.com:80"}, {}, 403, "is a name, which may lead elsewhere later"),
        ({**HERE, "to": "http://localhost:9000"}, {}, 200, ""),
    ],
)
def test_other_requests_are_refused_with_the_reason(
    options: object, given: dict[str, Any], status: int, message: str
) -> None:
    async def work(stage: Stage) -> None:
        found, answer = await stage.ask(options, **given)
        assert (found, message in answer.get("error", "")) == (status, True), answer
        assert len(stage.services.asked) == (status == 200)

    play(work)


AWAY, NEAR = Peer(ip_address("10.0.0.9"), "10.0.0.9"), Peer(ip_address("127.0.0.1"), "127.0.0.1")


@pytest.mark.parametrize(
    ("allow", "url", "peer", "problem"),
    [
        ((), "http://10.0.0.7:9000", AWAY, ""),
        ((), "https://10.0.0.7", AWAY, ""),
        ((), "http://[fd00::7]", AWAY, ""),
        ((), "http://127.0.0.1:9000", AWAY, "this machine's own"),
        ((), "http://localhost", AWAY, "this machine's own"),
        ((), "http://[::1]:9000", AWAY, "this machine's own"),
        ((), "http://[::ffff:127.0.0.1]:9000", AWAY, "this machine's own"),
        ((), "http://127.0.0.1:9000", NEAR, ""),
        ((), "http://127.0.0.1:9000", Peer(None, "uid 0"), ""),
        (("10.0.0.0/8",), "http://10.0.0.7:9000", AWAY, ""),
        (("10.0.0.0/8",), "http://[::ffff:10.0.0.7]:9000", AWAY, ""),
        (("10.0.0.0/8",), "http://192.168.0.7:9000", AWAY, "not in the networks"),
        (("10.0.0.0/8",), "http://127.0.0.1:9000", NEAR, "not in the networks"),
        (("10.0.0.0/8", "127.0.0.1"), "http://127.0.0.1:9000", AWAY, ""),
        (("*",), "http://192.168.0.7:9000", AWAY, ""),
        (("fd00::/64",), "http://[fd00::7]:9000", AWAY, ""),
        ((), "http://2130706433:80", AWAY, ""),  # refused as no address by all registrations
    ],
)
def test_targets_that_a_client_may_register(
    allow: tuple[str, ...], url: str, peer: Peer, problem: str
) -> None:
    found = Client("web", TOKEN, ("users",), allow).target_problem(url, peer)
    assert problem in found
    assert bool(found) == bool(problem)


def test_wrong_tokens_of_an_address_are_few_and_are_recorded_once_a_minute() -> None:
    async def work(stage: Stage) -> None:
        statuses = [(await stage.ask(HERE, token="guess"))[0] for _ in range(MOST_WRONG_TOKENS + 5)]
        assert statuses == [401] * MOST_WRONG_TOKENS + [429] * 5
        # Not even the right one, or a guess would be recognised.
        status, answer = await stage.ask(HERE)
        assert (status, answer) == (429, {"error": "too many wrong tokens"})
        stage.clock.advance(WRONG_TOKEN_SECONDS + 0.1)
        assert [(await stage.ask(HERE, token="guess"))[0] for _ in range(2)] == [401, 429]
        stage.clock.advance(WRONG_TOKEN_SECONDS + 0.1)
        assert (await stage.ask(HERE))[0] == 200
        stage.clock.advance(60)
        assert (await stage.ask(HERE, token="guess"))[0] == 401
        stage.events.flush()
        assert [each.message for each in stage.recorded] == [
            "1 registrations refused, the last one from 127.0.0.1: token missing or wrong",
            f"{MOST_WRONG_TOKENS + 1} registrations refused, the last one from 127.0.0.1: token missing or wrong",
        ]

    play(work)


def test_what_is_known_of_addresses_with_wrong_tokens_is_bounded() -> None:
    wrong = WrongTokens()
    for number in range(5000):
        wrong.note(str(number), 1.0)
    assert len(wrong) == registrations._MOST_ADDRESSES
    for _ in range(20):
        wrong.note("one", 1.0)
    assert wrong.wait_seconds("one", 1.0) > 0
    assert wrong.wait_seconds("other", 1.0) == 0


def test_requests_of_a_client_are_limited_and_so_are_heads_and_bodies() -> None:
    async def work(stage: Stage) -> None:
        large = b"POST /v1/register HTTP/1.1\r\nHost: x\r\nContent-Length: 20000\r\n\r\n" + b"x" * 20000
        assert (await stage.send(large)).split()[1] == b"413"
        head = b"POST /v1/register HTTP/1.1\r\nX: " + b"x" * 20000
        assert (await stage.send(head)).split()[1] == b"431"
        stage.endpoint.clients[0].requests.take(registrations._BURST, stage.clock.monotonic())
        assert (await stage.ask(HERE))[0] == 429
        stage.clock.advance(1)
        assert (await stage.ask(HERE))[0] == 200

    play(work)


TABLES = Tables(
    gateway=GatewayConfig(bind=(":8080", "10.0.0.7:8443", "[::1]:8444")),  # type: ignore[arg-type]
    metrics=MetricsTable(bind="127.0.0.1:9464"),
    registration=RegistrationTable(bind="0.0.0.0:8014", client=()),
    streams=(StreamConfig(alias="db", bind="127.0.0.1:5432", to=("10.0.0.5:1",)),),  # type: ignore[arg-type]
)
GATEWAY = "an address of the gateway itself"


def problem(url: str, tables: Tables = TABLES) -> str:
    registration = registration_of({"name": "users", "to": url}, [])
    assert registration is not None, url
    return target_problem(registration.to, tables)


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("http://127.0.0.1:8080", GATEWAY),
        ("http://127.9.9.9:8080", GATEWAY),
        ("http://localhost:8080", GATEWAY),
        ("http://LocalHost.:8080", GATEWAY),
        ("http://a.localhost:8080", GATEWAY),
        ("http://[::1]:8080", GATEWAY),
        ("http://[::ffff:127.0.0.1]:8080", GATEWAY),
        ("http://[::ffff:7f00:1]:8080", GATEWAY),
        ("https://10.0.0.7:8443", GATEWAY),
        ("http://[0:0:0:0:0:0:0:1]:8444", GATEWAY),
        ("http://127.0.0.1:9464", "an address of the pool's own [metrics]"),
        ("http://[::ffff:127.0.0.1]:9464", "an address of the pool's own [metrics]"),
        ("http://localhost:9464", "an address of the pool's own [metrics]"),
        ("http://127.0.0.1:8014", "an address of the pool's own [registration]"),
        ("http://127.0.0.1:5432", "an address of the pool's own [[stream]] db"),
        ("http://169.254.169.254", "is a link-local address"),
        ("http://[::ffff:169.254.169.254]:80", "is a link-local address"),
        ("http://[::ffff:a9fe:a9fe]", "is a link-local address"),
        ("http://[fe80::1]:9000", "is a link-local address"),
        ("http://[fe80::1%25lo]:9000", "is a link-local address"),
        ("http://224.0.0.1:9000", "is no address of a service"),
    ],
)
def test_own_and_link_local_addresses_are_refused(url: str, expected: str) -> None:
    assert expected in problem(url)


@pytest.mark.parametrize(
    "url",
    [
        "http://127.0.0.1:9000",
        "http://127.0.0.2:9464",
        "http://10.0.0.7:8444",
        "http://198.51.100.7:8080",
        "http://no-such-host.invalid:8080",
        "unix:/run/users.sock",
    ],
)
def test_other_addresses_are_not(url: str) -> None:
    assert problem(url) == ""


def test_every_address_of_this_machine_reaches_a_wildcard() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))  # which sends nothing
        except OSError:
            pytest.skip("this machine has no address besides loopback")
        own = probe.getsockname()[0]
    assert GATEWAY in problem(f"http://{own}:8080")


def test_sockets_of_poolctl_are_refused_by_whatever_name(tmp_path: Path) -> None:
    pool = tmp_path / "0123456789ab"
    pool.mkdir()
    with socket.socket(socket.AF_UNIX) as control, socket.socket(socket.AF_UNIX) as gateway:
        control.bind(os.fspath(pool / "control.sock"))
        gateway.bind(os.fspath(tmp_path / "gateway.sock"))
        (tmp_path / "link.sock").symlink_to(pool / "control.sock")
        os.link(tmp_path / "gateway.sock", tmp_path / "other.sock")
        tables = Tables(gateway=GatewayConfig(bind=(f"unix:{tmp_path}/gateway.sock",)))  # type: ignore[arg-type]
        for path in ("0123456789ab/control.sock", "0123456789ab/../link.sock", "0123456789ab/keeper.sock"):
            assert "is a socket of poolctl's own" in problem(f"unix:{tmp_path}/{path}", tables)
        for path in ("gateway.sock", "other.sock"):
            assert GATEWAY in problem(f"unix:{tmp_path}/{path}", tables)
        assert problem(f"unix:{tmp_path}/app.sock", tables) == ""
