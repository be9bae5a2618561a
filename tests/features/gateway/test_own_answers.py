"""What the gateway answers for a server that sleeps or starts, and what wakes it."""

from __future__ import annotations

import re
from collections.abc import Callable, Coroutine
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest

from poolctl.features.gateway.process.backends.route_backends import SLEEPING, STARTING
from poolctl.features.gateway.process.proxy.own_answers import (
    announce_request_to_parts,
    answer_of_route,
    spares_server,
    takes_waiting_page,
    wake_and_answer,
)
from poolctl.features.gateway.process.proxy.request_head import read_request
from poolctl.features.gateway.process.settings import ServerFacts
from poolctl.http.messages import RequestHead
from poolctl.routing.decision import passable_tls_host_match
from poolctl.routing.route import Redirect, Route
from tests.features.gateway import passing_stage
from tests.features.gateway.passing_stage import app_route
from tests.features.gateway.proxy_stage import Backend, ok

BROWSER = "Accept: text/html,application/xhtml+xml,*/*;q=0.8\r\nSec-Fetch-Mode: navigate\r\n"


class Stage(passing_stage.Stage):
    """A server "users" in a state, and its backend; `woken` are the servers that were to be woken."""

    async def sleeper(self, state: str = "sleeping", **fields: Any) -> Backend:
        backend = await self.backend(ok)
        self.pair = self.server("users")
        self.routes(app_route("users", **fields))
        self.facts = ServerFacts(name="users", bind=backend.url.removeprefix("http://"))
        self.woken: list[str] = []
        self.edge.wake = self.woken.append
        self.become(state)
        return backend

    def become(self, state: str) -> None:
        facts = replace(self.facts, state=state, ready=state == "running")
        self.edge.backends.apply(list(self.edge.table), {"users": facts})

    async def ask(
        self, path: str, fields: str = "", method: str = "GET", body: bytes = b""
    ) -> tuple[bytes, bytes]:
        """The response to one request on a connection of its own: its head and its body."""
        sock = await self.connect(f"{method} {path} HTTP/1.1\r\nHost: a\r\n{fields}\r\n".encode() + body)
        head, _, body = (await self.read_head(sock)).partition(b"\r\n\r\n")
        head += b"\r\n"
        length = re.search(rb"(?i)\r\ncontent-length: (\d+)", head)
        while method != "HEAD" and length and len(body) < int(length[1]):
            body += await self.edge.loop.sock_recv(sock, 65536)
        sock.close()
        return head, body

    @property
    def requests(self) -> tuple[int, int]:
        """Those that the route and the server were counted."""
        counts = self.edge.counts
        return counts.route("app").requests, counts.backend("users").requests


def play(scene: Callable[[Stage], Coroutine[Any, Any, None]]) -> None:
    passing_stage.proxy_stage.play(scene, Stage)


@pytest.mark.parametrize("mode", ["auto", "proxy"])
def test_probe_of_a_sleeping_server_is_answered_and_wakes_nothing(mode: str) -> None:
    async def scene(stage: Stage) -> None:
        backend = await stage.sleeper(probe_responses=("/health",), mode=mode)
        for path in ("/health", "/health?deep=1"):
            head, body = await stage.ask(path)
            assert head.startswith(b"HTTP/1.1 200 OK\r\n")
            assert b"\r\nCache-Control: no-store\r\n" in head
            assert body == b"sleeping\n"
        head, _ = await stage.ask("/health", method="HEAD")
        assert head.startswith(b"HTTP/1.1 200 ")
        assert (stage.pair.take_now(), backend.connections, stage.woken) == (None, 0, [])
        assert stage.requests == (3, 0)
        assert stage.edge.counts.route("app").failures == 0

    play(scene)


@pytest.mark.parametrize("mode", ["auto", "proxy"])
@pytest.mark.parametrize("path", ["/favicon.ico", "/deeper/favicon.ico"])
def test_icon_of_a_sleeping_server_is_not_found_and_wakes_nothing(mode: str, path: str) -> None:
    async def scene(stage: Stage) -> None:
        backend = await stage.sleeper(mode=mode)
        head, _ = await stage.ask(path)
        assert head.startswith(b"HTTP/1.1 404 ")
        assert b"\r\nCache-Control: no-store\r\n" in head
        assert (stage.pair.take_now(), backend.connections, stage.requests) == (None, 0, (1, 0))

    play(scene)


@pytest.mark.parametrize(
    ("method", "path", "state"),
    [
        ("POST", "/health", "sleeping"),
        ("GET", "/health/deep", "sleeping"),
        ("GET", "/health", "starting"),
        ("GET", "/health", "running"),
        ("GET", "/favicon.ico", "running"),
    ],
)
def test_other_requests_and_servers_that_do_not_sleep_are_passed(method: str, path: str, state: str) -> None:
    async def scene(stage: Stage) -> None:
        await stage.sleeper(state, probe_responses=("/health",))
        await stage.connect(f"{method} {path} HTTP/1.1\r\nHost: a\r\n\r\n".encode())
        (await stage.pair.take()).close()

    play(scene)


def test_probe_is_answered_by_another_server_of_the_route_that_is_awake() -> None:
    async def scene(stage: Stage) -> None:
        await stage.sleeper()
        awake = stage.server("b")
        stage.routes(app_route("users", "b", probe_responses=("/health",)))
        facts = {
            "users": replace(stage.facts, state="sleeping"),
            "b": ServerFacts(name="b", state="running", ready=True),
        }
        stage.edge.backends.apply(list(stage.edge.table), facts)
        await stage.connect(b"GET /health HTTP/1.1\r\nHost: a\r\n\r\n")
        (await awake.take()).close()

    play(scene)


def test_browser_gets_a_page_that_reloads_while_the_server_is_woken_and_starts() -> None:
    async def scene(stage: Stage) -> None:
        backend = await stage.sleeper(waiting_page=True)
        for state in ("sleeping", "starting"):
            stage.become(state)
            head, body = await stage.ask("/", BROWSER)
            assert head.startswith(b"HTTP/1.1 503 ")
            for field in (
                b"Retry-After: 1",
                b"Cache-Control: no-store",
                b"Content-Type: text/html; charset=utf-8",
            ):
                assert b"\r\n" + field + b"\r\n" in head
            assert b'<meta http-equiv="refresh"' in body
            assert not re.search(rb"(?:src|href)=(?!\"data:)|url\(|@import|<script", body)
        assert (stage.woken, backend.connections) == (["users"], 0)
        assert stage.requests == (2, 0)
        stage.become("running")
        assert (await stage.ask("/", BROWSER))[1] == b"hello"
        # A waiting page is no failure of the server.
        assert stage.edge.backends.snapshot()[0]["breaker"] == "closed"

    play(scene)


def test_requests_that_are_no_browsers_for_a_page_wait_for_the_server() -> None:
    async def scene(stage: Stage) -> None:
        await stage.sleeper(waiting_page=True)
        assert (await stage.ask("/", "Accept: application/json\r\n"))[1] == b"hello"
        assert (await stage.ask("/", BROWSER + "Content-Length: 2\r\n", "POST", b"ab"))[1] == b"hello"
        assert (stage.woken, stage.requests) == (["users", "users"], (2, 2))

    play(scene)


def test_supervisor_is_asked_to_wake_the_server_to_which_a_connection_is_passed() -> None:
    async def scene(stage: Stage) -> None:
        await stage.sleeper()
        for state, woken in (("sleeping", ["users"]), ("starting", []), ("running", [])):
            stage.become(state)
            await stage.connect(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n\r\n")
            (await stage.pair.take()).close()
            assert stage.woken == woken
            stage.woken.clear()

    play(scene)


@pytest.mark.parametrize(
    ("method", "fields", "takes"),
    [
        ("GET", BROWSER, True),
        ("GET", "Accept: text/html\r\n", True),
        ("GET", "Accept: image/png, TEXT/HTML;q=0.5\r\n", True),
        ("GET", "", False),
        ("GET", "Accept: */*\r\n", False),
        ("GET", "Accept: text/htmlx\r\n", False),
        ("GET", BROWSER.replace("navigate", "cors"), False),
        ("HEAD", BROWSER, False),
        ("POST", BROWSER, False),
        ("GET", BROWSER + "Content-Length: 1\r\n", False),
        ("GET", BROWSER + "Connection: Upgrade\r\nUpgrade: websocket\r\n", False),
    ],
)
def test_waiting_page_is_for_browsers_that_navigate(method: str, fields: str, takes: bool) -> None:
    request = read_request(f"{method} / HTTP/1.1\r\nHost: a\r\n{fields}\r\n".encode(), 8192, 0)
    assert request is not None
    assert takes_waiting_page(Route(alias="app", waiting_page=True), request) is takes
    assert not takes_waiting_page(Route(alias="app"), request)


@pytest.mark.parametrize("probes", [(), ("/health",)])
def test_tls_connection_is_passed_only_if_no_probe_can_be_in_it(probes: tuple[str, ...]) -> None:
    async def scene(stage: Stage) -> None:
        await stage.sleeper(host="a.example.com", probe_responses=probes)
        assert (passable_tls_host_match("a.example.com", stage.edge.table) is None) is bool(probes)

    play(scene)


def request(text: str = "GET / HTTP/1.1\r\nHost: a.test\r\n\r\n") -> RequestHead:
    found = read_request(text.encode(), 65536, 0)
    assert found is not None
    return found


def answered(
    route: Route, text: str = "GET / HTTP/1.1\r\nHost: a.test\r\n\r\n", client: str = "10.0.0.1"
) -> Any:
    """The status and the location of the route's own answer; None if a backend answers."""
    found = answer_of_route(route, request(text), client)
    if found is None:
        return None
    location = re.search(rb"Location: (.*)\r\n", found.end_to_end_lines)
    return found.status, location and location[1].decode()


@pytest.mark.parametrize(
    ("allow", "refused"), [((), False), (("10.0.0.0/8",), False), (("192.168.0.0/16", "10.1.0.0/16"), True)]
)
def test_client_that_the_route_does_not_allow_gets_403(allow: tuple[str, ...], refused: bool) -> None:
    assert answered(Route(alias="a", allow=allow)) == ((403, None) if refused else None)


@pytest.mark.parametrize(
    ("to", "location"),
    [
        ("https://b.test", "https://b.test/a?b"), ("https://b.test/c", "https://b.test/c"),
        ("https://b.test?d", "https://b.test?d"), ("https", "https://a.test/a?b"),
    ],
)  # fmt: skip
def test_redirect_keeps_the_path_of_the_request_unless_it_has_one(to: str, location: str) -> None:
    route = Route(alias="a", redirect=Redirect(to=to, status=307))
    assert answered(route, "GET /a?b HTTP/1.1\r\nHost: A.test:80\r\n\r\n") == (307, location)


@pytest.mark.parametrize(
    ("host", "answer"),
    [("b.test", (308, "https://b.test/")), ("*.test", (400, None)), ("", (400, None))],
)
def test_redirect_to_https_needs_a_host(host: str, answer: tuple[int, str | None]) -> None:
    route = Route(alias="a", host=host, redirect=Redirect(to="https"))
    assert answered(route, "GET / HTTP/1.0\r\n\r\n") == answer


def test_redirect_of_the_whole_server_leads_to_its_root() -> None:
    route = Route(alias="a", redirect=Redirect(to="https"))
    assert answered(route, "OPTIONS * HTTP/1.1\r\nHost: a.test\r\n\r\n") == (308, "https://a.test/")


@pytest.mark.parametrize(
    ("method", "path", "spares"),
    [
        (b"GET", b"/favicon.ico", True), (b"HEAD", b"/app/favicon.ico", True), (b"POST", b"/favicon.ico", False),
        (b"GET", b"/up", True), (b"GET", b"/./up", True), (b"GET", b"/upper", False), (b"GET", b"/", False),
    ],
)  # fmt: skip
def test_probe_and_icon_wake_no_server(method: bytes, path: bytes, spares: bool) -> None:
    assert spares_server(Route(alias="a", probe_responses=("/up",)), method, path) is spares
    assert spares_server(Route(alias="a"), method, b"/up") is False


class Edge:
    """What the answers use of the gateway; `woken` are the servers that are to be woken."""

    def __init__(self) -> None:
        self.woken: list[str] = []
        self.wake = self.woken.append
        self.arrived: list[str] = []
        self.parts = {"some": SimpleNamespace(request_arrived=lambda route: self.arrived.append(route.alias))}


@pytest.mark.parametrize(
    ("rank", "text", "status", "woken"),
    [
        (SLEEPING, "GET /up HTTP/1.1\r\nHost: a\r\n\r\n", 200, False),
        (SLEEPING, "GET /favicon.ico HTTP/1.1\r\nHost: a\r\n\r\n", 404, False),
        (SLEEPING, "GET / HTTP/1.1\r\nHost: a\r\n\r\n", None, True),
        (SLEEPING, "GET / HTTP/1.1\r\nHost: a\r\nAccept: text/html\r\n\r\n", 503, True),
        (STARTING, "GET / HTTP/1.1\r\nHost: a\r\nAccept: text/html\r\n\r\n", 503, False),
        (STARTING, "GET /up HTTP/1.1\r\nHost: a\r\n\r\n", None, False),
    ],
)
def test_server_that_sleeps_or_starts_is_answered_for_or_woken(
    rank: int, text: str, status: int | None, woken: bool
) -> None:
    edge: Any = Edge()
    backend: Any = SimpleNamespace(key="web", rank=rank)
    route = Route(alias="a", waiting_page=True, probe_responses=("/up",))
    found = wake_and_answer(edge, backend, route, request(text))
    assert (found.status if found is not None else None) == status
    assert edge.woken == (["web"] if woken else [])
    if found is not None:
        assert b"Cache-Control: no-store\r\n" in found.end_to_end_lines
        assert (b"Retry-After: 1\r\n" in found.end_to_end_lines) is (status == 503)
        assert found.first == {200: b"sleeping\n", 404: b"404 Not Found\n"}.get(status or 0, found.first)


def test_answer_to_head_has_no_body() -> None:
    edge: Any = Edge()
    backend: Any = SimpleNamespace(key="web", rank=SLEEPING)
    route = Route(alias="a", probe_responses=("/up",))
    found = wake_and_answer(edge, backend, route, request("HEAD /up HTTP/1.1\r\nHost: a\r\n\r\n"))
    assert found is not None
    assert (found.first, found.length) == (b"", len("sleeping\n"))


def test_request_that_wakes_no_server_is_not_reported() -> None:
    edge: Any = Edge()
    route = Route(alias="a", probe_responses=("/up",))
    announce_request_to_parts(edge, route, b"GET", b"/up")
    assert edge.arrived == []
    announce_request_to_parts(edge, route, b"GET", b"/")
    assert edge.arrived == ["a"]
