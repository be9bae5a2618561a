"""Routes for Python code: the route that a request took, all routes, and their health.

In an application behind the gateway, in any handler or middleware that has the ASGI scope:

    from poolctl.gateway.routes import try_get_route, upstream_name

    route = try_get_route(request.scope)      # a Route, or None for a request that bypassed the gateway
    upstream_name(request.scope)              # "users"; "" without a route

- The context of a request: `with_route`, `try_get_route`, `upstream_name`, `upstream_scheme`, `upstream_host`,
  `upstream_port`, `upstream_host_port`, `upstream_addr`, `upstream_url`.
- Routes as values: `Route`, `StreamRoute`, `ExcludedRoute`, `Target`, `Header`.
- All routes, in attributes `http`, `stream` and `excluded`: `registry_of(request.scope)` has the gateway's current
  routes, `Registry` the routes that a process adds itself, and `poolctl.connect("shop").registry()` the routes of a
  running pool.
- Route matching: `try_get_table(request.scope)` is the `RouteTable` that the gateway currently uses, with
  `find(host, path, method)`, `get("users")` and iteration. `write_table` creates a table, `normal_host` and
  `normal_path` normalize what it compares, and `explain` tells why a route is chosen.
- Health of routes: `server_health`, `route_health`, `health_info`, `health_info_without_detail`, `health_info_simple`.

It needs only the standard library, not the gateway's dependencies.
"""

from __future__ import annotations

from ..routing.context import (
    EXTENSION,
    extension,
    registry_of,
    try_get_route,
    try_get_table,
    upstream_addr,
    upstream_host,
    upstream_host_port,
    upstream_name,
    upstream_port,
    upstream_scheme,
    upstream_url,
    with_route,
)
from ..routing.match import ConsideredRoute, explain, normal_host
from ..routing.normal_path import normal_path
from ..routing.registry import Registry, RoutePool, TableRegistry
from ..routing.route import ExcludedRoute, Header, Route, StreamRoute, Target
from ..routing.route_health import (
    STATUSES,
    RouteHealth,
    health_info,
    health_info_simple,
    health_info_without_detail,
    route_health,
    server_health,
)
from ..routing.route_table import RouteTable, TableError, write_table

__all__ = [
    "EXTENSION",
    "STATUSES",
    "ConsideredRoute",
    "ExcludedRoute",
    "Header",
    "Registry",
    "Route",
    "RouteHealth",
    "RoutePool",
    "RouteTable",
    "StreamRoute",
    "TableError",
    "TableRegistry",
    "Target",
    "explain",
    "extension",
    "health_info",
    "health_info_simple",
    "health_info_without_detail",
    "normal_host",
    "normal_path",
    "registry_of",
    "route_health",
    "server_health",
    "try_get_route",
    "try_get_table",
    "upstream_addr",
    "upstream_host",
    "upstream_host_port",
    "upstream_name",
    "upstream_port",
    "upstream_scheme",
    "upstream_url",
    "with_route",
    "write_table",
]
