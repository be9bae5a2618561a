"""HAProxy's setup, made of everything that the supervisor has sent."""

from __future__ import annotations

import os
import socket
from collections.abc import Collection, Mapping, Sequence
from typing import NamedTuple

from ...json_form import Table
from ...routing.route import Route, StreamRoute
from ..backends import Backends
from ..endpoint import Endpoint, ServerFacts
from ..settings import GatewaySettings, ListenerSettings
from .haproxy_changes import DRAIN, MAINTENANCE, READY, HaproxySetup
from .haproxy_configuration import configuration_of
from .haproxy_parts import HaproxyCertificate, HaproxyConfiguration, HaproxyListener


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
    """As the gateway chooses among backends: ready ones, then starting ones, and sleeping ones are woken last."""
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
