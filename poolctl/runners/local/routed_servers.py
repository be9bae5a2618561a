"""Opens the pairs of servers that have a route to the gateway, and gives their workers the route table."""

from __future__ import annotations

import asyncio
from collections.abc import Collection

from poolctl.config import ServerConfig

from ..routing_protocol import Gateway, PublishedRoutes
from .activation.sleeping_servers import SleepingServers
from .local_worker import LocalWorker, RunnerWorkers, WorkerRoutes
from .passed_pairs import PassedPairs
from .server_sockets import AdoptionPairs, Sockets


class RoutedServers:
    """See Routing. `workers` are all workers of the runner."""

    def __init__(
        self,
        passed: PassedPairs,
        adoptions: AdoptionPairs,
        sockets: Sockets,
        sleeping: SleepingServers,
        workers: RunnerWorkers,
    ) -> None:
        self._passed = passed
        self._adoptions = adoptions
        self._sockets = sockets
        self._sleeping = sleeping
        self._workers = workers
        self._names: dict[str, str] = {}
        self._published = False
        self._routes: PublishedRoutes | None = None
        self._orders: dict[tuple[str, bool], WorkerRoutes] = {}  # by server, and whether it keeps connections
        self._aside: frozenset[str] = frozenset()  # the names of their servers
        self._unable: set[str] = set()  # the keys of servers whose workers do not look at later requests

    def publish(
        self, servers: Collection[ServerConfig], routes: PublishedRoutes | None, gateway: Gateway
    ) -> None:
        """See Routing."""
        # A program has no pair: its requests are proxied.
        passed = [each for each in servers if not each.command]
        before, self._names = self._names, {each.key: each.name for each in passed}
        self._passed.publish(self._names, gateway, None if routes is None else routes.give_back)
        open_keys = self._sockets.keys()
        for server in passed:
            if server.key in open_keys:
                self._adoptions.open(server)
                self._sleeping.keep_pair(server.key)
            self._offer(server.key)
        for key in before.keys() - self._names.keys():
            self._sleeping.tidy(key, self._workers.of(key))
        self._published, self._routes = True, routes
        self._orders.clear()
        for worker in self._workers.values():
            self.inform(worker)

    def set_aside(self, servers: Collection[str]) -> None:
        """See Routing."""
        before, self._aside = self._aside, frozenset(servers)
        for worker in self._workers.values():
            if worker.server.name in before ^ self._aside:
                self.inform(worker)

    def take_back(self, servers: Collection[str]) -> None:
        """See Routing."""
        for key, name in self._names.items():
            take = self._adoptions.left(key)
            if name in servers and take is not None:
                self._passed.take_back(take)

    async def confirmed(self, limit_seconds: float) -> list[str]:
        """See Routing."""
        waiting = {worker: it for worker in self._workers.values() if (it := worker.unconfirmed) is not None}
        if waiting:
            await asyncio.wait(waiting.values(), timeout=limit_seconds)
        return sorted({worker.server.name for worker, it in waiting.items() if not it.done()})

    def look(self, key: str) -> None:
        """Update the gateway's use of the server's pair after a worker has changed its state."""
        if key in self._names:
            self._offer(key)

    def _offer(self, key: str) -> None:
        """Let the gateway use the server's pair, unless a worker of the server ignores the routes.

        A worker that became ready without confirming the routes would answer requests of other servers: it is of
        another version, or its HTTP implementation cannot follow them. While no worker is ready, the previous workers
        decide.
        """
        ready = [each for each in self._workers.of(key) if each.answered.done() and not each.exited.done()]
        if any(not each.follows_routes for each in ready):
            self._unable.add(key)
            self._passed.hide(key)
        elif ready or key not in self._unable:
            self._unable.discard(key)
            self._passed.show(key)
            self._adoptions.announce(key)

    def inform(self, worker: LocalWorker) -> None:
        """Send the worker the current route table once it has begun, if its server has or had a route."""
        if not self._published or (worker.routes is None and worker.server.key not in self._names):
            return
        name = worker.server.name
        key = name, name not in self._aside
        order = self._orders.get(key)
        if order is None:
            order = self._orders[key] = WorkerRoutes(self._routes, name, keeps=key[1])
        worker.route(order)
