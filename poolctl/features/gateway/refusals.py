"""Finds what HAProxy refuses in a configuration before anything is started: `haproxy -c`, and the keys that it means.

HAProxy names a line of its own file. The key is that of the comment above the line (see `syntax.comment`), in the table
from which the section is made.
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
# HAProxy opens no address while it checks a file; descriptors, which it would look at, do not exist yet.
_ANY_ADDRESS = "127.0.0.1:1"
_PLACE = re.compile(r"\[[^][]*haproxy\.cfg:(\d+)\]")
_COMMENT = re.compile(r"    # ([a-z_]+)(?:\.(\S+))?$")
# Alerts that follow from others.
_SUMMARY = re.compile(r"(Error\(s\)|Fatal errors) found|Failed to initialize|.* no such ACL ")
_CERTIFICATE = "any.pem"
# Stands for all certificates, which have checks of their own: HAProxy cannot check the options of TLS without one.
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
        # With a CA file that exists: those of targets have checks of their own.
        replace(route, to=tuple(replace(each, ca=_CERTIFICATE) for each in route.to))
        for route in routes
        if isinstance(route, Route)
    ]
    streams = [route for route in routes if isinstance(route, StreamRoute)]
    listeners = [_listener(number, each) for number, each in enumerate(gateway.bind)]
    listeners += [
        HaproxyListener((_ANY_ADDRESS,), alias=stream.alias, accept_proxy=stream.accept_proxy)
        for stream in streams
    ]
    made = configuration_of(
        settings_of(gateway)._replace(user=""),  # who has checks of its own
        listeners or [HaproxyListener((_ANY_ADDRESS,))],  # HAProxy refuses to have none
        http,
        streams,
        _addresses(servers),
        _keys(servers),
    ).with_addresses({})  # an address that is not known needs no name service
    lines, known = made.text().split("\n"), ServerIndex(servers)
    found = set[tuple[object, KeyPath]]()
    for alert in _alerts(program, made):
        server, finding = _located(alert, lines, made, known, tables)
        if (server, finding.path) not in found:
            found.add((server, finding.path))
            yield server, finding


def _alerts(program: str, made: HaproxyConfiguration) -> list[str]:
    """HAProxy's alerts about this configuration. Blocks."""
    texts = {_FILE: made.text(), **made.all_files}
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
        return []  # without a check, or room for it, HAProxy says at its start what it refuses
    if not done.returncode:
        return []
    output = (done.stderr + done.stdout).decode("utf-8", "replace")
    alerts = [each.removeprefix("config : ") for each in alerts_in(without_keys(output))]
    return [alert for alert in dict.fromkeys(alerts) if not _SUMMARY.match(alert)] or [
        f"it exits with {done.returncode}: {' '.join(output.split())[-200:]}"
    ]


def _located(
    alert: str, lines: Sequence[str], made: HaproxyConfiguration, known: ServerIndex, tables: Tables
) -> Located:
    """The finding about the key from which the line is made that the alert names."""
    place = _PLACE.search(alert)
    number = int(place[1]) - 1 if place is not None else 0
    start = next((each for each in range(number, -1, -1) if lines[each][:1].strip()), 0)
    words = lines[start].split()
    section = made.sections.get(words[1]) if len(words) > 1 else None
    comments = (_COMMENT.match(line) for line in reversed(lines[start : number + 1]))
    key = next(filter(None, comments), None)
    path: KeyPath = () if key is None else tuple(filter(None, key.groups()))
    if section is None:
        return None, _finding(("gateway", *path), alert)
    if section.is_stream:
        stream = next((each for each in tables.all(StreamConfig) if each.label == section.alias), None)
        if stream is None:  # the port of a proxied server
            return known.by_name[section.alias], _finding(("name",), alert)
        return None, _finding(("stream", stream.index, *path), alert)
    written = written_routes(known, tables)
    route = next(each for each in written if each.alias == section.alias and each.config)
    return locate_finding(route, _finding(path, alert))


def _finding(path: KeyPath, alert: str) -> Finding:
    """The problem of this key."""
    said = _without_place(alert)
    shown = said[:_SHOWN_CHARACTERS] + ("…" if len(said) > _SHOWN_CHARACTERS else "")
    message = f"HAProxy does not accept it: {shown if shown.isprintable() else repr(shown)}"
    return Finding(path, message, "write another value, or take it out")


def _without_place(alert: str) -> str:
    """The alert without places in HAProxy's file, which nobody keeps and which other lines change."""
    text = re.sub(r"(parsing )?\[[^][]*:\d+\]\s*:?\s*", "", alert)
    return re.sub(
        rf" for bind '{_ANY_ADDRESS}' at|'bind {_ANY_ADDRESS}' in section '\w+' : ", "", text
    ).strip(" .")


def _listener(number: int, table: GatewayListener) -> HaproxyListener:
    certificates = () if isinstance(table.tls, bool) else table.tls
    return HaproxyListener(
        (_ANY_ADDRESS,),
        crt_list=f"listener-{number}.crt-list",
        certificates=tuple(HaproxyCertificate.of(tls, _CERTIFICATE, _CERTIFICATE) for tls in certificates),
        accept_proxy=table.accept_proxy_protocol,
        passes_tls=table.tls is True,
    )


def _addresses(servers: Iterable[ServerConfig]) -> ServerAddresses:
    listening = [server for server in servers if server.listens]
    return ServerAddresses(
        {each.name: Endpoint.of_server(each.address.key, bool(each.tls)) for each in listening},
        processes={each.name: (_ANY_ADDRESS,) for each in listening if each.is_proxied},
    )


def _keys(servers: Iterable[ServerConfig]) -> dict[str, str]:
    """Keys as long as those by which applications recognize requests of the gateway."""
    return {server.name: "0" * KEY_CHARACTERS for server in servers if not server.command}
