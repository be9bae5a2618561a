"""Connections that are passed to workers: with what, and what becomes of those that nobody takes."""

from __future__ import annotations

import socket

import pytest

from poolctl.features.gateway.process.passing import ConnectionSender
from poolctl.features.gateway.process.settings import ServerFacts
from poolctl.keeper.connection_handover import Connection, Routed
from tests.features.gateway.passing_stage import HEAD, Stage, app_route, play, until
from tests.features.gateway.proxy_stage import _pair
from tests.features.gateway.test_tls import client_hello


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


def test_one_full_pair_holds_up_no_other_server() -> None:
    async def scene(stage: Stage) -> None:
        full, free = stage.server("full"), stage.server("free")
        stage.routes(app_route("full", host="full"), app_route("free", host="free", alias="free"))
        stage.apply("full", "free")
        assert full.fill() > 16
        first, second = [await stage.connect(HEAD.replace(b"users.example.com", b"full")) for _ in range(2)]
        await until(lambda: stage.edge.passing.queue_length("full") == 2)
        await stage.connect(HEAD.replace(b"users.example.com", b"free"))
        (await free.take()).close()
        full.empty()
        taken = [await full.take(), await full.take()]
        assert [each.getpeername() for each in taken] == [first.getsockname(), second.getsockname()]
        assert not stage.edge.passing.queue_length("full")
        for each in taken:
            each.close()

    play(scene)


def test_full_queue_gets_503_with_a_time_to_retry() -> None:
    async def scene(stage: Stage) -> None:
        stage.edge.passing.close()
        stage.edge.passing = ConnectionSender(stage.edge.event, most_queued=1)
        stage.server("users").fill()
        stage.route_to("users")
        queued = await stage.connect(HEAD)
        await until(lambda: stage.edge.passing.queue_length("users"))
        refused = await stage.read(await stage.connect(HEAD))
        assert refused.startswith(b"HTTP/1.1 503 ")
        assert b"\r\nRetry-After: 1\r\n" in refused
        assert (await stage.read(await stage.connect(HEAD))).startswith(b"HTTP/1.1 503 ")
        ((kind, event),) = stage.events
        message = "users takes no connections: 1 wait, and new ones get 503"
        assert (kind, event["server"], event["message"]) == ("connection queue full", "users", message)
        stage.edge.passing.close()
        assert (await stage.read(queued)).startswith(b"HTTP/1.1 503 ")

    play(scene)


def test_queued_connection_that_is_not_taken_in_time_gets_503() -> None:
    async def scene(stage: Stage) -> None:
        stage.edge.passing.close()
        stage.edge.passing = ConnectionSender(stage.edge.event, queue_seconds=0.1)
        stage.server("users").fill()
        stage.route_to("users")
        clients = [await stage.connect(HEAD) for _ in range(3)]
        for each in clients:
            assert (await stage.read(each)).startswith(b"HTTP/1.1 503 ")
        assert not stage.edge.passing.queue_length("users")

    play(scene)


def test_queue_that_was_empty_in_between_is_reported_again_and_its_connections_have_their_own_time() -> None:
    async def scene(stage: Stage) -> None:
        stage.edge.passing.close()
        passing = stage.edge.passing = ConnectionSender(stage.edge.event, queue_seconds=1000.0, most_queued=1)
        pair = stage.server("users")
        stage.route_to("users")

        async def overflow() -> socket.socket:
            pair.fill()
            queued = await stage.connect(HEAD)
            await until(lambda: passing.queue_length("users"))
            assert (await stage.read(await stage.connect(HEAD))).startswith(b"HTTP/1.1 503 ")
            return queued

        for times in (1, 2):
            await overflow()
            assert [kind for kind, _ in stage.events] == ["connection queue full"] * times
            pair.empty()
            (await pair.take()).close()
            await until(lambda: not passing.queue_length("users"))
        late = await overflow()
        server = passing._servers["users"]
        server.queue[0] = server.queue[0]._replace(until=0.0)
        passing._refuse_expired(server)
        assert (await stage.read(late)).startswith(b"HTTP/1.1 503 ")
        await overflow()
        assert len(stage.events) == 4

    play(scene)


@pytest.mark.parametrize("way", ["taken", "expired", "routed again"])
def test_connection_that_is_queued_after_others_have_left_gets_503_when_its_time_is_over(way: str) -> None:
    async def scene(stage: Stage) -> None:
        stage.edge.passing.close()
        passing = stage.edge.passing = ConnectionSender(stage.edge.event, queue_seconds=1000.0)
        pair = stage.server("users")
        pair.fill()
        stage.route_to("users")
        await stage.connect(HEAD)
        await until(lambda: passing.queue_length("users"))
        if way == "taken":
            pair.empty()
            (await pair.take()).close()
            await until(lambda: not passing.queue_length("users"))
            pair.fill()
        elif way == "expired":
            server = passing._servers["users"]
            server.queue[0] = server.queue[0]._replace(until=0.0)
            passing._refuse_expired(server)
        else:
            stage.routes(app_route("users", other_user="another user's requests may follow"))
            passing.reroute_for_new_table(stage.edge.table)
            stage.route_to("users")
        assert passing.queue_length("users") == 0
        passing._queue_seconds = 0.01
        assert (await stage.read(await stage.connect(HEAD))).startswith(b"HTTP/1.1 503 ")

    play(scene)


def test_withdrawn_server_has_nothing_queued_and_its_connections_go_to_another() -> None:
    async def scene(stage: Stage) -> None:
        stage.server("users").fill()
        stage.route_to("users")
        client = await stage.connect(HEAD)
        await until(lambda: stage.edge.passing.queue_length("users"))
        other = stage.server("other")
        stage.route_to("other")
        done: list[bool] = []
        stage.edge.passing.remove_server_and_reroute("users", lambda: done.append(True))
        assert done
        assert not stage.edge.passing.can_pass_to("users")
        taken = await other.take()
        assert taken.getpeername() == client.getsockname()
        taken.close()
        stage.edge.passing.remove_server_and_reroute("unknown", lambda: done.append(True))
        assert len(done) == 2

    play(scene)


def test_connections_for_a_closed_pair_wait_for_its_successor() -> None:
    async def scene(stage: Stage) -> None:
        stage.server("users").close()
        stage.route_to("users")
        client = await stage.connect(HEAD)
        await until(lambda: stage.edge.passing.queue_length("users"))
        taken = await stage.server("users").take()
        assert taken.getpeername() == client.getsockname()
        taken.close()

    play(scene)


def test_queued_connection_of_a_route_that_passes_none_any_more_takes_its_way_again() -> None:
    async def scene(stage: Stage) -> None:
        full = stage.server("full")
        full.fill()
        stage.route_to("full")
        queued = await stage.connect(HEAD)
        await until(lambda: stage.edge.passing.queue_length("full"))
        stage.edge.passing.reroute_for_new_table(stage.edge.table)
        assert stage.edge.passing.queue_length("full") == stage.edge.passing.queued_connections == 1
        stage.routes(app_route("full", other_user="another user's requests may follow"))
        stage.edge.passing.reroute_for_new_table(stage.edge.table)
        assert stage.edge.passing.queue_length("full") == stage.edge.passing.queued_connections == 0
        assert (await stage.read_head(queued)).startswith(b"HTTP/1.1 50")
        full.empty()
        assert full.take_now() is None

    play(scene)


def test_queued_tls_connection_of_a_withdrawn_server_takes_its_way_again() -> None:
    hello = client_hello("users.example.com")

    async def scene(stage: Stage) -> None:
        stage.server("users", tls=True).fill()
        stage.route_to("users", host="users.example.com")
        client = await stage.connect(hello)
        await until(lambda: stage.edge.passing.queue_length("users"))
        other = stage.server("other", tls=True)
        stage.route_to("other", host="users.example.com")
        stage.edge.passing.remove_server_and_reroute("users", lambda: None)
        taken = await other.take()
        assert taken.getpeername() == client.getsockname()
        assert taken.recv(10_000) == hello
        taken.close()

    play(scene, tls=True)


def test_server_of_a_message_that_is_too_large_loses_only_that_connection() -> None:
    async def scene(stage: Stage) -> None:
        pair = stage.server("users")
        stage.route_to("users")
        ours, theirs = socket.socketpair()
        assert stage.edge.passing.pass_queue_or_refuse("users", theirs, "app", received=b"x" * (2**20 + 1))
        assert ours.recv(1) == b""
        ours.close()
        await stage.connect(HEAD)
        (await pair.take()).close()

    play(scene)


@pytest.mark.parametrize("tls", [False, True])
def test_queued_connection_is_refused_where_nothing_decides_its_further_way(tls: bool) -> None:
    async def scene(stage: Stage) -> None:
        pair = stage.server("users", tls=tls)
        stage.route_to("users", host="users.example.com")
        pair.fill()
        client = await stage.connect(client_hello("users.example.com") if tls else HEAD)
        passing = stage.edge.passing
        await until(lambda: passing.queue_length("users"))
        passing.route_again = None
        passing.remove_server_and_reroute("users", lambda: None)
        assert passing.queue_length("users") == 0
        answer = await stage.read(client)
        assert answer.startswith(b"\x15\x03" if tls else b"HTTP/1.1 503 ")

    play(scene, tls=tls)


def test_connection_for_a_server_that_is_not_served_is_refused() -> None:
    async def scene(stage: Stage) -> None:
        ours, theirs = socket.socketpair()
        ours.setblocking(False)
        assert not stage.edge.passing.pass_queue_or_refuse("unknown", theirs, "app")
        refused = await stage.read(ours)
        assert refused.startswith(b"HTTP/1.1 503 ")
        assert b"\r\nRetry-After: 1\r\n" in refused
        assert stage.edge.counts.route("app").errors == {"refused": 1}
        ours.close()

    play(scene)


def test_passed_connection_that_an_application_has_held_is_the_workers_alone() -> None:
    async def scene(stage: Stage) -> None:
        pair = stage.server("users")
        ours, theirs = _pair()
        ours.setblocking(False)
        assert stage.edge.passing.pass_queue_or_refuse("users", Connection(fileno=theirs.detach()), "app")
        taken = await pair.take()
        assert (taken.getpeername(), taken.routed) == (
            ours.getsockname(),
            Routed("app", 0, 0, b"", trusted=False),
        )
        taken.close()
        assert await stage.read(ours) == b""
        ours.close()

    play(scene)
