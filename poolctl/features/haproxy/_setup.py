"""HAProxy's setup, made of everything that the supervisor has sent, and the steps from one setup to the next."""

from __future__ import annotations

import os
import socket
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import NamedTuple

from poolctl.features.gateway.process.backends.backends import Backends
from poolctl.features.gateway.process.settings import Endpoint, GatewaySettings, ListenerSettings, ServerFacts
from poolctl.json_form import Table
from poolctl.routing.route import Route, StreamRoute

from ._configuration import (
    HaproxyBackend,
    HaproxyCertificate,
    HaproxyConfiguration,
    HaproxyListener,
    HaproxyServer,
    configuration_of,
)

READY, DRAIN, MAINTENANCE = "ready", "drain", "maint"
# Options of servers that cannot be added at run time: the program knows no cookie for them, nor a place.
_FIXED = ("    cookie ", "    balance first")


class HaproxySetup(NamedTuple):
    """A configuration with its sockets and files.

    `states` are the states of the servers, by the names of backend and server; `bundles` are the contents of
    certificates with their keys, and `authorities` the contents of files with CA certificates, by the names of their
    files. `descriptors` are the sockets that its binds name, each with its inode, as a number may come to stand for
    another socket.
    """

    configuration: HaproxyConfiguration
    states: Mapping[tuple[str, str], str]
    bundles: Mapping[str, bytes]
    authorities: Mapping[str, bytes]
    descriptors: tuple[tuple[int, int], ...]

    @property
    def text(self) -> str:
        """The main configuration file, in which servers that are not ready get no traffic."""
        return self.configuration.text(place for place, state in self.states.items() if state != READY)

    @property
    def numbers(self) -> list[int]:
        """The numbers of the descriptors that the binds name."""
        return [number for number, _ in self.descriptors]

    def drained(self) -> list[str]:
        """The commands to send after a start with this text."""
        return [_state(place, state) for place, state in self.states.items() if state == DRAIN]


class HeldListener(NamedTuple):
    """A listener with its sockets; a stream's has its route."""

    settings: ListenerSettings
    route: StreamRoute | None
    sockets: list[socket.socket]


class HeldCertificate(NamedTuple):
    """A certificate as the supervisor read it: the files with certificate, key, and perhaps CA certificates."""

    tls: Table
    contents: list[bytes]


def setup_of(
    settings: GatewaySettings,
    held: Sequence[HeldListener],
    certificates: Mapping[tuple[str, tuple[str, ...]], HeldCertificate],
    routes: Sequence[Route],
    servers: Mapping[str, ServerFacts],
    backends: Backends,
    withdrawn: Collection[str],
) -> HaproxySetup:
    """The setup; `withdrawn` servers get no further requests. Certificates are by address and names."""
    bundles: dict[str, bytes] = {}
    authorities: dict[str, bytes] = {}
    listeners = []
    for each in held:
        of_listener = [
            (names, kept) for (bind, names), kept in certificates.items() if bind == each.settings.bind
        ]
        listeners.append(_listener(each, of_listener, bundles, authorities))
    streams = [each.route for each in held if each.route is not None]
    endpoints = {name: _endpoint(facts) for name, facts in servers.items()}
    made = configuration_of(settings, listeners, routes, streams, endpoints)
    states = _states(made, routes, streams, backends, withdrawn)
    numbers = [sock.fileno() for each in held for sock in each.sockets]
    descriptors = tuple((number, os.fstat(number).st_ino) for number in numbers)
    return HaproxySetup(made, states, bundles, authorities, descriptors)


def _listener(
    held: HeldListener,
    certificates: Sequence[tuple[tuple[str, ...], HeldCertificate]],
    bundles: dict[str, bytes],
    authorities: dict[str, bytes],
) -> HaproxyListener:
    """The listener, whose files are added to the others."""
    found = []
    for names, (tls, (cert, key, *rest)) in certificates:
        name = f"certificate-{len(bundles) + 1}.pem"
        bundles[name] = cert if key == cert else cert.rstrip(b"\n") + b"\n" + key
        ca = f"{name}.ca" if rest else ""
        authorities.update({ca: rest[0]} if rest else {})
        found.append(
            HaproxyCertificate(name, ca, tls["client_auth"], tls["min_version"], tls["ciphers"] or "", names)
        )
    numbers = [sock.fileno() for sock in held.sockets]
    binds = tuple(f"fd@{number}" for number in numbers)
    crt_list = f"listener-{numbers[0]}.crt-list"
    return HaproxyListener(binds, held.settings.alias, crt_list, tuple(found), held.settings.accept_proxy)


def _states(
    configuration: HaproxyConfiguration,
    routes: Sequence[Route],
    streams: Sequence[StreamRoute],
    backends: Backends,
    withdrawn: Collection[str],
) -> Mapping[tuple[str, str], str]:
    """The state of each server: only the most preferred ones get traffic (ready, else starting, else sleeping)."""
    known: dict[tuple[bool, str], Route | StreamRoute] = {(False, each.alias): each for each in routes}
    known |= {(True, each.alias): each for each in streams}
    states = {}
    for section in configuration.backends:
        members = backends.of(known[section.is_stream, section.alias]).members
        usable = {
            each.key: each.backend
            for each in members
            if each.backend.blocked is None and each.key not in withdrawn
        }
        best = min((backend.rank for backend in usable.values()), default=0)
        draining = {each.key for each in members if each.backend.draining and each.key not in withdrawn}
        for server in section.servers:
            backend = usable.get(server.key)
            state = READY if backend is not None and backend.rank == best else MAINTENANCE
            states[section.name, server.name] = DRAIN if server.key in draining else state
    return states


def _endpoint(facts: ServerFacts) -> Endpoint:
    try:
        return Endpoint.of_server(facts.bind, facts.tls)
    except ValueError:
        return Endpoint("none")


def changes(before: HaproxySetup, after: HaproxySetup) -> list[str] | None:
    """The commands that lead from one setup to the other; None if the program has to be started again for it."""
    old, new = before.configuration, after.configuration
    if (old.lines, old.files, before.descriptors, before.authorities, before.bundles.keys()) != (
        new.lines, new.files, after.descriptors, after.authorities, after.bundles.keys()
    ):  # fmt: skip
        return None
    if [each.but_servers for each in old.backends] != [each.but_servers for each in new.backends]:
        return None
    commands: list[str] = []
    for name, content in after.bundles.items():
        if before.bundles[name] != content:
            commands += _renewed(name, content)
    added: set[tuple[str, str]] = set()
    for former, backend in zip(old.backends, new.backends, strict=True):
        found = _server_changes(former, backend)
        if found is None:
            return None
        commands += found
        names = {each.name for each in former.servers}
        added |= {(backend.name, each.name) for each in backend.servers if each.name not in names}
    for place, state in after.states.items():
        known = MAINTENANCE if place in added else before.states.get(place)
        if known != state:
            commands.append(_state(place, state))
    return commands


def _server_changes(before: HaproxyBackend, after: HaproxyBackend) -> list[str] | None:
    old, new = ({each.name: each for each in backend.servers} for backend in (before, after))
    if old.keys() != new.keys() and any(line.startswith(_FIXED) for line in after.lines):
        return None
    commands: list[str] = []
    for name, server in old.items():
        place = f"{after.name}/{name}"
        if name not in new:
            commands += [f"set server {place} state {MAINTENANCE}", f"del server {place}"]
            continue
        found = [*_differences(place, server, new[name])]
        if None in found:
            return None
        commands += filter(None, found)
    for name, server in new.items():
        if name not in old:
            place = f"{after.name}/{name}"
            commands.append(f"add server {place} {server.address} {server.arguments}".rstrip())
            commands += [f"enable health {place}"] if "check " in server.options else []
    return commands


def _differences(place: str, before: HaproxyServer, after: HaproxyServer) -> Iterator[str | None]:
    if (before.key, before.options, before.cookie) != (after.key, after.options, after.cookie):
        yield None
    if before.weight != after.weight:
        yield f"set weight {place} {after.weight}"
    if before.address != after.address:
        host, _, port = after.address.rpartition(":")
        host = host.rpartition("@")[2]
        # Neither sockets nor names to be resolved.
        if "unix@" in before.address + after.address or host.strip("0123456789abcdef.:"):
            yield None
        yield f"set server {place} addr {host} port {port}"


def _state(place: tuple[str, str], state: str) -> str:
    return f"set server {'/'.join(place)} state {state}"


def _renewed(name: str, content: bytes) -> list[str]:
    # An empty line ends the payload of a command.
    lines = "\n".join(line for line in content.decode("ascii", "replace").splitlines() if line.strip())
    return [f"set ssl cert {name} <<\n{lines}\n", f"commit ssl cert {name}"]
