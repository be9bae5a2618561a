"""`poolctl export haproxy`: files with which HAProxy serves the routes of a pool instead of its gateway."""

from __future__ import annotations

import os
import shlex
from collections.abc import Iterator
from dataclasses import replace

from poolctl.address import parse
from poolctl.cli.commands.export import Files, Wanted, refuse_systemd_options
from poolctl.cli.offline import load
from poolctl.cli.outcome import Failure, Outcome
from poolctl.cli.place import Place
from poolctl.cli.pool_ref import find_pool
from poolctl.config import Configuration, Finding, TLSConfig, certificate_names, read_regular_truncated
from poolctl.config.model.pool_tables import Located
from poolctl.exit_codes import FAILED
from poolctl.routing.route import FILE, Route, StreamRoute

from .haproxy.configuration import ServerAddresses, configuration_of
from .haproxy.listeners import HaproxyCertificate, HaproxyListener
from .program import program_path
from .route_checks import locate_finding
from .routes import ServerIndex, routes_of, written_routes
from .settings import H2, Endpoint, settings_of
from .table import GatewayConfig, GatewayListener, StreamConfig

_MADE_BY = "Made by `poolctl export haproxy`."
_FILE_NAME = "haproxy.cfg"
# Keys of routes that need a running supervisor.
_OF_RUNNING_POOL = {
    "waiting_page": "HAProxy alone does not know which servers sleep",
    "probe_responses": "HAProxy alone does not know which servers sleep",
    "register": "services register with the pool's own gateway",
}


def files(place: Place, wanted: Wanted) -> Files:
    """The files for the pool's routes, and a warning for each key without effect in them."""
    refuse_systemd_options(wanted)
    config = load(find_pool(place), allow_empty=True, env_files=False)
    gateway, routes = config.tables.get(GatewayConfig), routes_of(config, config.tables)
    if gateway is None:
        raise _failure("the pool has no gateway: add [gateway] or a [[route]] to its file")
    http = [
        replace(route, waiting_page=False, probe_responses=()) for route in routes if isinstance(route, Route)
    ]
    streams = [route for route in routes if isinstance(route, StreamRoute) and route.provider == FILE]
    listeners, commands = [], []
    directory = str(wanted.into or "")
    for number, table in enumerate(gateway.bind, 1):
        listener, bundles = _listener_with_shell_commands(table, f"listener-{number}", directory)
        listeners.append(listener)
        commands += bundles
    binds = {table.label: _haproxy_bind(table) for table in config.tables.all(StreamConfig)}
    listeners += [
        HaproxyListener((binds[stream.alias],), alias=stream.alias, accept_proxy=stream.accept_proxy)
        for stream in streams
    ]
    servers = [server for server in config if server.listens]
    endpoints = {
        server.name: Endpoint.of_server(server.address.key, bool(server.tls), server.backend_protocol == H2)
        for server in servers
    }
    configuration = configuration_of(
        settings_of(gateway), listeners, http, streams, ServerAddresses(endpoints)
    )
    warnings = [str(finding) for finding in config.located(_not_exported(config))]
    if commands and not directory:
        warnings.append(f"the certificates need files beside {_FILE_NAME}: {'; '.join(commands)}")
    used = {server.key for backend in configuration.backends for server in backend.servers}
    warnings += [
        f"{server.name} has no address that HAProxy can know: its port is chosen when it starts; give it a port"
        for server in servers
        if server.name in used and (server.address.auto or server.address.kind == "fd")
    ]
    commands.append(
        shlex.join([program_path(gateway.program), "-c", "-f", os.path.join(directory, _FILE_NAME)])
    )
    texts = {_FILE_NAME: configuration.text(), **configuration.all_files}
    return Files(
        texts={name: f"# {_MADE_BY}\n{text}" for name, text in texts.items()},
        made_by=_MADE_BY,
        next_commands=" && ".join(commands),
        warnings=warnings,
    )


def _not_exported(config: Configuration) -> Iterator[Located]:
    for written in written_routes(ServerIndex(config), config.tables):
        for key, reason in _OF_RUNNING_POOL.items():
            if written.config and getattr(written.config, key):
                yield locate_finding(written, Finding((key,), reason))


def _failure(message: str) -> Failure:
    return Failure(Outcome.failed(FAILED, message))


def _listener_with_shell_commands(
    listener: GatewayListener, name: str, directory: str
) -> tuple[HaproxyListener, list[str]]:
    """Return the listener in HAProxy's syntax, and the shell commands that create its files in `directory`."""
    commands, certificates = [], []
    tables: tuple[TLSConfig, ...] = () if isinstance(listener.tls, bool) else listener.tls
    demands = any(table.client_auth != "none" for table in tables)
    for number, tls in enumerate(tables, 1):
        file = tls.cert
        if tls.password_env or (tls.key is not None and tls.key != tls.cert):
            file = f"{name}-{number}.pem"
            commands.append(_bundle_command(tls, os.path.join(directory, file)))
        names: tuple[str, ...] = ()
        if demands:
            try:
                names = tuple(certificate_names(read_regular_truncated(tls.cert).decode("ascii", "replace")))
            except OSError as error:
                why = f"cannot read {tls.cert}: {error.strerror or error}: its names are needed"
                raise _failure(why) from error
        certificates.append(HaproxyCertificate.of(tls, file, tls.ca or "", names))
    return HaproxyListener(
        (_haproxy_bind(listener),),
        crt_list=f"{name}.crt-list",
        certificates=tuple(certificates),
        accept_proxy=listener.accept_proxy_protocol,
        passes_tls=listener.tls is True,
    ), commands


def _bundle_command(tls: TLSConfig, path: str) -> str:
    """The shell command that writes certificate and decrypted key into one private file."""
    key = shlex.quote(tls.key or tls.cert)
    of_key = f"openssl pkey -in {key} -passin env:{tls.password_env}" if tls.password_env else f"cat {key}"
    of_certificate = f"sed '/PRIVATE KEY/,/PRIVATE KEY/d' {shlex.quote(tls.cert)}"
    return f"(umask 077; {{ {of_certificate}; echo; {of_key}; }} > {shlex.quote(path)})"


def _haproxy_bind(table: GatewayListener | StreamConfig) -> str:
    """The address in HAProxy's syntax; for a Unix socket with mode and owner."""
    address = parse(table.bind)
    if address.kind == "unix":
        user, _, group = (table.owner or "").partition(":")
        words = (
            f"unix@{address.path}",
            f"mode {table.mode}",
            user and f"user {user}",
            group and f"group {group}",
        )
        return " ".join(filter(None, words))
    return f"{'ipv6@' if address.is_ipv6 else ''}{address.host}:{address.port}"
