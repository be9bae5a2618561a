"""The routes as workers get them: only the fields that decide whether a later request is theirs.

An application may run as another user than the pool, and its worker maps the table. So it has no headers, variables,
URLs or limits, and where servers run as several users only the routes to servers of the worker's own.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import fields

from .route import HTTPS, PROXY, Header, Redirect, Route, Target, passable

# The deciding fields, and the fields visible to applications (see `context`). `to` and `mode` are reduced.
_KNOWN = ("alias", "host", "path", "methods", "provider", "allow")
_LEFT_OUT = [
    (field.name, field.default)
    for field in fields(Route)
    if field.name not in (*_KNOWN, "headers", "mode", "to")  # of a redirect, whether it takes requests by TLS
]


def routes_for_workers(routes: Iterable[Route], servers: Collection[str] | None = None) -> list[Route]:
    """The routes for the workers of these servers of one user; without `servers`, for all workers of a pool.

    Each route's `mode` is proxy if its connections are not passed, and its `to` contains only servers.
    """
    found: list[Route] = []
    for route in routes:
        to = tuple(each for each in route.to if each.server and (servers is None or each.server in servers))
        if servers is None or to:
            found.append(_for_workers(route, to))
    return found


def _for_workers(route: Route, to: tuple[Target, ...]) -> Route:
    """The route itself if it has no further fields."""
    passes = passable(route)
    if (
        passes
        and len(to) == len(route.to)
        and all(each.weight == 1 for each in to)
        and all(getattr(route, name) == default for name, default in _LEFT_OUT)
    ):
        return route
    return Route(
        **{name: getattr(route, name) for name in _KNOWN},
        # Only the presence of a condition: it keeps the route from being passed.
        headers=tuple(Header(name=each.name) for each in route.headers),
        redirect=Redirect(to=HTTPS) if route.only_plain else None,
        mode=route.mode if passes else PROXY,
        to=tuple(Target(server=each.server) for each in to),
    )
