"""Finds what HAProxy refuses in a configuration before anything is started: `haproxy -c`, and the keys that it means.

HAProxy names a line of its own file. The key is that of the comment above the line (see `syntax.comment`), in the table
from which the section is made. What it complains about is then left out, because it hides other complaints.
"""

from __future__ import annotations

import os
import re
import subprocess
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

from poolctl.config.model.pool_tables import Located, Tables
from poolctl.config.model.server_keys import ServerConfig
from poolctl.config.values.problems import Finding, KeyPath
from poolctl.routing.context import KEY_CHARACTERS, without_keys
from poolctl.routing.route import Route, StreamRoute

from .haproxy.configuration import HaproxyConfiguration, ServerAddresses, configuration_of
from .haproxy.listeners import HaproxyCertificate, HaproxyListener
from .haproxy.syntax import alerts_in, quoted
from .program import program_path, program_problem
from .route_checks import locate_finding
from .routes import ServerIndex, routes_of, written_routes
from .settings import Endpoint, settings_of
from .table import GatewayConfig, GatewayListener, StreamConfig

_FILE = "haproxy.cfg"
_CHECK_SECONDS = 15.0
_MAX_RUNS = 20
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
    http = [_with_any_authority(route) for route in routes if isinstance(route, Route)]
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
    lines, places = made.text().split("\n"), _Places(made, ServerIndex(servers), tables, gateway)
    found = set[tuple[object, KeyPath]]()
    for _ in range(_MAX_RUNS):
        alerts = _alerts(program, made, lines)
        changed = False
        for alert in alerts:
            place = _PLACE.search(alert)
            number = int(place[1]) - 1 if place is not None else 0
            server, finding = places.located(lines, number, alert)
            if (server, finding.path) not in found:
                found.add((server, finding.path))
                yield server, finding
            changed |= place is not None and _leave_out(lines, number, _quoted_address(alert))
        if not changed:
            return


def _alerts(program: str, made: HaproxyConfiguration, lines: Sequence[str]) -> list[str]:
    """HAProxy's alerts about these lines with the files of this configuration. Blocks."""
    texts = {_FILE: "\n".join(lines), **made.all_files}
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


def _leave_out(lines: list[str], number: int, value: str) -> bool:
    """Leave out what HAProxy complains about: this value, or else the line; returns whether that changes anything."""
    before = lines[number]
    if before.startswith("    bind "):
        lines[number] = f"    bind {_ANY_ADDRESS}"
    elif value:
        lines[number] = " ".join(
            "127.0.0.1" if each in (value, quoted(value)) else each for each in before.split(" ")
        )
    elif not before.startswith(("backend", "frontend", "listen", "global", "defaults")):
        lines[number] = ""
    return lines[number] != before


class _Places(NamedTuple):
    """Finds the keys from which lines are made."""

    made: HaproxyConfiguration
    known: ServerIndex
    tables: Tables
    gateway: GatewayConfig

    def located(self, lines: Sequence[str], number: int, alert: str) -> Located:
        """The finding about the key from which this line is made."""
        start = next((each for each in range(number, -1, -1) if lines[each][:1].strip()), 0)
        words = lines[start].split()
        section = self.made.sections.get(words[1]) if len(words) > 1 else None
        comments = (_COMMENT.match(line) for line in reversed(lines[start : number + 1]))
        key = next(filter(None, comments), None)
        path: KeyPath = () if key is None else tuple(filter(None, key.groups()))
        if section is None:
            return None, _finding(("gateway", *self._element(self.gateway, path, alert)), alert)
        if section.is_stream:
            stream = next(
                (each for each in self.tables.all(StreamConfig) if each.label == section.alias), None
            )
            if stream is None:  # the port of a proxied server
                return self.known.by_name[section.alias], _finding(("name",), alert)
            target = self._target_of(stream.to, number) if path == ("to",) else ()
            return None, _finding(("stream", stream.index, *path, *target), alert)
        route = next(
            each
            for each in written_routes(self.known, self.tables)
            if each.alias == section.alias and each.config
        )
        config: Any = route.config
        found = (*path, *self._target_of(config.to, number)) if path == ("to",) else path
        return locate_finding(route, _finding(self._element(config, found, alert), alert))

    def _element(self, table: Any, path: KeyPath, alert: str) -> KeyPath:
        """The path to the element of a list that the alert quotes, or to the certificate that it means."""
        if path in (("allow",), ("trusted_proxies",)):
            values = [str(each) for each in getattr(table, str(path[0]))]
            return (*path, *[index for index, each in enumerate(values) if f"'{each}'" in alert][:1])
        if path == ("bind",):
            found = re.search(r"listener-(\d+)\.crt-list:(\d+)", alert)
            listeners = [
                (index, each.tls) for index, each in enumerate(table.bind) if not isinstance(each.tls, bool)
            ]
            for index, certificates in listeners:
                for number, each in enumerate(certificates):
                    is_named = found is not None and (index, number + 1) == (int(found[1]), int(found[2]))
                    if is_named or (
                        each.ciphers and f"cipher list to '{':'.join(each.ciphers.split())}'" in alert
                    ):
                        return (*path, index, "tls", number, "ciphers")
        return path

    def _target_of(self, to: Sequence[Any], number: int) -> KeyPath:
        """The index of the target to which the server in this line leads."""
        servers = dict(self.made.servers_by_line_number())
        if number + 1 not in servers:
            return ()
        key = servers[number + 1][1].key
        found = (
            index
            for index, each in enumerate(to)
            if key in {target.key for target in self.known.resolve_targets_with_reasons([each])[0]}
        )
        return tuple(found)[:1]


def _finding(path: KeyPath, alert: str) -> Finding:
    """The problem of this key."""
    said = _without_place(alert)
    shown = said[:_SHOWN_CHARACTERS] + ("…" if len(said) > _SHOWN_CHARACTERS else "")
    message = f"HAProxy does not accept it: {shown if shown.isprintable() else repr(shown)}"
    return Finding(path, message, "write another value, or take it out", _quoted_address(alert))


def _quoted_address(alert: str) -> str:
    """What HAProxy takes for no address; "" if the alert is about something else."""
    found = re.search(r"'([^']+)' is not a valid IPv4 or IPv6 address", alert)
    return found[1] if found is not None else ""


def _without_place(alert: str) -> str:
    """The alert without places in HAProxy's file, which nobody keeps and which other lines change."""
    text = re.sub(r"(parsing )?\[[^][]*:\d+\]\s*:?\s*", "", alert)
    return re.sub(
        rf" for bind '{_ANY_ADDRESS}' at|'bind {_ANY_ADDRESS}' in section '\w+' : ", "", text
    ).strip(" .")


def _with_any_authority(route: Route) -> Route:
    """The route with a CA file that exists: those of targets have checks of their own."""
    return replace(route, to=tuple(replace(each, ca=_CERTIFICATE) for each in route.to))


def _listener(number: int, table: GatewayListener) -> HaproxyListener:
    certificates = () if isinstance(table.tls, bool) else table.tls
    return HaproxyListener(
        (_ANY_ADDRESS,),
        crt_list=f"listener-{number}.crt-list",
        certificates=tuple(
            HaproxyCertificate(
                _CERTIFICATE,
                _CERTIFICATE,
                certificate.client_auth,
                certificate.min_version,
                certificate.ciphers or "",
            )
            for certificate in certificates
        ),
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
