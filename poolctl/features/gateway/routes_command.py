"""`poolctl routes`: prints the gateway's route table; with `explain`, the route of a URL and the reason."""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import StrEnum
from types import SimpleNamespace
from typing import Annotated
from urllib.parse import quote

import typer

from poolctl.cli.group import PoolCommand
from poolctl.cli.options import examples, forms, one_of, with_options
from poolctl.cli.outcome import Outcome, UsageError
from poolctl.cli.place import Place
from poolctl.cli.pool_ref import find_pool
from poolctl.cli.render import latency, printable, set_table_text
from poolctl.cli.supervisor_requests import Request, ask_for
from poolctl.control.client import NoSupervisor
from poolctl.control.gateway_answers import MatchingRoutesResult, RoutesResult, excluded_routes_for_host
from poolctl.exit_codes import DONE, NOTHING_MATCHED
from poolctl.json_form import Table, field_names, to_json
from poolctl.routing.match import explain, host_pattern, normal_host
from poolctl.routing.normal_path import normal_path
from poolctl.routing.route import ExcludedRoute, Route
from poolctl.routing.route_report import EXCLUDED, SERVING, RouteReport, destinations, route_columns

from .routes import routes_of
from .table import GatewayConfig

COLUMNS = ("alias", "host", "path", "to", "way", "state", "requests", "errors", "p50", "p99")
DISPENSABLE = ("p50", "state", "p99")
METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS")
MAX_WARNED = 5
EXPLAINED = ("match", "alias", "host", "path", "to", "why")

app = typer.Typer(add_completion=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class ExplainedRoute:
    """A route that was tried for a request: whether it matches, and why."""

    alias: str
    host: str
    path: str
    to: tuple[str, ...]
    matched: bool
    why: str

    @property
    def match(self) -> str:
        """Return "yes" if the route matches the explained request, else "no", for the printed table."""
        return "yes" if self.matched else "no"


class RoutesAction(StrEnum):
    """What to do instead of listing the routes."""

    EXPLAIN = "explain"


@app.command(
    cls=PoolCommand,
    epilog=examples(
        "poolctl routes explain https://users.example.com/v1/users",
        "poolctl routes explain /v1/users --method POST --header 'X-Beta: 1'",
    ),
)
@with_options
def routes(
    place: Place,
    action: Annotated[
        RoutesAction | None,
        typer.Argument(
            metavar="[explain]", help="Explain which route a URL takes, and why. Default: list all."
        ),
    ] = None,
    url: Annotated[str | None, typer.Argument(metavar="[URL]", help="A URL, or its host and path.")] = None,
    method: Annotated[
        str | None,
        typer.Option(
            "--method",
            metavar="METHOD",
            help="The method of the request to explain. Default: GET.",
            autocompletion=one_of(METHODS)["autocompletion"],
        ),
    ] = None,
    header: Annotated[
        list[str] | None,
        typer.Option(
            "--header",
            metavar="'NAME: VALUE'",
            help="A header of the request to explain; repeatable. Host replaces the URL's host.",
        ),
    ] = None,
    output: Annotated[str | None, forms(fields=(*field_names(RouteReport), "matched"))] = None,
) -> Outcome:
    """List the gateway's routes; explain which one a URL takes.

    explain asks the supervisor for the table in force, or else reads the files, and exits with 4 if no route takes the
    URL. A header named by header_for_host of the gateway replaces the URL's host, too. WAITING (-o wide): requests that
    wait now for a busy backend.
    """
    if action:
        if url is None:
            raise UsageError(
                "routes explain: which URL?", hint="poolctl routes explain http://users.example.com/v1"
            )
        return _explain(place, output, ExplainedRequest(url, (method or "GET").upper(), header))
    if method is not None or header:
        raise UsageError(
            "--method and --header belong to `routes explain`",
            hint="poolctl routes explain URL --method POST",
        )
    result = ask_for(RoutesResult, Request("routes", place), find_pool(place))
    columns = route_columns(result.items) if output == "wide" else COLUMNS
    lines = [_line(item) for item in result.items]
    outcome = Outcome.of(result)
    outcome.warnings += _warnings(result)
    names = (item.alias for item in result.items)
    outcome = set_table_text(outcome, output, lines, columns, names, DISPENSABLE)
    if output == "wide" and result.refused:
        refused = ", ".join(f"{count} with {code}" for code, count in sorted(result.refused.items()))
        outcome.text = f"{outcome.text or ''}Refused without a route: {refused}\n"
    return outcome


def _warnings(result: RoutesResult) -> list[str]:
    """Warnings about the first MAX_WARNED routes and services that do not serve, and the number of the others."""
    warnings = [
        f"the route {route.alias} is {route.state}: {route.why}"
        for route in result.items
        if route.why and route.way != EXCLUDED and not route.registrations
    ]
    warnings += [
        f"{registration.name}: {registration.url} gets no requests: {registration.why or registration.state}"
        for route in result.items
        for registration in route.registrations or ()
        if registration.state != SERVING
    ]
    more = len(warnings) - MAX_WARNED
    return warnings if more <= 0 else [*warnings[:MAX_WARNED], f"and {more} more"]


class ExplainedRequest:
    """The request to explain, with the parts of its URL in the form that routes are matched against."""

    def __init__(self, url: str, method: str, headers: list[str] | None) -> None:
        """Raises UsageError for a header without a colon, and for a URL that is invalid or has a user name."""
        self.method = method
        self.headers = dict(_header(header) for header in headers or ())
        scheme, separator, location = url.partition("://")
        if not (separator and scheme.isalpha()):
            scheme, location = "http", url
        if scheme.lower() not in ("http", "https", "ws", "wss"):
            raise UsageError(f"routes explain: {url!r} is not an HTTP URL", hint="http:// or https://")
        self.tls = scheme.lower() in ("https", "wss")
        authority, slash, path = location.partition("#")[0].partition("?")[0].partition("/")
        if "@" in authority:
            raise UsageError(f"routes explain: {url!r} has a user name", hint="leave it out")
        if not re.fullmatch(r"(\[[^\]]*\]|[^:]*)(:[0-9]*)?", authority):
            raise UsageError(
                f"routes explain: {authority!r} is not HOST:PORT", hint="HOST:PORT, or [IPv6]:PORT"
            )
        self.host = normal_host(self.headers.get("host", authority))
        # As clients send it: characters not allowed in a URL are escaped.
        self.path = (
            quote(slash + path, safe="".join(map(chr, range(0x21, 0x7F))), errors="surrogateescape") or "/"
        )
        self.normal = normal_path(self.path)

    def __str__(self) -> str:
        return f"{self.method} {self.host}{self.path}"


def _header(text: str) -> tuple[str, str]:
    name, colon, value = text.partition(":")
    if not colon or not name.strip():
        raise UsageError(f"--header: {text!r} is not a header", hint="--header 'X-Beta: 1'")
    return name.strip().lower(), value.strip()


def _explain(place: Place, output: str | None, request: ExplainedRequest) -> Outcome:
    if request.normal is None:
        why = "backends differ in how they read its path"
        return Outcome.failed(NOTHING_MATCHED, f"{request} is refused (400): {why}")
    table = _candidates(place, request)
    if table.exit_code:
        return Outcome.of(table)
    if host := request.headers.get(table.header_for_host.lower()):
        request.host = normal_host(host)
    steps = explain(
        table.routes, request.host, request.normal, request.method, request.headers, secure=request.tls
    )
    match = next((step.route for step in steps if step.matched), None)
    candidates = [
        ExplainedRoute(
            alias=step.route.alias,
            host=step.route.host,
            path=step.route.path,
            to=destinations(step.route),
            matched=step.matched,
            why=step.why,
        )
        for step in steps
    ]
    unavailable = table.unavailable.get(match.alias, {}) if match else {}
    outcome = Outcome(
        candidates,
        warnings=table.warnings,
        exit_code=DONE if match else NOTHING_MATCHED,
        extra={
            "request": {"method": request.method, "host": request.host, "path": request.normal},
            "route": match.alias if match else None,
            "unavailable": unavailable,
            "generation": table.generation,
            "excluded": [
                {"alias": route.alias, "host": route.host, "why": route.reason} for route in table.excluded
            ],
        },
    )
    shown = [
        candidate
        for candidate in candidates
        if place.verbose or host_pattern(candidate.host).covers(request.host)
    ]
    others = table.total - len(shown)
    outcome = set_table_text(outcome, output, shown, EXPLAINED, [match.alias] if match else [])
    if output in (None, "table", "wide"):
        more = f"and {others} of other hosts\n" if others else ""
        more += "".join(
            f"excluded: {printable(route.alias)}: {printable(route.reason)}\n" for route in table.excluded
        )
        outcome.text = f"{printable(_sentence(request, match, unavailable))}\n\n{outcome.text}{more}"
    return outcome


def _candidates(place: Place, request: ExplainedRequest) -> MatchingRoutesResult:
    """The routes that may match: from the supervisor's active table or, without a supervisor, from the files."""
    pool = find_pool(place)
    try:
        options = {"op": "explain", "host": request.host, "path": request.normal, "headers": request.headers}
        return ask_for(MatchingRoutesResult, Request("routes", place, options=options), pool)
    except NoSupervisor:
        if not pool.files:
            raise
    from poolctl.cli.offline import load  # late: only without a supervisor

    config = load(pool)
    routes = routes_of(config, config.tables)
    served = tuple(route for route in routes if isinstance(route, Route))
    excluded = (route for route in routes if isinstance(route, ExcludedRoute))
    gateway = config.tables.get(GatewayConfig)
    return MatchingRoutesResult(
        header_for_host=gateway.header_for_host if gateway else "Host",
        routes=served,
        excluded=excluded_routes_for_host(request.host, excluded),
        total=len(served),
        warnings=tuple(map(str, config.warnings)),
    )


def _sentence(request: ExplainedRequest, match: Route | None, unavailable: Table) -> str:
    if match is None:
        return f"{request} takes no route (404)"
    if match.redirect is not None:
        to, status = match.redirect.to, match.redirect.status
        return f"{request} takes the route {match.alias}, which redirects to {to} ({status})"
    why = {key: f" ({reason})" for key, reason in unavailable.items()}
    targets = ", ".join(f"{target.key}{why.get(target.key, '')}" for target in match.to) or "nothing"
    changed = f"; the path is sent as {request.normal}" if request.normal != request.path else ""
    return f"{request} takes the route {match.alias}, which leads to {targets}{changed}"


def _line(route: RouteReport) -> SimpleNamespace:
    times = {"p50": latency(route.p50_seconds), "p99": latency(route.p99_seconds)}
    machines = ", ".join(map(str, route.machines or ()))
    return SimpleNamespace(**{**to_json(route), "machines": machines}, **times)
