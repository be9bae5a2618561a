"""Which connections wake a sleeping server, and where connections go: over real sockets."""

from __future__ import annotations

import asyncio
import contextlib
import os
import resource
import signal
import socket
import ssl
import time
from collections.abc import Callable, Coroutine, Sequence
from pathlib import Path
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from poolctl.acceptor import __main__ as helper
from poolctl.keeper import connection_handover, wire
from poolctl.keeper.connection_handover import Connection
from poolctl.keeper.spawn import spawn
from poolctl.runners.local import activation as module
from poolctl.runners.local.activation import (
    ACCEPT,
    LONGEST_LINE_BYTES,
    AcceptHelper,
    Activator,
    Fetch,
    Fetched,
    FirstBytes,
    SleepingListener,
    classify_first_bytes,
)
from poolctl.runners.process_link import HasDescriptor, Link
from tests.descriptors import no_descriptor_left

REQUEST = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"


def run(work: Callable[[House], Coroutine[Any, Any, None]]) -> None:
    async def watched() -> None:
        unseen: list[Any] = []
        asyncio.get_running_loop().set_exception_handler(lambda _, context: unseen.append(context))
        house = House()
        try:
            await asyncio.wait_for(work(house), 20)
        finally:
            house.close()
        assert unseen == []

    with no_descriptor_left():
        asyncio.run(watched())


class Helper(AcceptHelper):
    """What the accept helper does, in this very process. `fails` says that a call on the socket waits."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.fails = False

    def warm(self) -> None:
        pass

    def fetch(self, fetch: Fetch, sock: Any, most: int) -> None:
        self.asked.append(fetch.kind)
        asyncio.get_running_loop().call_soon(self._answer, fetch, sock, most)

    def _answer(self, fetch: Fetch, shared: socket.socket, most: int) -> None:
        if self.fails:
            fetch.ended(Fetched(failed=True, blocked=True))
            return
        try:
            ours, theirs = wire.pair()
        except OSError:
            fetch.ended(Fetched(full=True))
            return
        with ours, theirs:
            helper.fetch(theirs, {"op": fetch.kind, "n": 1, "key": "", "most": most}, shared)
            while received := wire.receive(ours):
                message, fds = received
                if message["t"] == "done":
                    break
                fetch.arrived(connection_handover.from_message(message, fds))
        fetch.ended(Fetched(message["empty"], message["junk"], message["full"]))


class House:
    """A listener, the pair of a server, an activator, and what came of it."""

    def __init__(self) -> None:
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.listener.setblocking(False)
        self.left, self.worker_end = wire.pair()
        self.left.setblocking(False)
        self.given: list[socket.socket] = []
        self.limits: list[dict[str, Any]] = []
        self.routed: list[connection_handover.Routed | None] = []
        self.room = 1000
        self.woken = 0
        self.kept: list[str] = []
        self.clients: list[socket.socket] = []
        self.helper = Helper()
        self.cleared = 0
        self.activator = Activator(self, self.helper)

    def close(self) -> None:
        self.activator.close()
        for sock in (self.listener, self.left, self.worker_end, *self.clients, *self.given):
            sock.close()

    def keep(self, key: str, sock: socket.socket) -> str:
        self.kept.append(f"{key} {sock.getpeername()}")
        return self.kept[-1]

    def forget(self, name: str) -> None:
        self.kept.remove(name)

    def give(self, key: str, sock: Connection) -> bool:
        assert key == "web"
        if len(self.given) >= self.room:
            return False
        self.given.append(sock.dup())
        self.limits.append(sock.limits())
        self.routed.append(sock.routed)
        return True

    def _wake(self) -> None:
        self.woken += 1

    def clear(self) -> None:
        self.activator.clear("web")

    def emptied(self, key: str) -> None:
        assert key == "web"
        self.cleared += 1

    def arm(self, **how: Any) -> None:
        self.activator.arm(SleepingListener("web", [self.listener], self._wake, left=self.left, **how))

    async def connect(self, first_bytes: bytes = b"") -> socket.socket:
        sock = socket.socket()
        self.clients.append(sock)
        sock.setblocking(False)
        loop = asyncio.get_running_loop()
        await loop.sock_connect(sock, self.listener.getsockname())
        if first_bytes:
            await loop.sock_sendall(sock, first_bytes)
        return sock

    async def leave_behind(self) -> socket.socket:
        """A connection that a worker has served, and that is in the pair now."""
        ours, theirs = socket.socketpair()
        self.clients.append(ours)
        ours.setblocking(False)
        wire.send(self.worker_end, {"t": "conn"}, [theirs.fileno()])
        theirs.close()
        return ours

    async def give_back(self, routed: connection_handover.Routed) -> None:
        """A connection of which a part has been read is in the pair now."""
        ours, theirs = socket.socketpair()
        self.clients.append(ours)
        with theirs:
            connection_handover.give(self.worker_end, theirs.fileno(), routed=routed)

    async def until(self, condition: Callable[[], Any]) -> None:
        while not condition():
            await asyncio.sleep(0.001)

    async def closed(self, client: socket.socket) -> bytes:
        """What the client got until the connection was closed."""
        got = b""
        while chunk := await asyncio.get_running_loop().sock_recv(client, 1000):
            got += chunk
        return got


def test_request_wakes_once_and_its_connection_reaches_the_worker_unread() -> None:
    async def scenario(house: House) -> None:
        house.arm()
        await house.connect(REQUEST)
        await house.until(lambda: house.given)
        assert house.woken == 1
        assert house.given[0].recv(1000) == REQUEST
        await house.connect(REQUEST)  # it waits in the backlog
        await asyncio.sleep(0.01)
        assert (house.woken, len(house.given), house.kept) == (1, 1, [])

    run(scenario)


def test_connection_alone_wakes_no_server() -> None:
    async def scenario(house: House) -> None:
        house.arm()
        silent = await house.connect()
        await house.until(lambda: house.kept)
        silent.close()
        await house.until(lambda: not house.kept)
        hasty = await house.connect()
        hasty.close()
        noise = await house.connect(b"\x00\x01\x02\r\n")
        assert (await house.closed(noise)).startswith(b"HTTP/1.1 400 ")
        assert (house.woken, house.given) == (0, [])

    run(scenario)


def test_a_request_line_in_pieces_wakes_when_it_is_complete() -> None:
    async def scenario(house: House) -> None:
        house.arm()
        client = await house.connect(b"GET /")
        await house.until(lambda: house.kept)
        client.send(b" HTTP/1")
        await asyncio.sleep(0.005)
        assert house.woken == 0
        client.send(b".1\r\n")
        await house.until(lambda: house.given)
        assert house.given[0].recv(1000) == b"GET / HTTP/1.1\r\n"

    run(scenario)


def test_every_held_connection_goes_to_the_worker_with_the_one_that_sends() -> None:
    async def scenario(house: House) -> None:
        house.arm()
        await house.leave_behind()
        await house.connect()
        await house.until(lambda: len(house.kept) == 2)
        await house.connect(REQUEST)
        await house.until(lambda: len(house.given) == 3)
        assert (house.woken, house.kept) == (1, [])

    run(scenario)


def test_connection_left_by_a_worker_wakes_with_its_next_request() -> None:
    async def scenario(house: House) -> None:
        first = await house.leave_behind()
        house.arm()
        second = await house.leave_behind()
        await house.until(lambda: len(house.kept) == 2)
        second.close()
        await house.until(lambda: len(house.kept) == 1)
        assert house.woken == 0
        first.send(REQUEST)
        await house.until(lambda: house.given)
        assert (house.woken, house.given[0].recv(1000)) == (1, REQUEST)

    run(scenario)


def test_pair_is_cleared_once_when_no_connection_can_be_left() -> None:
    async def scenario(house: House) -> None:
        clients = [await house.leave_behind() for _ in range(100)]
        house.arm()
        house.clear()
        await house.until(lambda: house.cleared)
        assert len(house.kept) == len(clients)
        house.clear()
        await asyncio.sleep(0.01)
        assert house.cleared == 1
        clients[50].send(REQUEST)
        await house.until(lambda: len(house.given) == len(clients))

    run(scenario)


def test_left_connection_that_sends_a_request_wakes_before_any_is_closed() -> None:
    async def scenario(house: House) -> None:
        (await house.leave_behind()).send(REQUEST)
        house.arm()
        house.clear()
        await house.until(lambda: house.given)
        await asyncio.sleep(0.01)
        assert (house.woken, len(house.given), house.cleared) == (1, 1, 0)

    run(scenario)


def test_slow_line_and_idle_connection_are_closed_after_their_time() -> None:
    async def scenario(house: House) -> None:
        house.arm(head_seconds=0.04)
        slow, idle = await house.connect(b"GET /"), await house.connect()
        assert (await house.closed(slow)).startswith(b"HTTP/1.1 408 ")
        assert await house.closed(idle) == b""
        assert (house.woken, house.given, house.kept) == (0, [], [])

    run(scenario)


def _hold_at_most(monkeypatch: Any, count: int) -> None:
    monkeypatch.setattr(module, "MOST", count)
    monkeypatch.setattr(module, "LEAST", count)


def test_more_connections_than_may_be_held_push_out_the_oldest_silent_one(monkeypatch: Any) -> None:
    _hold_at_most(monkeypatch, 3)

    async def scenario(house: House) -> None:
        house.arm()
        begun = await house.connect(b"GET /")
        await house.until(lambda: house.kept)
        one, *_ = [await house.connect() for _ in range(3)]
        assert await house.closed(one) == b""
        assert (house.woken, len(house.kept)) == (0, 3)
        begun.send(REQUEST[5:])
        await house.until(lambda: len(house.given) == 3)

    run(scenario)


def test_more_beginnings_of_requests_than_may_be_held_wake_their_server(monkeypatch: Any) -> None:
    _hold_at_most(monkeypatch, 2)

    async def scenario(house: House) -> None:
        house.arm()
        for _ in range(3):
            await house.connect(b"GET /")
        await house.until(lambda: len(house.given) == 3)
        assert (house.woken, house.kept) == (1, [])

    run(scenario)


def test_a_shared_listener_is_accepted_from_by_the_helper_only(monkeypatch: Any) -> None:
    async def scenario(house: House) -> None:
        house.arm(shared=True)
        house.listener.setblocking(True)
        silent = await house.connect()
        await house.until(lambda: house.kept)
        await house.connect(REQUEST)
        await house.until(lambda: len(house.given) == 2)
        assert (house.woken, set(house.helper.asked)) == (1, {"accept"})
        silent.close()

    run(scenario)


def test_a_listener_on_which_accept_waits_wakes_its_server_by_any_connection_from_then_on() -> None:
    async def scenario(house: House) -> None:
        house.helper.fails = True
        house.arm(shared=True)
        await house.connect()
        await house.until(lambda: house.woken)
        house.arm(shared=True)
        await house.until(lambda: house.woken == 2)
        assert house.helper.asked == ["accept"]

    run(scenario)


def test_junk_in_the_pair_is_closed_a_little_at_a_time(monkeypatch: Any) -> None:
    async def scenario(house: House) -> None:
        monkeypatch.setattr(module, "_RETRY_SECONDS", 0.001)
        with (
            socket.create_server(("127.0.0.1", 0)) as listener,
            socket.socket(type=socket.SOCK_DGRAM) as datagrams,
        ):
            for odd in (0, listener.fileno(), datagrams.fileno()) * 60:
                wire.send(house.worker_end, {"t": "conn"}, [odd])
        client = await house.leave_behind()
        house.arm()
        await house.until(lambda: len(house.kept) == 1)
        assert len(house.helper.asked) > 2
        client.send(REQUEST)
        await house.until(lambda: house.given)

    run(scenario)


def test_a_connection_that_arrives_after_its_server_was_stopped_is_closed() -> None:
    async def scenario(house: House) -> None:
        house.arm(shared=True)
        client = await house.connect()
        await house.until(lambda: house.helper.asked)
        house.activator.forget("web")
        assert await house.closed(client) == b""
        assert (house.woken, house.given, house.kept) == (0, [], [])

    run(scenario)


def test_connection_without_room_in_the_pair_is_given_later() -> None:
    async def scenario(house: House) -> None:
        house.room = 2
        house.arm()
        for _ in range(4):
            await house.connect()
        await house.until(lambda: len(house.kept) == 4)
        await house.connect(REQUEST)
        await house.until(lambda: house.woken)
        assert (len(house.given), len(house.kept)) == (2, 3)
        house.room = 5
        await house.until(lambda: len(house.given) == 5)
        assert house.kept == []

    run(scenario)


def test_connection_that_found_no_room_before_the_server_slept_wakes_it_again() -> None:
    async def scenario(house: House) -> None:
        house.room = 0
        house.arm()
        await house.connect(REQUEST)
        await house.until(lambda: house.woken)
        house.arm()
        house.room = 1
        await house.until(lambda: house.woken == 2)
        await house.until(lambda: house.given)

    run(scenario)


def test_disarmed_listener_hands_connections_over_and_dismissed_one_closes_them() -> None:
    async def scenario(house: House) -> None:
        house.arm()
        first = await house.connect()
        await house.until(lambda: house.kept)
        house.activator.dismiss("web")
        assert await house.closed(first) == b""
        await house.connect()
        await house.until(lambda: house.kept)
        house.activator.disarm("web")
        assert (len(house.given), house.woken, house.kept) == (1, 0, [])

    run(scenario)


def test_server_that_accepts_itself_is_woken_by_any_connection() -> None:
    async def scenario(house: House) -> None:
        house.arm(accepts=False)
        await house.connect()
        await house.until(lambda: house.woken)
        assert (house.woken, house.given) == (1, [])
        house.listener.accept()[0].close()  # it is still in the backlog

    run(scenario)


def test_no_left_connection_is_lost_when_descriptors_run_out(monkeypatch: Any) -> None:
    async def scenario(house: House) -> None:
        monkeypatch.setattr(module, "_RETRY_SECONDS", 0.01)
        house.arm()
        client = await house.leave_behind()
        client.send(REQUEST)
        hoard: list[int] = []
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (client.fileno() + 30, hard))
        try:
            with contextlib.suppress(OSError):
                while True:
                    hoard.append(os.dup(0))
            await asyncio.sleep(0.03)
            assert house.woken == 0
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
            for fd in hoard:
                os.close(fd)
        await house.until(lambda: house.given)
        assert house.given[0].recv(1000) == REQUEST

    run(scenario)


def test_connections_wait_in_the_backlog_when_descriptors_run_out(monkeypatch: Any) -> None:
    class Full(socket.socket):
        fails = 1

        def accept(self) -> tuple[socket.socket, Any]:
            if Full.fails:
                Full.fails -= 1
                raise OSError(24, "Too many open files")
            return super().accept()

    async def scenario(house: House) -> None:
        monkeypatch.setattr(module, "_RETRY_SECONDS", 0.01)
        house.listener = Full(fileno=house.listener.detach())
        house.arm()
        await house.connect(REQUEST)
        await house.until(lambda: house.given)
        assert Full.fails == 0

    run(scenario)


def test_a_connection_goes_to_the_worker_with_the_time_that_its_client_has_left() -> None:
    async def scenario(house: House) -> None:
        house.arm(head_seconds=50.0, quiet_seconds=500.0)
        before = time.monotonic()
        await house.connect()
        with socket.create_server(("127.0.0.1", 0)) as elsewhere:
            for until, asked in ((before + 200.0, True), (before + 20.0, False), (None, False)):
                house.clients.append(socket.create_connection(elsewhere.getsockname()))
                left = Connection(fileno=elsewhere.accept()[0].detach())
                left.until, left.asked = until, asked
                with left:
                    connection_handover.give(house.worker_end, left.fileno(), left.limits())
        await house.until(lambda: len(house.kept) == 4)
        await house.connect(REQUEST)
        await house.until(lambda: len(house.limits) == 5)
        found = sorted((limits["asked"], limits["until"] - before) for limits in house.limits)
        assert [asked for asked, _ in found] == [False, False, False, True, True]
        for (_, seconds), expected in zip(found, (20.0, 50.0, 50.0, 200.0, 500.0), strict=True):
            assert expected <= round(seconds, 6) < expected + 20.0

    run(scenario)


@pytest.mark.parametrize("size", [10, connection_handover.INLINE_BYTES + 1])
def test_a_connection_whose_request_has_been_read_wakes_and_keeps_it(size: int) -> None:
    routed = connection_handover.Routed("users", 3, 1, (REQUEST + bytes(size)))

    async def scenario(house: House) -> None:
        house.arm()
        await house.give_back(routed)
        await house.until(lambda: house.given)
        assert (house.woken, house.routed) == (1, [routed])

    run(scenario)


REQUESTS = [
    b"GET / HTTP/1.1\r\n",
    b"POST /a?b=%20 HTTP/1.0\r\nHost: x\r\n",
    b"\r\n\r\nOPTIONS * HTTP/1.1\r\n\r\n",
    b"GET / HTTP/1.1\n",
    b"PRI * HTTP/2.0\r\n",
    b"GET http://example.org/ HTTP/1.1\r\n",
    b"M-SEARCH * HTTP/1.1\r\n",
]


@pytest.mark.parametrize("head", REQUESTS)
def test_a_complete_request_line_is_a_request_and_every_beginning_of_it_a_beginning(head: bytes) -> None:
    assert classify_first_bytes(head, tls=False) is FirstBytes.REQUEST
    line = head[: head.index(b"\n", len(head) - len(head.lstrip()))]
    assert {classify_first_bytes(line[:length], tls=False) for length in range(1, len(line) + 1)} == {
        FirstBytes.BEGINNING
    }


@pytest.mark.parametrize(
    "head", [b"\x16\x03\x01", b"\x00", b"(", b"hello\r\n", b"GET /\r\n", b"GET  / HTTP/1.1\n"]
)
def test_bytes_that_begin_no_request_are_no_request(head: bytes) -> None:
    assert classify_first_bytes(head, tls=False) is FirstBytes.NO_REQUEST


def test_a_line_without_an_end_is_left_to_the_application() -> None:
    assert classify_first_bytes(b"GET /" + b"a" * LONGEST_LINE_BYTES, tls=False) is FirstBytes.REQUEST
    assert classify_first_bytes(b"\r\n" * LONGEST_LINE_BYTES, tls=False) is FirstBytes.NO_REQUEST


def test_a_client_hello_is_the_request_of_a_server_with_tls() -> None:
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    client = ssl.create_default_context().wrap_bio(incoming, outgoing, server_hostname="x")
    with pytest.raises(ssl.SSLWantReadError):
        client.do_handshake()
    hello = outgoing.read()
    assert classify_first_bytes(hello, tls=True) is FirstBytes.REQUEST
    assert [classify_first_bytes(hello[:length], tls=True) for length in range(1, 6)] == [
        FirstBytes.BEGINNING
    ] * 5
    assert classify_first_bytes(b"GET / HTTP/1.1\r\n", tls=True) is FirstBytes.NO_REQUEST
    assert classify_first_bytes(hello, tls=False) is FirstBytes.NO_REQUEST


@given(st.binary(min_size=1, max_size=64), st.binary(max_size=16), st.booleans())
def test_a_verdict_other_than_to_wait_is_not_changed_by_what_follows(
    head: bytes, more: bytes, tls: bool
) -> None:
    first = classify_first_bytes(head, tls=tls)
    if first is not FirstBytes.BEGINNING:
        assert classify_first_bytes(head + more, tls=tls) is first


class Keeper:
    """Starts and signals as the keeper would; it keeps nothing."""

    def __init__(self) -> None:
        self.pids: list[int] = []

    async def call(self, message: Any, fds: Sequence[HasDescriptor]) -> tuple[Any, list[int]]:
        output = message["output"]
        numbers = [fd.fileno() for fd in fds]
        self.pids.append(spawn(message["argv"], None, numbers, output, session=message["session"]))
        return {"pid": self.pids[-1]}, []

    def send(self, message: Any, fds: Sequence[HasDescriptor] = ()) -> None:
        if message["op"] == "signal":
            os.kill(message["pid"], message["signal"])


class Request:
    """A request for connections, and what came of it."""

    kind, key = ACCEPT, "key"

    def __init__(self, got: list[socket.socket], done: asyncio.Future[Fetched]) -> None:
        self._got = got
        self._done = done

    def arrived(self, sock: Connection) -> None:
        self._got.append(sock)

    def ended(self, found: Fetched) -> None:
        self._done.set_result(found)


class Stage:
    """A helper, a listener that its application has made blocking, and what came of it."""

    def __init__(self, directory: Path) -> None:
        self.keeper = Keeper()
        self.acceptor = AcceptHelper(cast(Link, self.keeper), str(directory), lambda key, connection: None)
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.got: list[socket.socket] = []

    async def fetch(self, count: int = 1) -> Fetched:
        clients = [socket.create_connection(self.listener.getsockname()) for _ in range(count)]
        done: asyncio.Future[Fetched] = asyncio.get_running_loop().create_future()
        self.acceptor.fetch(Request(self.got, done), self.listener, 8)
        found = await done
        for client in clients:
            client.close()
        return found

    async def close(self) -> None:
        self.acceptor.close()
        self.listener.close()
        for sock in self.got:
            sock.close()
        for pid in self.keeper.pids:
            await asyncio.to_thread(os.waitpid, pid, 0)


def run_helper(directory: Path, work: Callable[[Stage], Coroutine[Any, Any, None]]) -> None:
    async def watched() -> None:
        stage = Stage(directory)
        async with asyncio.timeout(60):
            await work(stage)
            await stage.close()

    asyncio.run(watched())


def test_connections_of_a_blocking_listener_are_handed_over_as_many_as_are_asked_for(tmp_path: Path) -> None:
    async def scenario(stage: Stage) -> None:
        assert await stage.fetch(3) == Fetched(empty=True)
        assert len(stage.got) == 3
        assert await stage.fetch(10) == Fetched()
        assert len(stage.got) == 11
        assert len(stage.keeper.pids) == 1

    run_helper(tmp_path, scenario)


def test_helper_that_does_not_answer_is_killed_and_replaced(tmp_path: Path, monkeypatch: Any) -> None:
    async def scenario(stage: Stage) -> None:
        await stage.fetch()
        monkeypatch.setattr(module, "_SILENT_SECONDS", 0.1)
        os.kill(stage.keeper.pids[0], signal.SIGSTOP)
        assert await stage.fetch() == Fetched(failed=True)
        assert (await stage.fetch()).empty
        assert len(stage.keeper.pids) == 2

    run_helper(tmp_path, scenario)


def test_helper_that_ends_at_a_request_says_that_a_call_has_blocked(tmp_path: Path) -> None:
    async def scenario(stage: Stage) -> None:
        await stage.fetch()
        os.kill(stage.keeper.pids[0], signal.SIGSTOP)
        asyncio.get_running_loop().call_soon(os.kill, stage.keeper.pids[0], signal.SIGALRM)
        asyncio.get_running_loop().call_soon(os.kill, stage.keeper.pids[0], signal.SIGCONT)
        assert await stage.fetch() == Fetched(failed=True, blocked=True)
        assert (await stage.fetch()).empty

    run_helper(tmp_path, scenario)


@pytest.mark.parametrize(("limit", "most"), [(8, 1), (320, 20), (335, 20)])
def test_connections_of_one_turn_are_a_sixteenth_of_the_descriptors(
    monkeypatch: pytest.MonkeyPatch, limit: int, most: int
) -> None:
    monkeypatch.setattr(module.resource, "getrlimit", lambda _: (limit, limit))
    assert module.HeldLimit().most_at_once == most
