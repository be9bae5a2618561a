"""HAProxy's setup (configuration, server states, files), and the runtime commands that change it."""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import socket
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from functools import lru_cache
from types import MappingProxyType
from typing import NamedTuple

from poolctl.config import TLSConfig
from poolctl.errors import ServerError
from poolctl.routing.route import Route, StreamRoute
from poolctl.routing.route_report import route_key, stream_key

from ..settings import Endpoint, GatewaySettings, ListenerSettings
from ..supervision.targets import TargetsNow
from ..target import ServerFacts, Target, TargetState, serving_state
from .choice import ROUTES
from .configuration import (
    PASSIVE_CHECK,
    PLACEHOLDER_ADDRESS,
    WAIT,
    HaproxyBackend,
    HaproxyConfiguration,
    HaproxyServer,
    ProcessPlaces,
    RefusableServer,
    ServerAddresses,
    configuration_of,
    has_host_name,
)
from .listeners import HaproxyCertificate, HaproxyListener
from .sleeping import ASLEEP, AWAKE, SLEEPING, STARTS, WAKING, answers_for_sleeping

READY, DRAIN, MAINTENANCE = "ready", "drain", "maint"
# HAProxy 2.8.25 crashed under load when servers were deleted. So unused servers stay in maintenance; above this number,
# HAProxy is replaced.
_MAX_LEFT = 100
# Servers cannot be added to a backend with one of these lines: they would lack the cookie, or the right position.
_FIXED = ("    cookie ", "    balance first")
# HAProxy inherits its descriptors in this order: log, listeners (that of NEXT first), runtime socket, access log. The
# last socket must not be a listener: HAProxy 3.2 does not remove it from its epoll(7) set, so that a replaced process
# would wake up for every connection to its successor.
_LOG_FD, _FIRST_LISTENER_FD = 3, 4
_is_ip_address = re.compile(r"(ipv[46]@)?[0-9a-f.:]+:[0-9]+").fullmatch
_SLEEP = {TargetState.READY: AWAKE, TargetState.STARTING: STARTS, TargetState.SLEEPING: ASLEEP}


class ServerState(NamedTuple):
    """A server's state in HAProxy, and its configured maximum of connections, 0 without a limit.

    `tested` is the maximum of connections while its breaker is half-open, else 0.
    """

    state: str
    limit: int = 0
    tested: int = 0

    @property
    def is_in_file(self) -> bool:
        """Whether the configuration file can express this."""
        return self.state != DRAIN and not self.tested

    def commands(self, place: tuple[str, str]) -> list[str]:
        """The runtime commands that set this for a server; `place` is its backend and its name."""
        name = "/".join(place)
        limit = min(self.tested, self.limit or self.tested) or self.limit
        return [f"set maxconn server {name} {limit}", f"set server {name} state {self.state}"]


class HaproxySetup(NamedTuple):
    """A configuration built from `parts`, with the states of its servers, by backend and server name.

    `structure` identifies what runtime commands cannot change. `digest`, for a successor, identifies also the servers,
    with those that HAProxy refuses. `left` are unused servers in maintenance, which only a running process has.
    """

    parts: SetupParts
    configuration: HaproxyConfiguration
    structure: str
    digest: str
    states: Mapping[tuple[str, str], ServerState] = MappingProxyType({})
    left: Mapping[tuple[str, str], HaproxyServer] = MappingProxyType({})

    @property
    def maps(self) -> Mapping[str, Mapping[str, str]]:
        """The entries of the maps that change at run time, by file name."""
        return self.configuration.maps

    @property
    def sections(self) -> dict[str, HaproxyBackend]:
        """The backends by name, with the servers that are `left`: their last counts may not be read yet."""
        sections = self.configuration.sections
        for (name, _), server in self.left.items():
            sections[name] = sections[name]._replace(servers=(*sections[name].servers, server))
        return sections

    @property
    def text(self) -> str:
        """The main configuration file, in which servers that are not ready get no traffic."""
        return self.configuration.text(place for place, state in self.states.items() if state.state != READY)

    @property
    def files(self) -> dict[str, bytes]:
        """The contents of all files besides the main one."""
        texts = self.configuration.all_files
        encoded = {name: text.encode(errors="surrogateescape") for name, text in texts.items()}
        return {**encoded, **self.parts.certificates}

    @property
    def shows_waiting_page(self) -> bool:
        """Whether requests for the waiting page may have to wake a server."""
        return WAKING in self.configuration.files and ASLEEP in self.maps.get(SLEEPING, {}).values()

    def without(self, refused: Collection[RefusableServer]) -> HaproxySetup:
        """A copy without these servers."""
        if not refused:
            return self
        places = {(backend, server.name) for backend, server in refused}
        states = {place: state for place, state in self.states.items() if place not in places}
        return self._replace(configuration=self.configuration.without(refused), states=states)

    def start_commands(self) -> list[str]:
        """The runtime commands for states that the configuration file cannot express."""
        states = ((place, state) for place, state in self.states.items() if not state.is_in_file)
        return [command for place, state in states for command in state.commands(place)]

    def state_commands(self) -> list[str]:
        """The runtime commands that set the state of every server, and the entries of maps."""
        commands = [command for place, state in self.states.items() for command in state.commands(place)]
        for name, entries in self.maps.items():
            if name != ROUTES:
                commands += _map_commands(name, {}, entries)
        return commands

    def with_states(self, targets: TargetsNow) -> HaproxySetup:
        """A copy with these states of its targets."""
        routes = {route_key(route): route for route in self.parts.served}
        states, sleeping = dict[tuple[str, str], ServerState](), dict[str, str]()
        for section in self.configuration.backends:
            route = routes[stream_key(section.alias) if section.is_stream else section.alias]
            route_targets = targets.of(route)
            states.update(_states(section, route, route_targets, self.parts.places))
            if isinstance(route, Route) and answers_for_sleeping(route):
                sleeping[section.name] = _SLEEP[serving_state(route_targets.values())]
        maps = {**self.maps, SLEEPING: sleeping} if SLEEPING in self.maps else self.maps
        return self._replace(configuration=self.configuration._replace(maps=maps), states=states)

    def with_states_of(self, other: HaproxySetup) -> HaproxySetup:
        """A copy with the states of the other setup. Servers that `other` lacks keep theirs.

        Entries of the map ROUTES stay, as this setup may lack the sections of new ones.
        """
        maps = {
            name: {key: other.maps.get(name, {}).get(key, value) for key, value in entries.items()}
            for name, entries in self.maps.items()
            if name != ROUTES
        }
        return self._replace(
            states={place: other.states.get(place, state) for place, state in self.states.items()},
            configuration=self.configuration._replace(maps={**self.maps, **maps}),
        )


class Certificate(NamedTuple):
    """A certificate: its names, and the contents of the certificate, key and optional CA files of `tls`.

    `problem` is why the files, which have changed, cannot be used.
    """

    tls: TLSConfig
    names: tuple[str, ...]
    contents: Sequence[bytes]
    problem: ServerError | None = None


class HeldListener(NamedTuple):
    """A listener with its sockets and certificates; `route` is the stream of a stream's listener."""

    settings: ListenerSettings
    route: StreamRoute | None
    sockets: Sequence[socket.socket]
    certificates: Sequence[Certificate] = ()


class SetupParts(NamedTuple):
    """What a configuration depends on. Equal parts make equal configurations.

    `addresses` are the known ones of the `host_names`. `keys` are those by which workers recognize the gateway, by
    application. `certificates` are the contents of certificate files, by file name.
    """

    settings: GatewaySettings
    listeners: tuple[HaproxyListener, ...]
    routes: tuple[Route, ...]
    streams: tuple[StreamRoute, ...]
    places: ServerAddresses
    keys: Mapping[str, str]
    addresses: Mapping[str, str]
    certificates: Mapping[str, bytes]
    sockets: tuple[socket.socket, ...]
    next_address: str
    next_key: str

    def build(self) -> HaproxySetup:
        """The setup without the states of its servers. With thousands of routes it takes a second."""
        after_listeners = _FIRST_LISTENER_FD + len(self.sockets)
        places = ProcessPlaces(
            runtime=f"fd@{after_listeners}",
            log=f"fd@{_LOG_FD}",
            access_log=f"fd@{after_listeners + 1}",
            next_bind=f"fd@{_FIRST_LISTENER_FD}",
            next=self.next_address,
            key=self.next_key,
        )
        configuration = configuration_of(
            self.settings, self.listeners, self.routes, self.streams, self.places, self.keys, places
        ).with_addresses(self.addresses)
        backends = tuple(backend._replace(servers=()) for backend in configuration.backends)
        structure = self._digest(configuration._replace(backends=backends))
        return HaproxySetup(self, configuration, structure, self._digest(configuration))

    @property
    def served(self) -> Sequence[Route | StreamRoute]:
        """The routes and the streams."""
        return *self.routes, *self.streams

    def _digest(self, configuration: HaproxyConfiguration) -> str:
        program, user, chosen = self.settings.program, self.settings.user, configuration.maps.get(ROUTES)
        inodes = [os.fstat(sock.fileno()).st_ino for sock in self.sockets]
        whole = program, user, configuration.text(), configuration.files, chosen, self.certificates, inodes
        return hashlib.sha256(repr(whole).encode()).hexdigest()


def parts_of(
    settings: GatewaySettings,
    held: Sequence[HeldListener],
    routes: Sequence[Route],
    facts: Mapping[str, ServerFacts],
    keys: Mapping[str, str],
    addresses: Mapping[str, str],
    waiting: Mapping[str, str],
    handover: tuple[str, socket.socket, str],
) -> SetupParts:
    """The parts of the setup with these listeners and routes.

    `facts` are about the routed servers, by name. `waiting` has the addresses where connections wait, by target.
    `handover` is where a process accepts requests of the replaced process: address, socket and key.
    """
    certificates: dict[str, bytes] = {}
    next_address, next_socket, next_key = handover
    listeners, sockets = [], [next_socket]
    for listener in held:
        first = _FIRST_LISTENER_FD + len(sockets)
        sockets += listener.sockets
        listeners.append(_listener(listener, first, certificates))
    proxied = {name: server for name, server in facts.items() if server.processes is not None}
    places = ServerAddresses(
        {name: _endpoint(server.bind, server.tls, server.h2) for name, server in facts.items()},
        {name: server.processes or () for name, server in proxied.items()},
        waiting,
        {name: server.numbered for name, server in proxied.items()},
    )
    return SetupParts(
        settings,
        tuple(listeners),
        tuple(routes),
        tuple(listener.route for listener in held if listener.route is not None),
        places,
        dict(keys),
        dict(addresses),
        certificates,
        tuple(sockets),
        next_address,
        next_key,
    )


def host_names(targets: Iterable[str], facts: Mapping[str, ServerFacts]) -> Mapping[str, int]:
    """The host names in the addresses of these targets, each with one of its ports. `facts` are about servers."""
    endpoints = (
        _endpoint(facts[key].bind, facts[key].tls, facts[key].h2) if key in facts else _endpoint_of_url(key)
        for key in targets
    )
    return {endpoint.host: endpoint.port for endpoint in endpoints if endpoint and has_host_name(endpoint)}


def _listener(held: HeldListener, first: int, files: dict[str, bytes]) -> HaproxyListener:
    """Return the listener in HAProxy's syntax; adds the contents of its files to `files`."""
    certificates, settings = [], held.settings
    for certificate in held.certificates:
        cert, key, *authorities = certificate.contents
        name = f"certificate-{len(files) + 1}.pem"
        files[name] = cert if key == cert else cert.rstrip(b"\n") + b"\n" + key
        ca = f"{name}.ca" if authorities else ""
        files.update({ca: authorities[0]} if authorities else {})
        certificates.append(HaproxyCertificate.of(certificate.tls, name, ca, certificate.names))
    return HaproxyListener(
        tuple(f"fd@{first + number}" for number in range(len(held.sockets))),
        settings.alias,
        f"listener-{first}.crt-list",
        tuple(certificates),
        settings.accept_proxy,
        passes_tls=settings.tls and not certificates,
    )


def _states(
    section: HaproxyBackend,
    route: Route | StreamRoute,
    targets: Mapping[str, Target],
    places: ServerAddresses,
) -> Iterator[tuple[tuple[str, str], ServerState]]:
    """Yield the states of the section's servers by (backend, server).

    A target with an address for waiting gets no connections until it is ready.
    """
    limit = route.backend_limit.concurrency if isinstance(route, Route) and route.backend_limit else 0
    for server in section.servers:
        key = server.key.removesuffix(WAIT)
        target, is_direct = targets[key], server.key == key
        serves = target.serves and server.address != PLACEHOLDER_ADDRESS
        if is_direct and key in places.waiting:
            serves = serves and target.state is TargetState.READY
        drains = is_direct and target.state is TargetState.DRAINING
        state = DRAIN if drains else READY if serves else MAINTENANCE
        yield (section.name, server.name), ServerState(state, limit, target.probes if target.serves else 0)


@lru_cache(maxsize=65536)
def _endpoint(bind: str, tls: bool, h2: bool) -> Endpoint | None:
    with contextlib.suppress(ValueError):
        return Endpoint.of_server(bind, tls, h2) if bind else None
    return None


@lru_cache(maxsize=65536)
def _endpoint_of_url(url: str) -> Endpoint | None:
    with contextlib.suppress(ValueError):
        return Endpoint.of_url(url)
    return None


class _NeedsReplacement(Exception):
    """Runtime commands do not suffice."""


def change(old: HaproxySetup, new: HaproxySetup) -> tuple[list[str], HaproxySetup] | None:
    """The runtime commands that change one setup into the other, and the resulting setup; None if they do not suffice.

    At run time servers are added and removed, and change their state, weight and address.
    """
    if old.structure != new.structure:
        return None
    commands: list[str] = []
    for name, entries in new.maps.items():
        commands += _map_commands(name, old.maps[name], entries)
    unused = dict(old.left)
    try:
        for before, after in zip(old.configuration.backends, new.configuration.backends, strict=True):
            if before.servers != after.servers:
                commands += _backend_commands(before, after, unused)
    except _NeedsReplacement:
        return None
    if len(unused) > _MAX_LEFT:
        return None
    for place, state in new.states.items():
        # Added servers are in maintenance, as are those that were left.
        old_state = old.states.get(place, ServerState(MAINTENANCE, state.limit))
        if old_state is not state and old_state != state:
            commands += state.commands(place)
    # Enable servers before disabling others, so that one always serves.
    stopping = (f" state {MAINTENANCE}", f" state {DRAIN}")
    return sorted(commands, key=lambda command: command.endswith(stopping)), new._replace(left=unused)


def _map_commands(name: str, before: Mapping[str, str], after: Mapping[str, str]) -> Iterator[str]:
    for key, value in after.items():
        if before.get(key) != value:
            yield f"set map {name} {key} {value}"


def _backend_commands(
    before: HaproxyBackend, after: HaproxyBackend, left: dict[tuple[str, str], HaproxyServer]
) -> Iterator[str]:
    """Yield the commands that change the servers; adds to `left` those that remain unused. Raises _NeedsReplacement."""
    old, new = ({server.name: server for server in backend.servers} for backend in (before, after))
    if old.keys() != new.keys() and any(line.startswith(_FIXED) for line in after.lines):
        raise _NeedsReplacement
    for name, server in old.items():
        if name not in new:
            left[after.name, name] = server
            yield f"set server {after.name}/{name} state {MAINTENANCE}"
    for name, server in new.items():
        place = f"{after.name}/{name}"
        if (previous := old.get(name) or left.pop((after.name, name), None)) is not None:
            yield from _server_commands(place, previous, server)
            continue
        command = f"add server {place} {server.address} {server.arguments}".rstrip()
        if "'" in command:  # the runtime socket does not support quotes
            raise _NeedsReplacement
        yield command
        if PASSIVE_CHECK in server.options:
            yield f"enable health {place}"


def _server_commands(place: str, before: HaproxyServer, after: HaproxyServer) -> Iterator[str]:
    if (before.key, before.options, before.cookie) != (after.key, after.options, after.cookie):
        raise _NeedsReplacement
    if before.weight != after.weight:
        yield f"set server {place} weight {after.weight}"
    if before.address != after.address:
        if not (_is_ip_address(before.address) and _is_ip_address(after.address)):
            raise _NeedsReplacement  # the path of a socket cannot be set at run time
        host, _, port = after.address.rpartition("@")[2].rpartition(":")
        yield f"set server {place} addr {host} port {port}"
