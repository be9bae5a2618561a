"""UDP streams: sessions of clients with targets, over real sockets."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest

from poolctl.features.gateway.forwarder.datagrams import DatagramRules, DatagramStream, DatagramTarget
from tests.deadline import until
from tests.descriptors import run


class Echo:
    """A target that answers each datagram with its name and the datagram."""

    def __init__(self, name: str, host: str = "127.0.0.1") -> None:
        self.name = name
        self.clients: list[Any] = []
        self.sock = udp(host)
        asyncio.get_running_loop().add_reader(self.sock.fileno(), self._answer)

    def _answer(self) -> None:
        data, client = self.sock.recvfrom(65536)
        self.clients.append(client)
        self.sock.sendto(f"{self.name} ".encode() + data, client)

    def target(self, weight: int = 1) -> DatagramTarget:
        return target(self.name, self.sock, weight)

    def close(self) -> None:
        asyncio.get_running_loop().remove_reader(self.sock.fileno())
        self.sock.close()


def udp(host: str = "127.0.0.1") -> socket.socket:
    sock = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_DGRAM)
    sock.bind((host, 0))
    sock.setblocking(False)
    return sock


def target(name: str, sock: socket.socket, weight: int = 1) -> DatagramTarget:
    host, port, *_ = sock.getsockname()
    return DatagramTarget(key=name, host=host, port=port, weight=weight)


def rules(*targets: DatagramTarget, **keys: Any) -> DatagramRules:
    return DatagramRules(**{"targets": targets, "policy": "round-robin", "idle_seconds": 60.0, **keys})


@contextlib.contextmanager
def closed_port() -> Iterator[DatagramTarget]:
    """A port that refuses: it is bound, so that no other process gets it, and accepts datagrams of its own only."""
    with udp() as sock:
        sock.connect(sock.getsockname())
        yield target("closed", sock)


@contextlib.asynccontextmanager
async def stream(given: DatagramRules, host: str = "127.0.0.1") -> AsyncIterator[tuple[DatagramStream, Any]]:
    """The stream in service, and its address."""
    listener = udp(host)
    made = DatagramStream([listener], given)
    try:
        yield made, listener.getsockname()
    finally:
        made.close()


@contextlib.contextmanager
def echoes(*names: str, host: str = "127.0.0.1") -> Iterator[list[Echo]]:
    found = [Echo(name, host) for name in names]
    try:
        yield found
    finally:
        for each in found:
            each.close()


async def ask(client: socket.socket, address: Any, text: str) -> str:
    """Send a datagram, again and again until it is answered, as clients of UDP do; returns the answer."""
    loop = asyncio.get_running_loop()
    while True:
        client.sendto(text.encode(), address)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(0.5):
                data, peer = await loop.sock_recvfrom(client, 65536)
                assert peer[1] == address[1]
                return data.decode()


async def who_serves(count: int, address: Any) -> Counter[str]:
    """How many of `count` new clients each target serves."""
    found = Counter[str]()
    for _ in range(count):
        with udp() as client:
            found[(await ask(client, address, "hello")).split()[0]] += 1
    return found


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
def test_datagrams_of_a_client_reach_one_target_and_its_answers_come_back(host: str) -> None:
    async def work() -> None:
        with echoes("a", "b", host=host) as (a, b), udp(host) as client:
            async with stream(rules(a.target(), b.target()), host) as (made, address):
                assert [await ask(client, address, each) for each in "xyz"] == ["a x", "a y", "a z"]
                assert len(set(a.clients)) == 1
                assert (len(made), made.counts["opened"], made.counts["bytes_in"]) == (1, 1, 3)
                assert made.counts["bytes_out"] == 9

    run(work())


@pytest.mark.parametrize(
    ("policy", "weights", "expected"),
    [
        ("round-robin", (1, 1), {"a": 6, "b": 6}),
        ("weighted", (2, 1), {"a": 8, "b": 4}),
        ("first", (1, 1), {"a": 12}),
        ("least-connections", (2, 1), {"a": 8, "b": 4}),
    ],
)
def test_policy_spreads_the_clients(policy: str, weights: tuple[int, int], expected: dict[str, int]) -> None:
    async def work() -> None:
        with echoes("a", "b") as found:
            given = [each.target(weight) for each, weight in zip(found, weights, strict=True)]
            async with stream(rules(*given, policy=policy)) as (_, address):
                assert await who_serves(12, address) == expected

    run(work())


def test_random_two_reaches_every_target() -> None:
    async def work() -> None:
        with echoes("a", "b", "c") as found:
            async with stream(rules(*(each.target() for each in found), policy="random-two")) as (_, address):
                while (await who_serves(12, address)).keys() != {"a", "b", "c"}:
                    pass

    run(work())


def test_client_keeps_its_target_by_its_address() -> None:
    async def work() -> None:
        with echoes("a", "b", "c") as found:
            targets = {each.name: each.target() for each in found}
            async with stream(rules(*targets.values(), policy="ip-hash")) as (made, address):
                (name,) = await who_serves(5, address)
                others = [each for key, each in targets.items() if key != name]
                made.set_rules(rules(*others[1:], targets[name], policy="ip-hash"))
                assert [*await who_serves(5, address)] == [name], "another target has left"

    run(work())


def test_datagram_goes_to_another_target_when_one_refuses() -> None:
    async def work() -> None:
        with echoes("b") as (b,), closed_port() as closed, udp() as client:
            async with stream(rules(closed, b.target(), policy="round-robin")) as (made, address):
                assert await ask(client, address, "x") == "b x"
                assert (made.answers, made.failures) == ({b.target().key: 1}, {"closed": 1})
                assert made.counts["failed"] == 1

    run(work())


def test_without_a_target_datagrams_are_dropped_until_there_is_one() -> None:
    async def work() -> None:
        with echoes("a") as (a,), udp() as client:
            async with stream(rules()) as (made, address):
                client.sendto(b"lost", address)
                await until(lambda: made.counts["dropped"] == 1)
                made.set_rules(rules(a.target()))
                assert await ask(client, address, "x") == "a x"

    run(work())


def test_session_that_is_idle_ends_and_one_that_is_not_stays() -> None:
    async def work() -> None:
        with echoes("a") as (a,), udp() as idle, udp() as busy:
            async with stream(rules(a.target(), idle_seconds=0.3)) as (made, address):
                await ask(idle, address, "x")
                while len(made) != 1 or made.counts["opened"] < 2:
                    await ask(busy, address, "y")
                    await asyncio.sleep(0.02)
                assert len({each[1] for each in a.clients}) == 2, "the busy client has kept its session"

    run(work())


def test_session_ends_at_its_total_time() -> None:
    async def work() -> None:
        with echoes("a") as (a,), udp() as client:
            async with stream(rules(a.target(), total_seconds=0.05)) as (made, address):
                while made.counts["opened"] < 2:
                    await ask(client, address, "x")
                assert len(made) == 1

    run(work())


def test_new_session_replaces_the_one_that_was_idle_longest() -> None:
    async def work() -> None:
        with echoes("a") as (a,), udp() as first, udp() as second, udp() as third:
            async with stream(rules(a.target(), most_sessions=2)) as (made, address):
                for each in (first, second, first, third, first):
                    await ask(each, address, "x")
                assert (len(made), made.counts["opened"], made.counts["evicted"]) == (2, 3, 1)

    run(work())


def test_answer_comes_from_the_address_to_which_the_client_has_sent() -> None:
    async def work() -> None:
        with echoes("a") as (a,), udp("127.0.0.2") as client:
            async with stream(rules(a.target()), "0.0.0.0") as (_, (_, port)):
                client.connect(("127.0.0.3", port))  # receives from there only
                client.send(b"x")
                assert await asyncio.get_running_loop().sock_recv(client, 100) == b"a x"

    run(work())


def test_largest_datagram_passes_in_both_directions() -> None:
    async def work() -> None:
        text = "x" * 65_000
        with echoes("a") as (a,), udp() as client:
            async with stream(rules(a.target())) as (_, address):
                assert await ask(client, address, text) == f"a {text}"

    run(work())


def test_draining_stream_forwards_answers_and_leaves_datagrams_to_its_successor() -> None:
    async def work() -> None:
        loop = asyncio.get_running_loop()
        with udp() as silent, udp() as client, udp() as listener, echoes("a") as (a,):
            made = DatagramStream([listener.dup()], rules(target("silent", silent), idle_seconds=0.5))
            address = listener.getsockname()
            client.sendto(b"x", address)
            _, session = await loop.sock_recvfrom(silent, 100)
            draining = asyncio.ensure_future(made.drain(10.0))
            await asyncio.sleep(0)
            successor = DatagramStream([listener.dup()], rules(a.target()))
            silent.sendto(b"late", session)
            assert await loop.sock_recv(client, 100) == b"late"
            assert await ask(client, address, "y") == "a y"
            await draining
            assert len(made) == 0
            successor.close()

    run(work())
