"""The routes that a process knows, by alias: those for HTTP, those for streams, and those that are not served.

Any thread may read and change them; who iterates gets the routes of that moment.
"""

from __future__ import annotations

from collections.abc import Iterator
from threading import Lock
from typing import Generic, Protocol, TypeVar

from .match import normal_host
from .route import ExcludedRoute, Route, StreamRoute


class _Keyed(Protocol):
    @property
    def alias(self) -> str: ...


R = TypeVar("R", bound=_Keyed)


class RoutePool(Generic[R]):
    """Routes of one kind by their aliases."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._routes: dict[str, R] = {}

    def __len__(self) -> int:
        return len(self._routes)

    def __contains__(self, alias: str) -> bool:
        return alias in self._routes

    def __iter__(self) -> Iterator[R]:
        """The routes of this moment, in the order in which their aliases were added."""
        with self._lock:
            return iter(list(self._routes.values()))

    def __repr__(self) -> str:
        return f"<{type(self).__name__} of {len(self)} routes>"

    def get(self, alias: str) -> R | None:
        """The route of this alias, or None."""
        return self._routes.get(alias)

    def add(self, route: R) -> None:
        """Add a route; one of the same alias is replaced in its place."""
        with self._lock:
            self._replaced(self._routes.get(route.alias), route)
            self._routes[route.alias] = route

    def remove(self, alias: str) -> R | None:
        """Remove the route of this alias and return it; None if there is none."""
        with self._lock:
            route = self._routes.pop(alias, None)
            self._replaced(route, None)
            return route

    def clear(self) -> None:
        """Remove every route."""
        with self._lock:
            self._routes.clear()
            self._cleared()

    def _replaced(self, old: R | None, new: R | None) -> None:
        """Called under the lock."""

    def _cleared(self) -> None:
        """Called under the lock."""


class HTTPRoutePool(RoutePool[Route]):
    """Routes for HTTP, which are found by their host as well."""

    def __init__(self) -> None:
        super().__init__()
        self._hosts: dict[str, dict[str, Route]] = {}

    def get_by_host(self, host: str) -> Route | None:
        """The first route whose host is exactly this one, whatever its path; None if there is none."""
        with self._lock:
            return next(iter(self._hosts.get(normal_host(host), {}).values()), None)

    def _replaced(self, old: Route | None, new: Route | None) -> None:
        if old is not None and (new is None or normal_host(new.host) != normal_host(old.host)):
            host = normal_host(old.host)
            del self._hosts[host][old.alias]
            if not self._hosts[host]:
                del self._hosts[host]
        if new is not None:
            self._hosts.setdefault(normal_host(new.host), {})[new.alias] = new

    def _cleared(self) -> None:
        self._hosts.clear()


class Registry:
    """Every route: `http`, `stream`, and `excluded`, which are known and not served."""

    def __init__(self) -> None:
        self.http = HTTPRoutePool()
        self.stream: RoutePool[StreamRoute] = RoutePool()
        self.excluded: RoutePool[ExcludedRoute] = RoutePool()

    def __repr__(self) -> str:
        return f"<Registry of {self.num_active} routes, {len(self.excluded)} excluded>"

    @property
    def num_active(self) -> int:
        """How many routes are served."""
        return len(self.http) + len(self.stream)

    @property
    def num_all(self) -> int:
        """How many routes are known."""
        return self.num_active + len(self.excluded)

    def iter_active(self) -> Iterator[Route | StreamRoute]:
        """The routes that are served: those for HTTP, then those for streams."""
        return iter([*self.http, *self.stream])

    def iter_all(self) -> Iterator[Route | StreamRoute | ExcludedRoute]:
        """Every route: those for HTTP, those for streams, the excluded."""
        return iter([*self.iter_active(), *self.excluded])

    def get(self, alias: str) -> Route | StreamRoute | None:
        """The route of this alias, for HTTP or else for streams; never an excluded one."""
        return self.http.get(alias) or self.stream.get(alias)

    def get_http_route_or_exact(self, alias: str, host: str) -> Route | None:
        """The route for HTTP of this alias, or else one whose alias or host is exactly `host`."""
        return self.http.get(alias) or self.http.get(host) or self.http.get_by_host(host)

    def by_provider(self) -> dict[str, list[Route | StreamRoute | ExcludedRoute]]:
        """Every route, by the provider that it comes from."""
        found: dict[str, list[Route | StreamRoute | ExcludedRoute]] = {}
        for route in self.iter_all():
            found.setdefault(route.provider, []).append(route)
        return found

    def clear(self) -> None:
        """Remove every route."""
        self.http.clear()
        self.stream.clear()
        self.excluded.clear()
