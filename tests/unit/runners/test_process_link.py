"""A link delivers in order, matches replies, never blocks, and reports its end once."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Coroutine, Iterator
from functools import partial
from typing import Any

import pytest

from poolctl.clock import HungProcessDetector
from poolctl.keeper import wire
from poolctl.keeper.keeper import Keeper
from poolctl.platform import waits_for_events
from poolctl.runners.process_link import (
    PING,
    Descriptor,
    KeeperLink,
    Link,
    LinkHandler,
    LinkLost,
    Malformed,
    ProcessWatchdog,
    Refused,
    flag_of,
    identity,
    kill,
    number_of,
    redirect_parent_fds_to_null,
    sanitized_text_or_empty,
    spawn,
)
from poolctl.worker import imports
from tests import descriptors
from tests.deadline import wait_until
from tests.descriptors import no_descriptor_left, open_descriptors
from tests.processes import freeze
from tests.virtual_loop import VirtualLoop


def run(work: Coroutine[Any, Any, None]) -> None:
    async def watched() -> None:
        unseen: list[Any] = []
        asyncio.get_running_loop().set_exception_handler(lambda _, context: unseen.append(context))
        await asyncio.wait_for(work, 60)
        assert unseen == []

    # No time passes but while all wait: how busy the machine is decides nothing.
    with no_descriptor_left(), asyncio.Runner(loop_factory=VirtualLoop) as runner:
        runner.run(watched())


pytestmark = pytest.mark.loop(run=run)


def paused(seconds: float) -> None:
    loop = asyncio.get_running_loop()
    assert isinstance(loop, VirtualLoop)
    loop.pause(seconds)


class Peer(LinkHandler):
    """The other end, and what arrived at this one."""

    def __init__(self, *, trusted: bool = True, refused: str = "") -> None:
        ours, self.sock = wire.pair()
        self.heard: list[wire.Message] = []
        self.deeds: list[str] = []
        self.ends = 0
        self._refused = refused
        self.link = Link(ours, self, trusted=trusted)

    def received(self, message: wire.Message, fds: list[int]) -> None:
        if self._refused:
            raise Malformed(self._refused)
        self.heard.append(message)

    def on_violation(self, deed: str) -> None:
        self.deeds.append(deed)

    def on_link_lost(self) -> None:
        self.ends += 1

    async def request(self) -> tuple[wire.Message, list[int]]:
        self.sock.setblocking(False)
        while True:
            try:
                received = wire.receive(self.sock)
            except BlockingIOError:
                await asyncio.sleep(0.001)
            else:
                assert received is not None
                return received

    def close(self) -> None:
        self.link.close()
        self.sock.close()


async def test_replies_find_their_calls_in_any_order() -> None:
    peer = Peer()
    calls = [asyncio.ensure_future(peer.link.call({"n": number})) for number in range(5)]
    requests = [(await peer.request())[0] for _ in calls]
    for request in reversed(requests):
        wire.send(peer.sock, {"id": request["id"], "twice": request["n"] * 2})
    assert [(await call)[0]["twice"] for call in calls] == [0, 2, 4, 6, 8]
    peer.close()


async def test_messages_that_are_no_replies_are_received_in_order() -> None:
    peer = Peer()
    for number in range(200):
        wire.send(peer.sock, {"n": number})
        if number % 50 == 49:
            await asyncio.sleep(0.01)
    while len(peer.heard) < 200:
        await asyncio.sleep(0)
    assert [message["n"] for message in peer.heard] == list(range(200))
    assert peer.link.heard == 200
    peer.close()


async def test_an_error_is_a_refusal_and_the_link_lives_on() -> None:
    peer = Peer()
    call = asyncio.ensure_future(peer.link.call({}))
    request, _ = await peer.request()
    wire.send(peer.sock, {"id": request["id"], "error": "no such thing"})
    with pytest.raises(Refused, match="no such thing"):
        await call
    peer.link.send({"still": "there"})
    assert (await peer.request())[0] == {"still": "there"}
    peer.close()


async def test_call_with_a_descriptor_that_was_closed_fails_and_does_not_wait_for_a_reply() -> None:
    peer = Peer()
    closed = socket.socket()
    closed.close()
    with pytest.raises(OSError, match="descriptor of the message is closed"):
        await peer.link.call({}, [closed])
    peer.close()


async def test_end_fails_the_calls_under_way_and_all_later_ones_and_is_reported_once() -> None:
    peer = Peer()
    calls = [asyncio.ensure_future(peer.link.call({})) for _ in range(3)]
    await peer.request()
    peer.sock.close()
    for call in calls:
        with pytest.raises(LinkLost):
            await call
    with pytest.raises(LinkLost):
        await peer.link.call({})
    peer.link.send({"into": "the void"})
    assert peer.ends == 1
    peer.close()
    assert peer.ends == 1


async def test_a_reply_before_the_end_is_not_lost() -> None:
    peer = Peer()
    call = asyncio.ensure_future(peer.link.call({}))
    request, _ = await peer.request()
    wire.send(peer.sock, {"id": request["id"], "pid": 7})
    peer.sock.close()
    assert (await call)[0]["pid"] == 7
    peer.close()


async def test_messages_without_room_wait_in_order_with_their_descriptors() -> None:
    peer = Peer()
    peer.link.sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
    files = []
    for number in range(100):
        file = os.memfd_create(str(number))
        os.write(file, b"x" * number)
        peer.link.send({"n": number, "filler": "y" * 2000}, [file])
        os.close(file)  # ours again at once
    for _ in range(100):
        message, fds = await peer.request()
        files.append((message["n"], os.fstat(fds[0]).st_size))
        os.close(fds[0])
    assert files == [(number, number) for number in range(100)]
    peer.close()


async def test_long_messages_arrive_in_order_whatever_waits_before_them() -> None:
    peer = Peer()
    sent: list[wire.Message] = []
    while not peer.link.waits:
        sent.append({"n": len(sent), "filler": "x" * 1000})
        peer.link.send(sent[-1])
    for size in (wire.MAX_PACKET_BYTES, 3_000_000, 10):
        sent.append({"n": len(sent), "filler": "x" * size})
        peer.link.send(sent[-1])
    with pytest.raises(wire.WireError, match="too large"):
        peer.link.send({"filler": "x" * wire.MAX_MESSAGE_BYTES})
    assert [(await peer.request())[0] for _ in sent] == sent
    wire.send(peer.sock, {"filler": "x" * wire.MAX_PACKET_BYTES})
    await asyncio.sleep(0.1)
    assert [len(message["filler"]) for message in peer.heard] == [wire.MAX_PACKET_BYTES]
    peer.close()


async def test_invalid_messages_of_a_trusted_peer_are_skipped() -> None:
    peer = Peer()
    for garbage in (b"no json", b"[1]", b"[" * 50_000):
        peer.sock.send(garbage)
    wire.send(peer.sock, {"after": 1})
    while not peer.heard:
        await asyncio.sleep(0)
    assert peer.heard == [{"after": 1}]
    peer.close()


async def test_peer_that_does_not_answer_counts_as_gone() -> None:
    peer = Peer()
    slow = asyncio.ensure_future(peer.link.call({"n": 1}, patience_seconds=0.5))
    others = 0
    while others < 12:
        # Busy with what others want of it, and then at last with this.
        await asyncio.sleep(0.05)
        wire.send(peer.sock, {"event": "busy"})
        others += 1
    assert not slow.done()
    request, _ = await peer.request()
    wire.send(peer.sock, {"id": request["id"]})
    await slow
    asked = [asyncio.ensure_future(peer.link.call({"n": n}, patience_seconds=0.05)) for n in (2, 3)]
    for each in asked:
        with pytest.raises(LinkLost, match=r"not answered for 0.05 s"):
            await each
    assert peer.ends == 1
    peer.close()


async def test_a_pause_of_this_process_does_not_count_as_silence_of_the_other_end() -> None:
    peer = Peer()
    asked = asyncio.ensure_future(peer.link.call({"n": 1}, patience_seconds=0.2))
    await asyncio.sleep(0)
    asyncio.get_running_loop().call_soon(paused, 1.3)
    await asyncio.sleep(0.1)
    assert not asked.done()
    request, _ = await peer.request()
    wire.send(peer.sock, {"id": request["id"]})
    await asked
    peer.close()


async def test_end_of_a_link_waits_for_no_connection_that_was_sent_to_linger() -> None:
    ours, theirs = wire.pair()
    link = Link(ours, trusted=False)
    with socket.create_server(("127.0.0.1", 0)) as listener, theirs, socket.socket() as client:
        client.connect(listener.getsockname())
        accepted, _ = listener.accept()
        accepted.setblocking(False)
        with contextlib.suppress(BlockingIOError):
            while True:
                accepted.send(bytes(100_000))
        accepted.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 30))
        wire.send(theirs, {"t": "hello"}, [accepted.fileno()])
        os.close(accepted.detach())
        began = time.monotonic()
        link.close()
        assert time.monotonic() - began < 10


async def test_last_messages_of_a_process_that_ended_with_unread_orders_are_received() -> None:
    peer = Peer()
    peer.link.send({"order": "unread"})
    wire.send(peer.sock, {"event": "failed"})
    peer.sock.close()
    peer.link.send({"order": "too late"})
    while not peer.ends:
        await asyncio.sleep(0)
    assert peer.heard == [{"event": "failed"}]
    peer.close()


@pytest.mark.parametrize(
    ("packet", "deed"),
    [
        (b"no json", "sent a message that is not JSON"),
        (b"[1]", "sent a message that is not a JSON object"),
        (b"[" * 10_000, "sent a message that is not JSON"),
        (b'{"id":' + b"9" * 10_000 + b"}", "sent a message that is not JSON"),
        (b'{"event":"' + b"x" * 40_000 + b'"}', "sent a message of more than 32768 bytes"),
        (b'{"wrong":1}', "sent a strange thing"),
    ],
)
async def test_untrusted_peer_that_breaks_the_rules_is_cut_off_with_the_reason(
    packet: bytes, deed: str
) -> None:
    peer = Peer(trusted=False, refused="a strange thing")
    call = asyncio.ensure_future(peer.link.call({}))
    await peer.request()
    peer.sock.send(packet)
    with pytest.raises(LinkLost, match=deed):
        await call
    assert (peer.deeds, peer.ends) == ([deed], 1)
    peer.close()


async def test_longest_error_of_an_import_is_received_from_an_untrusted_peer() -> None:
    peer = Peer(trusted=False)
    error = {"event": "failed", "message": "\N{BUG}" * imports.MAX_CHARACTERS}
    wire.send(peer.sock, error)
    await asyncio.sleep(0.01)
    assert (peer.heard, peer.deeds) == ([error], [])
    peer.close()


async def test_descriptors_of_an_untrusted_peer_never_enter_this_process() -> None:
    peer = Peer(trusted=False)
    held = open_descriptors()
    for _ in range(20):
        socket.send_fds(peer.sock, [b'{"id":[]}'], [0] * 250)
    while not peer.deeds:
        await asyncio.sleep(0)
    assert peer.deeds == ["sent a message with more descriptors than are expected"]
    assert open_descriptors().items() < held.items(), "its own socket is closed, and nothing has come"
    peer.close()


async def test_messages_that_an_untrusted_peer_sends_unasked_are_read_at_a_limited_rate_and_replies_are_not() -> (
    None
):
    peer = Peer(trusted=False)
    for _ in range(300):
        call = asyncio.ensure_future(peer.link.call({}))
        request, _ = await peer.request()
        wire.send(peer.sock, {"id": request["id"]})
        await call
    for number in range(150):
        wire.send(peer.sock, {"n": number})
    await asyncio.sleep(1)
    assert 100 <= len(peer.heard) <= 125
    await asyncio.sleep(5)
    assert [each["n"] for each in peer.heard] == [*range(150)]
    assert peer.deeds == []
    for number in range(150):
        wire.send(peer.sock, {"n": number})
    await asyncio.sleep(0)
    peer.close()
    await asyncio.sleep(1)


async def test_untrusted_peer_that_reads_nothing_is_cut_off_when_too_much_waits_for_it() -> None:
    peer = Peer(trusted=False)
    for number in range(2000):
        peer.link.send({"n": number})
    assert peer.deeds == ["left 512 messages unread"]
    peer.close()


async def test_message_that_may_get_lost_is_sent_at_once_or_not_at_all() -> None:
    peer = Peer()
    assert peer.link.offer(b"{}")
    assert peer.sock.recv(100) == b"{}"
    peer.sock.close()
    assert not peer.link.offer(b"{}")
    peer.link.close()
    assert not peer.link.offer(b"{}")


async def test_message_that_may_get_lost_does_not_overtake_others_that_wait() -> None:
    peer = Peer()
    while not peer.link.waits:
        peer.link.send({"n": 1})
    assert await peer.request() == ({"n": 1}, [])
    assert not peer.link.offer(b"{}")
    peer.close()


async def test_room_for_waiting_messages_is_looked_for_ten_times_a_second_at_least() -> None:
    peer = Peer()
    while not peer.link.waits:
        peer.link.send({"n": 1})
    await asyncio.sleep(10)
    assert peer.link.waits
    while (await peer.request())[0] == {"n": 1} and peer.link.waits:
        pass
    assert asyncio.get_running_loop().time() <= 10.1
    peer.close()


async def test_descriptors_of_messages_that_wait_are_closed_with_the_link() -> None:
    peer = Peer()
    while not peer.link.waits:
        peer.link.send({"n": 1})
    peer.link.send({"n": 2}, [0])
    peer.close()
    assert not peer.link.waits


async def test_waiting_message_whose_descriptor_is_closed_meanwhile_is_not_sent() -> None:
    peer = Peer()
    while not peer.link.waits:
        peer.link.send({"n": 1})
    owner = Descriptor(os.dup(0))
    peer.link.send({"n": 2}, [owner])
    peer.link.send({"n": 3})
    owner.close()
    while (received := await peer.request()) == ({"n": 1}, []):
        pass
    assert received == ({"n": 3}, [])
    peer.close()


async def test_messages_that_have_arrived_are_read_at_once_on_request() -> None:
    peer = Peer()
    wire.send(peer.sock, {"event": "failed"})
    peer.link.dispatch_arrived_messages()
    assert peer.heard == [{"event": "failed"}]
    peer.link.close()
    peer.link.dispatch_arrived_messages()
    peer.close()


async def test_trusted_peer_is_not_cut_off() -> None:
    peer = Peer()
    peer.link.cut_off("lied")
    peer.link.send({"still": "there"})
    assert await peer.request() == ({"still": "there"}, [])
    assert (peer.deeds, peer.ends) == ([], 0)
    peer.close()


async def test_program_is_started_by_the_keeper_with_its_end_of_the_link() -> None:
    peer = Peer()
    ours, theirs = wire.pair()
    started = asyncio.ensure_future(spawn(peer.link, ["/bin/x", "y"], "/log", [theirs], ["SECRET"]))
    request, (fd,) = await peer.request()
    number = request.pop("id")
    assert request == {
        "op": "spawn", "argv": ["/bin/x", "y"], "output": "/log", "session": True, "without": ["SECRET"],
    }  # fmt: skip
    wire.send(peer.sock, {"id": number, "pid": 7})
    assert await started == 7
    os.close(fd)
    theirs.close()
    assert ours.recv(1) == b"", "no other copy of its end is left"
    ours.close()
    peer.close()


def test_files_are_released_in_a_child_whose_objects_keep_their_numbers() -> None:
    with no_descriptor_left():
        read, write = os.pipe()
        redirect_parent_fds_to_null([2**20, write], ())
        assert os.read(read, 1) == b""
        assert os.path.samefile(f"/proc/self/fd/{write}", os.devnull)
        assert not os.get_inheritable(write)
        assert os.write(write, b"x") == 1
        os.close(read)
        os.close(write)


def test_descriptor_is_closed_once() -> None:
    descriptor = Descriptor(os.dup(0))
    number = descriptor.fileno()
    descriptor.close()
    other = os.dup(0)
    descriptor.close()
    assert (other, descriptor.fileno()) == (number, -1)
    os.close(other)


class StoringPeer:
    """A keeper's store, asked in this very process."""

    def __init__(self) -> None:
        ours, self.sock = wire.pair()
        self.sock.setblocking(False)
        self.keeper = Keeper("/nowhere", [], (0, 0))
        self.store = self.keeper.store
        asyncio.get_running_loop().add_reader(self.sock, self.serve)
        self.kept = KeeperLink(ours)

    def serve(self) -> None:
        received = wire.receive(self.sock)
        if received is not None:
            reply, fds = self.keeper.answer(*received)
            wire.send(self.sock, reply, fds)

    def close(self) -> None:
        asyncio.get_running_loop().remove_reader(self.sock)
        self.sock.close()
        self.kept.close()
        for name in list(self.kept.entries):
            self.kept.send({"op": "drop", "name": name})
        self.store.clear()


class Losing(LinkHandler):
    """Counts how often the other end was lost."""

    lost = 0

    def on_link_lost(self) -> None:
        self.lost += 1


def same(one: int, other: int) -> bool:
    return os.path.sameopenfile(one, other)


@pytest.mark.loop(run=descriptors.run)
async def test_entries_put_noted_and_dropped_are_recorded() -> None:
    peer = StoringPeer()
    assert not peer.kept.whole
    read, write = os.pipe()
    peer.kept.send({"op": "put", "name": "output:a", "meta": {"n": 1}}, [read])
    peer.kept.send({"op": "note", "name": "output:a", "meta": {"n": 2}})
    peer.kept.send({"op": "note", "name": "nobody", "meta": 3})
    ((name, (meta, (held,))),) = peer.kept.entries.items()
    assert (name, meta) == ("output:a", {"n": 2})
    assert held.fileno() != read
    assert same(held.fileno(), read)
    peer.kept.send({"op": "put", "name": "output:a"}, [write])
    (again,) = peer.kept.entries["output:a"][1]
    assert same(again.fileno(), write)
    peer.kept.send({"op": "drop", "name": "output:a"})
    assert peer.kept.entries == {}
    await peer.kept.call({"op": "list"})
    assert peer.store.page("") == []
    os.close(write)
    os.close(read)
    peer.keeper.reaper.close()
    peer.close()


@pytest.mark.loop(run=descriptors.run)
async def test_another_keeper_gets_the_entries_and_what_was_put_while_there_was_none() -> None:
    peer, other = StoringPeer(), StoringPeer()
    read, write = os.pipe()
    peer.kept.send({"op": "put", "name": "output:a", "meta": {"n": 1}}, [read])
    asyncio.get_running_loop().remove_reader(peer.sock)
    peer.sock.close()
    with pytest.raises(LinkLost):
        await peer.kept.call({"op": "list"})
    peer.kept.send({"op": "put", "name": "output:b", "meta": {"n": 2}}, [write])
    other.kept.close()
    receiver = Losing()
    asyncio.get_running_loop().remove_reader(other.sock)
    other.sock.close()
    ours, other.sock = wire.pair()
    asyncio.get_running_loop().add_reader(other.sock, other.serve)
    peer.kept.reconnect(ours, receiver)
    reply, _ = await peer.kept.call({"op": "list"})
    assert reply["entries"] == [["output:a", {"n": 1}], ["output:b", {"n": 2}]]
    _, (fd,) = await peer.kept.call({"op": "get", "name": "output:b"})
    assert same(fd, write)
    for each in (fd, read, write):
        os.close(each)
    for each in (peer, other):
        each.keeper.reaper.close()
        each.store.clear()
    asyncio.get_running_loop().remove_reader(other.sock)
    other.sock.close()
    while not receiver.lost:
        await asyncio.sleep(0)
    peer.kept.close()


@pytest.mark.loop(run=descriptors.run)
async def test_keeper_that_is_replaced_while_it_lives_is_not_reported_as_lost() -> None:
    receivers = Losing(), Losing()
    (ours, old), (next_ours, new) = wire.pair(), wire.pair()
    link = KeeperLink(ours, receivers[0])
    link.reconnect(next_ours, receivers[1])
    assert old.recv(1) == b"", "the link to the old one is closed"
    new.close()
    while not receivers[1].lost:
        await asyncio.sleep(0)
    assert [receiver.lost for receiver in receivers] == [0, 1]
    old.close()
    link.close()


@pytest.mark.loop(run=descriptors.run)
async def test_entries_of_an_earlier_supervisor_are_fetched_without_zygotes() -> None:
    peer = StoringPeer()
    read, write = os.pipe()
    for name in ("listener:a", "zygote /usr/bin/python", "appzygote a", "lifeline"):
        peer.store.put(name, {"of": name}, [os.dup(read)])
    _, fds = await peer.kept.call({"op": "get", "name": "listener:a"})
    for fd in fds:
        os.close(fd)
    await peer.kept.fetch_missing_entries()
    assert sorted(peer.kept.entries) == ["lifeline", "listener:a"]
    assert all(same(fds[0], read) for _, fds in peer.kept.recorded_entries().values())
    os.close(read)
    os.close(write)
    peer.keeper.reaper.close()
    peer.close()


@pytest.mark.loop(run=descriptors.run)
async def test_entries_are_recorded_on_a_lost_link_too() -> None:
    peer = StoringPeer()
    peer.kept.close()
    peer.kept.send({"op": "put", "name": "wanted", "meta": 1})
    assert peer.kept.entries == {"wanted": (1, [])}
    peer.keeper.reaper.close()
    peer.close()


@pytest.mark.loop(run=descriptors.run)
async def test_a_socket_is_shared_with_its_owner_and_left_out_once_it_is_closed() -> None:
    peer = StoringPeer()
    ours, theirs = wire.pair()
    with no_descriptor_left():
        peer.kept.send({"op": "put", "name": "worker:a", "meta": 1}, [ours])
    assert peer.kept.recorded_entries() == {"worker:a": (1, [ours.fileno()])}
    ours.close()
    theirs.close()
    assert peer.kept.recorded_entries() == {"worker:a": (1, [])}
    await peer.kept.call({"op": "list"})
    peer.keeper.reaper.close()
    peer.close()


@pytest.fixture
def process() -> Iterator[subprocess.Popen[bytes]]:
    with subprocess.Popen(["sleep", "60"]) as found:
        yield found
        found.kill()


async def asked(
    known: dict[str, Any],
    *,
    answers: int,
    most: int = 1000,
    until_end_of: subprocess.Popen[bytes] | None = None,
    silence_seconds: float = 0.1,
) -> int:
    """How often a process that answers so many times was asked, until that process ended or it was asked `most` times.

    Half a second is enough for a process that is not to be asked again.
    """
    ours, theirs = wire.pair()
    theirs.setblocking(False)
    count = 0

    def hear() -> None:
        nonlocal count
        received = wire.receive(theirs)
        assert received == (PING, [])
        count += 1
        if count <= answers:
            wire.send(theirs, {"t": "pong"})
        if count == most:
            watched.stop_watching()

    loop = asyncio.get_running_loop()
    loop.add_reader(theirs.fileno(), hear)

    class Answers(LinkHandler):
        def received(self, message: wire.Message, fds: list[int]) -> None:
            watched.received()

    link = Link(ours, Answers())
    watched = ProcessWatchdog(
        lambda: link.send(PING), known, "it", HungProcessDetector(loop.time(), 0.02, silence_seconds)
    )
    deadline = loop.time() + (30 if until_end_of or answers == most else 0.5)
    while loop.time() < deadline and count < most and not (until_end_of and until_end_of.poll() is not None):
        await asyncio.sleep(0.01)
    watched.stop_watching()
    loop.remove_reader(theirs.fileno())
    link.close()
    theirs.close()
    return count


def test_process_that_stops_answering_is_killed(
    process: subprocess.Popen[bytes], caplog: pytest.LogCaptureFixture
) -> None:
    assert asyncio.run(asked(identity(process.pid), answers=3, until_end_of=process)) == 4
    assert process.wait(60) == -9
    assert caplog.messages == [f"it (pid {process.pid}) does not answer: killing it"]


def test_process_that_answers_is_pinged_again(process: subprocess.Popen[bytes]) -> None:
    assert asyncio.run(asked(identity(process.pid), answers=10, most=10, silence_seconds=20)) == 10
    assert process.poll() is None


def test_process_that_does_not_know_pings_is_left_alone() -> None:
    assert asyncio.run(asked({}, answers=0)) == 1


def test_process_that_has_reused_the_pid_is_left_alone(process: subprocess.Popen[bytes]) -> None:
    known = identity(process.pid)
    kill({**known, "start": known["start"] - 1})
    for partly in ({"pid": process.pid}, {"start": known["start"]}, {}):
        kill(partly)
    assert process.poll() is None
    kill(known)
    assert process.wait(60) == -9
    kill(known)


@pytest.mark.slow
def test_pause_of_the_watching_process_does_not_count_as_silence(process: subprocess.Popen[bytes]) -> None:
    async def scenario() -> int:
        # More than a busy machine lets an answer wait, less than the pause.
        asyncio.get_running_loop().call_later(0.05, time.sleep, 2.5)
        return await asked(identity(process.pid), answers=10, most=10, silence_seconds=2)

    assert asyncio.run(scenario()) == 10
    assert process.poll() is None


def test_process_that_sleeps_in_its_event_loop_is_not_pinged_again() -> None:
    argv = [sys.executable, "-c", "import select; select.epoll().poll()"]
    with subprocess.Popen(argv) as process:
        try:
            wait_until(lambda: waits_for_events(process.pid), what="it waits")
            assert asyncio.run(asked(identity(process.pid), answers=1)) == 1
            freeze(process.pid)
            wait_until(lambda: not waits_for_events(process.pid), what="it is stopped")
            assert asyncio.run(asked(identity(process.pid), answers=1, until_end_of=process)) == 2
        finally:
            process.kill()
    assert process.returncode == -signal.SIGKILL


@pytest.mark.parametrize(
    ("read", "value", "found"),
    [
        (flag_of, True, True),
        (flag_of, False, False),
        (flag_of, None, Malformed),
        (flag_of, 1, Malformed),
        (sanitized_text_or_empty, "a\tb\n\x1b", "a\tb\n\N{REPLACEMENT CHARACTER}"),
        (sanitized_text_or_empty, None, ""),
        (sanitized_text_or_empty, 5, Malformed),
        (partial(number_of, minimum=2, maximum=4), 2, 2),
        (partial(number_of, minimum=2, maximum=4), 4, 4),
        (partial(number_of, minimum=2, maximum=4), 1, Malformed),
        (partial(number_of, minimum=2, maximum=4), 5, Malformed),
        (partial(number_of, minimum=0, maximum=4), True, Malformed),
        (partial(number_of, minimum=0, maximum=4), None, Malformed),
    ],
)
def test_values_of_messages_are_checked(read: Any, value: object, found: Any) -> None:
    if found is Malformed:
        with pytest.raises(Malformed, match="a message with an invalid 'key'"):
            read({"key": value}, "key")
    else:
        assert read({"key": value}, "key") == found


def test_missing_value_is_the_usual_one_but_a_number_has_to_be_there() -> None:
    assert flag_of({}, "key") is False
    assert sanitized_text_or_empty({}, "key") == ""
    with pytest.raises(Malformed):
        number_of({}, "key", 0, 4)
