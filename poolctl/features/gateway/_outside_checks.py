"""Whether the gateway's libraries are installed, its certificates can be used, and are for the hosts of its routes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from datetime import datetime

from poolctl.config.checks.certificate_checks import certificate_names, check_certificates, names_cover
from poolctl.config.files.read_file import read_text
from poolctl.config.model.pool_tables import Tables
from poolctl.config.model.section import TLSConfig
from poolctl.config.model.server_keys import ServerKeys
from poolctl.config.values.problems import Finding, Path, Problem
from poolctl.routing.match import DOMAIN, EXACT, host_pattern
from poolctl.routing.route import FILE, Route, passable

from .engines import engine_problem, other_engine
from .routes import routes_of
from .table import GatewayConfig, RouteConfig, StreamConfig

SHOWN_NAMES = 3


def check_gateway(
    tables: Tables, servers: Iterable[ServerKeys], env: Mapping[str, str], now: datetime
) -> tuple[list[Finding], list[Finding]]:
    """Problems and warnings about the engine and the certificates; paths begin with the table. Blocks on the disk."""
    problems = [*unusable_engine(tables)]
    warnings: list[Finding] = []
    names: dict[str, list[str]] = {}  # of the certificates of each listener
    gateway = tables.get(GatewayConfig)
    for index, listener in enumerate(gateway.bind if gateway else ()):
        certificates = listener.tls if isinstance(listener.tls, tuple) else ()
        for number, tls in enumerate(certificates):
            wrong, doubtful = check_certificates(tls, env, now)
            place = ("gateway", "bind", index, "tls", number)
            problems += [each._replace(path=(*place, *each.path[1:])) for each in wrong]
            warnings += [each._replace(path=(*place, *each.path[1:])) for each in doubtful]
            if not wrong:
                names.setdefault(listener.bind, []).extend(_names_of(tls))
    return problems, [*warnings, *_other_hosts(tables, list(servers), names)]


def unusable_engine(tables: Tables) -> Iterator[Finding]:
    """The problem if the gateway's engine cannot run on this machine."""
    gateway = tables.get(GatewayConfig)
    if gateway is None:
        return
    engine = other_engine(gateway.engine)
    if problem := engine_problem(gateway.engine, engine.path(gateway.program) if engine else ""):
        path: Path = ("gateway",)
        if not gateway.given:
            # A route or a stream alone turns the gateway on.
            listed = [*(("route", each.index) for each in tables.all(RouteConfig))]
            path = [*listed, *(("stream", each.index) for each in tables.all(StreamConfig)), path][0]
        yield Finding(path, *problem)


def _names_of(tls: TLSConfig) -> list[str]:
    try:
        return certificate_names(read_text(tls.cert))
    except Problem:
        return []


def _other_hosts(
    tables: Tables, servers: list[ServerKeys], names: Mapping[str, list[str]]
) -> Iterator[Finding]:
    """Hosts of routes for which a listener has no certificate, as one finding: clients refuse the certificate they get.

    It is only a warning, because the host may be for another listener.
    """
    gateway = tables.get(GatewayConfig)
    if gateway is None or not any(each.tls for each in gateway.bind):
        return
    secure = {each.name: each.tls for each in servers if each.tls}
    places = {each.label: ("route", each.index, "host") for each in tables.all(RouteConfig)}
    routes = [each for each in routes_of(servers, tables) if isinstance(each, Route)]
    shared = Counter(each.host for each in routes)
    certified: dict[str, list[str]] = {}  # the names of its certificates
    missing: dict[tuple[str, str], list[Route]] = {}  # by the listener or server, and the fix
    for route in routes:
        if host_pattern(route.host).tier not in (EXACT, DOMAIN):
            continue
        shown = names
        targets = {each.server for each in route.to}
        if shared[route.host] == 1 and passable(route, tls=True) and targets <= secure.keys():
            # The connection is passed as it is: clients get the server's own certificate.
            own = {name: tls for name in targets if isinstance(tls := secure[name], TLSConfig)}
            shown = {name: found for name, tls in own.items() if (found := _names_of(tls))}
        fix = "add one to the list of its tls" if shown is names else "give it one for this host"
        for owner, known in shown.items():
            if not names_cover(known, route.host):
                missing.setdefault((owner, fix), []).append(route)
                certified[owner] = known
    for (owner, fix), without in missing.items():
        first, hosts = without[0], list(dict.fromkeys(each.host for each in without))
        known = certified[owner]
        its_names = f"its names are {_listed(known)}" if known else "it names no host"
        others = len(hosts) - SHOWN_NAMES
        more = f" and {others} more host{'s' * (others > 1)}" if others > 0 else ""
        message = f"{owner} has no certificate for {', '.join(hosts[:SHOWN_NAMES])}{more}: {its_names}"
        path = places[first.alias] if first.provider == FILE else ("gateway", "bind")
        yield Finding(path, message, fix, first.host)


def _listed(names: list[str]) -> str:
    return ", ".join(names[:SHOWN_NAMES]) + (", …" if len(names) > SHOWN_NAMES else "")
