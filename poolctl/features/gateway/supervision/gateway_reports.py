"""Reports the states of routed servers to the gateway's process, and handles its reports and requests."""

from __future__ import annotations

import json
import socket
from collections.abc import Callable, Iterator
from dataclasses import replace

from poolctl.config import ServerConfig
from poolctl.core.core import Core
from poolctl.core.decide import WorkerPhase
from poolctl.core.schedules import asleep_until
from poolctl.core.server_entry import Entry
from poolctl.json_form import Table
from poolctl.keeper import fd_store, wire
from poolctl.monitor.event_queue import EventBus
from poolctl.states import State
from poolctl.supervisor.takeover.state_store import StateStore
from poolctl.worker import tally

from ..process.settings import ServerFacts
from .computed_routes import RouteTableManager
from .gateway_process import GatewayProcess

_SUFFIX = " (canary)"  # names of servers contain no blank


def canary_name(server: str) -> str:
    """The name of the socket pair over which the server's canary gets connections."""
    return server + _SUFFIX


def server_of(name: str) -> str:
    """Return the name of a socket pair's server: the pair's `name` without the suffix that `canary_name` adds."""
    return name.removesuffix(_SUFFIX)


def canary_facts(entry: Entry) -> ServerFacts | None:
    """Return the address and TLS of the server's canary; None if no canary has an address of its own.

    The name in the facts is the server's `canary_name`.
    """
    config = entry.separate_canary_config
    if config is None:
        return None
    return ServerFacts(name=canary_name(entry.name), bind=config.key, tls=bool(config.tls))


def _share_of_canary(entry: Entry) -> float:
    """The share of requests that the server's canary gets; 0 if it cannot serve now."""
    canary = entry.desired.canary
    if canary is None or canary.failure:
        return 0.0
    workers = (each for each in entry.observed.workers.values() if each.generation == canary.generation)
    return canary.share if any(each.phase is WorkerPhase.READY and not each.ko for each in workers) else 0.0


def facts_of(core: Core, entry: Entry, *, retries: bool = False) -> ServerFacts:
    """The facts that the gateway needs about a server: its state, its current address, and its canary.

    With `retries` the gateway tries a refused connection again, after a second.
    """
    config, state = entry.config, entry.state
    endpoints = core.endpoints(config)
    if entry.listener.armed is not None:
        # Even while its last worker is still draining: a connection wakes the server.
        state = State.SLEEPING
    elif state is State.STARTING and not endpoints and not retries:
        # The address is not open yet: a connection would be refused.
        state = State.STOPPED
    share = _share_of_canary(entry)
    canary = canary_facts(entry) if share else None
    return ServerFacts(
        name=entry.name,
        bind=endpoints[0] if endpoints else config.key,
        tls=bool(config.tls),
        state=state,
        ready=entry.ready and not entry.out_of_rotation,
        health=str(entry.health),
        asleep_until=asleep_until(entry),
        canary="" if canary is None else canary.name,
        canary_bind="" if canary is None else canary.bind,
        canary_share=share,
        is_app=config.app is not None,
    )


def worker_counts(core: Core, entry: Entry) -> Iterator[tally.Counts]:
    """Yield each worker's counts of requests and connections; skip workers without counts, such as commands."""
    for worker in entry.observed.workers.values():
        if worker.placement is not None and (counts := core.runner.counts(worker.placement)) is not None:
            yield counts


def connections_of(core: Core, entry: Entry) -> int:
    """The number of open connections of the server's workers, as counted by the workers."""
    return sum(counts[tally.OPEN_CONNECTIONS] for counts in worker_counts(core, entry))


class ServerFactsSender:
    """Reports routed servers to the gateway's process.

    The gateway passes connections to a server over a socket pair. `pairs` has the sending end of each pair, by the
    server's name, or by the `canary_name` for the pair of a canary.
    """

    def __init__(self, core: Core, routes: RouteTableManager) -> None:
        self.pairs: dict[str, socket.socket] = {}
        self.engine_retries = False  # whether the gateway's engine tries a refused connection again
        self._core = core
        self._routes = routes
        self._canaries: dict[str, ServerConfig | None] = {}  # the canaries found by the last check, by server

    def detect_canary_change(self, entry: Entry) -> bool:
        """Whether the server's canary has begun, changed or ended since the last call for this server."""
        config, before = entry.separate_canary_config, self._canaries.get(entry.name)
        self._canaries[entry.name] = config
        return config is not before

    @property
    def routed_and_canary_configs(self) -> list[ServerConfig]:
        """The configurations of routed servers, and of canaries with their own address, named by `canary_name`."""
        names, found = self._routes.routes.servers, []
        for name, entry in self._core.entries.items():
            if name in names:
                found.append(entry.config)
                if (canary := entry.separate_canary_config) is not None:
                    found.append(canary.with_values(name=canary_name(name)))
        return found

    def send(self, process: GatewayProcess, name: str) -> None:
        """Send the ServerFacts of a server and its canary to the gateway's `process`, if they have changed.

        `name` is the server's name or its `canary_name`. If the server has no route, tell `process` to forget both.
        """
        server = server_of(name)
        entry = self._core.entries.get(server)
        if entry is None or server not in self._routes.routes.servers:
            process.forget_server(server)
            process.forget_server(canary_name(server))
            return
        canary = canary_facts(entry)
        if canary is not None:
            process.report_server(canary, self.pairs.get(canary.name))
        facts = facts_of(self._core, entry, retries=self.engine_retries)
        if not entry.config.command:
            facts = replace(facts, context_key=self._routes.context_keys.get(server, ""))
        process.report_server(facts, self.pairs.get(server))
        if canary is None:
            process.forget_server(canary_name(server))

    def send_all_routed(self, process: GatewayProcess) -> None:
        """Send `process`, the gateway, the changed ServerFacts of all routed servers and their canaries."""
        for server in self._routes.routes.servers:
            if server in self._core.entries:
                self.send(process, server)

    def drop_pairs_of_unrouted_servers(self) -> None:
        """Stop using the socket pairs of servers without a route: their owner closes them without a withdrawal."""
        for name in [each for each in self.pairs if server_of(each) not in self._routes.routes.servers]:
            del self.pairs[name]

    def forget_unrouted_servers(self, process: GatewayProcess) -> None:
        """Tell the process to forget the servers that no longer have a route."""
        for name in process.servers:
            if server_of(name) not in self._routes.routes.servers:
                process.forget_server(name)


class GatewayMessageHandler:
    """The receiver of messages from the gateway's process: records events, stores hosts' states, answers requests."""

    def __init__(self, store: StateStore, core: Core, events: EventBus) -> None:
        self._store = store
        self._core = core
        self._events = events
        # Called with a URL when a request needs the machine behind it.
        self.on_machine_needed: Callable[[str], None] = lambda url: None
        self.hosts: Table = {}  # the states of the hosts, as last reported
        self.on_hosts: Callable[[], None] = lambda: None

    async def load_host_states(self) -> None:
        """Load the states of hosts that were reported to the previous supervisor."""
        if (content := await self._store.read(fd_store.GATEWAY_HOSTS)) is not None:
            self.hosts = json.loads(content)

    def receive_from(self, process: GatewayProcess) -> None:
        """Receive the reports of this process from now on."""
        process.on_report = lambda message: self._handle_message(process, message)

    def _handle_message(self, process: GatewayProcess, message: wire.Message) -> None:
        if message["t"] == "hosts":
            self.hosts = message["states"]
            self._store.store_for_successor(fd_store.GATEWAY_HOSTS, json.dumps(self.hosts).encode())
            self.on_hosts()
        elif message["t"] == "loads":
            process.report_connections(
                {name: self.count_worker_connections(name) for name in message["servers"]}
            )
        elif message["t"] == "wake":
            if (entry := self._core.entries.get(message["server"])) is not None:
                self._core.wake(entry)
            else:
                self.on_machine_needed(message["server"])
        else:
            data = message["data"]
            if "host" in data:
                data = {"message": data["host"], "cause": data.get("why", ""), **data}
            self._events.record("pool", str(message["kind"]), **data)

    @property
    def unavailable_hosts(self) -> frozenset[str]:
        """The hosts that are disabled or drained."""
        return frozenset(each["host"] for each in self.hosts.get("hosts", ()))

    def count_worker_connections(self, server: str) -> int:
        """The number of open connections of the server's workers; 0 for an unknown server."""
        entry = self._core.entries.get(server)
        return 0 if entry is None else connections_of(self._core, entry)
