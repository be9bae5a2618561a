"""Registries of routes, by alias: HTTP routes, streams, and excluded routes.

A `Registry` holds the routes that a process adds. A `TableRegistry` reads the routes of a running pool from its route
table, and cannot be changed. Any thread may use both; an iteration uses a snapshot.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Generic, TypeVar

from ..json_form import from_json
from .match import normal_host
from .route import AnyRoute, ExcludedRoute, Route, StreamRoute

if TYPE_CHECKING:
    from .route_table import RouteTable


Kind = TypeVar("Kind", bound=Route | StreamRoute | ExcludedRoute)


class RoutePool(Generic[Kind]):
    """Routes of one kind by their aliases; they can be added and removed."""

    def __init__(self) -> None:
        # Each access is a single dict operation, so threads need no lock.
        self._routes: dict[str, Kind] = {}

    def __len__(self) -> int:
        return len(self._routes)

    def __contains__(self, alias: str) -> bool:
        return alias in self._routes

    def __iter__(self) -> Iterator[Kind]:
        """The current routes, in the order in which their aliases were added."""
        return iter(list(self._routes.values()))

    def __repr__(self) -> str:
        return f"<{type(self).__name__} of {len(self)} routes>"

    def get(self, alias: str) -> Kind | None:
        """The route of this alias, or None."""
        return self._routes.get(alias)

    def add(self, route: Kind) -> None:
        """Add a route; it replaces a route with the same alias, and takes over its position."""
        self._routes[route.alias] = route

    def remove(self, alias: str) -> Kind | None:
        """Remove the route of this alias and return it; None if there is no such route."""
        return self._routes.pop(alias, None)

    def clear(self) -> None:
        """Remove every route."""
        self._routes.clear()


class HTTPRoutePool(RoutePool[Route]):
    """Routes for HTTP, which can also be looked up by host."""

    def get_by_host(self, host: str) -> Route | None:
        """The first route with exactly this host and any path; None if there is no such route."""
        wanted = normal_host(host)
        return next((route for route in self if normal_host(route.host) == wanted), None)


class _ReadOnlyRegistry:
    """The read-only part of every registry: `http`, `stream`, and `excluded` routes (known, but not served)."""

    http: HTTPRoutePool | HTTPTableRoutes
    stream: RoutePool[StreamRoute] | RouteTableView[StreamRoute]
    excluded: RoutePool[ExcludedRoute] | RouteTableView[ExcludedRoute]

    def __repr__(self) -> str:
        return f"<{type(self).__name__} of {self.num_active} routes, {len(self.excluded)} excluded>"

    @property
    def num_active(self) -> int:
        """The number of routes that are served."""
        return len(self.http) + len(self.stream)

    @property
    def num_all(self) -> int:
        """The number of all known routes."""
        return self.num_active + len(self.excluded)

    def iter_active(self) -> Iterator[Route | StreamRoute]:
        """The served routes: first HTTP, then streams."""
        return iter([*self.http, *self.stream])

    def iter_all(self) -> Iterator[AnyRoute]:
        """Iterate over all routes: first HTTP routes, then streams, then excluded routes."""
        return iter([*self.iter_active(), *self.excluded])

    def get(self, alias: str) -> Route | StreamRoute | None:
        """The served route of this alias, for HTTP or else for streams; None if no served route has it."""
        return self.http.get(alias) or self.stream.get(alias)

    def get_http_route_or_exact(self, alias: str, host: str) -> Route | None:
        """The HTTP route with this alias, else with the alias `host`, else with exactly that host; or None."""
        return self.http.get(alias) or self.http.get(host) or self.http.get_by_host(host)

    def by_provider(self) -> dict[str, list[AnyRoute]]:
        """All routes, grouped by the provider that defined them."""
        routes: dict[str, list[AnyRoute]] = {}
        for route in self.iter_all():
            routes.setdefault(route.provider, []).append(route)
        return routes


class Registry(_ReadOnlyRegistry):
    """A registry to which routes can be added: to `http`, `stream`, or `excluded` (known, but not served)."""

    http: HTTPRoutePool
    stream: RoutePool[StreamRoute]
    excluded: RoutePool[ExcludedRoute]

    def __init__(self) -> None:
        self.http = HTTPRoutePool()
        self.stream = RoutePool()
        self.excluded = RoutePool()

    def clear(self) -> None:
        """Remove every route."""
        self.http.clear()
        self.stream.clear()
        self.excluded.clear()


# Returns the current table, or None.
GetTable = Callable[[], "RouteTable | None"]


class RouteTableView(Generic[Kind]):
    """Routes of one kind in a route table, decoded on each access; read-only."""

    def __init__(
        self,
        kind: type[Kind],
        table: GetTable,
        count: Callable[[RouteTable], int],
        every: Callable[[RouteTable], Iterable[Kind]],
        find: Callable[[RouteTable, str], Kind | None],
    ) -> None:
        self._kind = kind
        self._table = table
        self._count = count
        self._every = every
        self._find = find

    def __len__(self) -> int:
        table = self._table()
        return 0 if table is None else self._count(table)

    def __contains__(self, alias: str) -> bool:
        return self.get(alias) is not None

    def __iter__(self) -> Iterator[Kind]:
        """Iterate over the routes of this kind in the current route table, in the order given to `write_table`."""
        table = self._table()
        routes = () if table is None else self._every(table)
        return (_convert_route(self._kind, route) for route in routes)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} of {len(self)} routes>"

    def get(self, alias: str) -> Kind | None:
        """The route of this alias, or None."""
        table = self._table()
        route = None if table is None else self._find(table, alias)
        return None if route is None else _convert_route(self._kind, route)


class HTTPTableRoutes(RouteTableView[Route]):
    """Routes for HTTP in a route table."""

    def __init__(self, table: GetTable) -> None:
        super().__init__(Route, table, len, iter, lambda now, alias: now.get(alias))

    def get_by_host(self, host: str) -> Route | None:
        """The first route with exactly this host and any path; None if there is no such route."""
        table = self._table()
        route = None if table is None else table.get_by_host(host)
        return None if route is None else _convert_route(Route, route)


class TableRegistry(_ReadOnlyRegistry):
    """A read-only registry of the current route table; follows each new table at once.

    `table` returns the current table, or None.
    """

    http: HTTPTableRoutes
    stream: RouteTableView[StreamRoute]
    excluded: RouteTableView[ExcludedRoute]

    def __init__(self, table: GetTable) -> None:
        self._table = table
        self.http = HTTPTableRoutes(table)
        self.stream = RouteTableView(
            StreamRoute,
            table,
            lambda now: now.num_streams,
            lambda now: now.streams(),
            lambda now, alias: now.get_stream(alias),
        )
        self.excluded = RouteTableView(
            ExcludedRoute,
            table,
            lambda now: now.num_excluded,
            lambda now: now.excluded(),
            lambda now, alias: now.get_excluded(alias),
        )

    @property
    def generation(self) -> int:
        """The current route table's number, which increases with each change of the routes; 0 if there is no table."""
        table = self._table()
        return 0 if table is None else table.generation

    def iter_active(self) -> Iterator[Route | StreamRoute]:
        """The served routes: first HTTP, then streams."""
        now = self.snapshot()
        yield from now.http
        yield from now.stream

    def iter_all(self) -> Iterator[AnyRoute]:
        """Iterate over all routes: first HTTP routes, then streams, then excluded routes."""
        now = self.snapshot()
        yield from now.http
        yield from now.stream
        yield from now.excluded

    def snapshot(self) -> TableRegistry:
        """The current routes as an unchanging copy."""
        table = self._table()
        return TableRegistry(lambda: table)


def _convert_route(kind: type[Kind], route: Kind) -> Kind:
    """Return the route as an instance of `kind`; convert it if its class comes from another poolctl.

    The worker's poolctl decodes routes; the application may have imported another version.
    """
    return route if isinstance(route, kind) else from_json(kind, route.to_json())
