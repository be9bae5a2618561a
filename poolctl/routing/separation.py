"""Which routes keep their connections in the gateway, since later requests on them may be for another user's server.

A worker reads whatever the client sends later on a connection that was passed to it. So a connection is passed only
where every request that may come on it leads to servers of one user: on a listener without TLS all requests, with and
without a route; within TLS, which is passed by its host, those for that host. URLs, and requests without a route, count
as another user's as soon as the pool's servers have several users.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from .match import DEFAULT, host_pattern
from .route import Route

NO_ROUTE = "requests without a route"


def separated(routes: Sequence[Route], users: Mapping[str, str]) -> list[Route]:
    """The routes, each with the reason why its connections stay with the gateway, if later requests are one.

    `users` has the user of each server of the pool by its name, whether a route leads to it or not.
    """
    if len(set(users.values())) <= 1:
        return [each.but(other_user="", other_user_tls="") if each.other_user else each for each in routes]
    first = _first_of_each_user(routes, users)
    found: list[Route] = []
    for route in routes:
        own = {target.server: users[target.server] for target in route.to if target.server in users}
        mixed = reason = ""
        if len(set(own.values())) > 1:
            mixed = reason = f"it leads to {_listed(own)}, which run as different users"
        elif own:
            server, user = next(iter(own.items()))
            other = next((what for theirs, what in first.items() if theirs != user), "")
            if other:
                reason = f"{server} ({user}) would get later requests of its clients for {other}"
        found.append(route.but(other_user=reason, other_user_tls=mixed))
    return found


def _first_of_each_user(routes: Iterable[Route], users: Mapping[str, str]) -> dict[str, str]:
    """To what requests on a listener may lead, by user: one server of each; "" for what has no user."""
    found: dict[str, str] = {}
    unanswered = True
    for route in routes:
        if host_pattern(route.host).tier == DEFAULT and route.path == "/":
            unanswered = unanswered and bool(route.methods or route.headers)
        for target in route.to:
            user = users.get(target.server, "")
            found.setdefault(user, f"{target.server} ({user})" if user else target.key)
        if not route.to:
            found.setdefault("", f"the route {route.alias}, which has no backend")
    if unanswered:
        found.setdefault("", NO_ROUTE)
    return found


def _listed(users: Mapping[str, str]) -> str:
    """One server of each user."""
    first: dict[str, str] = {}
    for server, user in users.items():
        first.setdefault(user, f"{server} ({user})")
    return " and ".join(first.values())
