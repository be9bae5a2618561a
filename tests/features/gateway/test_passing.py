"""Connections that are passed to workers: which, with what, and what becomes of those that nobody takes."""

from __future__ import annotations

import asyncio
import os
import resource
import socket
import tracemalloc
from contextlib import suppress
from pathlib import Path

import pytest

from poolctl.features.gateway.process import acceptor, waiting_connections
from poolctl.features.gateway.process.passing import Passing
from poolctl.features.gateway.process.settings import ServerFacts
from poolctl.features.gateway.process.waiting_connections import WaitingConnections
from poolctl.keeper.connection_handover import MOST_HOPS
from tests.certificates import certificate
from tests.features.gateway.passing_stage import DEADLINE, HEAD, Stage, app_route, play, until
from tests.features.gateway.test_client_hello import client_hello, in_records


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


class Counted(WaitingConnections):
    """Counts how often the loop has found something for them to do."""

    events = 0

    def _on_events(self) -> None:
        self.events += 1
        super()._on_events()


def test_waiting_connections_take_less_than_a_kilobyte_each_and_no_time() -> None:
    async def scene(stage: Stage) -> None:
        waiting = stage.edge.passing.waiting = Counted()
        stage.route_to("users", host="elsewhere")
        await stage.connect(HEAD[:20])
        await until(lambda: stage.waiting == 1)
        tracemalloc.start()
        for number in range(200):
            await stage.connect(HEAD[:20] if number % 2 else b"")
        await until(lambda: stage.waiting == 201 and len(waiting._silent) == 100)
        size_bytes, _ = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        # The clients' ends are in this process too.
        assert size_bytes < 200 * (1024 + 512), size_bytes / 200
        events = waiting.events
        assert events
        for _ in range(50):
            await asyncio.sleep(0)
        assert waiting.events <= events + 1  # one that was under way
        waiting.close()

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
        slow, silent = await stage.connect(HEAD[:20]), await stage.connect()
        assert (await stage.read(slow)).startswith(b"HTTP/1.1 408 ")
        assert await stage.read(silent) == b""

    play(scene, head_seconds=0.2)


def test_head_that_is_too_large_gets_431_without_a_reset() -> None:
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


def test_refused_requests_are_counted_by_route_or_by_status() -> None:
    async def scene(stage: Stage) -> None:
        stage.server("users")
        stage.route_to("users", path="/v1")
        stage.edge.backends.apply(
            list(stage.edge.table), {"users": ServerFacts(name="users", state="failed")}
        )
        for request, status in (
            (HEAD, b"503"),  # no server of the route is ready
            (HEAD.replace(b"/v1", b"/v2"), b"404"),
            (b"GET /v1 HTTP/1.1\n", b"400"),
            (b"GET /" + b"x" * 70_000, b"431"),
        ):
            response = await stage.read_head(await stage.connect(request))
            assert response.startswith(b"HTTP/1.1 " + status), response
        found = stage.edge.counts.snapshot()
        assert found["refused"] == {"404": 1, "400": 1, "431": 1}
        assert found["routes"]["app"]["errors"] == {"refused": 1}

    play(scene)


def test_oldest_silent_connection_is_closed_when_too_many_wait() -> None:
    async def scene(stage: Stage) -> None:
        stage.edge.passing.waiting = WaitingConnections(most=3)
        pair = stage.server("users")
        stage.route_to("users")
        begun = await stage.connect(HEAD[:20])
        await until(lambda: stage.waiting == 1)
        silent = []
        for count in (2, 3, 3):
            silent.append(await stage.connect())
            await until(lambda count=count: stage.waiting == count)
        assert await stage.read(silent[0]) == b""
        await stage.edge.loop.sock_sendall(begun, HEAD[20:])
        (await pair.take()).close()
        stage.edge.passing.waiting.close()

    play(scene)


def test_above_the_most_connections_new_ones_wait_in_the_backlog(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(acceptor, "_AGAIN_SECONDS", 0.01)

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


def test_tls_handshakes_count_among_the_open_connections(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(acceptor, "_AGAIN_SECONDS", 0.01)
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


def test_drain_serves_heads_that_have_begun_and_closes_silent_connections(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(waiting_connections, "QUIET_SECONDS", 0.05)

    async def scene(stage: Stage) -> None:
        pair = stage.server("users")
        stage.route_to("users")
        begun, silent = await stage.connect(HEAD[:20]), await stage.connect()
        await until(lambda: stage.waiting == 2)
        drained = asyncio.ensure_future(stage.edge.passing.waiting.drain(DEADLINE))
        assert await stage.read(silent) == b""
        assert not drained.done()
        await stage.edge.loop.sock_sendall(begun, HEAD[20:])
        (await pair.take()).close()
        await drained
        begun = await stage.connect(HEAD[:20])
        await until(lambda: stage.waiting)
        await stage.edge.passing.waiting.drain(0.1)
        assert not stage.waiting

    play(scene)


def test_one_full_pair_holds_up_no_other_server() -> None:
    async def scene(stage: Stage) -> None:
        full, free = stage.server("full"), stage.server("free")
        stage.routes(app_route("full", host="full"), app_route("free", host="free", alias="free"))
        stage.apply("full", "free")
        assert full.fill() > 16
        first, second = [await stage.connect(HEAD.replace(b"users.example.com", b"full")) for _ in range(2)]
        await until(lambda: stage.edge.passing.queued("full") == 2)
        await stage.connect(HEAD.replace(b"users.example.com", b"free"))
        (await free.take()).close()
        full.empty()
        taken = [await full.take(), await full.take()]
        assert [each.getpeername() for each in taken] == [first.getsockname(), second.getsockname()]
        assert not stage.edge.passing.queued("full")
        for each in taken:
            each.close()

    play(scene)


def test_full_queue_gets_503_with_a_time_to_retry() -> None:
    async def scene(stage: Stage) -> None:
        stage.edge.passing.close()
        stage.edge.passing = Passing(stage.edge.event, most_queued=1)
        stage.server("users").fill()
        stage.route_to("users")
        queued = await stage.connect(HEAD)
        await until(lambda: stage.edge.passing.queued("users"))
        refused = await stage.read(await stage.connect(HEAD))
        assert refused.startswith(b"HTTP/1.1 503 ")
        assert b"\r\nRetry-After: 1\r\n" in refused
        assert (await stage.read(await stage.connect(HEAD))).startswith(b"HTTP/1.1 503 ")
        assert [kind for kind, _ in stage.events] == ["connection queue full"]
        stage.edge.passing.close()
        assert (await stage.read(queued)).startswith(b"HTTP/1.1 503 ")

    play(scene)


def test_queued_connection_that_is_not_taken_in_time_gets_503() -> None:
    async def scene(stage: Stage) -> None:
        stage.edge.passing.close()
        stage.edge.passing = Passing(stage.edge.event, queue_seconds=0.1)
        stage.server("users").fill()
        stage.route_to("users")
        clients = [await stage.connect(HEAD) for _ in range(3)]
        for each in clients:
            assert (await stage.read(each)).startswith(b"HTTP/1.1 503 ")
        assert not stage.edge.passing.queued("users")

    play(scene)


def test_withdrawn_server_has_nothing_queued_and_its_connections_go_to_another() -> None:
    async def scene(stage: Stage) -> None:
        stage.server("users").fill()
        stage.route_to("users")
        client = await stage.connect(HEAD)
        await until(lambda: stage.edge.passing.queued("users"))
        other = stage.server("other")
        stage.route_to("other")
        done: list[bool] = []
        stage.edge.passing.withdraw("users", lambda: done.append(True))
        assert done
        assert not stage.edge.passing.passes("users")
        taken = await other.take()
        assert taken.getpeername() == client.getsockname()
        taken.close()
        stage.edge.passing.withdraw("unknown", lambda: done.append(True))
        assert len(done) == 2

    play(scene)


def test_connections_for_a_closed_pair_wait_for_its_successor() -> None:
    async def scene(stage: Stage) -> None:
        stage.server("users").close()
        stage.route_to("users")
        client = await stage.connect(HEAD)
        await until(lambda: stage.edge.passing.queued("users"))
        taken = await stage.server("users").take()
        assert taken.getpeername() == client.getsockname()
        taken.close()

    play(scene)


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
        assert [kind for kind, _ in stage.events] == ["misdirected connection closed"]
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


def test_queued_connection_of_a_route_that_passes_none_any_more_takes_its_way_again() -> None:
    async def scene(stage: Stage) -> None:
        full = stage.server("full")
        full.fill()
        stage.route_to("full")
        queued = await stage.connect(HEAD)
        await until(lambda: stage.edge.passing.queued("full"))
        stage.edge.passing.follow(stage.edge.table)
        assert stage.edge.passing.queued("full") == stage.edge.passing.queued_connections == 1
        stage.routes(app_route("full", other_user="another user's requests may follow"))
        stage.edge.passing.follow(stage.edge.table)
        assert stage.edge.passing.queued("full") == stage.edge.passing.queued_connections == 0
        assert (await stage.read_head(queued)).startswith(b"HTTP/1.1 50")
        full.empty()
        assert full.take_now() is None

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
        assert taken.recv(10_000) == hello
        taken.close()

    play(scene, tls=True)


def test_queued_tls_connection_of_a_withdrawn_server_takes_its_way_again() -> None:
    hello = client_hello("users.example.com")

    async def scene(stage: Stage) -> None:
        stage.server("users", tls=True).fill()
        stage.route_to("users", host="users.example.com")
        client = await stage.connect(hello)
        await until(lambda: stage.edge.passing.queued("users"))
        other = stage.server("other", tls=True)
        stage.route_to("other", host="users.example.com")
        stage.edge.passing.withdraw("users", lambda: None)
        taken = await other.take()
        assert taken.getpeername() == client.getsockname()
        assert taken.recv(10_000) == hello
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
    monkeypatch.setattr(acceptor, "_AGAIN_SECONDS", 0.01)

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


def test_server_of_a_message_that_is_too_large_loses_only_that_connection() -> None:
    async def scene(stage: Stage) -> None:
        pair = stage.server("users")
        stage.route_to("users")
        ours, theirs = socket.socketpair()
        assert stage.edge.passing.pass_on("users", theirs, "app", received=b"x" * (2**20 + 1))
        assert ours.recv(1) == b""
        ours.close()
        await stage.connect(HEAD)
        (await pair.take()).close()

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
        taken.close()

    play(scene, accept_proxy=True, trusted_proxies=("127.0.0.1",))
