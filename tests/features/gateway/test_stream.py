"""What streams of TCP and UDP share: clients in the order of their last use, and the addresses of backends."""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest

from poolctl.features.gateway.process.settings import Endpoint
from poolctl.features.gateway.process.streams.stream import (
    FRESH_SECONDS,
    AddressWithFamily,
    BackendAddresses,
    IdleTracker,
)
from tests.virtual_loop import VirtualLoop

NAME = Endpoint("tcp", "db.test", 5432)
FIRST = AddressWithFamily(socket.AF_INET, ("10.0.0.1", 5432))
SECOND = AddressWithFamily(socket.AF_INET, ("10.0.0.2", 5432))


@dataclass
class Session:
    """A client's session, with the time of its last use."""

    name: str
    used: float = 0.0


class Sessions:
    """Sessions on a loop whose time passes at once, and those that have expired."""

    def __init__(self, seconds: float) -> None:
        self.loop = VirtualLoop()
        self.expired: list[tuple[str, float]] = []
        self.order: IdleTracker[str, Session] = IdleTracker(self.loop, self.loop.time, seconds, self.expire)

    def expire(self, session: Session) -> None:
        self.expired.append((session.name, self.loop.time()))
        self.order.remove(session.name)

    def add(self, name: str) -> Session:
        session = Session(name)
        self.order.add(name, session)
        return session

    @property
    def names(self) -> list[str]:
        return [each.name for each in self.order]


@pytest.fixture
def sessions() -> Iterator[Sessions]:
    made = Sessions(10.0)
    yield made
    made.loop.close()


def test_session_expires_when_it_was_idle_for_the_time(sessions: Sessions) -> None:
    one, _ = sessions.add("one"), sessions.add("two")
    sessions.loop.pass_time(6.0)
    sessions.order.record_activity("one", one)
    assert sessions.names == ["two", "one"]
    assert sessions.order.oldest().name == "two"
    sessions.loop.pass_time(20.0)
    assert sessions.expired == [("two", 10.0), ("one", 16.0)]
    assert len(sessions.order) == 0


def test_session_that_is_added_later_expires_later(sessions: Sessions) -> None:
    sessions.add("one")
    sessions.loop.pass_time(4.0)
    sessions.add("two")
    assert sessions.order.get("two") is not None
    sessions.loop.pass_time(20.0)
    assert sessions.expired == [("one", 10.0), ("two", 14.0)]


def test_timer_of_the_first_session_ends_with_the_last_one(sessions: Sessions) -> None:
    sessions.add("one")
    sessions.order.remove("one")
    sessions.order.remove("one")
    sessions.loop.pass_time(3.0)
    sessions.add("two")
    sessions.loop.pass_time(30.0)
    assert sessions.expired == [("two", 13.0)]


def test_changed_limit_applies_to_the_sessions_that_are_there(sessions: Sessions) -> None:
    sessions.add("one")
    sessions.order.set_idle_limit(10.0)
    sessions.order.set_idle_limit(3.0)
    sessions.loop.pass_time(5.0)
    assert sessions.expired == [("one", 3.0)]
    sessions.order.set_idle_limit(0.0)
    sessions.add("two")
    sessions.loop.pass_time(1000.0)
    assert sessions.names == ["two"], "there is no limit"
    sessions.order.set_idle_limit(1.0)
    sessions.loop.pass_time()
    assert sessions.expired[1:] == [("two", 1005.0)]


def test_end_of_all_sessions_is_waited_for_within_a_time(sessions: Sessions) -> None:
    loop, order = sessions.loop, sessions.order
    loop.run_until_complete(order.wait_until_empty(5.0))
    assert loop.time() == 0.0
    sessions.add("one")
    loop.run_until_complete(order.wait_until_empty(5.0))
    assert (loop.time(), sessions.names) == (5.0, ["one"])
    loop.run_until_complete(order.wait_until_empty(100.0))
    assert loop.time() == 10.0


class Resolver:
    """Name resolution with what the test says; counts the look-ups."""

    def __init__(self) -> None:
        self.loop = VirtualLoop()
        self.found: list[str] | Exception = ["10.0.0.1"]
        self.asked: list[tuple[Any, ...]] = []
        self.loop.getaddrinfo = self.look_up  # type: ignore[assignment, method-assign]
        self.addresses = BackendAddresses(self.loop, socket.SOCK_STREAM)

    async def look_up(self, host: str, port: int, *, type: int) -> list[tuple[Any, ...]]:
        self.asked.append((host, port, type))
        await asyncio.sleep(0.5)
        if isinstance(self.found, Exception):
            raise self.found
        return [(socket.AF_INET, type, 6, "", (each, port)) for each in self.found]

    def wait(self, endpoint: Endpoint = NAME) -> tuple[AddressWithFamily, ...]:
        return self.loop.run_until_complete(self.addresses.wait_for_addresses(endpoint))


@pytest.fixture
def resolver() -> Iterator[Resolver]:
    made = Resolver()
    yield made
    made.addresses.close()
    made.loop.pass_time()
    made.loop.close()


@pytest.mark.parametrize(
    ("endpoint", "address"),
    [
        (Endpoint("unix", path="/a.sock"), AddressWithFamily(socket.AF_UNIX, "/a.sock")),
        (Endpoint("tcp", "10.0.0.1", 5432), FIRST),
        (Endpoint("tcp", "::1", 53), AddressWithFamily(socket.AF_INET6, ("::1", 53))),
    ],
)
def test_address_needs_no_look_up(resolver: Resolver, endpoint: Endpoint, address: AddressWithFamily) -> None:
    assert resolver.addresses.get_or_start_resolving(endpoint) == resolver.wait(endpoint) == (address,)
    assert resolver.addresses.get_or_start_resolving(Endpoint("none")) == ()
    assert not resolver.asked


def test_name_is_resolved_once_for_all_that_wait(resolver: Resolver) -> None:
    assert resolver.addresses.get_or_start_resolving(NAME) is None

    async def both() -> list[tuple[AddressWithFamily, ...]]:
        return await asyncio.gather(
            resolver.addresses.wait_for_addresses(NAME), resolver.addresses.wait_for_addresses(NAME)
        )

    assert resolver.loop.run_until_complete(both()) == [(FIRST,), (FIRST,)]
    assert resolver.asked == [("db.test", 5432, socket.SOCK_STREAM)]
    assert resolver.addresses.get_or_start_resolving(NAME) == (FIRST,)


def test_old_addresses_serve_while_a_name_is_resolved_again(resolver: Resolver) -> None:
    resolver.wait()
    resolver.found = ["10.0.0.2"]
    resolver.loop.pass_time(FRESH_SECONDS - 0.1)
    assert resolver.addresses.get_or_start_resolving(NAME) == (FIRST,)
    assert len(resolver.asked) == 1
    resolver.loop.pass_time(0.2)
    assert resolver.addresses.get_or_start_resolving(NAME) == (FIRST,)
    assert resolver.addresses.get_or_start_resolving(NAME) == (FIRST,), "one look-up at a time"
    resolver.loop.pass_time(1.0)
    assert len(resolver.asked) == 2
    assert resolver.addresses.get_or_start_resolving(NAME) == (SECOND,)


def test_name_that_cannot_be_resolved_is_tried_again_and_reported_once(
    resolver: Resolver, caplog: pytest.LogCaptureFixture
) -> None:
    resolver.found = OSError("no answer")
    with caplog.at_level(logging.WARNING, "poolctl.gateway"):
        assert resolver.wait() == ()
        assert resolver.wait() == (), "not before a second has passed"
        assert len(resolver.asked) == 1
        resolver.loop.pass_time(1.0)
        assert resolver.wait() == ()
        assert len(resolver.asked) == 2
        resolver.loop.pass_time(1.0)
        resolver.found = UnicodeError("label too long")
        assert resolver.wait() == ()
    assert [each.getMessage() for each in caplog.records] == [
        "cannot resolve db.test: no answer", "cannot resolve db.test: label too long",
    ]  # fmt: skip
    resolver.loop.pass_time(1.0)
    resolver.found = ["10.0.0.1"]
    assert resolver.wait() == (FIRST,)


def test_name_server_that_is_away_takes_no_backend_down(resolver: Resolver) -> None:
    resolver.wait()
    resolver.found = OSError("no answer")
    resolver.loop.pass_time(FRESH_SECONDS)
    resolver.addresses.get_or_start_resolving(NAME)
    resolver.loop.pass_time(1.0)
    assert resolver.addresses.get_or_start_resolving(NAME) == (FIRST,)


def test_resolution_in_progress_is_cancelled_at_the_end(resolver: Resolver) -> None:
    resolver.addresses.get_or_start_resolving(NAME)
    resolver.addresses.close()
    resolver.loop.pass_time(5.0)
    assert not resolver.addresses._names[NAME].addresses
