"""A backend's connection: how its response is read, whatever it sends and whenever it ends."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable, Iterator
from functools import partial
from types import SimpleNamespace
from typing import Any

import pytest

from poolctl.features.gateway.process.proxy import backend_connection, client_connection
from poolctl.features.gateway.process.proxy.backend_connection import (
    BackendConnection,
    Timer,
    write_eof_or_close,
)
from poolctl.features.gateway.process.proxy.response_head import Response
from poolctl.http.messages import MOST_CHUNKS_A_SECOND, MOST_CHUNKS_AT_ONCE, MOST_INTERIM, ChunkedBodyReader
from tests.features.gateway.proxy_stage import Backend, Stage, Wire, play
from tests.features.gateway.test_client_connection import Turns, failing, status_of
from tests.http_corpus import RESPONSES, ResponseCase
from tests.virtual_loop import VirtualLoop

GET = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"
OK = b"HTTP/1.1 200 OK\r\n"


@pytest.mark.parametrize("reset", [False, True])
@pytest.mark.parametrize("sent", [b"", b"HTTP/1.1 200 OK\r\nContent-Le"])
def test_backend_that_ends_before_its_response_is_a_bad_gateway(sent: bytes, reset: bool) -> None:
    async def scene(stage: Stage) -> None:
        backend = await stage.route(failing(sent, reset=reset))
        client = await stage.client()
        await client.send(GET)
        assert await status_of(client) == 502
        assert len(backend.heads) == 1

    play(scene)


REFUSED = [
    case
    for case in RESPONSES
    if not case.status and case.whole and case.name != "other protocol, not asked for"
]


@pytest.mark.parametrize("case", REFUSED, ids=lambda case: case.name)
def test_malformed_response_is_a_bad_gateway_or_cut_off(case: ResponseCase) -> None:
    async def scene(stage: Stage) -> None:
        await stage.route(failing(case.data))
        client = await stage.client()
        await client.send(GET[:-2] + b"Connection: close\r\n\r\n")
        try:
            received = await client.rest()
        except ConnectionError:
            return
        received = received.rpartition(b"HTTP/1.1 100 Continue\r\n\r\n")[2]
        if received.startswith(OK):  # only its body is malformed
            assert not received.endswith(b"0\r\n\r\n")
        else:
            assert received == b"" or received.startswith(b"HTTP/1.1 502 ")

    play(scene)


CUT = {
    "length": OK + b"Content-Length: 10\r\n\r\nhel",
    "chunk": OK + b"Transfer-Encoding: chunked\r\n\r\n5\r\nhel",
    "no last chunk": OK + b"Transfer-Encoding: chunked\r\n\r\n3\r\nhel\r\n",
    "broken chunk": OK + b"Transfer-Encoding: chunked\r\n\r\n3\r\nhel\r\nxyz\r\n",
}


@pytest.mark.parametrize("name", CUT)
@pytest.mark.parametrize("version", [b"1.0", b"1.1"])
def test_response_that_is_cut_off_is_not_taken_for_whole(name: str, version: bytes) -> None:
    async def scene(stage: Stage) -> None:
        await stage.route(failing(CUT[name]))
        client = await stage.client()
        await client.send(b"GET / HTTP/%b\r\nHost: a\r\nConnection: close\r\n\r\n" % version)
        try:
            received = await client.rest()
        except ConnectionResetError:
            return
        if received.startswith(b"HTTP/1.1 502 "):
            assert name == "broken chunk"  # nothing had been passed on yet
            return
        assert version == b"1.1" or name == "length"
        assert not received.endswith(b"0\r\n\r\n")

    play(scene)


class _Loop:
    """A clock, and the one call that timers have with it."""

    def __init__(self) -> None:
        self.now, self.calls, self.handles = 100.0, 0, list[_Handle]()

    def time(self) -> float:
        return self.now

    def call_at(self, due: float, callback: Callable[[], None]) -> _Handle:
        self.calls += 1
        self.handles.append(_Handle(self, due, callback))
        return self.handles[-1]

    def advance(self, seconds: float) -> None:
        until = self.now + seconds
        while due := [each for each in self.handles if each.due <= until]:
            first = min(due, key=lambda each: each.due)
            self.now = max(self.now, first.due)
            first.cancel()
            first.callback()
        self.now = until


class _Handle:
    def __init__(self, loop: _Loop, due: float, callback: Callable[[], None]) -> None:
        self.loop, self.due, self.callback = loop, due, callback

    def cancel(self) -> None:
        self.loop.handles.remove(self)


def test_timers_expire_at_their_deadline_and_not_before() -> None:
    loop, expired = _Loop(), []
    timers = [Timer(loop) for _ in range(5)]  # type: ignore[arg-type]
    for number, seconds in enumerate((1.0, 2.0, 3.0, 4.0, 0.0)):
        timers[number].start(seconds, lambda number=number: expired.append((number, loop.now)))
    timers[1].start(10.0, lambda: expired.append((1, loop.now)))
    timers[2].start(0.5, lambda: expired.append(("earlier", loop.now)))
    timers[3].stop()
    loop.advance(1.3)
    assert expired == [("earlier", 100.5), (0, 101.0)]
    loop.advance(8.5)
    assert len(expired) == 2
    loop.advance(1.0)
    assert expired[2:] == [(1, 110.0)]
    assert not loop.handles  # nothing to wake for


def test_deadline_that_is_moved_often_costs_the_loop_nothing() -> None:
    loop = _Loop()
    timer = Timer(loop)  # type: ignore[arg-type]
    for number in range(1000):
        timer.start(5.0 if number % 2 else 60.0, lambda: pytest.fail("it was moved"))
        loop.advance(0.005)
    assert loop.calls <= 4


def test_closed_timer_is_forgotten() -> None:
    loop = _Loop()
    timer = Timer(loop)  # type: ignore[arg-type]
    timer.start(1.0, lambda: pytest.fail("it was closed"))
    timer.close()
    assert not loop.handles
    loop.advance(5.0)


OK_CHUNKED = OK + b"Transfer-Encoding: chunked\r\n\r\n"


TINY, LAST = b"1\r\na\r\n", b"0\r\n\r\n"


TINY_CHUNKS = 5_000


TINY_BODY = TINY * TINY_CHUNKS + LAST


@pytest.fixture
def frozen_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """All chunks come within one second."""
    monkeypatch.setattr(
        backend_connection, "ChunkedBodyReader", partial(ChunkedBodyReader, clock=lambda: 0.0)
    )


@pytest.mark.usefixtures("frozen_clock")
@pytest.mark.parametrize("closes", [False, True])
@pytest.mark.parametrize("version", [b"1.1", b"1.0"])
def test_tiny_chunks_of_a_response_are_passed_on_in_many_turns(closes: bool, version: bytes) -> None:
    async def chunks(backend: Backend, wire: Wire) -> None:
        while True:
            await backend.request(wire)
            await wire.send(OK_CHUNKED + TINY_BODY)
            if closes:
                return

    async def scene(stage: Stage) -> None:
        backend = await stage.route(chunks)
        client = await stage.client()
        with Turns() as turns:
            for count in (1, 2):
                await client.send(GET.replace(b"1.1", version))
                await client.head()
                body = TINY_BODY if version == b"1.1" else b"a" * TINY_CHUNKS
                assert await client.exactly(len(body)) == body
                assert turns.count > count * TINY_CHUNKS / MOST_CHUNKS_AT_ONCE
                if version == b"1.0":
                    client = await stage.client()
        assert backend.connections == 1 + closes

    play(scene)


@pytest.mark.slow
@pytest.mark.usefixtures("frozen_clock")
def test_slow_client_of_small_chunks_gets_all_of_them() -> None:
    body = (b"400\r\n" + bytes(1024) + b"\r\n") * (4 * TINY_CHUNKS - 1) + LAST

    async def chunks(backend: Backend, wire: Wire) -> None:
        await backend.request(wire)
        await wire.send(OK_CHUNKED + body)

    async def scene(stage: Stage) -> None:
        await stage.route(chunks)
        client = await stage.client()
        await client.send(GET)
        await client.head()
        while not any(each._paused for each in connections(stage)):
            await asyncio.sleep(0)
        assert await client.exactly(len(body)) == body

    def connections(stage: Stage) -> Iterator[backend_connection.BackendConnection]:
        for each in stage.edge.pool.clients:
            assert isinstance(each, client_connection.ClientConnection)
            connection = None if each._exchange is None else each._exchange._connection
            if connection is not None:
                yield connection

    play(scene)


@pytest.mark.usefixtures("frozen_clock")
def test_response_with_too_many_chunks_a_second_is_cut_off() -> None:
    async def chunks(backend: Backend, wire: Wire) -> None:
        await backend.request(wire)
        await wire.send(OK_CHUNKED + TINY * (MOST_CHUNKS_A_SECOND + 1))
        await wire.rest()

    async def scene(stage: Stage) -> None:
        await stage.route(chunks)
        client = await stage.client()
        await client.send(GET)
        try:
            assert LAST not in await client.rest()
        except ConnectionError:
            pass
        assert stage.edge.counts.route("app").failures == 1

    play(scene)


class Transport:
    """A transport that records what is done to it."""

    def __init__(self) -> None:
        self.sent = b""
        self.socket: socket.socket | None = None
        self.calls: list[str] = []
        self.closing = False
        self.ends_alone = True

    def write(self, data: bytes) -> None:
        self.sent += bytes(data)

    def get_extra_info(self, name: str) -> socket.socket | None:
        return self.socket if name == "socket" else None

    def is_closing(self) -> bool:
        return self.closing

    def can_write_eof(self) -> bool:
        return self.ends_alone

    def write_eof(self) -> None:
        self.calls.append("eof")

    def close(self) -> None:
        self.calls.append("close")
        self.closing = True

    def abort(self) -> None:
        self.calls.append("abort")
        self.closing = True

    def pause_reading(self) -> None:
        self.calls.append("pause")

    def resume_reading(self) -> None:
        self.calls.append("resume")


class Receiver:
    """Records the parts of responses, in their order."""

    def __init__(self) -> None:
        self.got: list[Any] = []

    def interim(self, response: Response) -> None:
        self.got.append(response.status)

    def switched(self, response: Response, data: bytes) -> None:
        self.got.append(("switched", data))

    def response_begins(self, response: Response, *, done: bool) -> None:
        self.got.append((response.status, bytes(response.first), done))

    def response_data(self, data: bytes) -> None:
        self.got.append(bytes(data))

    def response_ends(self, trailers: bytes) -> None:
        self.got.append(("end", trailers))

    def backend_eof(self) -> None:
        self.got.append("eof")

    def backend_lost(self, error: Exception | None) -> None:
        self.got.append(("lost", type(error).__name__))

    def backend_writable(self, writable: bool) -> None:
        self.got.append(("writable", writable))


class Exchange:
    """A connection on a loop whose time passes at once, to which a test is the backend."""

    def __init__(self) -> None:
        self.loop = VirtualLoop()
        self.connection = BackendConnection(self.loop)
        self.transport: Any = Transport()
        self.connection.connection_made(self.transport)
        self.receiver = Receiver()

    def ask(self, **options: bool) -> None:
        self.receiver = Receiver()
        given = {"head_only": False, "decode": False, "may_switch": False} | options
        self.connection.request(self.receiver, b"request", **given)

    def lose(self, error: Exception | None = None) -> None:
        self.connection.connection_lost(error)


@pytest.fixture
def exchange() -> Iterator[Exchange]:
    made = Exchange()
    yield made
    made.loop.close()


def test_connection_is_used_again_after_a_whole_response(exchange: Exchange) -> None:
    connection = exchange.connection
    for count in (1, 2):
        exchange.ask()
        assert (connection.requests, connection.answered, connection.reusable) == (count, False, False)
        connection.data_received(OK + b"Content-Length: 5\r\n\r\nhel")
        assert (connection.answered, connection.reusable) == (True, True)
        connection.data_received(b"lo")
        assert exchange.receiver.got == [(200, b"hel", False), b"lo", ("end", b"")]
        assert connection.reusable
    assert exchange.transport.sent == b"request" * 2


@pytest.mark.parametrize(
    ("pieces", "got"),
    [
        ([b"Content-Length: 2\r\n\r\nokmore"], [(200, b"ok", True), ("end", b"")]),
        ([b"Content-Length: 3\r\n\r\no", b"kymore"], [(200, b"o", False), b"ky", ("end", b"")]),
        ([b"Connection: close\r\nContent-Length: 2\r\n\r\nok"], [(200, b"ok", True), ("end", b"")]),
        (
            [b"Transfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\nmore"],
            [(200, b"2\r\nok\r\n0\r\n\r\n", True), ("end", b"")],
        ),
    ],
)
def test_connection_with_further_bytes_or_that_closes_is_not_used_again(
    exchange: Exchange, pieces: list[bytes], got: list[Any]
) -> None:
    exchange.ask()
    for number, piece in enumerate(pieces):
        exchange.connection.data_received(piece if number else OK + piece)
    assert exchange.receiver.got == got
    assert not exchange.connection.reusable


def test_connection_is_used_again_after_a_response_in_one_piece(exchange: Exchange) -> None:
    connection = exchange.connection
    assert (connection.requests, connection.answered, connection.reusable, connection.closed) == (
        0, False, False, False,
    )  # fmt: skip
    for piece in (b"Content-Length: 2\r\n\r\nok", b"Transfer-Encoding: chunked\r\n\r\n" + TINY + LAST):
        exchange.ask()
        connection.data_received(OK + piece)
        assert exchange.receiver.got[-1] == ("end", b"")
        assert connection.reusable
    connection.close()
    assert not connection.reusable


def test_rest_of_a_request_is_sent_as_it_comes(exchange: Exchange) -> None:
    exchange.ask()
    exchange.connection.send(b" body")
    assert exchange.transport.sent == b"request body"


def test_response_without_a_receiver_closes_the_connection(exchange: Exchange) -> None:
    exchange.ask()
    exchange.connection.close()
    exchange.connection.data_received(OK + b"Content-Length: 5\r\n\r\nhello")
    assert (exchange.receiver.got, exchange.transport.calls) == ([], ["abort", "abort"])


@pytest.mark.parametrize("closes", [False, True])
def test_idle_connection_that_the_backend_has_closed_is_noticed_if_that_matters(
    exchange: Exchange, closes: bool
) -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        exchange.transport.socket = ours
        if closes:
            theirs.close()
        assert exchange.connection.reuse(certain=False)
        assert exchange.connection.reuse(certain=True) is not closes
        assert exchange.transport.calls == (["abort"] if closes else [])


@pytest.mark.usefixtures("frozen_clock")
def test_reading_pauses_until_many_chunks_have_been_passed_on(exchange: Exchange) -> None:
    async def scene() -> None:
        exchange.ask()
        exchange.connection.data_received(OK_CHUNKED + TINY * (MOST_CHUNKS_AT_ONCE + 1))
        exchange.connection.resume_reading()
        assert set(exchange.transport.calls) == {"pause"}
        exchange.connection.data_received(LAST)
        await asyncio.sleep(0)
        assert exchange.transport.calls[-1] == "resume"
        first, *pieces, end = exchange.receiver.got
        assert first[1] + b"".join(pieces) == TINY * (MOST_CHUNKS_AT_ONCE + 1) + LAST
        assert end == ("end", b"")

    exchange.loop.run_until_complete(scene())


@pytest.mark.usefixtures("frozen_clock")
def test_chunks_for_a_client_that_takes_none_wait_until_it_does(exchange: Exchange) -> None:
    async def scene() -> None:
        exchange.ask()
        exchange.connection.data_received(OK_CHUNKED + TINY * (MOST_CHUNKS_AT_ONCE + 1))
        exchange.connection.pause_reading()
        await asyncio.sleep(0)
        assert (len(exchange.receiver.got), set(exchange.transport.calls)) == (1, {"pause"})
        exchange.connection.resume_reading()
        await asyncio.sleep(0)
        assert exchange.receiver.got[1:] == [TINY]
        assert exchange.transport.calls[-1] == "resume"

    exchange.loop.run_until_complete(scene())


def test_end_of_one_direction_that_fails_ends_the_connection(exchange: Exchange) -> None:
    def fail() -> None:
        raise OSError

    exchange.transport.write_eof = fail
    exchange.connection.send_eof()
    assert exchange.transport.calls == ["abort"]


def test_tunnel_whose_transport_has_no_half_end_ends_whole(exchange: Exchange) -> None:
    exchange.ask(may_switch=True)
    exchange.connection.data_received(b"HTTP/1.1 101 Yes\r\nConnection: Upgrade\r\nUpgrade: x\r\n\r\n")
    exchange.transport.ends_alone = False
    assert not exchange.connection.eof_received()
    assert exchange.receiver.got == [("switched", b"")]


def test_response_that_was_not_asked_for_closes_the_connection(exchange: Exchange) -> None:
    exchange.connection.data_received(OK)
    assert exchange.transport.calls == ["abort"]


def test_body_that_ends_with_the_connection_is_whole_unless_that_is_reset(exchange: Exchange) -> None:
    exchange.ask()
    exchange.connection.data_received(OK + b"\r\nhello")
    exchange.lose()
    assert exchange.receiver.got == [(200, b"hello", False), ("end", b"")]
    assert (exchange.connection.closed, exchange.connection.reusable) == (True, False)


def test_reset_cuts_off_a_body_that_ends_with_the_connection(exchange: Exchange) -> None:
    exchange.ask()
    exchange.connection.data_received(OK + b"\r\nhello")
    exchange.lose(ConnectionResetError())
    assert exchange.receiver.got == [(200, b"hello", False), ("lost", "ConnectionResetError")]


@pytest.mark.parametrize("framing", [b"Content-Length: 5", b"Transfer-Encoding: chunked"])
def test_end_before_the_last_byte_is_a_loss(exchange: Exchange, framing: bytes) -> None:
    exchange.ask()
    exchange.connection.data_received(OK + framing + b"\r\n\r\n")
    exchange.lose()
    assert exchange.receiver.got == [(200, b"", False), ("lost", "NoneType")]


def test_chunks_are_decoded_for_clients_that_know_none(exchange: Exchange) -> None:
    exchange.ask(decode=True)
    exchange.connection.data_received(OK + b"Transfer-Encoding: chunked\r\n\r\n2\r\nok")
    exchange.connection.data_received(b"\r\n3\r\nyes\r\n0\r\nX: y\r\n\r\n")
    first, *others, end = exchange.receiver.got
    assert first[0] == 200
    assert first[1] + b"".join(others) == b"okyes"
    assert end == ("end", b"X: y\r\n")
    assert exchange.connection.reusable


def test_response_to_head_has_no_body_whatever_its_fields_say(exchange: Exchange) -> None:
    exchange.ask(head_only=True)
    exchange.connection.data_received(OK + b"Content-Length: 5\r\n\r\n")
    assert exchange.receiver.got == [(200, b"", True), ("end", b"")]


def test_interim_responses_precede_the_final_one_and_are_bounded(exchange: Exchange) -> None:
    early = b"HTTP/1.1 103 Early Hints\r\n\r\n"
    exchange.ask()
    exchange.connection.data_received(early * MOST_INTERIM)
    exchange.connection.data_received(OK + b"Content-Length: 0\r\n\r\n")
    assert exchange.receiver.got == [103] * MOST_INTERIM + [(200, b"", True), ("end", b"")]
    exchange.ask()
    exchange.connection.data_received(early * (MOST_INTERIM + 1))
    assert exchange.receiver.got[-1] == ("lost", "BadMessage")
    assert exchange.transport.calls == ["abort"]


def test_head_in_pieces_is_read_when_it_is_whole(exchange: Exchange) -> None:
    exchange.ask()
    for byte in OK + b"Content-Length: 0\r\n\r":
        exchange.connection.data_received(bytes([byte]))
        assert exchange.receiver.got == []
    exchange.connection.data_received(b"\n")
    assert exchange.receiver.got == [(200, b"", True), ("end", b"")]


def test_protocol_is_switched_if_that_was_asked_for(exchange: Exchange) -> None:
    switching = b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: x\r\n\r\n"
    exchange.ask(may_switch=True)
    exchange.connection.data_received(switching + b"hi")
    exchange.connection.data_received(b"there")
    assert exchange.connection.eof_received()
    assert exchange.receiver.got == [("switched", b"hi"), b"there", "eof"]
    exchange.connection.send_eof()
    assert exchange.transport.calls == ["eof"]


@pytest.mark.parametrize("may_switch", [True, False])
def test_switch_without_a_protocol_or_a_question_is_refused(exchange: Exchange, may_switch: bool) -> None:
    fields = b"" if may_switch else b"Connection: Upgrade\r\nUpgrade: x\r\n"
    exchange.ask(may_switch=may_switch)
    exchange.connection.data_received(b"HTTP/1.1 101 Switching Protocols\r\n" + fields + b"\r\n")
    assert exchange.receiver.got == [("lost", "BadMessage")]


def test_end_of_a_response_is_no_end_of_a_tunnel(exchange: Exchange) -> None:
    exchange.ask()
    assert not exchange.connection.eof_received()


def test_receiver_learns_whether_bytes_are_taken(exchange: Exchange) -> None:
    exchange.connection.pause_writing()
    exchange.connection.resume_writing()
    exchange.ask()
    exchange.connection.pause_writing()
    exchange.connection.resume_writing()
    assert exchange.receiver.got == [("writable", False), ("writable", True)]


def test_reading_pauses_for_a_client_and_not_after_the_end(exchange: Exchange) -> None:
    exchange.connection.pause_reading()
    exchange.connection.resume_reading()
    assert exchange.transport.calls == ["pause", "resume"]
    exchange.transport.closing = True
    exchange.connection.pause_reading()
    exchange.lose()
    exchange.connection.resume_reading()
    assert exchange.transport.calls == ["pause", "resume"]


def test_idle_connection_is_closed_in_its_time_and_leaves_its_list(exchange: Exchange) -> None:
    idle = [exchange.connection]
    exchange.connection.start_idle_timeout(idle, 55.0)
    assert exchange.connection.idle_until == 55.0
    assert exchange.connection.reuse(certain=False)
    exchange.loop.pass_time(60.0)
    assert exchange.transport.calls == []
    exchange.connection.start_idle_timeout(idle, 55.0)
    exchange.loop.pass_time(55.0)
    assert exchange.transport.calls == ["abort"]
    exchange.lose()
    assert idle == []
    assert not exchange.connection.reuse(certain=False)


def test_connection_of_a_backend_counts_until_it_is_closed(exchange: Exchange) -> None:
    backend: Any = SimpleNamespace(open_connections=3)
    exchange.connection.count_as_open_for(backend)
    assert backend.open_connections == 4
    exchange.lose()
    assert backend.open_connections == 3


def test_tunnel_is_closed_gently_but_not_for_ever(exchange: Exchange) -> None:
    exchange.ask()
    exchange.connection.close(gently=True)
    assert exchange.transport.calls == ["close"]
    exchange.loop.pass_time(59.0)
    assert exchange.transport.calls == ["close"]
    exchange.loop.pass_time(1.0)
    assert exchange.transport.calls == ["close", "abort"]
    exchange.lose()
    assert exchange.receiver.got == []


def test_end_of_one_direction_closes_what_has_no_such_end(exchange: Exchange) -> None:
    transport = exchange.transport
    transport.ends_alone = False
    write_eof_or_close(transport)
    assert transport.calls == ["close"]
    transport.ends_alone = True
    write_eof_or_close(transport)
    assert transport.calls == ["close"], "it closes already"


@pytest.mark.usefixtures("frozen_clock")
def test_end_in_the_midst_of_many_chunks_is_a_loss_behind_the_received_ones(exchange: Exchange) -> None:
    exchange.ask()
    exchange.loop.run_until_complete(ends_early(exchange))
    exchange.loop.pass_time()
    first, *pieces, last = exchange.receiver.got
    assert first[1] + b"".join(pieces) == TINY * (MOST_CHUNKS_AT_ONCE + 1)
    assert last == ("lost", "NoneType")


async def ends_early(exchange: Exchange) -> None:
    """The backend closes the connection before the last chunk."""
    exchange.connection.data_received(OK_CHUNKED + TINY * (MOST_CHUNKS_AT_ONCE + 1))
    exchange.transport.closing = True
    exchange.lose()
