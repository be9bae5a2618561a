"""Validates the configuration by `haproxy -c`, and maps its alerts to keys of the pool's file.

An alert names a line of HAProxy's file. The comment above that line has the key (see `syntax.comment`), and the section
identifies the table.
"""

from __future__ import annotations

import os
import re
import subprocess
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace

from poolctl.config.model.pool_tables import Located, Tables
from poolctl.config.model.server_keys import ServerConfig
from poolctl.config.values.problems import Finding, KeyPath
from poolctl.routing.context import KEY_CHARACTERS, without_keys
from poolctl.routing.route import Route, StreamRoute

from .haproxy.configuration import HaproxyConfiguration, ServerAddresses, configuration_of
from .haproxy.listeners import HaproxyCertificate, HaproxyListener
from .haproxy.syntax import alerts_in
from .program import program_path, program_problem
from .route_checks import locate_finding
from .routes import ServerIndex, routes_of, written_routes
from .settings import Endpoint, settings_of
from .table import GatewayConfig, GatewayListener, StreamConfig

_FILE = "haproxy.cfg"
_CHECK_SECONDS = 15.0
_SHOWN_CHARACTERS = 300
# HAProxy does not open addresses while it checks a file, but it would look at descriptors, which do not exist yet.
_ANY_ADDRESS = "127.0.0.1:1"
_ALERT_LINE = re.compile(r"\[[^][]*haproxy\.cfg:(\d+)\]")
_BIND = re.compile(rf" for bind '{_ANY_ADDRESS}' at|'bind {_ANY_ADDRESS}' in section '\w+' : ")
_COMMENT = re.compile(r"    # ([a-z_]+)(?:\.(\S+))?$")
# Alerts that follow from others.
_CONSEQUENTIAL_ALERT = re.compile(r"(Error\(s\)|Fatal errors) found|Failed to initialize|.* no such ACL ")
_CERTIFICATE = "any.pem"
# Stands for all certificates, which have checks of their own: HAProxy checks TLS options only with a certificate.
_PEM = {
    "CERTIFICATE": (
        "MIIBEzCBuwIUaIny1ebfiXlPrPD5PQAyifnJIokwCgYIKoZIzj0EAwIwDDEKMAgGA1UEAwwBeDAgFw0yNjExMjgxNzQyMDBaGA8y"
        "MTI2MTEwNDE3NDIwMFowDDEKMAgGA1UEAwwBeDBZMBMGByqGSM49AgEGCCqGSM49AwEHA0IABPYSkXDu2N32WOTZpyP0UnSnF0aP"
        "lhDDbFPdwBVRAaE5n/jQMXtGx60oL+8DjE67iXqZf1oKVc6oppErGGAqBo4wCgYIKoZIzj0EAwIDRwAwRAIgTWoXFChNYwKFWllx"
        "IZ1xIPk3NOFTBAaZSJ5zvMiRRnQCIHwWujLoozycYdX3RNB/QS6QXlbs1HneG1P7bJZJmt8y"
    ),
    "PRIVATE KEY": (
        "MIGHAgEAMBMGByqGSM49AgEGCCqGSM49AwEHBG0wawIBAQQgxUO4gDo+JLNyxCwm4x4KyYZCv0JL1hkBdU/XiKzwxWOhRANCAAT2"
        "EpFw7tjd9ljk2acj9FJ0pxdGj5YQw2xT3cAVUQGhOZ/40DF7RsetKC/vA4xOu4l6mX9aClXOqKaRKxhgKgaO"
    ),
}


def refusals(servers: Iterable[ServerConfig], tables: Tables) -> Iterator[Located]:
    """Report what HAProxy refuses in the gateway, its routes and its streams. Blocks while HAProxy runs."""
    gateway = tables.get(GatewayConfig)
    if gateway is None or program_problem(program := program_path(gateway.program)):
        return
    servers = list(servers)
    routes = routes_of(servers, tables)
    http = [
        # With a CA file that exists: the configured ones have checks of their own.
        replace(route, to=tuple(replace(target, ca=_CERTIFICATE) for target in route.to))
        for route in routes
        if isinstance(route, Route)
    ]
    streams = [route for route in routes if isinstance(route, StreamRoute)]
    listeners = [_listener(number, table) for number, table in enumerate(gateway.bind)]
    listeners += [
        HaproxyListener((_ANY_ADDRESS,), alias=stream.alias, accept_proxy=stream.accept_proxy)
        for stream in streams
    ]
    listening = [server for server in servers if server.listens]
    addresses = ServerAddresses(
        {server.name: Endpoint.of_server(server.address.key, bool(server.tls)) for server in listening},
        processes={server.name: (_ANY_ADDRESS,) for server in listening if server.is_proxied},
    )
    configuration = configuration_of(
        settings_of(gateway)._replace(user=""),  # the user is checked elsewhere
        listeners or [HaproxyListener((_ANY_ADDRESS,))],  # HAProxy refuses a file without any
        http,
        streams,
        addresses,
        # As long as the keys by which applications recognize the gateway.
        {server.name: "0" * KEY_CHARACTERS for server in servers if not server.command},
    ).with_addresses({})  # without name resolution
    lines, index = configuration.text().split("\n"), ServerIndex(servers)
    reported = set[tuple[object, KeyPath]]()
    for alert in _alerts(program, configuration):
        server, finding = _located(alert, lines, configuration, index, tables)
        if (server, finding.path) not in reported:
            reported.add((server, finding.path))
            yield server, finding


def _alerts(program: str, configuration: HaproxyConfiguration) -> list[str]:
    """HAProxy's alerts about this configuration. Blocks."""
    texts = {_FILE: configuration.text(), **configuration.all_files}
    texts[_CERTIFICATE] = "".join(
        f"-----BEGIN {kind}-----\n{text}\n-----END {kind}-----\n" for kind, text in _PEM.items()
    )
    try:
        with tempfile.TemporaryDirectory(prefix="poolctl-check-") as directory:
            for name, text in texts.items():
                with open(os.path.join(directory, name), "wb") as file:
                    file.write(text.encode(errors="surrogateescape"))
            done = subprocess.run(
                [program, "-c", "-f", os.path.join(directory, _FILE)],
                stdin=subprocess.DEVNULL, capture_output=True, timeout=_CHECK_SECONDS,
            )  # fmt: skip
    except (OSError, subprocess.SubprocessError):
        return []  # then HAProxy reports what it refuses when it starts
    if not done.returncode:
        return []
    output = (done.stderr + done.stdout).decode("utf-8", "replace")
    alerts = [alert.removeprefix("config : ") for alert in alerts_in(without_keys(output))]
    return [alert for alert in dict.fromkeys(alerts) if not _CONSEQUENTIAL_ALERT.match(alert)] or [
        f"it exits with {done.returncode}: {' '.join(output.split())[-200:]}"
    ]


def _located(
    alert: str,
    lines: Sequence[str],
    configuration: HaproxyConfiguration,
    servers: ServerIndex,
    tables: Tables,
) -> Located:
    """The finding about the key behind the line that the alert names."""
    place = _ALERT_LINE.search(alert)
    number = int(place[1]) - 1 if place is not None else 0
    start = next((line for line in range(number, -1, -1) if lines[line][:1].strip()), 0)
    words = lines[start].split()
    section = configuration.sections.get(words[1]) if len(words) > 1 else None
    comments = (_COMMENT.match(line) for line in reversed(lines[start : number + 1]))
    key = next(filter(None, comments), None)
    path: KeyPath = () if key is None else tuple(filter(None, key.groups()))
    if section is None:
        return None, _finding(("gateway", *path), alert)
    if section.is_stream:
        stream = next((table for table in tables.all(StreamConfig) if table.label == section.alias), None)
        if stream is None:  # the port of a proxied server
            return servers.by_name[section.alias], _finding(("name",), alert)
        return None, _finding(("stream", stream.index, *path), alert)
    routes = written_routes(servers, tables)
    written = next(route for route in routes if route.alias == section.alias and route.config)
    return locate_finding(written, _finding(path, alert))


def _finding(path: KeyPath, alert: str) -> Finding:
    """The alert as the problem of this key, without places in HAProxy's file, which is temporary."""
    text = re.sub(r"(parsing )?\[[^][]*:\d+\]\s*:?\s*", "", alert)
    text = _BIND.sub("", text).strip(" .")
    shown = text[:_SHOWN_CHARACTERS] + ("…" if len(text) > _SHOWN_CHARACTERS else "")
    message = f"HAProxy does not accept it: {shown if shown.isprintable() else repr(shown)}"
    return Finding(path, message, "write another value, or take it out")


def _listener(number: int, table: GatewayListener) -> HaproxyListener:
    certificates = () if isinstance(table.tls, bool) else table.tls
    return HaproxyListener(
        (_ANY_ADDRESS,),
        crt_list=f"listener-{number}.crt-list",
        certificates=tuple(HaproxyCertificate.of(tls, _CERTIFICATE, _CERTIFICATE) for tls in certificates),
        accept_proxy=table.accept_proxy_protocol,
        passes_tls=table.tls is True,
    )
