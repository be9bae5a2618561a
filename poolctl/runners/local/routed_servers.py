"""The servers with a route: their pairs are open for the gateway, and their workers have the route table."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from poolctl.config import ServerConfig

from ..routing_protocol import Gateway, PublishedRoutes
from .activation.sleeping_servers import SleepingServers
from .local_worker import LocalWorker, WorkerRoutes
from .passed_pairs import PassedPairs
from .server_sockets import AdoptionPairs, Sockets


class RoutedServers:
    """See Routing. `workers` are all of the runner, by their ids."""

    def __init__(
        self,
        passed: PassedPairs,
        adoptions: AdoptionPairs,
        sockets: Sockets,
        sleeping: SleepingServers,
        workers: Mapping[str, LocalWorker],
    ) -> None:
        self._passed = passed
        self._adoptions = adoptions
        self._sockets = sockets
        self._sleeping = sleeping
        self._workers = workers
        self._names: dict[str, str] = {}
        self._routes: WorkerRoutes | None = None

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
                self._adoptions.announce(server.key)
                self._sleeping.keep_pair(server.key)
        for key in before.keys() - self._names.keys():
            self._sleeping.tidy(key, self._workers.values())
        self._routes = WorkerRoutes(routes)
        for worker in self._workers.values():
            self.inform(worker)

    def inform(self, worker: LocalWorker) -> None:
        """Send the worker the table in force, as soon as it has begun, if its server has a route or had one."""
        if self._routes is not None and (worker.routes is not None or worker.server.key in self._names):
            worker.route(self._routes)
