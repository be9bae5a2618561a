"""`poolctl export haproxy`: files with which HAProxy serves the routes of a pool instead of its gateway."""

from __future__ import annotations

import os
import shlex

from poolctl.address import parse
from poolctl.cli.command_line import CommandRequest
from poolctl.cli.commands.export import Files, refuse_systemd_options
from poolctl.cli.offline import load
from poolctl.cli.outcome import Failure, Outcome
from poolctl.cli.pool_ref import find_pool
from poolctl.config import TLSConfig, certificate_names, read_regular_truncated
from poolctl.exit_codes import FAILED
from poolctl.features.gateway.process.settings import Endpoint
from poolctl.features.gateway.routes import routes_of
from poolctl.features.gateway.supervision.gateway_plan import settings_of
from poolctl.features.gateway.table import GatewayConfig, GatewayListener, StreamConfig
from poolctl.routing.route import Route, StreamRoute

from ._configuration import configuration_of
from ._listeners import HaproxyCertificate, HaproxyListener
from .engine import haproxy_problems

_MADE_BY = "Made by `poolctl export haproxy`."
_FILE_NAME = "haproxy.cfg"


def files(request: CommandRequest) -> Files:
    """The files for the pool's routes, and a warning for each feature that HAProxy does not support."""
    refuse_systemd_options(request)
    config = load(find_pool(request), allow_empty=True)
    gateway, routes = config.tables.get(GatewayConfig), routes_of(config, config.tables)
    if gateway is None:
        raise _failure("the pool has no gateway: add [gateway] or a [[route]] to its file")
    streams = [each for each in routes if isinstance(each, StreamRoute) and each.protocol == "tcp"]
    listeners, commands = [], []
    directory = request.get("into") or ""
    for number, each in enumerate(gateway.bind, 1):
        listener, bundles = _listener_with_shell_commands(each, f"listener-{number}", directory)
        listeners.append(listener)
        commands += bundles
    tables = {each.label: each for each in config.tables.all(StreamConfig)}
    listeners += [
        HaproxyListener(
            (_haproxy_bind(tables[each.alias]),), alias=each.alias, accept_proxy=each.accept_proxy
        )
        for each in streams
    ]
    servers = {each.name: each for each in config if each.listens}
    configuration = configuration_of(
        settings_of(gateway),
        listeners,
        [each for each in routes if isinstance(each, Route)],
        streams,
        {name: Endpoint.of_server(each.address.key, bool(each.tls)) for name, each in servers.items()},
        [name for name, each in servers.items() if each.app is not None],
    )
    warnings = [str(each) for each in config.located(haproxy_problems(config, config.tables))]
    if commands and not directory:
        warnings.append(f"the certificates need files beside {_FILE_NAME}: {'; '.join(commands)}")
    used = {server.key for backend in configuration.backends for server in backend.servers}
    warnings += [
        f"{name} has no address that HAProxy can know: its port is chosen when it starts; give it a port"
        for name, each in servers.items()
        if name in used and (each.address.auto or each.address.kind == "fd")
    ]
    commands.append(f"haproxy -c -f {shlex.quote(os.path.join(directory, _FILE_NAME))}")
    texts = {_FILE_NAME: configuration.text(), **configuration.files}
    return Files(
        texts={name: f"# {_MADE_BY}\n{text}" for name, text in texts.items()},
        made_by=_MADE_BY,
        next_commands=" && ".join(commands),
        warnings=warnings,
    )


def _failure(message: str) -> Failure:
    return Failure(Outcome.failed(FAILED, message))


def _listener_with_shell_commands(
    listener: GatewayListener, name: str, directory: str
) -> tuple[HaproxyListener, list[str]]:
    """Return the listener in HAProxy's syntax, and the shell commands that create its files in `directory`."""
    commands, certificates = [], []
    tables: tuple[TLSConfig, ...] = () if isinstance(listener.tls, bool) else listener.tls
    demands = any(each.client_auth != "none" for each in tables)
    for number, tls in enumerate(tables, 1):
        file = tls.cert
        if tls.key is not None and tls.key != tls.cert:
            file = f"{name}-{number}.pem"
            path = os.path.join(directory, file)
            cert, key = shlex.quote(tls.cert), shlex.quote(tls.key)
            parts = f"{{ cat {cert}; openssl pkey -in {key}; }}" if tls.password_env else f"cat {cert} {key}"
            commands.append(f"{parts} > {shlex.quote(path)}")
        certificates.append(
            HaproxyCertificate(
                file,
                tls.ca or "",
                tls.client_auth,
                tls.min_version,
                tls.ciphers or "",
                _read_certificate_names(tls.cert) if demands else (),
            )
        )
    made = HaproxyListener(
        (_haproxy_bind(listener),),
        crt_list=f"{name}.crt-list",
        certificates=tuple(certificates),
        accept_proxy=listener.accept_proxy_protocol,
        passes_tls=listener.tls is True,
    )
    return made, commands


def _read_certificate_names(path: str) -> tuple[str, ...]:
    try:
        return tuple(certificate_names(read_regular_truncated(path).decode("ascii", "replace")))
    except OSError as error:
        raise _failure(f"cannot read {path}: {error.strerror or error}: its names are needed") from error


def _haproxy_bind(table: GatewayListener | StreamConfig) -> str:
    """The address in HAProxy's syntax, for a Unix socket with the mode and the owner of its file."""
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
