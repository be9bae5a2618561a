"""Which connections wake a sleeping server, and where connections go: over real sockets."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import resource
import signal
import socket
import ssl
import sys
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from poolctl import ServerConfig, __version__
from poolctl.acceptor import __main__ as helper
from poolctl.bootstrap import command
from poolctl.keeper import connection_handover, wire
from poolctl.keeper.connection_handover import Connection
from poolctl.keeper.supervisor_link import SupervisorLink
from poolctl.runners.helper_process import HelperKind, Helpers
from poolctl.runners.local.accept_helper import ACCEPT, AcceptHelper, ConnectionRequest, FetchOutcome
from poolctl.runners.local.activation import (
    MAX,
    MIN,
    Activator,
    HeldConnection,
    HeldConnectionLimit,
    SleepingListener,
)
from poolctl.runners.local.first_bytes import MAX_LINE_BYTES, FirstBytesKind, classify_first_bytes
from poolctl.runners.local.server_sockets import AdoptionPairs, Sockets
from poolctl.runners.process_link import PING, Link, LinkLost, Refused
from poolctl.runners.runner_protocol import Exit
from tests.deadline import wait_until
from tests.descriptors import descriptor_limit
from tests.helper_keeper import ExecutingKeeper, HelperKeeper
from tests.processes import freeze
from tests.unit.runners.test_local_runner import config
from tests.unit.runners.test_local_worker import worker
from tests.unit.runners.test_process_link import StoringPeer

REQUEST = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"


@contextlib.asynccontextmanager
async def open_house(*, few_files: bool = False) -> AsyncIterator[House]:
    unseen: list[Any] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: unseen.append(context))
    house = House(few_files=few_files)
    try:
        yield house
    finally:
        house.close()
    assert unseen == []


@pytest.fixture
def house(descriptors_closed: None) -> AbstractAsyncContextManager[House]:
    return open_house()


class Helper:
    """What the accept helper's process does, in this very process. `fails` says that a call on the socket waits."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.fails = False

    def add(self, kind: HelperKind, owner: AcceptHelper, source: object) -> Helper:
        self.owner = owner
        return self

    def start(self) -> None:
        pass

    def close(self) -> None:
        pass

    async def wait_until_up(self) -> Helper:
        return self

    async def wait_briefly_for_exit(self) -> Exit:
        return Exit.from_signal(signal.SIGALRM)

    async def ask(self, request: wire.Message, fds: Sequence[Any], *, patience_seconds: float) -> Any:
        self.asked.append(request["t"])
        if self.fails:
            raise LinkLost("its process ended")
        try:
            ours, theirs = wire.pair()
        except OSError as error:
            raise Refused("no descriptor is free") from error
        with ours, theirs:
            (shared,) = fds
            helper.forward_connections_to_supervisor(SupervisorLink(theirs), {**request, "id": 1}, shared)
            while received := wire.receive(ours):
                message, fds = received
                if "id" in message:
                    break
                self.owner.received(message, fds)
        return message, []


def asleep(
    listeners: Sequence[socket.socket] = (), on_request: Callable[[], None] = lambda: None, **how: Any
) -> SleepingListener:
    usual: dict[str, Any] = {
        "accepts": True, "shared": False, "tls": False, "left": None, "quiet_seconds": 75.0, "head_seconds": 10.0,
    }  # fmt: skip
    return SleepingListener("web", listeners, on_request, **(usual | how))


class House:
    """A listener, the pair of a server, an activator, and what came of it.

    Stands for the keeper, the runner's listeners and the pairs, too.
    """

    def __init__(self, *, few_files: bool = False) -> None:
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.listener.setblocking(False)
        self.left, self.worker_end = wire.pair()
        self.left.setblocking(False)
        self.given: list[socket.socket] = []
        self.limits: list[dict[str, Any]] = []
        self.received: list[bytes] = []
        self.room = 1000
        self.woken = 0
        self.kept: list[str] = []
        self.clients: list[socket.socket] = []
        self.helper = Helper()
        self.cleared = 0
        self.key = config().key
        self.is_shared = False
        this: Any = self
        with descriptor_limit(MIN) if few_files else contextlib.nullcontext():
            self.activator = Activator(this, this, this, cast(Helpers, self.helper))

    def close(self) -> None:
        self.activator.forget_all_and_close_held()
        for sock in (self.listener, self.left, self.worker_end, *self.clients, *self.given):
            sock.close()

    def send(self, message: dict[str, Any], fds: Sequence[Any] = ()) -> None:
        if message["op"] == "put":
            self.kept.append(message["name"])
        else:
            self.kept.remove(message["name"])

    def open(self, server: ServerConfig) -> None:
        pass

    def of(self, server: ServerConfig) -> list[socket.socket]:
        return [self.listener]

    def shared(self, key: str) -> bool:
        return self.is_shared

    def take_end(self, key: str) -> socket.socket:
        return self.left

    def close_queued(self, key: str) -> None:
        pass

    def close_pair(self, key: str) -> None:
        assert key == self.key
        self.cleared += 1

    def give(self, key: str, sock: Connection) -> bool:
        assert key == self.key
        if len(self.given) >= self.room:
            return False
        self.given.append(sock.dup())
        self.limits.append(sock.limits())
        self.received.append(sock.received)
        return True

    def _wake(self) -> None:
        self.woken += 1

    def clear(self) -> None:
        self.activator.close_unused_socket_pair(self.key, ())

    def arm(self, **keys: Any) -> None:
        self.activator.arm(config(**keys), self._wake)

    async def connect(self, first_bytes: bytes = b"") -> socket.socket:
        sock = socket.socket()
        self.clients.append(sock)
        sock.setblocking(False)
        loop = asyncio.get_running_loop()
        await loop.sock_connect(sock, self.listener.getsockname())
        if first_bytes:
            await loop.sock_sendall(sock, first_bytes)
        return sock

    async def leave_behind(self, received: bytes = b"", **limits: Any) -> socket.socket:
        """A connection that a worker has served, and that is in the pair now."""
        ours, theirs = socket.socketpair()
        self.clients.append(ours)
        ours.setblocking(False)
        with theirs:
            connection_handover.send_connection(self.worker_end, theirs.fileno(), limits, received)
        return ours

    async def until(self, condition: Callable[[], Any]) -> None:
        while not condition():
            await asyncio.sleep(0.001)

    async def closed(self, client: socket.socket) -> bytes:
        """What the client got until the connection was closed."""
        got = b""
        while chunk := await asyncio.get_running_loop().sock_recv(client, 1000):
            got += chunk
        return got


async def test_request_wakes_once_and_its_connection_reaches_the_worker_unread(house: House) -> None:
    house.arm()
    await house.connect(REQUEST)
    await house.until(lambda: house.given)
    assert house.woken == 1
    assert house.given[0].recv(1000) == REQUEST
    await house.connect(REQUEST)  # it waits in the backlog
    await asyncio.sleep(0.01)
    assert (house.woken, len(house.given), house.kept) == (1, 1, [])


async def test_connection_alone_wakes_no_server(house: House) -> None:
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


async def test_a_request_line_in_pieces_wakes_when_it_is_complete(house: House) -> None:
    house.arm()
    client = await house.connect(b"GET /")
    await house.until(lambda: house.kept)
    client.send(b" HTTP/1")
    await asyncio.sleep(0.005)
    assert house.woken == 0
    client.send(b".1\r\n")
    await house.until(lambda: house.given)
    assert house.given[0].recv(1000) == b"GET / HTTP/1.1\r\n"


async def test_every_held_connection_goes_to_the_worker_with_the_one_that_sends(house: House) -> None:
    house.arm()
    await house.leave_behind()
    await house.connect()
    await house.until(lambda: len(house.kept) == 2)
    await house.connect(REQUEST)
    await house.until(lambda: len(house.given) == 3)
    assert (house.woken, house.kept) == (1, [])


async def test_connection_left_by_a_worker_wakes_with_its_next_request(house: House) -> None:
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


async def test_pair_is_cleared_once_when_no_connection_can_be_left(house: House) -> None:
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


async def test_left_connection_that_sends_a_request_wakes_before_any_is_closed(house: House) -> None:
    (await house.leave_behind()).send(REQUEST)
    house.arm()
    house.clear()
    await house.until(lambda: house.given)
    await asyncio.sleep(0.01)
    assert (house.woken, len(house.given), house.cleared) == (1, 1, 0)


async def test_slow_line_and_idle_connection_are_closed_after_their_time(house: House) -> None:
    slow, idle = await house.connect(b"GET /"), await house.connect()
    house.arm(http={"head_timeout": 0.04})
    assert (await house.closed(slow)).startswith(b"HTTP/1.1 408 ")
    assert await house.closed(idle) == b""
    assert (house.woken, house.given, house.kept) == (0, [], [])


@pytest.mark.usefixtures("descriptors_closed")
async def test_more_connections_than_may_be_held_push_out_the_oldest_silent_one() -> None:
    async with open_house(few_files=True) as house:
        house.arm()
        begun = await house.connect(b"GET /")
        await house.until(lambda: house.kept)
        one, *_ = [await house.connect() for _ in range(MIN)]
        assert await house.closed(one) == b""
        assert (house.woken, len(house.kept)) == (0, MIN)
        begun.send(REQUEST[5:])
        await house.until(lambda: len(house.given) == MIN)


@pytest.mark.usefixtures("descriptors_closed")
async def test_more_beginnings_of_requests_than_may_be_held_wake_their_server() -> None:
    async with open_house(few_files=True) as house:
        house.arm()
        for _ in range(MIN + 1):
            await house.connect(b"GET /")
        await house.until(lambda: len(house.given) == MIN + 1)
        assert (house.woken, house.kept) == (1, [])


async def test_a_shared_listener_is_accepted_from_by_the_helper_only(house: House) -> None:
    house.is_shared = True
    house.arm()
    house.listener.setblocking(True)
    silent = await house.connect()
    await house.until(lambda: house.kept)
    await house.connect(REQUEST)
    await house.until(lambda: len(house.given) == 2)
    assert (house.woken, set(house.helper.asked)) == (1, {"accept"})
    silent.close()


async def test_a_listener_on_which_accept_waits_wakes_its_server_by_any_connection_from_then_on(
    house: House,
) -> None:
    house.helper.fails = house.is_shared = True
    house.arm()
    await house.connect()
    await house.until(lambda: house.woken)
    house.arm()
    await house.until(lambda: house.woken == 2)
    assert house.helper.asked == ["accept"]
    house.activator.forget_and_close_held(
        house.key
    )  # the server that starts next may have another application
    house.arm()
    await house.until(lambda: house.woken == 3)
    assert house.helper.asked == ["accept"] * 2


async def test_junk_in_the_pair_is_closed_a_little_at_a_time(house: House) -> None:
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


async def test_a_connection_that_arrives_after_its_server_was_stopped_is_closed(house: House) -> None:
    house.is_shared = True
    house.arm()
    client = await house.connect()
    await house.until(lambda: house.helper.asked)
    house.activator.forget_and_close_held(house.key)
    assert await house.closed(client) == b""
    assert (house.woken, house.given, house.kept) == (0, [], [])


async def test_connection_without_room_in_the_pair_is_given_later(house: House) -> None:
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


async def test_time_limit_of_a_connection_without_room_in_the_pair_is_left_to_its_worker(
    house: House,
) -> None:
    house.room = 0
    house.arm(http={"head_timeout": 2.0})
    await house.connect()
    await house.until(lambda: house.kept)
    house.activator.disarm_and_hand_over(house.key)
    await asyncio.sleep(2.1)
    assert (len(house.given), len(house.kept)) == (0, 1)
    house.room = 1
    await house.until(lambda: house.given)
    assert house.kept == []
    assert "until" in house.limits[0]


async def test_connection_that_found_no_room_before_the_server_slept_wakes_it_again(house: House) -> None:
    house.room = 0
    house.arm()
    await house.connect(REQUEST)
    await house.until(lambda: house.woken)
    house.arm()
    house.room = 1
    await house.until(lambda: house.woken == 2)
    await house.until(lambda: house.given)


async def test_disarmed_listener_hands_connections_over_and_dismissed_one_closes_them(house: House) -> None:
    house.arm()
    first = await house.connect()
    await house.until(lambda: house.kept)
    house.activator.close_waiting(house.key)
    assert await house.closed(first) == b""
    await house.connect()
    await house.until(lambda: house.kept)
    house.activator.disarm_and_hand_over(house.key)
    assert (len(house.given), house.woken, house.kept) == (1, 0, [])


async def test_server_that_accepts_itself_is_woken_by_any_connection(house: House) -> None:
    house.arm(command=["program"], app=None)
    await house.connect()
    await house.until(lambda: house.woken)
    assert (house.woken, house.given) == (1, [])
    house.listener.accept()[0].close()  # it is still in the backlog


async def test_no_left_connection_is_lost_when_descriptors_run_out(house: House) -> None:
    house.arm()
    client = await house.leave_behind()
    client.send(REQUEST)
    with contextlib.ExitStack() as hoard, descriptor_limit(client.fileno() + 30):
        with contextlib.suppress(OSError):
            while True:
                hoard.callback(os.close, os.dup(0))
        await asyncio.sleep(0.03)
        assert house.woken == 0
    await house.until(lambda: house.given)
    assert house.given[0].recv(1000) == REQUEST


async def test_connections_wait_in_the_backlog_when_descriptors_run_out(house: House) -> None:
    class Full(socket.socket):
        fails = 1

        def accept(self) -> tuple[socket.socket, Any]:
            if Full.fails:
                Full.fails -= 1
                raise OSError(24, "Too many open files")
            return super().accept()

    house.listener = Full(fileno=house.listener.detach())
    house.arm()
    await house.connect(REQUEST)
    await house.until(lambda: house.given)
    assert Full.fails == 0


async def test_a_connection_goes_to_the_worker_with_the_time_that_its_client_has_left(house: House) -> None:
    house.arm(http={"head_timeout": 50.0, "keep_alive": 500.0})
    before = time.monotonic()
    await house.connect()
    with socket.create_server(("127.0.0.1", 0)) as elsewhere:
        for until, asked in ((before + 200.0, True), (before + 20.0, False), (None, False)):
            house.clients.append(socket.create_connection(elsewhere.getsockname()))
            left = Connection(fileno=elsewhere.accept()[0].detach())
            left.until, left.idle = until, asked
            with left:
                connection_handover.send_connection(house.worker_end, left.fileno(), left.limits())
    await house.until(lambda: len(house.kept) == 4)
    await house.connect(REQUEST)
    await house.until(lambda: len(house.limits) == 5)
    found = sorted((limits["asked"], limits["until"] - before) for limits in house.limits)
    assert [asked for asked, _ in found] == [False, False, False, True, True]
    for (_, seconds), expected in zip(found, (20.0, 50.0, 50.0, 200.0, 500.0), strict=True):
        assert expected <= round(seconds, 6) < expected + 20.0


async def test_a_connection_whose_request_has_been_read_wakes_and_keeps_it(house: House) -> None:
    house.arm()
    await house.leave_behind(REQUEST)
    await house.until(lambda: house.given)
    assert (house.woken, house.received) == (1, [REQUEST])


async def test_idle_connection_of_the_gateway_has_no_limit(house: House) -> None:
    house.arm()
    client = await house.leave_behind(asked=True)
    await house.until(lambda: house.kept)
    await asyncio.get_running_loop().sock_sendall(client, REQUEST)
    await house.until(lambda: house.given)
    assert (house.woken, house.limits) == (1, [{"asked": True}])


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
    assert classify_first_bytes(head, tls=False) is FirstBytesKind.REQUEST
    line = head[: head.index(b"\n", len(head) - len(head.lstrip()))]
    assert {classify_first_bytes(line[:length], tls=False) for length in range(1, len(line) + 1)} == {
        FirstBytesKind.BEGINNING
    }


@pytest.mark.parametrize(
    "head", [b"\x16\x03\x01", b"\x00", b"(", b"hello\r\n", b"GET /\r\n", b"GET  / HTTP/1.1\n"]
)
def test_bytes_that_begin_no_request_are_no_request(head: bytes) -> None:
    assert classify_first_bytes(head, tls=False) is FirstBytesKind.NO_REQUEST


def test_a_line_without_an_end_is_left_to_the_application() -> None:
    assert classify_first_bytes(b"GET /" + b"a" * MAX_LINE_BYTES, tls=False) is FirstBytesKind.REQUEST
    assert classify_first_bytes(b"\r\n" * MAX_LINE_BYTES, tls=False) is FirstBytesKind.NO_REQUEST


def test_a_client_hello_is_the_request_of_a_server_with_tls() -> None:
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    client = ssl.create_default_context().wrap_bio(incoming, outgoing, server_hostname="x")
    with pytest.raises(ssl.SSLWantReadError):
        client.do_handshake()
    hello = outgoing.read()
    assert classify_first_bytes(hello, tls=True) is FirstBytesKind.REQUEST
    assert [classify_first_bytes(hello[:length], tls=True) for length in range(1, 6)] == [
        FirstBytesKind.BEGINNING
    ] * 5
    assert classify_first_bytes(b"GET / HTTP/1.1\r\n", tls=True) is FirstBytesKind.NO_REQUEST
    assert classify_first_bytes(hello, tls=False) is FirstBytesKind.NO_REQUEST


@given(st.binary(min_size=1, max_size=64), st.binary(max_size=16), st.booleans())
def test_a_verdict_other_than_to_wait_is_not_changed_by_what_follows(
    head: bytes, more: bytes, tls: bool
) -> None:
    first = classify_first_bytes(head, tls=tls)
    if first is not FirstBytesKind.BEGINNING:
        assert classify_first_bytes(head + more, tls=tls) is first


class Request:
    """A request for connections, and what came of it."""

    kind, key = ACCEPT, "key"

    def __init__(self, got: list[socket.socket], done: asyncio.Future[FetchOutcome]) -> None:
        self._got = got
        self._done = done

    def on_connection(self, sock: Connection) -> None:
        self._got.append(sock)

    def on_end(self, found: FetchOutcome) -> None:
        self._done.set_result(found)


class Stage:
    """A helper, a listener that its application has made blocking, and what came of it."""

    def __init__(self, directory: Path) -> None:
        self.keeper = ExecutingKeeper()
        helpers = Helpers(cast(Link, self.keeper), str(directory))
        self.keeper.report = helpers.handle_exit_report
        self.acceptor = AcceptHelper(helpers, lambda key, connection: None)
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.got: list[socket.socket] = []

    async def fetch(self, count: int = 1) -> FetchOutcome:
        clients = [socket.create_connection(self.listener.getsockname()) for _ in range(count)]
        done: asyncio.Future[FetchOutcome] = asyncio.get_running_loop().create_future()
        self.acceptor.fetch(cast(ConnectionRequest, Request(self.got, done)), self.listener, 8)
        found = await done
        for client in clients:
            client.close()
        return found

    async def close(self) -> None:
        self.acceptor.close()
        self.listener.close()
        for sock in self.got:
            sock.close()
        self.keeper.close()
        await self.keeper.wait_for_exits()


@pytest.fixture
@contextlib.asynccontextmanager
async def stage(tmp_path: Path) -> AsyncIterator[Stage]:
    stage = Stage(tmp_path)
    try:
        yield stage
    finally:
        await stage.close()


async def test_connections_of_a_blocking_listener_are_handed_over_as_many_as_are_asked_for(
    stage: Stage,
) -> None:
    assert await stage.fetch(3) == FetchOutcome(empty=True)
    assert len(stage.got) == 3
    assert await stage.fetch(10) == FetchOutcome()
    assert len(stage.got) == 11
    assert len(stage.keeper.pids) == 1


async def test_helper_that_does_not_answer_is_killed_and_replaced(stage: Stage) -> None:
    await stage.fetch()
    freeze(stage.keeper.pids[0])
    assert await stage.fetch() == FetchOutcome(failed=True)
    assert (await stage.fetch()).empty
    assert len(stage.keeper.pids) == 2


@pytest.mark.parametrize(("number", "blocked"), [(signal.SIGALRM, True), (signal.SIGKILL, False)])
async def test_helper_that_its_time_limit_ends_at_a_request_says_that_a_call_has_blocked(
    stage: Stage, number: int, blocked: bool
) -> None:
    await stage.fetch()
    freeze(stage.keeper.pids[0])
    for sent in (number, signal.SIGCONT) if blocked else (number,):
        asyncio.get_running_loop().call_soon(os.kill, stage.keeper.pids[0], sent)
    assert await stage.fetch() == FetchOutcome(failed=True, blocked=blocked)
    assert (await stage.fetch()).empty


async def test_helper_without_a_free_descriptor_takes_nothing_and_works_again_when_there_are_some(
    stage: Stage,
) -> None:
    assert (await stage.fetch()).empty
    (pid,) = stage.keeper.pids
    numbers = set(os.listdir(f"/proc/{pid}/fd"))
    free = next(each for each in itertools.count() if str(each) not in numbers)
    soft, hard = resource.prlimit(pid, resource.RLIMIT_NOFILE)
    resource.prlimit(pid, resource.RLIMIT_NOFILE, (free, hard))
    assert await stage.fetch() == FetchOutcome(full=True)
    resource.prlimit(pid, resource.RLIMIT_NOFILE, (soft, hard))
    assert (await stage.fetch()).empty
    assert stage.keeper.pids == [pid]


class AtHelper:
    """An accept helper on a loop whose time passes at once, its keeper, and the results of its requests."""

    def __init__(self) -> None:
        self.keeper = HelperKeeper()
        self.returned: list[tuple[str, bytes]] = []
        self.helpers = Helpers(cast(Link, self.keeper), "/run")
        self.acceptor = AcceptHelper(self.helpers, self._return)
        self.sock, self._client = socket.socketpair()
        self.ended: list[tuple[str, FetchOutcome]] = []
        self.arrived: list[str] = []

    def _return(self, key: str, sock: Connection) -> None:
        self.returned.append((key, sock.recv(100)))
        sock.close()

    def fetch(self, name: str = "one") -> None:
        self.acceptor.fetch(cast(ConnectionRequest, Asked(self, name)), self.sock, 5)

    async def pass_time(self, seconds: float = 0.0) -> None:
        await asyncio.sleep(seconds)
        await self.keeper.settle()

    async def hears(self, *, up: bool = True) -> list[Any]:
        """The requests that the helper has got, once it is up."""
        await self.pass_time()
        if up:
            await self.keeper.say({"t": "up"})
        return self.keeper.heard()

    def close(self) -> None:
        self.acceptor.close()
        self.sock.close()
        self._client.close()
        self.keeper.close()


class Asked:
    """A request for connections, by its name."""

    kind, key = ACCEPT, "web"

    def __init__(self, at: AtHelper, name: str) -> None:
        self._at = at
        self._name = name

    def on_connection(self, sock: Connection) -> None:
        self._at.arrived.append(self._name)
        sock.close()

    def on_end(self, found: FetchOutcome) -> None:
        self._at.ended.append((self._name, found))


@pytest.fixture
@contextlib.asynccontextmanager
async def at(virtual_time: None, descriptors_closed: None) -> AsyncIterator[AtHelper]:
    at = AtHelper()
    try:
        yield at
    finally:
        at.close()
        await at.pass_time()


async def test_helper_is_started_once_and_gets_the_requests_that_wait_for_it(at: AtHelper) -> None:
    at.acceptor.warm()
    at.acceptor.warm()
    at.fetch()
    (request,) = await at.hears()
    assert (request["t"], request["key"], request["most"]) == (ACCEPT, "web", 5)
    (order,) = at.keeper.spawned
    assert [*order["argv"]] == command(sys.executable, "acceptor", isolated=True)
    assert (order["output"], order["session"]) == ("/run/accept.log", True)
    assert at.keeper.entries.keys() == {"acceptor"}


async def test_request_without_a_free_descriptor_for_the_helper_may_be_repeated(at: AtHelper) -> None:
    with descriptor_limit(0):
        at.acceptor.warm()
        at.fetch("one")
        await at.pass_time()
    assert at.ended == [("one", FetchOutcome(full=True))]
    at.fetch("two")
    (request,) = await at.hears()
    assert request["t"] == ACCEPT


async def test_listener_that_is_closed_while_the_helper_starts_has_no_connections(at: AtHelper) -> None:
    at.fetch()
    at.sock.close()
    assert await at.hears() == []
    assert at.ended == [("one", FetchOutcome(empty=True))]


async def test_helper_that_has_not_started_has_ten_seconds_and_gets_no_successor_until_it_is_needed(
    at: AtHelper,
) -> None:
    at.fetch()
    await at.pass_time(9.99)
    assert at.ended == []
    await at.pass_time(0.02)
    assert at.ended == [("one", FetchOutcome(failed=True))]
    await at.pass_time(1000)
    assert len(at.keeper.spawned) == 1
    at.fetch("two")
    await at.pass_time()
    assert len(at.keeper.spawned) == 2


async def test_helper_that_has_started_may_be_silent_for_a_second_after_each_message(at: AtHelper) -> None:
    at.fetch("one")
    at.fetch("two")
    first, second = await at.hears()
    assert second["n"] == first["n"] + 1
    for _ in range(3):
        await at.pass_time(0.9)
        await at.keeper.say({"t": "conn", "n": first["n"], "key": "web"}, [at.sock.fileno()])
    await at.keeper.say({"id": first["id"], "empty": True, "junk": False, "full": False})
    assert (at.arrived, at.ended) == (["one"] * 3, [("one", FetchOutcome(empty=True, full=False))])
    await at.pass_time(0.3)
    assert len(at.ended) == 1
    await at.pass_time(2)
    assert at.ended[1:] == [("two", FetchOutcome(failed=True))]


@pytest.mark.parametrize("up", [True, False])
async def test_exit_of_a_helper_that_was_up_blames_the_oldest_request(at: AtHelper, up: bool) -> None:
    at.fetch("one")
    at.fetch("two")
    await at.hears(up=up)
    (pid,) = at.helpers.pids.values()
    at.keeper.end()
    at.helpers.handle_exit_report(
        {"event": "exit", "pid": pid, "status": None, "signal": int(signal.SIGALRM)}
    )
    await at.pass_time()
    assert at.ended == [
        ("one", FetchOutcome(failed=True, blocked=up)),
        ("two", FetchOutcome(failed=True, blocked=False)),
    ]
    await at.pass_time(1000)
    assert len(at.ended) == 2


async def test_connection_of_an_earlier_supervisors_request_is_returned_with_its_key(at: AtHelper) -> None:
    ours, theirs = wire.pair()
    at.keeper.ends.append(theirs)
    at.keeper.hold("acceptor", {"pid": 1 << 23, "start": 1, "mark": __version__}, ours)
    await at.acceptor.adopt()
    client, accepted = socket.socketpair()
    client.send(b"request")
    with client, accepted:
        await at.keeper.say({"t": "conn", "n": 3, "key": "api"})  # without its descriptor
        await at.keeper.say({"t": "conn", "n": 3, "key": "api"}, [accepted.fileno()])
    await at.keeper.say({"id": 3, "empty": True, "junk": False, "full": False})
    assert (at.returned, at.ended, at.keeper.spawned) == ([("api", b"request")], [], [])
    at.fetch()
    (request,) = await at.hears(up=False)
    assert request["t"] == ACCEPT


async def test_closed_helper_answers_no_request(at: AtHelper) -> None:
    at.fetch()
    assert len(await at.hears()) == 1
    at.acceptor.close()
    await at.pass_time(1000)
    assert at.ended == []
    assert at.keeper.entries == {}
    assert at.keeper.heard() == [{"t": "end"}]


def held(*, unseen: bool = True, begun: bool = False) -> HeldConnection:
    return HeldConnection(cast(Connection, None), unseen=unseen, begun=begun)


def sleeping_with(*connections: HeldConnection) -> SleepingListener:
    return asleep(connections=dict.fromkeys(connections))


def test_connection_to_close_is_the_oldest_unseen_one_else_the_oldest_left_by_a_worker() -> None:
    begun, left, later = held(begun=True), held(unseen=False), held(unseen=False)
    unseen, newest = held(), held()
    assert sleeping_with(begun, left, unseen, held(), newest).expendable(newest) is unseen
    assert sleeping_with(newest, begun, left, later).expendable(newest) is left
    assert sleeping_with(begun, newest).expendable(newest) is None
    assert sleeping_with(begun, held(unseen=False, begun=True)).expendable(newest) is None


@pytest.mark.parametrize(("limit", "at_once"), [(8, 1), (320, 20), (335, 20), (12_000, 64)])
def test_connections_of_one_turn_are_a_sixteenth_of_the_descriptors(limit: int, at_once: int) -> None:
    with descriptor_limit(limit):
        assert HeldConnectionLimit().most_at_once == at_once


def test_limit_of_held_connections_leaves_a_quarter_of_the_descriptors_free() -> None:
    others = len(os.listdir("/proc/self/fd")) - 20
    with descriptor_limit(400):
        limit = HeldConnectionLimit()
    most = 300 - others
    assert [limit.too_many(count) for count in (20, most, most + 1)] == [False, False, True]
    with contextlib.ExitStack() as more:
        for _ in range(5):
            more.callback(os.close, os.dup(0))
        wait_until(lambda: limit.too_many(20) or limit.too_many(most))
        assert not limit.too_many(most - 5)


@pytest.mark.parametrize(("open_limit", "most"), [(15, MIN), (12_000, MAX)])
def test_number_of_held_connections_has_a_least_and_a_most(open_limit: int, most: int) -> None:
    with descriptor_limit(open_limit):
        limit = HeldConnectionLimit()
    assert (limit.too_many(most + 1), limit.too_many(most)) == (True, False)


async def test_time_limit_of_a_held_connection_is_kept_while_its_kind_is_the_same() -> None:
    def of(connection: HeldConnection) -> tuple[float, bool, float]:
        """The time left in tens of seconds, whether it is for a request to begin, and when the timer fires."""
        assert connection.sock.until is not None
        assert connection.timer is not None
        left, fires = connection.sock.until - time.monotonic(), connection.timer.when()
        return round(left, -1), connection.sock.idle, round(fires - asyncio.get_running_loop().time(), -1)

    one, other = socket.socketpair()
    one.close()
    late = asyncio.Event()
    sleeping = asleep(quiet_seconds=4000.0, head_seconds=500.0)
    connection = HeldConnection.accepted(other, 800.0)
    for begun in (False, True):
        sleeping.limit_wait(connection, late.set, begun=begun)
        assert (of(connection), connection.begun) == ((800, False, 800), begun)
    connection.stop_timer()
    connection.sock.until = None
    sleeping.limit_wait(connection, late.set, begun=False)
    assert (of(connection), connection.begun) == ((4000, True, 4000), False)
    sleeping.limit_wait(connection, late.set, begun=True)
    assert of(connection) == (500, False, 500)
    connection.sock.until = 1.0
    connection.set_timer(late.set)
    await asyncio.wait_for(late.wait(), 60)
    connection.stop_timer()
    assert connection.timer is None
    connection.sock.close()


class OpenListeners:
    """The listeners of one server; `is_shared` says that an application has them as well."""

    def __init__(self) -> None:
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.listener.setblocking(False)
        self.is_shared = False

    def of(self, server: ServerConfig) -> list[socket.socket]:
        return [self.listener]

    def shared(self, key: str) -> bool:
        return self.is_shared


class Servers:
    """The sleeping servers of a runner, with real pairs and a keeper in this process; the helper runs in here, too."""

    def __init__(self, directory: Path) -> None:
        self.peer = StoringPeer()
        self.pairs = AdoptionPairs(self.peer.kept)
        self.sockets = OpenListeners()
        keeper = cast(Link, self.peer.kept)
        self.helpers = Helpers(keeper, str(directory))
        self.activator = Activator(keeper, cast(Sockets, self.sockets), self.pairs, self.helpers)
        self.woken = 0
        self.clients: list[socket.socket] = []
        self.helper_end: socket.socket | None = None
        self.server = config(http={"keep_alive": 500.0, "head_timeout": 50.0})
        self.key = self.server.key

    def wake(self) -> None:
        self.woken += 1

    async def adopt_helper(self) -> None:
        """Have a helper that the test plays; it is what an earlier supervisor left."""
        ours, self.helper_end = wire.pair()
        self.helper_end.setblocking(False)
        meta = {"pid": 1 << 23, "start": 1, "mark": __version__}
        with ours:
            self.peer.kept.send({"op": "put", "name": "acceptor", "meta": meta}, [ours.fileno()])
        await self.activator.adopt_acceptor({self.key: self.server})

    async def asked(self) -> list[Any]:
        """The requests that the helper has got since."""
        for _ in range(10):
            await asyncio.sleep(0)
        assert self.helper_end is not None
        found = []
        with contextlib.suppress(BlockingIOError):
            while received := wire.receive(self.helper_end):
                if received[0] != PING:
                    found.append(received[0])
                    os.close(received[1][0])
        return found

    def connect(self, data: bytes = b"") -> socket.socket:
        client = socket.create_connection(self.sockets.listener.getsockname())
        self.clients.append(client)
        client.settimeout(30)
        client.sendall(data)
        return client

    def connection(self) -> tuple[socket.socket, Connection]:
        """A client that said "hello", and the other end of its connection."""
        ours, theirs = socket.socketpair()
        self.clients.append(ours)
        ours.settimeout(30)
        ours.send(b"hello")
        return ours, Connection(fileno=theirs.detach())

    @property
    def held(self) -> dict[str, tuple[Any, int]]:
        """The held connections in the keeper's store: name, value and number of descriptors."""
        entries = self.peer.kept.entries.items()
        return {name: (meta, len(fds)) for name, (meta, fds) in entries if name.startswith("visitor:")}

    async def until(self, condition: Callable[[], Any]) -> None:
        while not condition():
            await asyncio.sleep(0.001)

    def taken(self) -> list[tuple[dict[str, Any], bytes]]:
        """The connections that wait in the server's pair: the limits of each, and its unread data."""
        found = []
        left = self.pairs.take_end(self.key)
        with contextlib.suppress(BlockingIOError):
            while left is not None:
                connection = connection_handover.receive_connection(left)
                if connection is None:
                    break
                with connection:
                    found.append((connection.limits(), connection.recv(100, socket.MSG_DONTWAIT)))
        return found

    async def close(self) -> None:
        self.activator.forget_all_and_close_held()
        await self.pairs.close_all()
        self.sockets.listener.close()
        for client in self.clients:
            client.close()
        if self.helper_end is not None:
            self.helper_end.close()
        self.peer.keeper.reaper.close()
        self.peer.close()


@pytest.fixture
@contextlib.asynccontextmanager
async def servers(descriptors_closed: None, tmp_path: Path) -> AsyncIterator[Servers]:
    servers = Servers(tmp_path)
    try:
        yield servers
    finally:
        await servers.close()


async def test_request_of_a_sleeping_server_wakes_it_and_waits_in_its_pair(servers: Servers) -> None:
    servers.activator.arm(servers.server, servers.wake)
    before = time.monotonic()
    servers.connect()
    await servers.until(lambda: servers.held)
    ((name, (meta, descriptors)),) = servers.held.items()
    assert int(name.removeprefix("visitor:")) >> 32 == os.getpid()
    assert (meta["key"], meta["asked"], descriptors) == (servers.key, False, 1)
    assert before + 50 <= meta["until"] <= time.monotonic() + 50
    servers.connect(REQUEST)
    await servers.until(lambda: servers.woken)
    assert (servers.woken, servers.held) == (1, {})
    limits, data = servers.taken()[0]
    assert (data, limits["asked"]) == (REQUEST, False)
    assert before + 50 <= limits["until"] <= time.monotonic() + 50


async def test_connection_left_by_a_worker_stays_for_the_keep_alive_timeout(servers: Servers) -> None:
    await servers.adopt_helper()
    servers.activator.arm(servers.server, servers.wake)
    client, theirs = servers.connection()
    with theirs:
        theirs.recv(100)
        assert servers.helper_end is not None
        before = time.monotonic()
        message = {"t": "conn", "n": 0, "key": servers.key}
        wire.send(servers.helper_end, message, [theirs.fileno()])
    await servers.until(lambda: servers.held)
    ((meta, _),) = servers.held.values()
    assert meta["asked"]
    assert before + 500 <= meta["until"] <= time.monotonic() + 500
    client.close()
    await servers.until(lambda: not servers.held)
    assert servers.woken == 0


async def test_connection_that_an_earlier_supervisor_requested_keeps_its_deadline_and_its_request(
    servers: Servers,
) -> None:
    await servers.adopt_helper()
    servers.activator.arm(servers.server, servers.wake)
    assert servers.helper_end is not None
    _, theirs = servers.connection()
    with theirs:
        theirs.until = time.monotonic() + 20
        theirs.received = REQUEST
        message = {"t": "conn", "n": 0, "key": servers.key, **theirs.to_message()}
        wire.send(servers.helper_end, message, [theirs.fileno()])
        await servers.until(lambda: servers.woken)
        pair = servers.pairs.take_end(servers.key)
        assert pair is not None
        taken = connection_handover.receive_connection(pair)
        assert taken is not None
        with taken:
            assert (taken.until, taken.received) == (theirs.until, REQUEST)


@pytest.mark.parametrize(("key", "expected"), [(None, [({}, b"hello")]), ("other", [])])
async def test_connection_that_an_earlier_helper_accepted_goes_to_the_pair_of_an_awake_server(
    servers: Servers, key: str | None, expected: list[Any]
) -> None:
    await servers.adopt_helper()
    assert servers.helper_end is not None
    client, theirs = servers.connection()
    with theirs:
        message = {"t": "conn", "n": 0, "key": key or servers.key}
        wire.send(servers.helper_end, message, [theirs.fileno()])
    if key:
        with contextlib.suppress(ConnectionResetError):  # closed with unread data
            assert await asyncio.to_thread(client.recv, 1) == b""
    else:
        await servers.until(lambda: servers.pairs.queued_connections(servers.key))
    assert servers.taken() == expected


@pytest.mark.parametrize(
    ("key", "descriptors", "expected"), [("web", 1, [({}, b"hello")]), ("other", 1, []), ("web", 3, [])]
)
async def test_connection_that_an_earlier_supervisor_held_goes_to_the_pair_of_its_server(
    servers: Servers, key: str, descriptors: int, expected: list[Any]
) -> None:
    _, theirs = servers.connection()
    servers.peer.kept.send({"op": "put", "name": "visitor:5", "meta": {"key": key}}, [theirs])
    fds = [os.dup(theirs.fileno()) for _ in range(descriptors)]
    theirs.close()
    known = {"web": servers.server}
    assert servers.activator.requeue_held_connection(known, "5", {"key": key}, fds) == []
    assert (servers.held, servers.taken()) == ({}, expected)


async def test_held_connection_is_stored_with_what_was_read_of_it(servers: Servers) -> None:
    await servers.adopt_helper()
    assert servers.helper_end is not None
    servers.activator.arm(servers.server, servers.wake)
    clients = []
    for _ in range(2):
        client, theirs = socket.socketpair()
        clients.append(client)
        with Connection(fileno=theirs.detach()) as sock:
            sock.received = b"GET /"
            message = {"t": "conn", "n": 0, "key": servers.key, **sock.to_message()}
            wire.send(servers.helper_end, message, [sock.fileno()])
    await servers.until(lambda: len(servers.held) == 2)
    assert [(meta["key"], count) for meta, count in servers.held.values()] == [(servers.key, 1)] * 2
    held = [meta for meta, _ in servers.held.values()]
    restored = [connection_handover.from_message(meta, [os.dup(clients[0].fileno())]) for meta in held]
    assert [sock.received for sock in restored] == [b"GET /"] * 2
    for sock in (*clients, *restored):
        sock.close()
    first, second = (int(name.removeprefix("visitor:")) for name in servers.held)
    assert second == first + 1


@pytest.mark.parametrize(
    ("armed", "exited", "cleared"),
    [
        (True, [True, True], True),
        (True, [], True),
        (True, [True, False], False),
        (False, [True], False),
    ],
)
async def test_pair_of_a_sleeping_server_is_closed_once_its_workers_have_exited(
    servers: Servers, armed: bool, exited: list[bool], cleared: bool
) -> None:
    await servers.adopt_helper()
    assert servers.helper_end is not None
    servers.pairs.open(servers.server)
    if armed:
        servers.activator.arm(servers.server, servers.wake)
    workers = [worker() for _ in exited]
    for each, has_exited in zip(workers, exited, strict=True):
        if has_exited:
            each.record_exit(Exit())
    servers.activator.close_unused_socket_pair(servers.key, workers)
    asked = await servers.asked()
    assert [(each["t"], each["key"]) for each in asked] == [("take", servers.key)] * cleared
    for request in asked:
        answer = {"id": request["id"], "empty": True, "junk": False, "full": False}
        wire.send(servers.helper_end, answer)
        await servers.until(lambda: servers.pairs.take_end(servers.key) is None)
        assert f"adoption:{servers.key}" not in servers.peer.kept.entries


async def test_program_is_woken_by_a_connection_that_stays_in_its_backlog(servers: Servers) -> None:
    program = config(command=["program"], app=None)
    servers.activator.arm(program, servers.wake)
    servers.connect()
    await servers.until(lambda: servers.woken)
    assert (servers.held, servers.pairs.take_end(servers.key)) == ({}, None)
    servers.sockets.listener.accept()[0].close()


async def test_shared_listener_of_a_sleeping_server_is_left_to_the_helper(servers: Servers) -> None:
    servers.sockets.is_shared = True
    await servers.adopt_helper()
    servers.activator.arm(servers.server, servers.wake)
    servers.connect(REQUEST)
    received: list[Any] = []
    while not received:
        received = await servers.asked()
    assert (received[0]["t"], received[0]["key"], servers.woken) == ("accept", servers.key, 0)


@pytest.mark.parametrize("whole", [True, False])
async def test_dismissed_and_closed_servers_close_held_and_queued_connections(
    servers: Servers, whole: bool
) -> None:
    servers.activator.arm(servers.server, servers.wake)
    client = servers.connect()
    await servers.until(lambda: servers.held)
    servers.pairs.open(servers.server)
    queued, theirs = servers.connection()
    with theirs:
        theirs.recv(100)
        servers.pairs.give(servers.key, theirs)
    if whole:
        servers.activator.forget_and_close_held(servers.key)
    else:
        servers.activator.close_waiting(servers.key)
        assert await asyncio.to_thread(queued.recv, 1) == b""
    assert servers.pairs.queued_connections(servers.key) == whole
    assert await asyncio.to_thread(client.recv, 1) == b""
    assert servers.held == {}
    servers.connect(REQUEST)
    if whole:
        await asyncio.sleep(0.005)
    else:
        await servers.until(lambda: servers.woken)
    assert servers.woken == (not whole)
