"""Decides which routes keep their connections in the gateway, because later requests may be for another user's server.

A worker reads all later bytes of the client on a connection that was passed to it. So a connection is passed only if
every request that may arrive on it leads to servers of one user. Without TLS, any request to the listener may arrive,
with or without a route. A TLS connection is passed by its host name: only requests for that host may arrive. If the
pool's servers run as several users, no worker may get requests that lead to a URL, or requests without a route.

An application may run as another user than the pool, and can read the route table of its worker. So this table has only
what decides whether a later request is for the worker, and no header values, URLs or limits. If servers run as several
users, this table has only the routes to servers of the worker's user.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from .match import DEFAULT, EXACT, HostPattern, host_pattern
from .route import HTTPS, PROXY, Header, Redirect, Route, Target, passable

NO_ROUTE = "requests without a route"
CHANGING = (
    "connections that it has passed are ended, as later requests on them would be for another user's server"
)


def with_separation_reasons(routes: Sequence[Route], users: Mapping[str, str]) -> list[Route]:
    """Return the routes, with the reasons why connections must stay in the gateway because of another user's server.

    `other_user` is set to the reason for connections without TLS, `other_user_tls` to the reason for TLS connections;
    "" means that they need not stay. `users` maps every server of the pool to its user, also servers without a route.
    """
    if _only_user(users.values()) is not None:
        return [
            replace(each, other_user="", other_user_tls="") if each.other_user else each for each in routes
        ]
    first = _first_destination_by_user(routes, users)
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
        found.append(replace(route, other_user=reason, other_user_tls=mixed))
    return found


def _first_destination_by_user(routes: Iterable[Route], user_by_server: Mapping[str, str]) -> dict[str, str]:
    """Return a text for each user, which names the user's first server among the targets of `routes`.

    The text for the key "" names the first destination that is no server of the pool, such as a URL or NO_ROUTE.
    """
    found: dict[str, str] = {}
    unanswered = True
    for route in routes:
        if host_pattern(route.host).tier == DEFAULT and route.path == "/":
            unanswered = unanswered and bool(route.methods or route.headers)
        for target in route.to:
            user = user_by_server.get(target.server, "")
            found.setdefault(user, f"{target.server} ({user})" if user else target.key)
        if route.registers:
            found.setdefault("", f"services that register for {route.alias}")
        elif not route.to:
            found.setdefault("", f"the route {route.alias}, which has no backend")
    if unanswered:
        found.setdefault("", NO_ROUTE)
    return found


def _listed(users: Mapping[str, str]) -> str:
    first: dict[str, str] = {}
    for server, user in users.items():
        first.setdefault(user, f"{server} ({user})")
    return " and ".join(first.values())


@dataclass(frozen=True, slots=True, kw_only=True)
class TlsKeepPermission:
    """Permission for workers of `server` to keep TLS connections to the hosts that the pattern `host` covers.

    The server runs as `user`. `others` are the patterns of other users' routes that may cover the same hosts.
    """

    host: str
    server: str
    user: str
    others: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class KeepableConnections:
    """The connections that workers may keep: without TLS to `servers`, which run as `user`; with TLS to `hosts`."""

    user: str = ""
    servers: tuple[str, ...] = ()
    hosts: tuple[TlsKeepPermission, ...] = ()

    def with_earlier(self, earlier: KeepableConnections, users: Mapping[str, str]) -> KeepableConnections:
        """Return a Kept with the connections in `self`, and those in `earlier`, because these may still be open.

        `users` maps each server of the pool to its user. A connection in `earlier` is left out if its server is no
        longer in the pool, or now runs as another user.
        """
        servers = dict.fromkeys((*self.servers, *(earlier.servers if self.user == earlier.user else ())))
        known = {(each.host, each.server) for each in self.hosts}
        hosts = [each for each in earlier.hosts if (each.host, each.server) not in known]
        return KeepableConnections(
            user=self.user,
            servers=tuple(each for each in servers if each in users),
            hosts=(*self.hosts, *(each for each in hosts if users.get(each.server) == each.user)),
        )

    def without(self, servers: Collection[str]) -> KeepableConnections:
        """Return a copy without the connections of these servers."""
        return KeepableConnections(
            user=self.user,
            servers=tuple(each for each in self.servers if each not in servers),
            hosts=tuple(each for each in self.hosts if each.server not in servers),
        )

    def servers_to_disconnect(self, after: KeepableConnections, users: Mapping[str, str]) -> frozenset[str]:
        """Return the names of the servers whose workers must close their connections before new routes are published.

        Otherwise, under the new routes, a worker could read requests for another user's server. `self` has connections
        that may be open now, `after` has connections that the new routes allow. `users` maps servers to their users.
        """
        found = set(self.servers if self.servers and self.user != after.user else ())
        only = _only_user(users.values())
        stay = {(each.host, each.user): set(each.others) for each in after.hosts}
        for each in self.hosts:
            others = stay.get((each.host, each.user))
            if each.user != only and (others is None or others - set(each.others)):
                found.add(each.server)
        return frozenset(found)


def kept_connections(
    routes: Sequence[Route], users: Mapping[str, str], secure: Collection[str]
) -> KeepableConnections:
    """Return the Kept of the connections that workers may keep under `routes`, which `separated` has returned.

    `users` maps each server of the pool to its user. `secure` has the names of the servers that speak TLS.
    """
    only = _only_user(users.values())
    user = only if only is not None else _only_user(_first_destination_by_user(routes, users))
    servers = {target.server: None for each in routes if passable(each) for target in each.to}
    within = [
        each
        for each in routes
        if passable(each, tls=True) and all(target.server in secure for target in each.to)
    ]
    hosts: list[TlsKeepPermission] = []
    places = _users_of_hosts(routes, users) if within and only is None else {}
    for route in within:
        pattern = host_pattern(route.host)
        own = users.get(route.to[0].server, "")
        others = _other_users_patterns(pattern, own, places) if places else ()
        for server in dict.fromkeys(target.server for target in route.to):
            hosts.append(TlsKeepPermission(host=pattern.key, server=server, user=own, others=others))
    return KeepableConnections(user=user or "", servers=tuple(servers) if user else (), hosts=tuple(hosts))


def with_passing_disabled(routes: Iterable[Route], servers: Collection[str]) -> list[Route]:
    """Return the routes, changed so that no connection of a route to one of these servers is passed to a worker."""
    return [
        replace(each, other_user=CHANGING, other_user_tls=CHANGING)
        if any(target.server in servers for target in each.to)
        else each
        for each in routes
    ]


def _only_user(users: Iterable[str]) -> str | None:
    """The only user ("" if there is none), or None if there are several."""
    found = set(users)
    return next(iter(found), "") if len(found) <= 1 else None


def _users_of_hosts(routes: Iterable[Route], users: Mapping[str, str]) -> dict[HostPattern, set[str]]:
    """Return, for each host pattern, the users of the servers that its routes lead to; "" for a URL or no target."""
    found: defaultdict[HostPattern, set[str]] = defaultdict(set)
    for route in routes:
        found[host_pattern(route.host)] |= {users.get(target.server, "") for target in route.to} or {""}
    return found


def _other_users_patterns(
    pattern: HostPattern, user: str, places: Mapping[HostPattern, set[str]]
) -> tuple[str, ...]:
    """Return the keys of the patterns in `places` that may cover a host of `pattern`, and have another user's servers.

    `places` maps each host pattern to the users of its servers. All users except `user` are other users.
    """
    if pattern.tier == EXACT:
        near: Iterable[HostPattern] = [pattern]
    else:
        # Includes patterns that do not overlap: an unnecessary end only costs the clients a new connection.
        near = [each for each in places if each.tier <= pattern.tier]
    return tuple(sorted(each.key for each in near if places.get(each, set()) - {user}))


def routes_for_workers(routes: Iterable[Route], servers: Collection[str] | None = None) -> list[Route]:
    """Return the routes that workers of `servers` need in their route table: routes to `servers`, all for None.

    Targets that are URLs or other servers are left out. A route that is not passed to workers has the `mode` "proxy".
    """
    found: list[Route] = []
    for route in routes:
        to = tuple(each for each in route.to if each.server and (servers is None or each.server in servers))
        if servers is None or to:
            found.append(_for_workers(route, to))
    return found


def _for_workers(route: Route, to: tuple[Target, ...]) -> Route:
    """Return a copy of the route with the targets `to`, and only those fields that workers or applications need."""
    return Route(
        alias=route.alias,
        host=route.host,
        path=route.path,
        methods=route.methods,
        provider=route.provider,
        allow=route.allow,
        # Only the presence of a condition: it keeps the route from being passed.
        headers=tuple(Header(name=each.name) for each in route.headers),
        # Such a redirect takes no requests within TLS.
        redirect=Redirect(to=HTTPS) if route.redirects_to_https else None,
        mode=route.mode if passable(route) else PROXY,
        to=tuple(Target(server=each.server) for each in to),
    )
