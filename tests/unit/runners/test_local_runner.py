"""Workers of routed servers get the route table; a server is withheld from the gateway until its workers follow it."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Collection, Coroutine, ValuesView
from typing import Any, cast

from poolctl import ServerConfig
from poolctl.keeper import connection_handover, wire
from poolctl.runners.local.activation import SleepingServers
from poolctl.runners.local.local_runner import RoutedServers
from poolctl.runners.local.local_worker import LocalWorker, RunnerWorkers
from poolctl.runners.local.server_sockets import AdoptionPairs, Sockets
from poolctl.runners.process_link import Descriptor
from poolctl.runners.runner_protocol import Exit, PublishedRoutes
from tests.unit.runners.test_local_worker import worker
from tests.unit.runners.test_process_link import StoringPeer


def config(**keys: Any) -> ServerConfig:
    return ServerConfig(**{"name": "web", "bind": "127.0.0.1:8080", "app": "web:app"} | keys)


class Recorder:
    """A gateway: the pairs that it has, and those that it has to let go of."""

    def __init__(self) -> None:
        self.pairs: dict[str, socket.socket] = {}
        self.left: list[str] = []
        self.asked = asyncio.Event()
        self.let_go = asyncio.Event()

    def pair_opened(self, server: str, give: socket.socket) -> None:
        self.pairs[server] = give

    async def leaving(self, server: str) -> None:
        self.left.append(server)

    async def withdraw(self, server: str, give: socket.socket) -> None:
        self.asked.set()
        await self.let_go.wait()


class CountedWorkers(RunnerWorkers):
    """Counts the workers that are looked at."""

    looked_at = 0

    def of(self, key: str) -> Collection[LocalWorker]:
        found = super().of(key)
        self.looked_at += len(found)
        return found

    def values(self) -> ValuesView[str, LocalWorker]:  # type: ignore[override]
        self.looked_at += len(self)
        return super().values()


class Stage:
    """The pairs of a runner whose servers are all open, without listeners."""

    def __init__(self) -> None:
        self.peer = StoringPeer()
        self.pairs = AdoptionPairs(self.peer.kept)
        self.workers = CountedWorkers()
        self.tidied: list[str] = []
        sleeping = cast(SleepingServers, self)
        self.routed = RoutedServers(self.pairs, cast(Sockets, self), sleeping, self.workers)
        self.gateway = Recorder()
        self.give_back, self.taken_back = wire.pair()
        self.table = Descriptor(os.memfd_create("routes"))
        self.given: list[socket.socket] = []

    def keys(self) -> set[str]:
        return {config().key}

    def keep_pair(self, key: str) -> None:
        pass

    def tidy(self, key: str, workers: object) -> None:
        self.tidied.append(key)

    def publish(self, *servers: ServerConfig, generation: int = 1) -> None:
        routes = PublishedRoutes(generation, {"": self.table}, self.give_back)
        self.routed.publish(servers, routes, self.gateway)

    def pass_one(self) -> socket.socket:
        """Our end of a connection that the gateway puts into the pair."""
        with socket.create_server(("127.0.0.1", 0)) as listener:
            ours = socket.create_connection(listener.getsockname())
            theirs, _ = listener.accept()
        with theirs:
            connection_handover.give(self.gateway.pairs["web"], theirs.fileno())
        ours.settimeout(60)
        return ours

    def close(self) -> None:
        self.give_back.close()
        self.taken_back.close()
        self.table.close()
        self.peer.keeper.reaper.watcher.close()
        self.peer.close()


def run(work: Coroutine[Any, Any, None]) -> None:
    asyncio.run(asyncio.wait_for(work, 60))


def orders(sock: socket.socket) -> list[tuple[wire.Message, int]]:
    """The orders that have arrived, each with the number of its descriptors."""
    found = []
    while True:
        try:
            message, fds = wire.receive(sock) or ({}, [])
        except BlockingIOError:
            return found
        found.append((message, len(fds)))
        for fd in fds:
            wire.close(fd)


def test_workers_of_routed_servers_get_the_table_after_they_begin_and_each_later_one() -> None:
    async def work() -> None:
        stage = Stage()
        made = worker()
        ours, theirs = wire.pair()
        made.control_by(ours)
        stage.workers.add(made)
        stage.publish(config(), generation=1)
        assert orders(theirs) == []
        made.begin()
        routes = {"order": "routes", "generation": 1}
        assert orders(theirs) == [({"order": "go"}, 0), (routes, 2)]
        # One whose server has lost its route needs the table in which it no longer is.
        stage.publish(generation=2)
        assert orders(theirs) == [({**routes, "generation": 2}, 2)]
        stage.routed.publish((), None, stage.gateway)
        assert orders(theirs) == [({"order": "routes", "generation": 0}, 0)]
        theirs.close()
        assert made.control is not None
        made.control.close()
        stage.gateway.let_go.set()
        await stage.pairs.close_all()
        stage.close()

    run(work())


def test_workers_of_a_server_that_is_set_aside_are_to_keep_no_connection_and_later_ones_neither() -> None:
    async def work() -> None:
        stage = Stage()
        stage.gateway.let_go.set()
        links = []

        def begin(number: int) -> Any:
            ours, theirs = wire.pair()
            made = worker(index=number)
            made.control_by(ours)
            stage.workers.add(made)
            stage.routed.inform(made)
            made.begin()
            links.extend([ours, theirs])
            return theirs

        stage.publish(config(), generation=1)
        first = begin(0)
        keeps = {"order": "routes", "generation": 1}
        returns = {**keeps, "keeps": False}
        assert orders(first)[1:] == [(keeps, 2)]
        stage.routed.set_aside(["other"])
        assert orders(first) == []
        stage.routed.set_aside(["web", "other"])
        assert orders(first) == [(returns, 2)]
        assert orders(begin(1))[1:] == [(returns, 2)]
        stage.publish(config(), generation=2)
        assert orders(first) == [({**returns, "generation": 2}, 2)]
        stage.routed.set_aside([])
        assert orders(first) == [({**keeps, "generation": 2}, 2)]
        for link in links:
            link.close()
        await stage.pairs.close_all()
        stage.close()

    run(work())


def test_table_is_confirmed_when_each_worker_that_follows_it_has_said_so_or_has_ended() -> None:
    async def work() -> None:
        stage = Stage()
        stage.gateway.let_go.set()
        links = []
        for number in range(3):
            ours, theirs = wire.pair()
            made = worker(index=number)
            stage.workers.add(made)
            made.control_by(ours)
            made.begin()
            links += [ours, theirs]
        first, second, silent = stage.workers.values()
        stage.publish(config(), generation=1)
        assert await stage.routed.confirmed(20) == [], "none of them has said that it follows tables"
        for each in (first, second):
            each.received({"event": "routes", "generation": 1})
        stage.publish(config(), generation=2)
        waiting = asyncio.ensure_future(stage.routed.confirmed(20))
        first.received({"event": "routes", "generation": 2})
        second.received({"event": "routes", "generation": 1})
        await asyncio.sleep(0)
        assert not waiting.done()
        assert await stage.routed.confirmed(0) == ["web"]
        second.received({"event": "routes", "generation": 2})
        assert await waiting == []
        stage.publish(config(), generation=3)
        waiting = asyncio.ensure_future(stage.routed.confirmed(20))
        await asyncio.sleep(0)
        for each in (first, second, silent):
            each.ended(Exit(status=0))
        assert await waiting == []
        for link in links:
            link.close()
        await stage.pairs.close_all()
        stage.close()

    run(work())


def test_worker_of_a_server_without_a_route_gets_nothing() -> None:
    async def work() -> None:
        stage = Stage()
        made = worker()
        ours, theirs = wire.pair()
        made.control_by(ours)
        made.begin()
        stage.workers.add(made)
        stage.publish()
        assert orders(theirs) == [({"order": "go"}, 0)]
        theirs.close()
        assert made.control is not None
        made.control.close()
        stage.close()

    run(work())


def test_server_whose_ready_worker_does_not_follow_the_routes_is_kept_from_the_gateway_until_it_does() -> (
    None
):
    async def work() -> None:
        stage = Stage()
        stage.gateway.let_go.set()
        stage.publish(config())
        made = worker()
        ours, theirs = wire.pair()
        made.control_by(ours)
        stage.workers.add(made)
        made.on_follows_routes = lambda: stage.routed.look(config().key)
        made.begin()
        stage.routed.inform(made)
        stage.gateway.pairs.clear()
        made.received({"event": "ready"})
        stage.routed.look(config().key)
        await stage.gateway.asked.wait()
        stage.publish(config())
        assert stage.gateway.pairs == {}
        made.received({"event": "routes", "generation": 1})
        assert list(stage.gateway.pairs) == ["web"]
        theirs.close()
        assert made.control is not None
        made.control.close()
        await stage.pairs.close_all()
        stage.close()

    run(work())


def test_event_of_a_server_looks_at_its_own_workers_only() -> None:
    async def work() -> None:
        stage = Stage()
        stage.gateway.let_go.set()
        servers = [config(name=f"web{number}", bind=f"127.0.0.1:{8080 + number}") for number in range(100)]
        for server in servers:
            for index in range(2):
                stage.workers.add(worker(name=server.name, bind=server.bind, index=index))
        stage.publish(*servers)
        stage.workers.looked_at = 0
        for server in servers:
            stage.routed.look(server.key)
        assert stage.workers.looked_at == 200
        gone = [*stage.workers.of(servers[0].key)]
        for each in gone:
            stage.workers.remove(each)
            stage.workers.remove(each)
        assert [*stage.workers.of(servers[0].key)] == []
        assert len(stage.workers) == 198
        await stage.pairs.close_all()
        stage.close()

    run(work())
