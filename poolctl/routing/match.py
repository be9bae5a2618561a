"""Selects the route of a request by its host, path, method and headers.

The host decides first. Patterns are tried in this order: the exact name, the first label ("users"), the longest
domain ("*.example.com"), patterns with "*" elsewhere, any host. Of the patterns with "*" elsewhere, the one with most
literal characters is first, then the first of the file. An IP address has neither labels nor domains. Among the routes
of one pattern, the longest path prefix wins, in whole segments. Among the routes of one path, a redirect to https is
first, then a route with a method condition, then the route with most header conditions, then the first of the file.
If no route of a pattern takes the request, the next pattern is tried.

Hosts are compared in lower case without port and final dot (`normal_host`), paths in normal form (`normal_path`).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import NamedTuple

from .normal_path import readings
from .route import Route

EXACT, LABEL, DOMAIN, WILDCARD, DEFAULT = range(5)
_TIERS = "exact", "first label", "domain", "pattern", "any host"


class HostPattern(NamedTuple):
    """A route's parsed host: `tier` is EXACT, LABEL, DOMAIN, WILDCARD or DEFAULT, and `text` the part to compare."""

    tier: int
    text: str

    def covers(self, host: str) -> bool:
        """Whether the pattern covers this host, which is in normal form."""
        if self.tier == EXACT:
            return host == self.text
        if self.tier == LABEL:
            return not is_ip_address(host) and host.partition(".")[0] == self.text
        if self.tier == DOMAIN:
            return not is_ip_address(host) and host.endswith(f".{self.text}") and not host.startswith(".")
        return self.tier == DEFAULT or wildcard_covers_host(self.text, host)

    @property
    def weight(self) -> int:
        """The number of literal characters: within a `tier`, the pattern with most is tried first."""
        return len(self.text) - self.text.count("*")


def normal_host(text: str) -> str:
    """A host from a Host header or pattern in the form used for comparison: lower case, without port and final dot."""
    host = text.strip().lower()
    if host.startswith("["):
        return host[: host.find("]") + 1] or host
    return host.partition(":")[0].removesuffix(".")


def is_ip_address(host: str) -> bool:
    """Whether the host is an IP address: it is in brackets, or its last label is a number (WHATWG URL §3.5)."""
    return host.startswith("[") or host.rpartition(".")[2].isdigit()


def host_pattern(host: str) -> HostPattern:
    """Parse the `host` of a route; "" and "*" match every host."""
    text = normal_host(host)
    if text in ("", "*"):
        return HostPattern(DEFAULT, "")
    if "*" in text:
        domain = text.removeprefix("*.")
        return HostPattern(WILDCARD, text) if "*" in domain else HostPattern(DOMAIN, domain)
    return HostPattern(EXACT if "." in text or text.startswith("[") else LABEL, text)


def sent_host(host: str, host_header: str) -> str:
    """The Host header that backends receive for a route with these keys; "" if it depends on the client."""
    pattern = host_pattern(host)
    return host_header or (pattern.text if pattern.tier == EXACT else "")


def wildcard_covers_host(pattern: str, host: str) -> bool:
    """Whether a pattern covers the host: each "*" stands for one character or more, dots included."""
    first, *parts = pattern.split("*")
    last = parts.pop()
    if not host.startswith(first):
        return False
    end = len(first)
    for part in parts:
        start = host.find(part, end + 1)
        if start < 0:
            return False
        end = start + len(part)
    return host.endswith(last) and len(host) - len(last) > end


def normal_prefix(path: str) -> str:
    """A route's path in the form used for comparison: without a trailing slash."""
    return path.rstrip("/") or "/"


def covers_path(prefix: str, path: str) -> bool:
    """Whether the prefix covers the path, in whole segments."""
    return prefix == "/" or path == prefix or path.startswith(f"{prefix}/")


def prefixes(path: str, depth: int) -> list[str]:
    """The prefixes of the path with at most `depth` segments, longest first; the last one is "/"."""
    paths = ["/"]
    end = 0
    for _ in range(depth):
        end = path.find("/", end + 1)
        if end < 0:
            if path != "/":
                paths.append(path)
            break
        paths.append(path[:end])
    paths.reverse()
    return paths


def missing_condition(route: Route, method: str, headers: Mapping[str, str] | None) -> str:
    """The first unmet condition on method or headers, in words; "" if all are met."""
    if route.methods and method not in route.methods:
        return f"its methods are {', '.join(route.methods)}"
    for header in route.headers:
        value = (headers or {}).get(header.name)
        if value is None:
            return f"the request has no header {header.name}"
        if header.value not in ("", value):
            return f"it wants the header {header.name}: {header.value}"
    return ""


class ConsideredRoute(NamedTuple):
    """A route that was considered for a request: whether it matched, and the reason."""

    route: Route
    matched: bool
    why: str


def explain(
    routes: Iterable[Route],
    host: str,
    path: str,
    method: str = "GET",
    headers: Mapping[str, str] | None = None,
    *,
    secure: bool = False,
) -> list[ConsideredRoute]:
    """Explain which route a request matches: all routes by precedence, each with the reason why it matches or not.

    At most one route matches; for later routes the reason is their lower precedence. Host and path are in normal form.
    `secure` is true if the request came over TLS.
    """
    ordered = in_order(routes)

    def considered(reading: str) -> list[ConsideredRoute]:
        steps: list[ConsideredRoute] = []
        winner: Route | None = None
        for route in ordered:
            why = _why_not(route, host, reading, method, headers)
            if not why and secure and route.redirects_to_https:
                why = "it redirects requests without TLS"
            if why or winner is None:
                steps.append(ConsideredRoute(route, not why, why or _why_matched(route)))
                winner = winner or (None if why else route)
            else:
                steps.append(ConsideredRoute(route, False, _why_behind(route, winner)))
        return steps

    steps = considered(path)
    winner = _matched_route(steps)
    for reading in readings(path)[1:]:
        other = _matched_route(considered(reading))
        if other is not winner:
            instead = (
                "it would match" if winner is None else f"{other.alias if other else 'no route'} would match"
            )
            why = f"read as {reading}, as some backends do, {instead}"
            route = winner or other
            return [step._replace(matched=False, why=why) if step.route is route else step for step in steps]
    return steps


def _matched_route(steps: list[ConsideredRoute]) -> Route | None:
    return next((step.route for step in steps if step.matched), None)


def in_order(routes: Iterable[Route]) -> list[Route]:
    """The routes sorted by precedence, highest first."""
    routes = list(routes)
    patterns = {host_pattern(route.host): None for route in routes}
    # sorted() is stable: equal patterns keep the order of the file.
    ranked = sorted(patterns, key=lambda pattern: (pattern.tier, -pattern.weight))
    ranks = {pattern: rank for rank, pattern in enumerate(ranked)}

    def precedence(route: Route) -> tuple[int, int, bool, bool, int]:
        return ranks[host_pattern(route.host)], -len(normal_prefix(route.path)), *condition_rank(route)

    return sorted(routes, key=precedence)


def condition_rank(route: Route) -> tuple[bool, bool, int]:
    """The sort key that orders routes of the same host and path by their conditions."""
    return not route.redirects_to_https, not route.methods, -len(route.headers)


def _why_matched(route: Route) -> str:
    pattern = host_pattern(route.host)
    host = "any host" if pattern.tier == DEFAULT else f"host {route.host} ({_TIERS[pattern.tier]})"
    return f"{host}, path {route.path}"


def _why_not(route: Route, host: str, path: str, method: str, headers: Mapping[str, str] | None) -> str:
    if not host_pattern(route.host).covers(host):
        return f"its host is {route.host}"
    if not covers_path(normal_prefix(route.path), path):
        return f"its path is {route.path}"
    return missing_condition(route, method, headers)


def _why_behind(route: Route, winner: Route) -> str:
    pattern, winner_pattern = host_pattern(route.host), host_pattern(winner.host)
    if pattern != winner_pattern and (pattern.tier, pattern.weight) != (
        winner_pattern.tier,
        winner_pattern.weight,
    ):
        why = "its host is more specific"
    elif pattern == winner_pattern and normal_prefix(route.path) != normal_prefix(winner.path):
        why = "its path is longer"
    elif pattern == winner_pattern and condition_rank(route) != condition_rank(winner):
        why = "it has more conditions"
    else:
        why = "it stands earlier in the file"
    return f"{winner.alias} comes first: {why}"
