"""Computes the route table from the configuration, off the event loop, for the gateway and the workers."""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import logging
import os
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import fields, replace
from functools import partial
from typing import Any, NamedTuple

from poolctl.config import MASK, ServerConfig, Tables, masked, os_users_by_server
from poolctl.daemon_threads import in_daemon_thread
from poolctl.keeper.pool_files import CONTEXT_SECRET
from poolctl.platform import load_or_create_secret
from poolctl.routing.context import KEY_CHARACTERS
from poolctl.routing.route import AnyRoute, ExcludedRoute, Header, Route, StreamRoute, Target
from poolctl.routing.route_table import write_table
from poolctl.runners.process_link import Descriptor

from ..routes import routes_of
from ..table import GatewayConfig
from .outside_targets import ServiceSource, WithServices

_SECRET_BYTES = 32
# Long enough to compute once for a reload, which changes many servers one after another.
_GATHER_SECONDS = 0.01
# The fields of routes that hold headers.
_HEADERS = [field.name for field in fields(Route) if field.type == "tuple[Header, ...]"]

logger = logging.getLogger("poolctl.supervisor")


Source = Callable[[], tuple[Sequence[ServerConfig], Tables]]


class RouteSet(NamedTuple):
    """The routes of a pool by kind, and its routed servers.

    `users` has the name and user of each routed application. `trusted` has the networks of trusted proxies.
    """

    http: tuple[Route, ...] = ()
    streams: tuple[StreamRoute, ...] = ()
    excluded: tuple[ExcludedRoute, ...] = ()
    servers: frozenset[str] = frozenset()
    users: tuple[tuple[str, str], ...] = ()
    trusted: tuple[str, ...] = ()

    @property
    def served(self) -> list[Route | StreamRoute]:
        """All routes except excluded ones."""
        return [*self.http, *self.streams]


class RouteTableManager:
    """The pool's routes, computed in a thread, and their route tables; `changed` is called for each new table.

    `source` returns the servers and tables. `services` adds registered services; call `schedule_computation` when they
    change. The keys in `context_keys` are derived from a secret in a file in `directory`.
    """

    def __init__(self, source: Source, changed: Callable[[], None], directory: str) -> None:
        self.source = source
        self._secret_path = os.path.join(directory, CONTEXT_SECRET)
        self._secret = b""
        # By application, the key by which its workers recognize requests of the gateway.
        self.context_keys: Mapping[str, str] = {}
        self.next_process_key = ""  # by which HAProxy recognizes requests that a replaced process passes on
        self.routes = RouteSet()
        self.generation = 0
        self.table: Descriptor | None = None  # without secrets; it may be closed when the routes change
        # The tables sent to workers, by server name.
        self.worker_tables: Mapping[str, Descriptor] = {}
        self.problem = ""
        self.services: ServiceSource | None = None
        self._changed = changed
        self._work: asyncio.Task[None] | None = None
        self._followers: list[Callable[[int], object]] = []
        # The numbers of the last requested and of the last finished computation.
        self._requested = self._done = 0
        self._computed = asyncio.Event()  # set at the end of the computation in progress; then replaced

    def schedule_computation(self) -> None:
        """Schedule a computation of the routes."""
        self._requested += 1
        if self._work is None or self._work.done():
            self._work = asyncio.ensure_future(self._compute_until_current())

    def has(self, alias: str) -> bool:
        """Whether an HTTP route with this alias is served."""
        return any(route.alias == alias for route in self.routes.http)

    async def wait_until_current(self) -> None:
        """Wait until all computations requested so far are done, or have failed (see `problem`)."""
        requested = self._requested
        while self._done < requested:
            await self._computed.wait()

    @contextlib.contextmanager
    def subscribed(self, follow: Callable[[int], object]) -> Iterator[None]:
        """Context manager: inside it, `follow` is called with the generation of each new table."""
        self._followers.append(follow)
        try:
            yield
        finally:
            self._followers.remove(follow)

    def close(self) -> None:
        """Stop computing routes, and close the descriptors of the route tables."""
        if self._work is not None:
            self._work.cancel()
        if self.table is not None:
            self.table.close()
            self.table = None
        _close(self.worker_tables)

    async def _compute_until_current(self) -> None:
        while self._done < self._requested:
            await asyncio.sleep(_GATHER_SECONDS)
            requested = self._requested
            await self._compute_once()
            self._done = requested
            computed, self._computed = self._computed, asyncio.Event()
            computed.set()

    async def _compute_once(self) -> None:
        before = self.routes if self.table is not None else None
        try:
            servers, tables = self.source()
            with_services = None if self.services is None else await self.services.route_extender()
            routes = await in_daemon_thread(lambda: _compute_routes(servers, tables, with_services))
            if await in_daemon_thread(lambda: routes != before):
                await self._publish(routes)
        except Exception as error:
            logger.exception("the route table could not be made")
            self.problem = f"its route table cannot be made: {error}"
            return
        self.problem = ""

    async def _publish(self, routes: RouteSet) -> None:
        if not self._secret:
            read = partial(load_or_create_secret, self._secret_path, _SECRET_BYTES)
            self._secret = await in_daemon_thread(read)
            self.next_process_key = _key(self._secret, "", "")
        generation = max(self.generation + 1, time.time_ns() // 1_000_000)
        fds = await in_daemon_thread(lambda: _write_tables(routes, generation), undo=_discard)
        outdated, outdated_of_workers = self.table, self.worker_tables
        self.table, *workers = map(Descriptor, fds)
        by_user = dict(zip(_users_of(routes), workers, strict=True))
        self.worker_tables = {server: by_user[user] for server, user in routes.users}
        self.routes, self.generation = routes, generation
        self.context_keys = {server: _key(self._secret, server, user) for server, user in routes.users}
        self._changed()
        for follow in tuple(self._followers):
            follow(generation)
        if outdated is not None:
            outdated.close()
        _close(outdated_of_workers)


def _compute_routes(
    servers: Sequence[ServerConfig], tables: Tables, with_services: WithServices | None
) -> RouteSet:
    routes: Sequence[AnyRoute] = routes_of(servers, tables)
    if with_services is not None:
        routes = with_services(routes, servers, tables)
    http = tuple(route for route in routes if isinstance(route, Route))
    streams = tuple(route for route in routes if isinstance(route, StreamRoute))
    excluded = tuple(route for route in routes if isinstance(route, ExcludedRoute))
    targets = [target for routed in (http, streams) for route in routed for target in route.to]
    names = frozenset(target.server for target in targets if target.server)
    users = os_users_by_server(server for server in servers if not server.command)
    routed_users = tuple(sorted((name, users[name]) for name in names if name in users))
    gateway = tables.get(GatewayConfig)
    trusted = () if gateway is None else tuple(map(str, gateway.trusted_proxies))
    return RouteSet(http, streams, excluded, names, routed_users, trusted)


def _users_of(routes: RouteSet) -> list[str]:
    """The users of the routed applications, without duplicates."""
    return [*dict.fromkeys(user for _, user in routes.users)]


def _write_tables(routes: RouteSet, generation: int) -> list[int]:
    """Write the route tables, and return their descriptors: of all routes without secrets, then of each user's workers.

    An application may run as another user than the pool, and can read the table of its worker. So this table has only
    the routes to servers of its user, without header values, URLs and limits.
    """
    fds: list[int] = []
    try:
        http = [*map(masked_route, routes.http)]
        fds.append(write_table(http, generation, streams=routes.streams, excluded=routes.excluded))
        for user in _users_of(routes):
            servers = {server for server, owner in routes.users if owner == user}
            http = [route for route in routes.http if servers & {target.server for target in route.to}]
            fds.append(write_table([_for_workers(route, servers) for route in http], generation))
    except BaseException:
        _discard(fds)
        raise
    return fds


def _for_workers(route: Route, servers: Collection[str]) -> Route:
    """The route to these servers, with only the fields that applications need."""
    return Route(
        alias=route.alias,
        host=route.host,
        path=route.path,
        methods=route.methods,
        provider=route.provider,
        headers=tuple(Header(name=header.name) for header in route.headers),
        to=tuple(Target(server=target.server) for target in route.to if target.server in servers),
    )


def _discard(fds: list[int]) -> None:
    for fd in fds:
        os.close(fd)


def _close(tables: Mapping[str, Descriptor]) -> None:
    for table in {id(table): table for table in tables.values()}.values():
        table.close()


def _key(secret: bytes, server: str, user: str) -> str:
    """The key by which the server's workers recognize requests of the gateway; different for each server and user."""
    return hmac.digest(secret, f"{server}\0{user}".encode(), "sha256").hex()[:KEY_CHARACTERS]


def masked_route(route: Route) -> Route:
    """The route with masked header values.

    Those of added headers may contain resolved variables. In conditions, only headers whose name suggests a secret are
    masked.
    """
    changes: dict[str, Any] = {}
    for name in _HEADERS:
        changes[name] = tuple(
            replace(header, value=masked(header.value, (name, header.name)) if name == "headers" else MASK)
            if header.value
            else header
            for header in getattr(route, name)
        )
    return replace(route, **changes)
