"""Finds what HAProxy refuses in a configuration before anything is started: `haproxy -c`, and the keys that it means.

HAProxy names a line of its own file. The key of the pool's file is the one without which the complaint disappears:
tables are halved, and keys left out, until one remains. This costs a run of HAProxy (10 ms) for each step, and needs no
list of which key becomes which line.
"""

from __future__ import annotations

import os
import re
import subprocess
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from typing import NamedTuple

from poolctl.config.model.pool_tables import Located, Tables
from poolctl.config.model.section import REQUIRED, Section
from poolctl.config.model.server_keys import ServerKeys
from poolctl.config.values.plain import FrozenDict
from poolctl.config.values.problems import Finding, KeyPath, Tree
from poolctl.routing.context import KEY_CHARACTERS, without_keys
from poolctl.routing.route import SERVER, Route, StreamRoute

from .haproxy.configuration import ServerAddresses, configuration_of
from .haproxy.listeners import HaproxyCertificate, HaproxyListener
from .haproxy.syntax import alerts_in
from .program import program_path, program_problem
from .route_checks import locate_finding
from .routes import ServerIndex, build_route, build_stream, routes_of, written_routes
from .settings import Endpoint, settings_of
from .table import GatewayConfig, GatewayListener, StreamConfig

_FILE = "haproxy.cfg"
_CHECK_SECONDS = 15.0
_MAX_CULPRITS = 20
_SHOWN_CHARACTERS = 300
# HAProxy opens no address while it checks a file; descriptors, which it would look at, do not exist yet.
_ANY_ADDRESS = "127.0.0.1:1"
# Leaving these out removes what other keys apply to.
_LAST_KEYS = ("to", "bind")
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


def refusals(servers: Iterable[ServerKeys], tables: Tables) -> Iterator[Located]:
    """Report what HAProxy refuses in the gateway, its routes and its streams. Blocks while HAProxy runs."""
    gateway = tables.get(GatewayConfig)
    if gateway is None or program_problem(program := program_path(gateway.program)):
        return
    servers = list(servers)
    check = _Check(program, gateway, _addresses(servers), _keys(servers))
    routes = [each for each in routes_of(servers, tables) if isinstance(each, (Route, StreamRoute))]
    if not check.alerts(routes):
        return
    found = False
    for path, alert, value in check.culprits(
        gateway, lambda changed: check._replace(gateway=changed).alerts()
    ):
        found = True
        yield None, _finding(("gateway", *path), alert, value)
        if not path:
            return
    if found:  # keys of routes are checked with a gateway that is accepted
        check = check._replace(gateway=GatewayConfig.with_defaults())
    known = ServerIndex(servers)
    for route in _refused(routes, check):
        found = True
        yield from _route_refusals(route, known, tables, check)
    if not found:
        yield None, _finding(("gateway",), check.alerts(routes)[0], "")


class _Culprit(NamedTuple):
    """What HAProxy refuses: the path to the key, the alert, and the key's value if it is a text."""

    path: KeyPath
    alert: str
    value: str


class _Check(NamedTuple):
    """Checks of configurations with this gateway by HAProxy; `addresses` and `keys` are those of the pool's servers."""

    program: str
    gateway: GatewayConfig
    addresses: ServerAddresses
    keys: dict[str, str]

    def alerts(self, routes: Sequence[Route | StreamRoute] = ()) -> list[str]:
        """HAProxy's alerts about a configuration with these routes, without places in its file. Blocks."""
        http = [_with_any_authority(each) for each in routes if isinstance(each, Route)]
        streams = [each for each in routes if isinstance(each, StreamRoute)]
        listeners = [_listener(number, each) for number, each in enumerate(self.gateway.bind)]
        listeners += [
            HaproxyListener((_ANY_ADDRESS,), alias=each.alias, accept_proxy=each.accept_proxy)
            for each in streams
        ]
        listeners = listeners or [HaproxyListener((_ANY_ADDRESS,))]  # HAProxy refuses to have none
        settings = replace(settings_of(self.gateway), user="")  # who has checks of its own
        made = configuration_of(settings, listeners, http, streams, self.addresses, self.keys)
        # An address that is not known needs no name service.
        texts = {_FILE: made.with_addresses({}).text(), **made.all_files}
        texts[_CERTIFICATE] = "".join(
            f"-----BEGIN {kind}-----\n{text}\n-----END {kind}-----\n" for kind, text in _PEM.items()
        )
        try:
            with tempfile.TemporaryDirectory(prefix="poolctl-check-") as directory:
                for name, text in texts.items():
                    with open(os.path.join(directory, name), "wb") as file:
                        file.write(text.encode(errors="surrogateescape"))
                done = subprocess.run(
                    [self.program, "-c", "-f", os.path.join(directory, _FILE)],
                    stdin=subprocess.DEVNULL, capture_output=True, timeout=_CHECK_SECONDS,
                )  # fmt: skip
        except (OSError, subprocess.SubprocessError):
            return []  # without a check, or room for it, HAProxy says at its start what it refuses
        if not done.returncode:
            return []
        output = (done.stderr + done.stdout).decode("utf-8", "replace")
        found = [_without_place(each) for each in alerts_in(without_keys(output))]
        said = [
            each for each in dict.fromkeys(found) if not re.match(r"(Error\(s\)|Fatal errors) found", each)
        ]
        return said or [f"it exits with {done.returncode}: {' '.join(output.split())[-200:]}"]

    def culprits(self, table: Section, alerts_of: Callable[[Tree], list[str]]) -> Iterator[_Culprit]:
        """Yield the key of the table that each alert is about; `alerts_of` checks the table with changed keys."""
        found, rest = list[KeyPath](), table
        while (alerts := alerts_of(rest)) and len(found) < _MAX_CULPRITS:
            # Some alerts end HAProxy's search: the next ones appear without the key that this one is about.
            path, rest = _culprit(rest, lambda changed: alerts[0] not in alerts_of(changed))
            path = _path_before(path, found)
            yield _Culprit(path, alerts[0], _text_at(table, path))
            if not path:
                return
            found.append(path)


def _refused(routes: Sequence[Route | StreamRoute], check: _Check) -> Iterator[Route | StreamRoute]:
    """Yield the routes that HAProxy refuses by themselves."""
    if not routes or not check.alerts(routes):
        return
    if len(routes) == 1:
        yield routes[0]
        return
    middle = len(routes) // 2
    yield from _refused(routes[:middle], check)
    yield from _refused(routes[middle:], check)


def _route_refusals(
    route: Route | StreamRoute, known: ServerIndex, tables: Tables, check: _Check
) -> Iterator[Located]:
    if isinstance(route, Route):
        written = next(
            each for each in written_routes(known, tables) if each.alias == route.alias and each.config
        )

        def of_route(changed: Tree) -> list[str]:
            to, _ = known.resolve_targets_with_reasons(changed.to)
            return check.alerts([build_route(route.alias, changed, to, route.provider)])

        assert written.config is not None
        for each in check.culprits(written.config, of_route):
            yield locate_finding(written, _finding(*each))
        return
    if route.provider == SERVER:  # the port of a proxied server
        yield known.by_name[route.alias], _finding(("name",), check.alerts([route])[0], route.alias)
        return
    table = next(each for each in tables.all(StreamConfig) if each.label == route.alias)

    def of_stream(changed: Tree) -> list[str]:
        to, _ = known.resolve_targets_with_reasons(changed.to)
        return check.alerts([build_stream(changed.with_values(alias=route.alias), to)])

    for each in check.culprits(table, of_stream):
        yield None, _finding(("stream", table.index, *each.path), each.alert, each.value)


def _culprit(value: Tree, is_accepted: Callable[[Tree], bool]) -> tuple[KeyPath, Tree]:
    """The path to the innermost part of a table or list without which it is accepted, and what remains.

    The path is () if there is none, and the rest None.
    """
    for part in _parts(value):
        if part.is_required or is_accepted(part.left_out):
            path, rest = _culprit(part.value, lambda changed, part=part: is_accepted(part.replace(changed)))  # type: ignore[misc]
            if path:
                return (part.key, *path), part.replace(rest)
            if not part.is_required:
                return (part.key,), part.left_out
    return (), None


def _path_before(path: KeyPath, left_out: Sequence[KeyPath]) -> KeyPath:
    """The path with the indexes that its elements had before others of their lists were left out."""
    found: KeyPath = ()
    for key in path:
        if isinstance(key, int):
            for index in sorted(
                each[-1] for each in left_out if each[:-1] == found and isinstance(each[-1], int)
            ):
                key += index <= key
        found = (*found, key)
    return found


class _Part(NamedTuple):
    """A part of a table or list: its key, its value, and what remains without it, unless it is required."""

    key: str | int
    value: Tree
    replace: Callable[[Tree], Tree]
    left_out: Tree = None
    is_required: bool = False


def _parts(value: Tree) -> Iterator[_Part]:
    if isinstance(value, Section):
        for name in sorted(value.keys_of, key=_LAST_KEYS.__contains__):
            key = value.keys_of[name]
            if name in value.given and not key.hidden:
                is_required = key.default is REQUIRED
                default = None if is_required else value.with_values(**{name: key.default})

                def replaced(changed: Tree, name: str = name) -> Tree:
                    return value.with_values(**{name: changed})

                yield _Part(name, getattr(value, name), replaced, default, is_required)
    elif isinstance(value, dict):
        for name in value:
            without = {other: text for other, text in value.items() if other != name}
            yield _Part(name, value[name], lambda _: None, FrozenDict(without))
    elif isinstance(value, tuple):
        for index, each in enumerate(value):
            before, after = value[:index], value[index + 1 :]

            def in_place(changed: Tree, before: Tree = before, after: Tree = after) -> Tree:
                return (*before, changed, *after)

            yield _Part(index, each, in_place, (*before, *after))


def _text_at(table: Section, path: KeyPath) -> str:
    """The text at this path; "" if the value is none."""
    value: Tree = table
    for key in path:
        value = getattr(value, str(key)) if isinstance(value, Section) else value[key]
    return value if isinstance(value, str) else ""


def _finding(path: KeyPath, alert: str, value: str) -> Finding:
    shown = alert[:_SHOWN_CHARACTERS] + ("…" if len(alert) > _SHOWN_CHARACTERS else "")
    message = f"HAProxy does not accept it: {shown if shown.isprintable() else repr(shown)}"
    return Finding(path, message, "write another value, or take it out", value)


def _without_place(alert: str) -> str:
    """The alert without places in HAProxy's file, which nobody keeps and which other lines change."""
    text = re.sub(r"(parsing )?\[[^][]*:\d+\]\s*:?\s*", "", alert.removeprefix("config : "))
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
                _CERTIFICATE, _CERTIFICATE, each.client_auth, each.min_version, each.ciphers or ""
            )
            for each in certificates
        ),
        accept_proxy=table.accept_proxy_protocol,
        passes_tls=table.tls is True,
    )


def _addresses(servers: Iterable[ServerKeys]) -> ServerAddresses:
    listening = [each for each in servers if each.listens]
    return ServerAddresses(
        {each.name: Endpoint.of_server(each.address.key, bool(each.tls)) for each in listening},
        processes={each.name: (_ANY_ADDRESS,) for each in listening if each.is_proxied},
    )


def _keys(servers: Iterable[ServerKeys]) -> dict[str, str]:
    """Keys as long as those by which applications recognize requests of the gateway."""
    return {each.name: "0" * KEY_CHARACTERS for each in servers if not each.command}
