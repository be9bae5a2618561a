"""A link delivers in order, matches replies, never blocks, and reports its end once."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import struct
import time
from collections.abc import Coroutine
from typing import Any

import pytest

from poolctl.keeper import wire
from poolctl.runners.process_link import Link, LinkLost, Receiver, Refused
from poolctl.runners.untrusted_messages import Malformed


def run(work: Coroutine[Any, Any, None]) -> None:
    async def watched() -> None:
        unseen: list[Any] = []
        asyncio.get_running_loop().set_exception_handler(lambda _, context: unseen.append(context))
        await asyncio.wait_for(work, 60)
        assert unseen == []

    before = set(os.listdir("/proc/self/fd"))
    asyncio.run(watched())
    assert set(os.listdir("/proc/self/fd")) == before


class Peer(Receiver):
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

    def breached(self, deed: str) -> None:
        self.deeds.append(deed)

    def lost(self) -> None:
        self.ends += 1

    async def request(self) -> tuple[wire.Message, list[int]]:
        self.sock.setblocking(False)
        while True:
            try:
                received = wire.receive(self.sock)
            except BlockingIOError:
                await asyncio.sleep(0)
            else:
                assert received is not None
                return received

    def close(self) -> None:
        self.link.close()
        self.sock.close()


def test_replies_find_their_calls_in_any_order() -> None:
    async def scenario() -> None:
        peer = Peer()
        calls = [asyncio.ensure_future(peer.link.call({"n": number})) for number in range(5)]
        requests = [(await peer.request())[0] for _ in calls]
        for request in reversed(requests):
            wire.send(peer.sock, {"id": request["id"], "twice": request["n"] * 2})
        assert [(await call)[0]["twice"] for call in calls] == [0, 2, 4, 6, 8]
        peer.close()

    run(scenario())


def test_messages_that_are_no_replies_are_received_in_order() -> None:
    async def scenario() -> None:
        peer = Peer()
        for number in range(200):
            wire.send(peer.sock, {"n": number})
            if number % 50 == 49:
                await asyncio.sleep(0.01)
        while len(peer.heard) < 200:
            await asyncio.sleep(0)
        assert [message["n"] for message in peer.heard] == list(range(200))
        peer.close()

    run(scenario())


def test_an_error_is_a_refusal_and_the_link_lives_on() -> None:
    async def scenario() -> None:
        peer = Peer()
        call = asyncio.ensure_future(peer.link.call({}))
        request, _ = await peer.request()
        wire.send(peer.sock, {"id": request["id"], "error": "no such thing"})
        with pytest.raises(Refused, match="no such thing"):
            await call
        peer.link.send({"still": "there"})
        assert (await peer.request())[0] == {"still": "there"}
        peer.close()

    run(scenario())


def test_end_fails_the_calls_under_way_and_all_later_ones_and_is_reported_once() -> None:
    async def scenario() -> None:
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

    run(scenario())


def test_a_reply_before_the_end_is_not_lost() -> None:
    async def scenario() -> None:
        peer = Peer()
        call = asyncio.ensure_future(peer.link.call({}))
        request, _ = await peer.request()
        wire.send(peer.sock, {"id": request["id"], "pid": 7})
        peer.sock.close()
        assert (await call)[0]["pid"] == 7
        peer.close()

    run(scenario())


def test_messages_without_room_wait_in_order_with_their_descriptors() -> None:
    async def scenario() -> None:
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

    run(scenario())


def test_invalid_messages_of_a_trusted_peer_are_skipped() -> None:
    async def scenario() -> None:
        peer = Peer()
        for garbage in (b"no json", b"[1]", b"[" * 50_000):
            peer.sock.send(garbage)
        wire.send(peer.sock, {"after": 1})
        while not peer.heard:
            await asyncio.sleep(0)
        assert peer.heard == [{"after": 1}]
        peer.close()

    run(scenario())


def test_peer_that_does_not_answer_counts_as_gone() -> None:
    async def scenario() -> None:
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

    run(scenario())


def test_a_pause_of_this_process_does_not_count_as_silence_of_the_other_end() -> None:
    async def scenario() -> None:
        peer = Peer()
        asked = asyncio.ensure_future(peer.link.call({"n": 1}, patience_seconds=0.2))
        await asyncio.sleep(0)
        asyncio.get_running_loop().call_soon(time.sleep, 1.3)
        await asyncio.sleep(0.1)
        assert not asked.done()
        request, _ = await peer.request()
        wire.send(peer.sock, {"id": request["id"]})
        await asked
        peer.close()

    run(scenario())


def test_end_of_a_link_waits_for_no_connection_that_was_sent_to_linger() -> None:
    async def scenario() -> None:
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

    run(scenario())


def test_last_messages_of_a_process_that_ended_with_unread_orders_are_received() -> None:
    async def scenario() -> None:
        peer = Peer()
        peer.link.send({"order": "unread"})
        wire.send(peer.sock, {"event": "failed"})
        peer.sock.close()
        peer.link.send({"order": "too late"})
        while not peer.ends:
            await asyncio.sleep(0)
        assert peer.heard == [{"event": "failed"}]
        peer.close()

    run(scenario())


@pytest.mark.parametrize(
    ("packet", "deed"),
    [
        (b"no json", "sent a message that is not JSON"),
        (b"[1]", "sent a message that is not a JSON object"),
        (b"[" * 10_000, "sent a message that is not JSON"),
        (b'{"id":' + b"9" * 10_000 + b"}", "sent a message that is not JSON"),
        (b'{"event":"' + b"x" * 20_000 + b'"}', "sent a message of more than 16384 bytes"),
        (b'{"wrong":1}', "sent a strange thing"),
    ],
)
def test_untrusted_peer_that_breaks_the_rules_is_cut_off_with_the_reason(packet: bytes, deed: str) -> None:
    async def scenario() -> None:
        peer = Peer(trusted=False, refused="a strange thing")
        call = asyncio.ensure_future(peer.link.call({}))
        await peer.request()
        peer.sock.send(packet)
        with pytest.raises(LinkLost, match=deed):
            await call
        assert (peer.deeds, peer.ends) == ([deed], 1)
        peer.close()

    run(scenario())


def test_descriptors_of_an_untrusted_peer_never_enter_this_process() -> None:
    async def scenario() -> None:
        peer = Peer(trusted=False)
        before = len(os.listdir("/proc/self/fd"))
        for _ in range(20):
            socket.send_fds(peer.sock, [b'{"id":[]}'], [0] * 250)
        while not peer.deeds:
            await asyncio.sleep(0)
        assert peer.deeds == ["sent a message with more descriptors than are expected"]
        assert len(os.listdir("/proc/self/fd")) < before, "its own socket is closed, and nothing has come"
        peer.close()

    run(scenario())


def test_untrusted_peer_may_send_few_messages_unasked_and_any_number_of_replies() -> None:
    async def scenario() -> None:
        peer = Peer(trusted=False)
        for _ in range(300):
            call = asyncio.ensure_future(peer.link.call({}))
            request, _ = await peer.request()
            wire.send(peer.sock, {"id": request["id"]})
            await call
        assert peer.deeds == []
        for number in range(150):
            wire.send(peer.sock, {"n": number})
        while not peer.deeds:
            await asyncio.sleep(0)
        assert peer.deeds == ["sent more than 100 messages at once"]
        assert len(peer.heard) == 100
        peer.close()

    run(scenario())


def test_untrusted_peer_that_reads_nothing_is_cut_off_when_too_much_waits_for_it() -> None:
    async def scenario() -> None:
        peer = Peer(trusted=False)
        for number in range(2000):
            peer.link.send({"n": number})
        assert peer.deeds == ["left 512 messages unread"]
        peer.close()

    run(scenario())


def test_message_that_may_get_lost_is_sent_at_once_or_not_at_all() -> None:
    async def scenario() -> None:
        peer = Peer()
        assert peer.link.offer(b"{}")
        assert peer.sock.recv(100) == b"{}"
        peer.sock.close()
        assert not peer.link.offer(b"{}")
        peer.link.close()
        assert not peer.link.offer(b"{}")

    run(scenario())
