"""Connections that are accepted or given back by workers: which are passed on, and which the proxy serves."""

from __future__ import annotations

import asyncio
import os
import re
import resource
import socket
from contextlib import suppress
from pathlib import Path

import pytest

from poolctl.features.gateway.process import acceptor, waiting_connections
from poolctl.features.gateway.process.descriptor_limit import DescriptorLimits, lowest_free
from poolctl.features.gateway.process.settings import ListenerSettings
from poolctl.keeper import wire
from poolctl.keeper.connection_handover import MOST_HOPS, Connection, Routed
from tests.certificates import certificate
from tests.features.gateway.passing_stage import HEAD, Stage, app_route, play, until
from tests.features.gateway.proxy_stage import ok
from tests.features.gateway.test_edge import answered, is_closed
from tests.features.gateway.test_tls import client_hello, in_records


@pytest.fixture(autouse=True)
def _soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(acceptor, "_RETRY_SECONDS", 0.01)


def test_connection_is_passed_with_its_request_unread() -> None:
    async def scene(stage: Stage) -> None:
        pair = stage.server("users")
        stage.route_to("users", host="users.example.com")
        client = await stage.connect(HEAD + b"body")
        taken = await pair.take()
        assert taken.recv(1000, socket.MSG_DONTWAIT) == HEAD + b"body"
        assert taken.getpeername() == client.getsockname()
        assert taken.routed[:4] == ("app", 1, 0, b"")
        await stage.edge.loop.run_in_executor(None, taken.sendall, b"answer")
        taken.close()
        assert await stage.read(client) == b"answer"  # which ends: the gateway has no descriptor left
        assert not stage.waiting

    play(scene)


def test_head_in_pieces_is_passed_when_it_is_whole() -> None:
    async def scene(stage: Stage) -> None:
        pair = stage.server("users")
        stage.route_to("users")
        client = await stage.connect()
        await until(lambda: stage.waiting)
        for at in range(len(HEAD)):
            assert pair.take_now() is None
            await stage.edge.loop.sock_sendall(client, HEAD[at : at + 1])
        taken = await pair.take()
        assert taken.recv(1000) == HEAD
        taken.close()
        assert not stage.waiting

    play(scene)


def test_large_head_in_small_segments_is_passed_whole() -> None:
    async def scene(stage: Stage) -> None:
        pair = stage.server("users")
        stage.route_to("users")
        head = HEAD[:-2] + b"".join(b"X-%d: %b\r\n" % (each, b"x" * 600) for each in range(90)) + b"\r\n"
        client = await stage.connect()
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for at in range(0, len(head), 40):
            await stage.edge.loop.sock_sendall(client, head[at : at + 40])
        taken = await pair.take()
        assert taken.recv(100_000) == head
        taken.close()

    play(scene)


@pytest.mark.parametrize(
    ("fields", "head"),
    [
        ({"host": "shop.example.com"}, HEAD),  # no route
        ({"host": "users.example.com", "retries": 1}, HEAD),
        ({"path": "/v1"}, HEAD.replace(b"/v1", b"/a/../v1")),
        ({}, HEAD.replace(b"GET /v1", b"GET http://users.example.com/v1")),
        ({}, HEAD.replace(b"Host", b"Host: a\r\nHost")),
    ],
)
def test_other_requests_are_left_to_the_proxy(fields: dict[str, object], head: bytes) -> None:
    async def scene(stage: Stage) -> None:
        pair = stage.server("users")
        stage.route_to("users", **fields)
        client = await stage.connect(head)
        assert (await stage.read_head(client)).startswith(b"HTTP/1.1 ")
        assert pair.take_now() is None

    play(scene)


def test_server_without_a_pair_is_proxied() -> None:
    async def scene(stage: Stage) -> None:
        stage.server("users", tls=True)  # which takes no plain connections
        stage.route_to("users")
        assert (await stage.read_head(await stage.connect(HEAD))).startswith(b"HTTP/1.1 50")

    play(scene)


def test_connections_of_a_route_go_to_its_servers_in_turn() -> None:
    async def scene(stage: Stage) -> None:
        pairs = [stage.server("users"), stage.server("more")]
        stage.route_to("users", "more")
        for _ in range(4):
            await stage.connect(HEAD)
        for pair in pairs:
            for _ in range(2):
                (await pair.take()).close()

    play(scene)


def test_client_that_leaves_before_its_head_is_whole_costs_nothing_further() -> None:
    async def scene(stage: Stage) -> None:
        stage.server("users")
        stage.route_to("users")
        for data in (b"", HEAD[:20]):
            client = await stage.connect(data)
            await until(lambda: stage.waiting)
            client.close()
            await until(lambda: not stage.waiting)

    play(scene)


def test_slow_head_gets_408_and_a_silent_connection_is_closed() -> None:
    async def scene(stage: Stage) -> None:
        stage.route_to("users")
        slow, silent = [socket.create_connection(stage.listener.getsockname()) for _ in range(2)]
        slow.sendall(HEAD[:20])  # before the connection is accepted, when its time begins
        with slow, silent:
            for each in (slow, silent):
                each.setblocking(False)
            assert (await stage.read(slow)).startswith(b"HTTP/1.1 408 ")
            assert await stage.read(silent) == b""

    play(scene, head_seconds=0.2)


def test_head_that_is_too_large_gets_431_without_a_reset(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(waiting_connections, "_LINGER_SECONDS", 1000.0)

    async def scene(stage: Stage) -> None:
        stage.route_to("users")
        client = await stage.connect(HEAD[:-2] + b"X: " + b"x" * 60_000)
        assert (await stage.read(client)).startswith(b"HTTP/1.1 431 ")
        client.close()
        await until(lambda: not stage.waiting)

    play(scene, max_head_bytes=4096)


def test_bytes_that_are_no_request_get_an_answer_at_once() -> None:
    async def scene(stage: Stage) -> None:
        stage.route_to("users")
        assert (await stage.read(await stage.connect(b"GET /v1 HTTP/1.1\n"))).startswith(b"HTTP/1.1 400 ")

    play(scene)


def test_above_the_most_connections_new_ones_wait_in_the_backlog(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(acceptor, "_RETRY_SECONDS", 0.01)

    async def scene(stage: Stage) -> None:
        pair = stage.server("users")
        stage.route_to("users")
        silent, first = await stage.connect(), await stage.connect(HEAD[:20])
        await until(lambda: stage.waiting == 2)
        second = await stage.connect(HEAD[:20])
        assert await stage.read(silent) == b""
        await until(lambda: stage.waiting == 2 and not stage.edge.passing.waiting._silent)
        third = await stage.connect(HEAD)
        await until(lambda: stage.acceptor._timer)
        assert pair.take_now() is None
        first.close()
        taken = await pair.take()
        assert taken.getpeername() == third.getsockname()
        taken.close()
        second.close()

    play(scene, max_connections=2)


@pytest.mark.parametrize("paused", [False, True])
def test_closed_acceptor_leaves_new_connections_to_other_processes(
    monkeypatch: pytest.MonkeyPatch, paused: bool
) -> None:
    monkeypatch.setattr(acceptor, "_RETRY_SECONDS", 0.0)

    async def scene(stage: Stage) -> None:
        if paused:
            stage.acceptor._pause()
        stage.acceptor.stop_receiving()
        client = await stage.connect(HEAD)
        for _ in range(10):
            await asyncio.sleep(0)
        accepted, address = stage.listener.accept()
        assert address == client.getsockname()
        accepted.close()

    play(scene)


def test_connections_wait_in_the_backlog_while_accepting_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(acceptor, "_RETRY_SECONDS", 1000.0)

    async def scene(stage: Stage) -> None:
        stage.acceptor._pause()
        client = await stage.connect(HEAD)
        for _ in range(10):
            await asyncio.sleep(0)
        accepted, address = stage.listener.accept()
        assert address == client.getsockname()
        accepted.close()

    play(scene)


def test_tls_handshakes_count_among_the_open_connections(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(acceptor, "_RETRY_SECONDS", 0.01)
    contents = [path.read_bytes() for path in certificate(tmp_path)]

    async def scene(stage: Stage) -> None:
        pair = stage.server("users", tls=True)
        stage.route_to("users", host="users.example.com")
        stage.edge.certificates.put("127.0.0.1:0", (), {}, contents)
        # Their handshakes go no further.
        begun = [await stage.connect(client_hello("localhost")) for _ in range(2)]
        await until(lambda: stage.edge.pool.arriving == 2)
        other = await stage.connect(client_hello("users.example.com"))
        await until(lambda: stage.acceptor._timer)
        assert pair.take_now() is None
        begun[0].close()
        taken = await pair.take()
        assert taken.getpeername() == other.getsockname()
        taken.close()

    play(scene, tls=True, max_connections=2)


def test_connection_that_a_worker_gives_back_is_decided_by_its_next_head() -> None:
    async def scene(stage: Stage) -> None:
        shop, users = stage.server("shop"), stage.server("users")
        stage.routes(app_route("shop", host="shop"), app_route("users", host="users.example.com", alias="u"))
        stage.apply("shop", "users")
        for received, unread in (
            (HEAD, b""),
            (HEAD[:30], HEAD[30:]),
            (b"", HEAD),
            (HEAD + HEAD[:9], HEAD[9:]),
        ):
            client = await stage.connect(HEAD.replace(b"users.example.com", b"shop"))
            taken = await shop.take()
            taken.recv(1000)
            stage.give_back(taken, received, hops=1)
            taken.close()
            await stage.edge.loop.sock_sendall(client, unread)
            taken = await users.take()
            assert (taken.routed.route, taken.routed.hops, taken.received) == ("u", 1, received)
            assert not unread or taken.recv(1000) == unread
            taken.close()

    play(scene)


def test_connection_that_comes_back_too_often_gets_421() -> None:
    async def scene(stage: Stage) -> None:
        pair = stage.server("users")
        stage.route_to("users")
        for _ in range(3):
            client = await stage.connect(HEAD)
            taken = await pair.take()
            stage.give_back(taken, taken.recv(1000), hops=MOST_HOPS)
            taken.close()
            assert (await stage.read(client)).startswith(b"HTTP/1.1 421 ")
        # An application could fill the record of events with these.
        ((kind, event),) = stage.events
        message = f"a connection from 127.0.0.1 was given back by workers {MOST_HOPS} times"
        assert (kind, event["message"]) == ("misdirected connection closed", message)
        assert pair.take_now() is None

    play(scene)


def test_given_back_connection_cannot_make_the_gateway_wait_when_it_is_closed() -> None:
    async def scene(stage: Stage) -> None:
        pair = stage.server("users")
        stage.route_to("users")
        await stage.connect(HEAD)
        taken = await pair.take()
        taken.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\x3c\0\0\0")
        stage.give_back(taken, hops=1)
        taken.close()
        taken = await pair.take()
        assert taken.getsockopt(socket.SOL_SOCKET, socket.SO_LINGER, 8)[0] == 0
        taken.close()

    play(scene)


def test_given_back_connection_that_the_proxy_serves_keeps_its_bytes() -> None:
    async def scene(stage: Stage) -> None:
        pair = stage.server("users")
        stage.route_to("users")
        client = await stage.connect(HEAD)
        taken = await pair.take()
        taken.recv(1000)
        stage.routes(app_route("users", host="elsewhere"))
        stage.give_back(taken, HEAD)
        taken.close()
        assert (await stage.read_head(client)).startswith(b"HTTP/1.1 404 ")

    play(scene)


@pytest.mark.parametrize("received", [b"", HEAD])
def test_given_back_connection_that_workers_must_not_keep_ends_for_every_duplicate(received: bytes) -> None:
    async def scene(stage: Stage) -> None:
        pair = stage.server("users")
        stage.route_to("users")
        client = await stage.connect(HEAD)
        taken = await pair.take()
        taken.recv(1000)
        with taken.dup() as duplicate:
            stage.edge.workers_keep = False
            stage.give_back(taken, received)
            taken.close()
            assert await stage.read(client) == b""
            with suppress(OSError):
                client.sendall(HEAD)
            with suppress(ConnectionResetError):  # for data that come now
                assert await stage.read(duplicate) == b""

    play(scene)


def test_connection_in_the_queue_of_a_withdrawn_server_is_none_that_workers_may_have_kept() -> None:
    async def scene(stage: Stage) -> None:
        stage.server("users").fill()
        stage.route_to("users")
        client = await stage.connect(HEAD)
        await until(lambda: stage.edge.passing.queue_length("users"))
        stage.edge.workers_keep = False
        stage.edge.passing.remove_server_and_reroute("users", lambda: None)
        assert b" 502 " in await stage.read_head(client), "it is proxied, and the server listens nowhere else"

    play(scene)


@pytest.mark.parametrize(("seconds", "head_seconds"), [(0.01, 60.0), (None, 0.01)])
def test_connection_to_be_routed_again_has_the_given_time_for_its_next_head_or_the_usual_one(
    seconds: float | None, head_seconds: float
) -> None:
    async def scene(stage: Stage) -> None:
        ours, theirs = socket.socketpair()
        ours.setblocking(False)
        theirs.setblocking(False)
        assert stage.edge.passing.route_again is not None
        stage.edge.passing.route_again(theirs, Routed("app"), seconds)
        assert await stage.read(ours) == b""
        ours.close()

    play(scene, head_seconds=head_seconds)


@pytest.mark.parametrize("pieces", [1, 2, 40])
def test_tls_connection_is_passed_by_the_name_in_its_client_hello(pieces: int) -> None:
    hello = client_hello("Users.example.com", ("h2", "http/1.1"))
    hello = hello if pieces < 40 else in_records(hello, 40)

    async def scene(stage: Stage) -> None:
        pair = stage.server("users", tls=True)
        stage.route_to("users", host="users.example.com")
        client = await stage.connect()
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        step = -(-len(hello) // pieces)
        for at in range(0, len(hello), step):
            assert pair.take_now() is None
            await stage.edge.loop.sock_sendall(client, hello[at : at + step])
        taken = await pair.take()
        assert (taken.recv(10_000), taken.routed[:4]) == (hello, ("app", 1, 0, b""))
        taken.close()

    play(scene, tls=True)


@pytest.mark.parametrize(
    ("name", "protocols", "fields"),
    [
        ("shop.example.com", (), {}),
        (None, (), {}),
        ("users.example.com", ("h2",), {}),  # HTTP/2 is for one host after the other
        ("users.example.com", (), {"path": "/v1"}),
    ],
)
def test_other_tls_connections_get_an_alert_without_a_certificate(
    name: str | None, protocols: tuple[str, ...], fields: dict[str, object]
) -> None:
    async def scene(stage: Stage) -> None:
        stage.server("users", tls=True)
        stage.route_to("users", host="users.example.com", **fields)
        client = await stage.connect(client_hello(name, protocols))
        assert await stage.read(client) == b"\x15\x03\x03\x00\x02\x02\x70"

    play(scene, tls=True)


def test_bytes_that_are_no_tls_are_closed_at_once() -> None:
    async def scene(stage: Stage) -> None:
        client = await stage.connect(HEAD)
        with pytest.raises((ConnectionResetError, AssertionError)):
            assert await stage.read(client)
        await until(lambda: not stage.waiting)

    play(scene, tls=True)


def test_accepting_pauses_while_there_is_no_descriptor_and_nothing_idle(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(acceptor, "_RETRY_SECONDS", 0.01)

    async def scene(stage: Stage) -> None:
        pair = stage.server("users")
        stage.route_to("users")
        loop = stage.edge.loop
        waiting = [await stage.connect(HEAD[:20]) for _ in range(2)]
        await until(lambda: stage.waiting == 2 and not stage.edge.passing.waiting._silent)
        late = socket.socket()
        late.setblocking(False)
        limits = resource.getrlimit(resource.RLIMIT_NOFILE)
        spare = os.dup(0)
        resource.setrlimit(resource.RLIMIT_NOFILE, (spare, limits[1]))
        os.close(spare)
        held = []
        try:
            with suppress(OSError):
                while True:
                    held.append(os.dup(0))
            await loop.sock_connect(late, stage.listener.getsockname())
            await loop.sock_sendall(late, HEAD)
            await until(lambda: stage.acceptor._timer)
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, limits)
            for fd in held:
                os.close(fd)
        taken = await pair.take()
        assert taken.getpeername() == late.getsockname()
        taken.close()
        late.close()
        assert len(waiting) == stage.waiting

    play(scene)


def test_connection_of_a_proxy_that_reports_its_client_is_proxied() -> None:
    async def scene(stage: Stage) -> None:
        pair = stage.server("users")
        stage.route_to("users")
        client = await stage.connect(b"PROXY TCP4 192.0.2.1 10.0.0.2 5000 80\r\n" + HEAD)
        assert b" 502 " in await stage.read_head(client)  # the server listens nowhere else
        assert pair.take_now() is None
        # The proxy's own connection, such as a probe, is passed without the header.
        await stage.connect(b"PROXY UNKNOWN\r\n" + HEAD)
        taken = await pair.take()
        assert taken.recv(1000) == HEAD
        assert taken.routed.trusted
        taken.close()

    play(scene, accept_proxy=True, trusted_proxies=("127.0.0.1",))


class Failing(socket.socket):
    """A connection that is reset after its first bytes were peeked at."""

    def recv(self, size: int, flags: int = 0) -> bytes:  # type: ignore[override]
        if not flags & socket.MSG_PEEK:
            raise ConnectionResetError
        return super().recv(size, flags)


def test_connection_that_is_reset_before_its_proxy_header_is_read_is_closed() -> None:
    async def scene(stage: Stage) -> None:
        client, accepted = _connected()
        client.send(b"PROXY UNKNOWN\r\n" + HEAD)
        settings = ListenerSettings(bind="127.0.0.1:0", accept_proxy=True)
        connection = acceptor.ProxyHeaderConnection(
            stage.edge, Failing(fileno=accepted.detach()), "127.0.0.1", settings
        )
        while not connection.has_unread():
            await asyncio.sleep(0)
        assert not connection.needs_more_after_read(ended=False)
        connection.serve_or_close()
        assert connection.sock.fileno() == -1
        client.close()

    play(scene)


HELLO = client_hello("users.example.com")


@pytest.mark.parametrize("ended", [False, True])
@pytest.mark.parametrize(
    ("kind", "sent", "closes", "waits"),
    [
        ("plain", b"", False, True),
        ("plain", HEAD[:20], False, True),
        ("plain", b"", True, False),
        ("plain", HEAD, False, False),
        ("tls", b"", False, True),
        ("tls", HELLO[:20], False, True),
        ("tls", b"", True, False),
        ("tls", HELLO, False, False),
        ("tls", HEAD, False, False),
        ("proxy", b"", False, True),
        ("proxy", b"PROXY TCP4 192.0.2.1", False, True),
        ("proxy", b"", True, False),
        ("proxy", b"PROXY UNKNOWN\r\n", False, False),
        ("proxy", HEAD, False, False),
    ],
    ids=str.split(
        "nothing head-begins head-ends-before head nothing hello-begins hello-ends-before hello no-hello"
        " nothing header-begins header-ends-before header no-header"
    ),
)
def test_connection_waits_for_the_rest_of_its_first_bytes_until_the_client_has_ended(
    kind: str, sent: bytes, closes: bool, waits: bool, ended: bool
) -> None:
    async def scene(stage: Stage) -> None:
        ours, theirs = _connected()
        ours.sendall(sent)
        if closes:
            ours.shutdown(socket.SHUT_WR)
        settings = ListenerSettings(bind="127.0.0.1:0", tls=kind == "tls")
        connection = (
            acceptor.ProxyHeaderConnection(stage.edge, theirs, "127.0.0.1", settings)
            if kind == "proxy"
            else acceptor._new_connection(stage.edge, theirs, "127.0.0.1", settings)
        )
        if sent:
            await until(connection.has_unread)
        assert connection.needs_more_after_read(ended=ended) is (waits and not ended)
        ours.close()
        theirs.close()

    play(scene)


@pytest.mark.parametrize("goes_on", [True, False])
def test_header_of_a_trusted_proxy_that_comes_in_pieces_is_waited_for(goes_on: bool) -> None:
    async def scene(stage: Stage) -> None:
        pair = stage.server("users")
        stage.route_to("users")
        client = await stage.connect(b"PROXY UNK")
        await until(lambda: stage.waiting and not stage.edge.passing.waiting._silent)
        if goes_on:
            await stage.edge.loop.sock_sendall(client, b"NOWN\r\n" + HEAD)
            taken = await pair.take()
            assert taken.recv(1000) == HEAD
            taken.close()
        else:
            client.close()
        await until(lambda: not stage.waiting)

    play(scene, accept_proxy=True, trusted_proxies=("127.0.0.1",))


BODY = b"hello"


def test_silent_client_whose_request_has_just_arrived_is_not_closed() -> None:
    async def scene(stage: Stage) -> None:
        await stage.route(ok)
        client = await stage.connect()
        await until(lambda: stage.waiting)
        client.send(HEAD)
        assert not stage.edge.evict_client()
        assert await answered(stage, client)

    play(scene)


def test_descriptors_above_the_mark_are_not_given_to_clients_while_lower_ones_become_free() -> None:
    limit = DescriptorLimits(2**20)
    highest = max(int(each) for each in os.listdir("/proc/self/fd"))
    fillers = []  # of the gaps between descriptors that others have left open
    held: list[int] = []
    try:
        while lowest_free() < highest:
            fillers.append(os.dup(0))
        limit.mark = lowest_free() + 20
        for number in range(100):
            held.append(os.dup(0))
            if limit.is_low():
                os.close(held.pop(number % 10))
        assert max(held) <= limit.mark
    finally:
        for fd in [*fillers, *held]:
            os.close(fd)


def test_connection_that_is_given_back_counts_among_the_open_ones() -> None:
    async def scene(stage: Stage) -> None:
        pair = stage.server("users")
        await stage.route(ok)
        proxied = list(stage.edge.table)
        stage.route_to("users", alias="users", host="users.example.com")
        stage.routes(*proxied, *stage.edge.table)
        idle = await idle_client_of(stage, b"elsewhere")

        async def given_back(data: bytes) -> socket.socket:
            client = await stage.connect(HEAD)
            taken = await pair.take()
            taken.recv(1000)
            stage.give_back(taken, data)
            taken.close()
            return client

        request = b"GET / HTTP/1.1\r\nHost: elsewhere\r\n\r\n"
        first = await given_back(request)
        assert await is_closed(stage, idle)
        assert await answered(stage, first)

    play(scene, max_connections=1)


async def idle_client_of(stage: Stage, host: bytes) -> socket.socket:
    sock = await stage.connect(b"GET / HTTP/1.1\r\nHost: %b\r\n\r\n" % host)
    assert await answered(stage, sock)
    return sock


def test_connection_that_is_given_back_gets_503_when_none_is_idle() -> None:
    async def scene(stage: Stage) -> None:
        stage.route_to("users")
        pending = await stage.connect(HEAD[:20])
        await until(lambda: stage.waiting and not stage.edge.passing.waiting._silent)
        for data in (HEAD, b""):
            ours, theirs = _connected()
            stage.give_back(theirs, data)
            theirs.close()
            response = await stage.read(ours)
            assert response.startswith(b"HTTP/1.1 503 ") if data else not response
            assert (b"Retry-After: 1\r\n" in response) is bool(data)
            ours.close()
            await until(lambda: stage.waiting == 1)
        pending.close()

    play(scene, max_connections=1)


def _connected() -> tuple[socket.socket, Connection]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        ours = socket.create_connection(listener.getsockname())
        fd = listener.accept()[0].detach()
    ours.setblocking(False)
    return ours, Connection(fileno=fd)


def test_connection_with_tls_that_is_given_back_is_decided_by_its_client_hello() -> None:
    async def scene(stage: Stage) -> None:
        pair = stage.server("users", tls=True)
        stage.route_to("users", host="users.example.com")
        hello = client_hello("users.example.com", ("http/1.1",))
        client = await stage.connect(hello)
        for hops in (0, 1):
            taken = await pair.take()
            assert taken.getpeername() == client.getsockname()
            assert taken.recv(10_000, socket.MSG_PEEK) == hello
            if hops == 0:
                stage.give_back(taken, hops=1)
            taken.close()

    play(scene, tls=True)


def test_messages_that_give_no_connection_back_are_passed_over() -> None:
    async def scene(stage: Stage) -> None:
        pair = stage.server("users")
        stage.route_to("users")
        await stage.connect(HEAD)
        taken = await pair.take()
        wire.send(stage.back, {"t": "none"}, [taken.fileno()])
        wire.send(stage.back, {"t": "none"})
        stage.give_back(taken, hops=1)
        taken.close()
        again = await pair.take()
        assert again.recv(1000) == HEAD
        again.close()

    play(scene)


@pytest.mark.parametrize("seconds", [3000.0, 0.0])
def test_connection_for_servers_that_are_disabled_is_refused(seconds: float) -> None:
    async def scene(stage: Stage) -> None:
        pair = stage.server("users")
        stage.route_to("users")
        stage.edge.hosts.disable("users", seconds)
        client = await stage.connect(HEAD)
        answer = await stage.read(client)
        assert answer.startswith(b"HTTP/1.1 503 Service Unavailable\r\n")
        (after,) = re.findall(rb"\r\nRetry-After: (\d+)\r\n", answer)
        assert (2900 <= int(after) <= 3000) if seconds else int(after) == 5
        traffic = stage.edge.counts.route("app")
        assert (traffic.requests, traffic.errors, pair.take_now()) == (1, {"refused": 1}, None)
        client.close()
        await until(lambda: not stage.waiting)

    play(scene)


def test_connection_with_tls_for_servers_that_are_disabled_gets_an_alert() -> None:
    async def scene(stage: Stage) -> None:
        pair = stage.server("users", tls=True)
        stage.route_to("users")
        stage.edge.hosts.disable("users", 0)
        answer = await stage.read(await stage.connect(client_hello("users.example.com", ())))
        assert (answer[:1], len(answer)) == (b"\x15", 7)
        traffic = stage.edge.counts.route("app")
        assert (traffic.requests, traffic.errors, pair.take_now()) == (1, {"refused": 1}, None)

    play(scene, tls=True)
