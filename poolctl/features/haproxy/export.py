"""Generates HAProxy files that serve the routes of a pool instead of its own gateway."""

from __future__ import annotations

import os
import shlex
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from poolctl.address import parse
from poolctl.cli.command_line import CommandRequest
from poolctl.cli.commands.export import Files, without_options_of_systemd
from poolctl.cli.offline import load
from poolctl.cli.outcome import Failure, Outcome
from poolctl.cli.pool_ref import find_pool
from poolctl.config import (
    Configuration,
    GatewayListener,
    ServerConfig,
    TLSConfig,
    certificate_names,
    read_regular,
    routes_of,
)
from poolctl.exit_codes import FAILED
from poolctl.gateway.endpoint import Endpoint
from poolctl.routing.route import Route, StreamRoute
from poolctl.supervisor.gateway.gateway_plan import settings_of

from ._configuration import HaproxyCertificate, HaproxyListener, configuration_of
from .engine import haproxy_problems

_MADE_BY = "Made by `poolctl export haproxy`."
_FILE_NAME = "haproxy.cfg"


def files(request: CommandRequest) -> Files:
    """The files for the routes of the pool, and warnings of everything that HAProxy does otherwise."""
    without_options_of_systemd(request)
    config = load(find_pool(request), allow_empty=True)
    try:
        texts, bundles, unaddressed = _files_of(config)
    except ValueError as wrong:
        raise Failure(Outcome.failed(FAILED, str(wrong))) from None
    warnings = [str(each) for each in config.located(haproxy_problems(config, config.tables))]
    if bundles and not request.get("into"):
        warnings.append(f"the certificates need files of their own: {'; '.join(bundles)}")
    for name in unaddressed:
        message = f"{name} has no address that HAProxy can know: its port is chosen when it starts"
        warnings.append(f"{message}; give it a port")
    check = f"haproxy -c -f {os.path.join(request.get('into') or '', _FILE_NAME)}"
    commands = " && ".join([*bundles, check])
    return Files(texts=texts, made_by=_MADE_BY, next_commands=commands, warnings=warnings)


class _Files(NamedTuple):
    """The texts by file name, the commands that create the other files, and servers without an address."""

    texts: Mapping[str, str]
    bundles: Sequence[str]
    unaddressed: Sequence[str]


def _files_of(config: Configuration) -> _Files:
    """The files for these routes. Raises ValueError without routes, or for a route that HAProxy cannot serve."""
    servers, tables = list(config), config.tables
    gateway, routes = tables.gateway, routes_of(servers, tables)
    if gateway is None:
        raise ValueError("the pool has no gateway: add [gateway] or a [[route]] to its file")
    streams = [each for each in routes if isinstance(each, StreamRoute) and each.protocol == "tcp"]
    listeners, bundles = [], []
    for number, each in enumerate(gateway.bind, 1):
        listener, commands = _listener(each, f"listener-{number}")
        listeners.append(listener)
        bundles += commands
    listeners += [
        HaproxyListener((_bind(each.bind),), alias=each.alias, accept_proxy=each.accept_proxy)
        for each in streams
    ]
    addresses = {each.name: each.address for each in servers if each.listens}
    configuration = configuration_of(
        settings_of(gateway),
        listeners,
        [each for each in routes if isinstance(each, Route)],
        streams,
        {
            name: Endpoint.of_server(address.key, _speaks_tls(name, servers))
            for name, address in addresses.items()
        },
    )
    used = {server.key for backend in configuration.backends for server in backend.servers}
    return _Files(
        {
            _FILE_NAME: f"# {_MADE_BY}\n{configuration.text()}",
            **{name: f"# {_MADE_BY}\n{text}" for name, text in configuration.files.items()},
        },
        bundles,
        [
            name
            for name, address in addresses.items()
            if name in used and (address.auto or address.kind == "fd")
        ],
    )


def _speaks_tls(name: str, servers: Sequence[ServerConfig]) -> bool:
    return any(each.tls for each in servers if each.name == name)


def _listener(listener: GatewayListener, name: str) -> tuple[HaproxyListener, list[str]]:
    """The listener, and the commands that create its certificate files."""
    commands, certificates = [], []
    tables: tuple[TLSConfig, ...] = () if isinstance(listener.tls, bool) else listener.tls
    demands = any(each.client_auth != "none" for each in tables)
    for number, tls in enumerate(tables, 1):
        file = tls.cert
        if tls.key is not None and tls.key != tls.cert:
            file = f"{name}-{number}.pem"
            commands.append(f"cat {shlex.quote(tls.cert)} {shlex.quote(tls.key)} > {file}")
        certificates.append(
            HaproxyCertificate(
                file,
                tls.ca or "",
                tls.client_auth,
                tls.min_version,
                tls.ciphers or "",
                _names(tls.cert) if demands else (),
            )
        )
    bind = _bind(listener.bind)
    made = HaproxyListener(
        (bind,),
        crt_list=f"{name}.crt-list",
        certificates=tuple(certificates),
        accept_proxy=listener.accept_proxy_protocol,
    )
    return made, commands


def _names(path: str) -> tuple[str, ...]:
    try:
        return tuple(certificate_names(read_regular(path).decode("ascii", "replace")))
    except OSError as error:
        raise ValueError(f"cannot read {path}: {error.strerror or error}: its names are needed") from error


def _bind(text: str) -> str:
    address = parse(text)
    if address.kind == "unix":
        return f"unix@{address.path}"
    if address.kind != "tcp" or address.port is None:
        raise ValueError(f"HAProxy cannot listen on {text}: write an address with a port")
    return f"{'ipv6@' if address.is_ipv6 else ''}{address.host}:{address.port}"
