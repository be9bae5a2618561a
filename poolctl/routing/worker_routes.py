"""The routes as workers get them: what decides whether a later request is theirs, and nothing else.

An application may run as another user than the pool, and its worker maps the table. So it has no headers, variables,
URLs or limits, and where servers run as several users only the routes to servers of the worker's own.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import fields

from .route import HTTPS, PROXY, Header, Redirect, Route, Target, passable

# What decides, and what applications see of their route (see `context`). `to` and `mode` say less than in the pool.
_KNOWN = ("alias", "host", "path", "methods", "provider", "allow")
_LEFT_OUT = [
    (field.name, field.default)
    for field in fields(Route)
    if field.name not in (*_KNOWN, "headers", "mode", "to")  # of a redirect, whether it takes requests by TLS
]


def routes_for_workers(routes: Iterable[Route], servers: Collection[str] | None = None) -> list[Route]:
    """The routes for the workers of these servers of one user; without them for those of a pool with one user.

    Of each its `mode` is proxy if its connections are not passed, and `to` has servers alone.
    """
    found: list[Route] = []
    for route in routes:
        to = tuple(each for each in route.to if each.server and (servers is None or each.server in servers))
        if servers is None or to:
            found.append(_for_workers(route, to))
    return found


def _for_workers(route: Route, to: tuple[Target, ...]) -> Route:
    """The route itself if it says no more."""
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
        # Of a condition that there is one: it keeps the route from being passed.
        headers=tuple(Header(name=each.name) for each in route.headers),
        redirect=Redirect(to=HTTPS) if route.only_plain else None,
        mode=route.mode if passes else PROXY,
        to=tuple(Target(server=each.server) for each in to),
    )
