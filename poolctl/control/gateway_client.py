"""The gateway of a running pool as a Python object: its routes, hosts, and services that register as backends."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Mapping, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Self

from poolctl import exit_codes as codes
from poolctl.control.client import Client
from poolctl.control.pool_requests import ANSWERED, Selection, Timeout, checked, request_body, seconds_of
from poolctl.errors import ControlError, PoolError, PoolMonitorError
from poolctl.routing.registration_report import absolute_url
from poolctl.routing.route_health import FULL, SIMPLE, SUMMARY

if TYPE_CHECKING:
    from poolctl.control.pool_registry import PoolRegistry
    from poolctl.json_form import Table

# The interval of heartbeats as a share of the time-to-live: two may be lost.
_SHARE = 1 / 3


class GatewayClient:
    """The methods of a PoolClient that concern its gateway."""

    def __init__(self, client: Client) -> None:
        self._client = client

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self._client.socket_path}>"

    def routes(self) -> Table:
        """Return the gateway's routes; empty without a gateway."""
        return self._ask("routes", PoolMonitorError)

    def registry(self) -> PoolRegistry:
        """Return the gateway's routes as a registry that is always up to date; close it, or use it in `with`.

        Its look-ups take microseconds, with any number of routes. Secrets are masked.
        """
        from poolctl.control.pool_registry import PoolRegistry

        return PoolRegistry(self._client)

    def hosts(self) -> Table:
        """Return the gateway's hosts: their state, breaker, connections and errors; empty without a gateway."""
        return self._ask("hosts", PoolMonitorError)

    def disable_host(self, *hosts: str, for_seconds: Timeout = None) -> Table:
        """Send the traffic of these hosts elsewhere, for a time (default: the gateway's `traffic_re_enable`).

        0 means until they are enabled. Raises PoolParamError for an unknown host, as the other two methods do.
        """
        return self._host("disable", hosts, seconds_of("for_seconds", for_seconds))

    def enable_host(self, *hosts: str) -> Table:
        """Send traffic to these hosts again, at once."""
        return self._host("enable", hosts)

    def drain_host(self, *hosts: str) -> Table:
        """Send new clients elsewhere; clients whose sticky cookie names one of these hosts keep using it."""
        return self._host("drain", hosts)

    def health_info(self, *, routes: bool = False) -> dict[str, Table]:
        """Return the status, uptime, latency and detail of each route and server; with `routes` only of routes.

        A status is unknown, healthy, napping, starting, unhealthy or error. " (server)" is added to the name of a
        server if a route has the same name.
        """
        return self._health(FULL, routes)

    def health_info_without_detail(self, *, routes: bool = False) -> dict[str, Table]:
        """Return the status, uptime and latency of each route and server, without addresses and errors."""
        return self._health(SUMMARY, routes)

    def health_info_simple(self, *, routes: bool = False) -> dict[str, str]:
        """Return the status of each route and server."""
        return {name: each["status"] for name, each in self._health(SIMPLE, routes).items()}

    def register(
        self,
        name: str,
        to: str,
        *,
        ttl: Timeout = None,
        weight: int = 1,
        host: str | None = None,
        path: str | None = None,
        probe: str | Mapping[str, object] | None = None,
    ) -> RegisteredAs:
        """Register the URL of a service as a backend of the route `name`, and return when the gateway follows.

        With a `ttl`, repeat the call as a heartbeat, or use a `with` block, which sends heartbeats and unregisters at
        the end. `host` or `path` make a separate route; `probe` is a path, or a table like a server's readiness.
        PoolParamError or ControlError (8) for a refused service, PoolValidateError for an invalid one.
        """
        given = {"ttl": seconds_of("ttl", ttl), "host": host, "path": path, "probe": probe}
        options = {"name": name, "to": absolute_url(to), "weight": weight, **given}
        service = RegisteredAs(self, {key: value for key, value in options.items() if value is not None})
        service.heartbeat()
        return service

    def unregister(self, name: str, to: str = "") -> Table:
        """Remove this URL from a route, or all registered URLs. Raises PoolParamError if it is not registered."""
        options = {"name": name, "to": absolute_url(to) if to else ""}
        return self._ask("unregister", PoolMonitorError, (), None, options)

    def _health(self, depth: str, routes: bool) -> dict[str, Table]:
        options = {"depth": depth, "routes": routes}
        found = self._ask("health", PoolMonitorError, (), None, options, None, ANSWERED)
        about = "name", "kind"
        return {
            each["name"]: {key: value for key, value in each.items() if key not in about}
            for each in found["items"]
        }

    def _host(self, op: str, hosts: Sequence[str], for_seconds: float | None = None) -> Table:
        return self._ask(
            "host", PoolMonitorError, (), None, {"op": op, "hosts": [*hosts], "for": for_seconds}
        )

    def _ask(
        self,
        verb: str,
        failure: type[PoolError],
        targets: Sequence[str] = (),
        selector: Selection = None,
        options: Table | None = None,
        on_progress: Callable[[Table], None] | None = None,
        accepted: Sequence[int] = (codes.DONE,),
    ) -> Table:
        body = request_body(targets, selector, options or {})
        seconds = body["options"].get("timeout")
        return checked(verb, self._client.call(verb, body, on_progress, seconds), failure, accepted)


class RegisteredAs:
    """A registered service. As a context manager it sends heartbeats from a thread, and unregisters at the end.

    If the pool was down, the next heartbeat after its return registers the service again.
    """

    def __init__(self, pool: GatewayClient, options: Table) -> None:
        self._pool = pool
        self._options = options
        self._over = threading.Event()
        self._thread: threading.Thread | None = None

    def __repr__(self) -> str:
        return f"<RegisteredAs {self._options['name']} {self._options['to']}>"

    def __enter__(self) -> Self:
        if seconds := self._options.get("ttl"):
            self._over.clear()
            self._thread = threading.Thread(target=self._beat, args=(seconds * _SHARE,), daemon=True)
            self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._over.set()
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        with contextlib.suppress(PoolError, ControlError):  # the pool has ended, or has forgotten it
            self.unregister()

    def heartbeat(self) -> Table:
        """Register the service again, which renews its time-to-live. Raises the same errors as PoolClient.register."""
        return self._pool._ask("register", PoolMonitorError, (), None, self._options)

    def unregister(self) -> Table:
        """Remove the service; when this returns, the gateway sends it no more requests."""
        return self._pool.unregister(self._options["name"], self._options["to"])

    def _beat(self, pause_seconds: float) -> None:
        while not self._over.wait(pause_seconds):
            with contextlib.suppress(PoolError, ControlError, OSError):
                self.heartbeat()
