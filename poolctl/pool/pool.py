"""`Pool`, a mapping of bind addresses to servers; and `PoolConfig`, the configuration of a pool."""

from __future__ import annotations

import asyncio
import builtins
import concurrent.futures
import contextlib
import os
import signal
import sys
import threading
from collections import Counter
from collections.abc import (
    Callable,
    Container,
    Coroutine,
    ItemsView,
    Iterable,
    Iterator,
    KeysView,
    Mapping,
    Sequence,
    ValuesView,
)
from datetime import timedelta
from typing import Any

from poolctl.address import AddressError, canonical, find_overlapping_unequal
from poolctl.config import (
    AutomaticPort,
    Configuration,
    Finding,
    Place,
    Problem,
    ServerConfig,
    TLSConfig,
    conflicts,
    dependency_findings,
    load,
    may_refer,
    no_certificate,
    problem_of,
    shown,
    with_resolved_references,
    wrong_references,
)
from poolctl.core.configuration_diff import (
    Change,
    CurrentServer,
    Kind,
    changes_certificates,
    changes_socket_access,
    read_digests_by_key,
    server_changes,
)
from poolctl.errors import (
    PoolAddError,
    PoolError,
    PoolMonitorError,
    PoolParamError,
    PoolRestartError,
    PoolStartError,
    PoolStopError,
    PoolValidateError,
    ServerError,
)
from poolctl.json_form import Table
from poolctl.routing import route_health
from poolctl.runners.runner_protocol import Runner
from poolctl.runners.stack_report import WorkerStacks
from poolctl.selection.field_filter import Field, matching, member_values, parse_field
from poolctl.selection.url_of_server import url_of_server
from poolctl.states import State
from poolctl.units import timeout_seconds

from . import loop_thread
from .context import Handler, PoolContext, Shared, error_about
from .core_host import Future, Handle, order_stop
from .loop_thread import LOCK
from .observation import healths_of, metrics_text, stacks_of
from .server import (
    Monitor,
    Server,
    StartAndStop,
    StartOperation,
    Timeout,
    blocked_as,
    entries_of,
    handle_in_process,
    pools,
    with_port,
)
from .server import stop as stop_in_order

Servers = Iterable[ServerConfig | Mapping[str, Any]]


def configurations(servers: Servers) -> tuple[list[ServerConfig], list[ServerError]]:
    """Convert mappings to configurations; returns the valid ones and all problems. Raises TypeError for a non-list."""
    valid: list[ServerConfig] = []
    problems: list[ServerError] = []
    for index, server in enumerate(servers):
        if isinstance(server, ServerConfig):
            valid.append(server)
        elif isinstance(server, Mapping):
            try:
                valid.append(ServerConfig(**{str(key): value for key, value in server.items()}))
            except PoolValidateError as error:
                problems += error.exceptions
        else:
            message = f"{shown(server)} is neither a ServerConfig nor a mapping"
            hint = "write ServerConfig(name=…, bind=…)"
            problems.append(Problem(message, place=Place(key=f"[{index}]"), hint=hint))
    return valid, problems


def with_ports(
    configuration: Configuration, in_use: Mapping[str, ServerConfig]
) -> tuple[list[ServerConfig], list[ServerError]]:
    """Replace each `auto` port by a free one; return the servers that can run, and all problems.

    A problem is an error in the configuration, a missing certificate or the lack of a free port. `in_use` has existing
    servers by name, which keep their ports.
    """
    port_range = "-".join(map(str, configuration.settings.port_range))
    problems: list[ServerError] = [*configuration._problems]
    servers: list[ServerConfig] = []
    fixed = {server.address.port for server in configuration}
    for server in configuration:
        try:
            if server.tls is True and configuration._tls is None:
                raise configuration._located(server, no_certificate())
            before = in_use.get(server.name)
            if before is not None and server.address.auto and before.address.host == server.address.host:
                choice = before.automatic_port or AutomaticPort(port_range)
                servers.append(server.at(before.address, choice))
            else:
                servers.append(with_port(server, port_range, fixed))
        except ServerError as error:
            problems.append(error)
    failed = {problem.name for problem in problems}
    unchanged = [server for name, server in in_use.items() if name in failed]
    resolved, wrong = _with_resolved_references(servers, unchanged)
    problems += [
        configuration._located(servers[index], finding)
        for index, findings in wrong.items()
        if servers[index].name not in failed
        for finding in findings
    ]
    return [server for index, server in enumerate(resolved) if index not in wrong], problems


def _with_resolved_references(
    servers: Sequence[ServerConfig], others: Sequence[ServerConfig] = ()
) -> tuple[builtins.list[ServerConfig], dict[int, builtins.list[Finding]]]:
    """The servers with addresses in place of references to `servers` and `others`, and their `wrong_references`."""
    wrong = wrong_references(servers, others)
    return with_resolved_references(servers, others, keep_escapes=True), wrong


def _server_of(config: ServerConfig | Mapping[str, Any], avoid: Container[int | None]) -> Server:
    if isinstance(config, Mapping):
        config = ServerConfig(**config)
    try:
        return Server(with_port(config, avoid=avoid) if isinstance(config, ServerConfig) else config)
    except ServerError as error:
        raise PoolAddError(f"{config.name} cannot be added", [error]) from error


Visit = Callable[[str, Server], object]


class Pool(Mapping[str, Server], StartAndStop):
    """Servers keyed by canonical bind address, in the order in which they were added. Thread-safe.

    Servers run in this process unless a `runner` is given. Methods accept any equivalent spelling of an address.
    A server that was ready and then ends by itself is restarted according to its restart policy. A failed `start` or
    `restart` raises an error, and is not retried.
    """

    _started = False  # whether the pool was started and not stopped since

    def __init__(
        self,
        servers: Iterable[Server | ServerConfig] = (),
        *,
        handler: Handler | None = None,
        context: PoolContext | None = None,
        runner: Runner | None = None,
    ) -> None:
        """Create a pool of these servers.

        Raises PoolAddError if two addresses are the same or overlap or no port is free, PoolParamError for a wrong
        argument.
        """
        if isinstance(servers, (Server, ServerConfig)) or not isinstance(servers, Iterable):
            raise PoolParamError(f"a pool takes a list of servers, and this is {servers!r}", hint="Pool([…])")
        if context is not None and not isinstance(context, PoolContext):
            raise PoolParamError(f"{context!r} is no PoolContext", hint="PoolContext(values={…})")
        if runner is not None and not callable(getattr(runner, "open", None)):
            raise PoolParamError(
                f"{runner!r} is no runner", hint="leave it out: the servers run in this process"
            )
        self._set_up(Shared(context, runner))
        self.handler(handler)
        self._store_each(servers)

    def _set_up(self, shared: Shared, source: Pool | None = None) -> None:
        self._shared = shared
        self._is_view = source is not None
        self._source_pool = self if source is None else source  # the original pool, if this is a view
        self._servers: dict[str, Server] = {}
        self._added: set[Server] = set()  # only in a view: servers stored in the view, not in its pool
        self._ports: Counter[int | None] = Counter()  # the number of servers with each TCP port
        self._departed: set[Handle] = set()
        with LOCK:
            pools[id(self)] = self

    def __repr__(self) -> str:
        servers = self._snapshot().values()
        running = sum(server.is_running for server in servers)
        kind = "view of " if self._is_view else ""
        return f"<Pool {kind}{len(servers)} server{'s' * (len(servers) != 1)}, {running} running>"

    # Methods of a mapping. Iterators use a snapshot, so that the pool may be changed meanwhile.

    def __getitem__(self, bind: str) -> Server:
        server = self.load(bind)
        if server is None:
            raise KeyError(bind)
        return server

    def __iter__(self) -> Iterator[str]:
        return iter(self._snapshot())

    def __len__(self) -> int:
        return len(self._servers)

    def __contains__(self, bind: object) -> bool:
        return self.load(bind) is not None  # type: ignore[arg-type]

    def keys(self) -> KeysView[str]:
        """Return the addresses of the pool's current servers."""
        return self._snapshot().keys()

    def values(self) -> ValuesView[Server]:
        """Return the pool's current servers."""
        return self._snapshot().values()

    def items(self) -> ItemsView[str, Server]:
        """Return pairs of address and server for the pool's current servers."""
        return self._snapshot().items()

    def load(self, bind: str) -> Server | None:
        """Return the server with this address, in constant time; None if there is none or the address is invalid."""
        try:
            return self._servers.get(bind) or self._servers.get(_key_or_empty(bind))
        except TypeError:  # it is not hashable
            return None

    def has(self, bind: str) -> bool:
        """Whether there is a server with that address."""
        return self.load(bind) is not None

    # Adding and removing servers.

    def store(self, server: Server) -> None:
        """Add the server. A server with the same address is replaced, and ordered to stop if it runs.

        References in its configuration to servers of the pool, such as `${server.api.url}`, become their addresses.
        Raises PoolAddError when the address overlaps with another address or a reference names no server of the pool,
        PoolParamError for a value that is not a Server.
        """
        if not isinstance(server, Server):
            raise PoolParamError(
                f"a pool stores servers, and this is {server!r}; store_new() takes configurations"
            )
        if wrong := self._resolve_references([server]):
            raise PoolAddError(f"{server.name} cannot be added", wrong[server])
        with LOCK:
            config = server.config
            old = self._servers.get(config.bind)
            if old is server:
                return
            if old is None:
                obstacle = find_overlapping_unequal(config.address, self._servers, self._ports)
                if obstacle is not None:
                    message = f"its address overlaps with that of {obstacle.name!r}, {obstacle.bind}"
                    problem = error_about(config, message, "give one of them another port")
                    raise PoolAddError(f"{config.name} cannot be added", [problem])
                self._ports[config.address.port] += 1
            self._servers[config.bind] = server
            if self._is_view:
                if not self._holds(server):
                    self._added.add(server)
            else:
                server._shared = self._shared  # has effect from its next start on
                if old is not None:
                    self._stop_removed([old])

    def store_new(self, config: ServerConfig | Mapping[str, Any]) -> Server:
        """Create a server from `config`, add it as `store` does, and return it.

        Raises PoolAddError; PoolValidateError for a mapping that is no configuration of a server.
        """
        server = _server_of(config, self._ports)
        self.store(server)
        return server

    def _resolve_references(self, servers: Sequence[Server]) -> dict[Server, list[ServerError]]:
        """Replace references to `servers` and to the pool's servers by addresses; returns problems, by server."""
        configs = [server.config for server in servers]
        if not any(map(may_refer, configs)):
            return {}
        others = [server.config for pool in (self._source_pool, self) for server in pool.values()]
        resolved, wrong = _with_resolved_references(configs, others)
        for server, config in zip(servers, resolved, strict=True):
            if config != server.config:
                server._set_config(config)
        return {
            servers[index]: [_problem(configs[index], finding) for finding in findings]
            for index, findings in wrong.items()
        }

    def _store_each(
        self, servers: Iterable[Server | ServerConfig], problems: Iterable[ServerError] = ()
    ) -> None:
        """Add the servers that can be added. Raises PoolAddError with `problems` and the failures, if there are any.

        If several servers have the same address, none of them is added.
        """
        errors = [*problems]
        stored: dict[str, list[Server]] = {}
        entries = [ServerConfig(**entry) if isinstance(entry, Mapping) else entry for entry in servers]
        taken = {entry.address.port for entry in entries if isinstance(entry, (Server, ServerConfig))}
        taken |= {*+self._ports}
        candidates: list[Server] = []
        for entry in entries:
            try:
                candidates.append(entry if isinstance(entry, Server) else _server_of(entry, taken))
            except PoolAddError as error:
                errors += error.exceptions
        wrong = self._resolve_references(candidates)
        for server in candidates:
            try:
                if server in wrong:
                    raise PoolAddError(f"{server.name} cannot be added", wrong[server])
                self.store(server)
                stored.setdefault(server.bind, []).append(server)
            except PoolAddError as error:
                errors += error.exceptions
        for bind, rivals in stored.items():
            if len(rivals) > 1:
                self.delete(bind)
                message = (
                    f"the address {bind} is given to {' and '.join(repr(rival.name) for rival in rivals)}"
                )
                errors += [error_about(rival.config, message, "choose another address") for rival in rivals]
        if errors:
            count = len(errors)
            raised = PoolAddError(f"{count} server{'s' * (count != 1)} cannot be added", errors)
            raised.pool = self
            raise raised

    def delete(self, bind: str) -> None:
        """Remove the server with that address, if there is one.

        A running server is ordered to stop, unless this pool is a view; `join` waits for it.
        """
        self.load_and_delete(bind)

    def load_and_delete(self, bind: str) -> Server | None:
        """Remove the server with that address as `delete` does, and return it; None if it is not in the pool.

        If several threads call this at once, only one of them gets the server.
        """
        with LOCK:
            server = self.load(bind)
            if server is not None:
                # In a view a server is stored by the address that it had when it was added.
                del self._servers[bind if bind in self._servers else _key_or_empty(bind)]
                self._ports[server.config.address.port] -= 1
                if not self._is_view:
                    self._stop_removed([server])
            return server

    def clean(self) -> None:
        """Remove all servers, as `delete` does."""
        with LOCK:
            servers = list(self._servers.values())
            self._servers.clear()
            self._ports.clear()
            if not self._is_view:
                self._stop_removed(servers)

    def _replace_members(self, servers: Sequence[Server]) -> list[Server]:
        """Make `servers`, in this order, the pool's members; order all others to stop, and return them.

        The addresses of `servers` must not overlap. The caller must hold LOCK.
        """
        staying = set(servers)
        removed = [server for server in self._servers.values() if server not in staying]
        self._servers = {server.bind: server for server in servers}
        self._ports = Counter(server.address.port for server in servers)
        for server in servers:
            server._shared = self._shared
        self._stop_removed(removed)
        return removed

    def _rekey(self, moved: Mapping[str, Server]) -> None:
        """Re-key servers that changed their address, and update references to them. `moved` has them by old address.

        The caller must hold LOCK.
        """
        if not any(self._servers.get(bind) is server for bind, server in moved.items()):
            return
        self._servers = {
            server.bind if moved.get(bind) is server else bind: server
            for bind, server in self._servers.items()
        }
        self._ports = Counter(server.address.port for server in self._servers.values())
        servers = [] if self._is_view else [*self._servers.values()]
        resolved, wrong = _with_resolved_references([server.config.before_references() for server in servers])
        for index, (server, config) in enumerate(zip(servers, resolved, strict=True)):
            # Leave an unknown reference as it is: another pool may have resolved it, or its server was removed here.
            if index not in wrong and config != server.config:
                server._set_config(config)

    def _stop_removed(self, servers: Iterable[Server]) -> None:
        """Order these removed servers to stop, if they are active; does not wait. The caller must hold LOCK."""
        handles = filter(None, map(handle_in_process, servers))
        busy = [handle for handle in handles if handle.is_active_or_ordered]
        if busy:
            order_stop(busy)
            self._departed.update(busy)

    async def join(self) -> None:
        """Wait for all ordered stops.

        Raises PoolStopError for servers that still run.
        """
        while endings := self._endings():
            futures = {future for ending in endings.values() for future in ending}
            with blocked_as(PoolStopError, endings.keys) as limit:
                await loop_thread.wait(futures, limit)
            self._raise_stop_errors(futures)

    def join_sync(self) -> None:
        """Like `join`, but blocks."""
        loop_thread.refuse_own_thread()
        while endings := self._endings():
            futures = {future for ending in endings.values() for future in ending}
            with blocked_as(PoolStopError, endings.keys) as limit:
                loop_thread.wait_sync(futures, limit)
            self._raise_stop_errors(futures)

    def _endings(self) -> dict[Handle, tuple[concurrent.futures.Future[Any], ...]]:
        """What `join` waits for, by server."""
        context = self._shared.context
        if context is not None and context.cancelled:
            context.cancel()  # order the stops now: the watcher may not have noticed the event yet
        with LOCK:
            self._departed = {handle for handle in self._departed if handle.stops or handle.ending}
            present = filter(None, map(handle_in_process, self._servers.values()))
            endings = {handle: (*handle.stops, *handle.ending) for handle in (*self._departed, *present)}
            return {handle: futures for handle, futures in endings.items() if futures}

    @staticmethod
    def _raise_stop_errors(futures: Iterable[Future]) -> None:
        raised = [future.exception() for future in futures if future.done() and not future.cancelled()]
        errors = [child for error in raised if isinstance(error, PoolStopError) for child in error.exceptions]
        if errors:
            raise PoolStopError(f"{len(errors)} servers did not stop", errors)

    # Searching and reading servers.

    def walk(self, fn: Visit) -> bool:
        """Call ``fn(bind, server)`` for each server until it returns False. Returns whether all were visited.

        Iterates over a snapshot, so that `fn` may change the pool.
        """
        return all(fn(bind, server) is not False for bind, server in self._snapshot().items())

    def walk_limit(self, fn: Visit, *binds: str) -> bool:
        """Visit, like `walk`, only the servers with the addresses in `binds`, in the order of `binds`.

        Unknown addresses are skipped. Without `binds`, all servers are visited.
        """
        if not binds:
            return self.walk(fn)
        with LOCK:
            servers = [server for bind in binds if (server := self.load(bind)) is not None]
        return all(fn(server.bind, server) is not False for server in dict.fromkeys(servers))

    def _holds(self, server: Server) -> bool:
        """Whether the server is in this pool.

        For a view from `filter`: whether it is in the original pool, or was added to the view itself.
        """
        return server in self._added or self._source_pool._servers.get(server.bind) is server

    def _snapshot(self) -> dict[str, Server]:
        with LOCK:
            return self._servers.copy()

    def _matching(self, field: Field | str, pattern: str, regex: str) -> dict[str, Server]:
        if regex:  # it may take long, so the lock is not held meanwhile
            return matching(self._snapshot(), field, pattern, regex)
        with LOCK:
            return matching(self._servers, field, pattern, regex)

    def filter(self, field: Field | str, pattern: str = "", regex: str = "") -> Pool:
        """A view of the matching servers, which are the same objects as in this pool.

        A server removed from the view stays in this pool. A server removed from this pool stays in the view, but the
        view's `start` and `restart` skip it.

        A server matches if its `field` equals `pattern`, ignoring case, or contains a match of `regex`. An empty
        `pattern` or `regex` matches nothing. For BIND the pattern may be any spelling of an address, for EXPOSE it may
        leave out the scheme. `regex` is matched in the caller's thread, without a time limit. Raises PoolParamError.
        """
        view = Pool.__new__(Pool)
        view._set_up(self._shared, source=self._source_pool)
        view._added.update(self._added)
        view._servers = self._matching(field, pattern, regex)
        view._ports = Counter(server.address.port for server in view._servers.values())
        return view

    def list(
        self, source: Field | str, target: Field | str, pattern: str = "", regex: str = ""
    ) -> builtins.list[str]:
        """The `target` field of each server whose `source` field matches `pattern` or `regex`, as in `filter`."""
        target = parse_field(target)
        return [*member_values(self._matching(source, pattern, regex), target)]

    def url(self, name: str, path: str = "/") -> str:
        """The URL at which clients reach the server of this name (its `expose`), followed by `path`.

        Raises PoolParamError if there is no such server, or if it has no URL: a program without a port has none, and a
        Unix socket only an address without a path.
        """
        return url_of_server(name, path, [(server.name, server.expose) for server in self.values()])

    # Whole pools.

    def clone(self) -> Pool:
        """Return an independent pool of new, stopped servers with the same configurations, handler and runner.

        Its context has the same values and a new `stop` event.
        """
        shared = self._shared
        context = PoolContext(shared.context.values) if shared.context is not None else None
        twin = Pool(handler=shared.handler, context=context, runner=shared.runner)
        twin._shared.tls = shared.tls
        for server in self.values():
            twin.store(Server(server.config))
        return twin

    def merge(self, other: Pool) -> None:
        """Add the other pool's servers to this pool.

        If both pools have a server with the same address, this pool's server stays, and gets the configuration of the
        other pool's server. If it runs, it uses its old configuration until its next start or restart. Servers whose
        addresses overlap with another are not added; PoolAddError, with an error for each, is raised at the end.
        """
        if not isinstance(other, Pool):
            raise PoolParamError(f"a pool is merged with another pool, and this is {other!r}")
        with LOCK:
            new = []
            for bind, server in other.items():
                mine = self._servers.get(bind)
                if mine is None:
                    new.append(server)
                elif server.config != mine.config:
                    mine._set_config(server.config)
            self._store_each(new)

    def handler(self, fn: Handler | None) -> None:
        """Set the function that provides the apps of servers without `app`, from their next start on.

        It takes no arguments and returns a dict of apps by handler key. None removes it.
        """
        if fn is not None and not callable(fn):
            raise PoolParamError(
                f"a handler is a function that returns a mapping of apps, and this is {fn!r}"
            )
        self._shared.handler = fn

    # Hot reload.

    async def apply(self, configs: Servers) -> None:
        """Change the pool to these servers, which are identified by name; returns when all changes are done.

        `configs` are ServerConfigs, mappings or a PoolConfig. New and newly enabled servers start if the pool was
        started and not stopped since, or if one of its servers runs. A running server whose configuration has changed
        is replaced as by `restart`, unless `poolctl reload` would let its workers apply the change. Stopped servers
        stay stopped. Servers that are not in `configs` are stopped and removed. A renamed server is removed and added
        as a new server, even at the same address: connections that sent no request are closed. Raises PoolRestartError
        with all failures at the end; a server whose change failed continues unchanged. Raises PoolParamError if
        `configs` is not a list, or if this pool is a view from `filter`.
        """
        reload = await asyncio.to_thread(self._plan_hot_reload, configs)
        with blocked_as(PoolRestartError, lambda: reload.concerned) as limit:
            await loop_thread.run(reload.run(), limit)

    def apply_sync(self, configs: Servers) -> None:
        """Like `apply`, but blocks until it is done."""
        loop_thread.refuse_own_thread()
        reload = self._plan_hot_reload(configs)
        with blocked_as(PoolRestartError, lambda: reload.concerned) as limit:
            loop_thread.run_sync(reload.run(), limit)

    def _plan_hot_reload(self, configs: Servers) -> ApplyOperation:
        if self._is_view:
            raise PoolParamError("a view has no servers of its own to replace", hint="apply() on its pool")
        if isinstance(configs, Configuration):
            configuration = configs
        else:
            try:
                servers, problems = configurations(configs)
            except TypeError as error:
                message = f"{shown(configs)} is no list of servers"
                raise PoolParamError(message, hint="give it a list") from error
            configuration = Configuration(servers)
            configuration._problems, configuration._tls = problems, self._shared.tls
        handles = filter(None, map(handle_in_process, self.values()))
        runs = self._started or any(handle.is_active_or_ordered for handle in handles)
        return ApplyOperation(self, configuration, runs=runs)

    # Running.

    def __enter__(self) -> Pool:
        try:
            self.start_sync()
        except BaseException as failed:
            with _stop_error_noted_in(failed):
                self.stop_sync()
            raise
        return self

    def __exit__(self, kind: object, raised: BaseException | None, traceback: object) -> None:
        with _stop_error_noted_in(raised):
            self.stop_sync()

    async def __aenter__(self) -> Pool:
        try:
            await self.start()
        except BaseException as failed:
            with _stop_error_noted_in(failed):
                await self.stop()
            raise
        return self

    async def __aexit__(self, kind: object, raised: BaseException | None, traceback: object) -> None:
        with _stop_error_noted_in(raised):
            await self.stop()

    def _operation(self, kind: type[PoolError], timeout: Timeout) -> Coroutine[None, None, None]:
        self._started = kind is not PoolStopError
        if self._started:
            return super()._operation(kind, timeout)
        return self._stop_with_runner(self._ordered(kind), timeout_seconds("timeout", timeout))

    async def _stop_with_runner(self, servers: Sequence[Server], limit: float | None) -> None:
        try:
            await stop_in_order(servers, limit)
        finally:
            if self._shared.runner is not None:
                from poolctl.runners.embedded_runner import ProcessRunner  # loaded, if it is one

                if isinstance(self._shared.runner, ProcessRunner):
                    await self._shared.runner.end_if_unused()

    def run_until_signal(self) -> None:
        """Start the pool, wait for SIGINT or SIGTERM, and stop it, each request in progress answered.

        Blocks; for the main thread of a program. A second Ctrl-C is handled as before the call. Raises PoolStartError
        and PoolStopError as `start` and `stop` do, PoolParamError in another thread.
        """
        if threading.current_thread() is not threading.main_thread():
            raise PoolParamError(
                "signals arrive in the main thread", hint="call it there, or use start and stop"
            )
        signalled = threading.Event()

        def end_if_failed(starting: Future) -> None:
            if not starting.cancelled() and starting.exception() is not None:
                signalled.set()

        numbers = signal.SIGINT, signal.SIGTERM
        before = {number: signal.signal(number, lambda *_: signalled.set()) for number in numbers}
        try:
            starting = loop_thread.submit(self._operation(PoolStartError, None))
            starting.add_done_callback(end_if_failed)
            signalled.wait()
            # A start interrupted by the signal has not failed.
            failure = starting.exception() if starting.done() and not starting.cancelled() else None
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
            self.stop_sync()
        if failure is not None:
            raise failure

    def _ordered(self, kind: type[PoolError]) -> Sequence[Server]:
        servers = [*self.values()]
        if kind is PoolStopError:
            return servers
        starting = [server for server in servers if not server._is_resting]
        chosen = {*starting, *_resting_dependencies(starting, servers)}
        return [server for server in servers if server in chosen]

    @property
    def is_running(self) -> bool:
        """Whether at least one server runs."""
        return any(server.is_running for server in self.values())

    @property
    def uptime(self) -> timedelta:
        """The longest uptime of the pool's servers; zero while no server is ready."""
        return max((server.uptime for server in self.values()), default=timedelta())

    def monitor_names(self) -> builtins.list[str]:
        """The names of the servers in the order of the snapshots from `monitor`."""
        return [server.name for server in self.values()]

    def stacks(self) -> builtins.list[WorkerStacks]:
        """The current stacks of the threads and tasks of each running server's workers; the workers continue.

        A hung worker has stacks, too. Workers in this process share its threads. Workers in other processes are asked,
        which blocks for at most a few seconds.
        """
        return stacks_of(self.values())

    def metrics(self) -> str:
        """The current metrics of the pool's servers, in Prometheus' text format, with the names of `poolctl metrics`.

        Only workers in separate processes count requests. Metrics of a supervisor and a gateway are missing, because
        the pool has neither. Blocks until the loop thread has answered; does not block if called on that thread,
        as the pool's own applications may do. Raises PoolMonitorError if an application blocks that thread.
        """
        return metrics_text(self.values)

    def monitor(self) -> builtins.list[Monitor]:
        """A snapshot of each server, as from `Server.monitor`; blocks. Raises PoolMonitorError with every failure."""
        snapshots: builtins.list[Monitor] = []
        errors: builtins.list[ServerError] = []
        for server in self.values():
            try:
                snapshots.append(server.monitor())
            except PoolMonitorError as error:
                errors += error.exceptions
        if errors:
            raise PoolMonitorError(f"{len(errors)} servers cannot be monitored", errors)
        return snapshots

    def health_info(self) -> dict[str, Table]:
        """Return the status, uptime, latency and detail of each server, by its name; sends no probe.

        A status is unknown, healthy, napping (asleep until a request comes), starting, unhealthy or error. If several
        servers have the same name, the later ones are numbered, as in `web~2`.
        """
        return route_health.health_info(healths_of(self.values()))

    def health_info_without_detail(self) -> dict[str, Table]:
        """Return the status, uptime and latency of each server, by its name; errors and other details are left out."""
        return route_health.health_info_without_detail(healths_of(self.values()))

    def health_info_simple(self) -> dict[str, str]:
        """Return the status of each server, by its name."""
        return route_health.health_info_simple(healths_of(self.values()))


@contextlib.contextmanager
def _stop_error_noted_in(raised: BaseException | None) -> Iterator[None]:
    """Let a failed stop add a note to `raised`, the exception that ends a `with` block, instead of replacing it."""
    try:
        yield
    except PoolStopError as error:
        if raised is None:
            raise
        raised.add_note(str(error))


def _resting_dependencies(starting: Iterable[Server], members: Iterable[Server]) -> list[Server]:
    """The `members` that start on demand, do not run, and are needed by servers in `starting`, directly or not.

    Jobs that have ended with 0 are left out.
    """
    resting: dict[str, list[Server]] = {}
    for server in members:
        if server._is_resting and not server.ready:
            resting.setdefault(server.name, []).append(server)
    dependencies: list[Server] = []
    pending = [*starting] if resting else []
    while pending:
        for dependency in pending.pop().config.depends_on:
            needed = resting.pop(dependency.name, [])
            dependencies += needed
            pending += needed
    return dependencies


class ApplyOperation:
    """Performs one call of `Pool.apply`. With `runs`, new and newly enabled servers are started.

    A server with an invalid new configuration stays unchanged. If a problem does not name its server, none is removed,
    because the problem may concern any of them.
    """

    def __init__(self, pool: Pool, configuration: Configuration, *, runs: bool) -> None:
        """Read the certificates and env files of `configuration`, to detect changed contents. Blocks on the disk."""
        self._pool = pool
        self._configuration = configuration
        self._runs = runs
        self._errors: list[ServerError] = []
        self._to_start: list[Server] = []
        self._live: set[Server] = set()  # their running workers apply the change
        self._certificates: list[Server] = []
        self._sockets: list[Server] = []  # their Unix sockets may get another mode or owner
        self._beside: list[Server] = []  # active servers without a change
        self._stops: set[Future] = set()
        tls = configuration._tls
        self._files = {server.name: read_digests_by_key(_with_tls(server, tls)) for server in configuration}

    @property
    def concerned(self) -> Sequence[Server | ServerConfig]:
        """The servers to start; before `run`, all servers that may change."""
        by_name = {server.name: server for server in (*self._pool.values(), *self._configuration)}
        return self._to_start or [*by_name.values()]

    async def run(self) -> None:
        """Apply the new configurations; returns when each server uses its new configuration, or has failed.

        Raises PoolRestartError with every failure.
        """
        with LOCK:
            self._change_members()
        holds, live = self._pool._holds, self._live
        try:
            await StartOperation(self._to_start, None, holds, PoolRestartError, live, self._beside).run()
        except PoolRestartError as error:
            self._errors += error.exceptions
        for _, host, entry in entries_of(self._sockets):
            try:
                host.core.change_socket_access(entry)
            except ServerError as problem:
                self._errors.append(problem)
        for _, host, entry in entries_of(self._certificates):
            try:
                await host.core.reload_tls(entry)
            except ServerError as problem:
                self._errors.append(problem)
        for future in self._stops:
            try:
                await asyncio.shield(asyncio.wrap_future(future))
            except PoolStopError as error:
                self._errors += error.exceptions
        if self._errors:
            count = len(self._errors)
            raise PoolRestartError(f"{count} change{'s' * (count > 1)} failed", self._errors)

    def _change_members(self) -> None:
        configuration = self._configuration
        by_name: dict[str, list[Server]] = {}
        for server in self._pool.values():
            by_name.setdefault(server.name, []).append(server)
        in_use = {name: servers[0].config for name, servers in by_name.items()}
        written, self._errors = with_ports(configuration, in_use)
        written, kept = self._without_address_conflicts(written)
        before, after = self._pool._shared.tls, configuration._tls
        self._pool._shared.tls = after
        members: list[Server] = []
        for config in written:
            namesakes = by_name.get(config.name, [])
            if not namesakes:
                members.append(Server(config))
                if self._runs and not (config.disabled or config.on_demand):
                    self._to_start.append(members[-1])
                continue
            at_address = (namesake for namesake in namesakes if namesake.bind == config.bind)
            server = next(at_address, namesakes[0])
            members.append(server)
            namesakes.remove(server)
            running = CurrentServer(_with_tls(_active_config(server), before), files=_files(server))
            changes = server_changes(running, _with_tls(config, after), self._files[config.name])
            self._begin_change(server, config, changes[0] if changes else None)
        active = [*self._to_start, *(server for server in members if _is_wanted(server))]
        self._to_start += _resting_dependencies(active, members)
        for server in self._pool._replace_members([*members, *kept]):
            if handle := handle_in_process(server):
                self._stops |= handle.stops

    def _without_address_conflicts(
        self, written: list[ServerConfig]
    ) -> tuple[list[ServerConfig], list[Server]]:
        """Return `configs` without address conflicts, and the pool's servers to keep unchanged.

        A server that is not in `configs` is kept if an error names it, or if an error names no server. The caller
        removes all others. Each address conflict is added to `_errors`.
        """
        while True:
            names = {server.name for server in written}
            invalid = {problem.name for problem in self._errors}
            kept = [
                server
                for server in self._pool.values()
                if server.name not in names and (server.name in invalid or "" in invalid)
            ]
            addresses = [(server.name, server.config.address) for server in kept]
            addresses += [(server.name, server.address) for server in written]
            conflicting = {index - len(kept): finding for index, _, finding in conflicts(addresses)}
            conflicting = {index: finding for index, finding in conflicting.items() if index >= 0}
            if not conflicting:
                return written, kept
            for index, finding in conflicting.items():
                self._errors.append(_problem(written[index], finding))
            written = [server for index, server in enumerate(written) if index not in conflicting]

    def _begin_change(self, server: Server, config: ServerConfig, change: Change | None) -> None:
        handle, is_wanted = handle_in_process(server), _is_wanted(server)
        if change is None:
            server._set_config(_active_config(server))
            if handle is not None and is_wanted:
                self._beside.append(server)
            return
        server._set_config(config)
        if config.disabled:
            if handle is not None and is_wanted:
                self._stops.add(order_stop([handle]))
        elif is_wanted:
            self._to_start.append(server)
            if change.kind is Kind.UPDATE or config.every is not None:
                self._live.add(server)
            if change.kind is Kind.UPDATE and changes_certificates(change.keys):
                self._certificates.append(server)
            if changes_socket_access(change.keys):
                self._sockets.append(server)
        elif not {"disabled", "on_demand"}.isdisjoint(change.keys):
            if self._runs and not config.on_demand:
                self._to_start.append(server)
        elif change.kind is Kind.RESTART and server.state is State.FAILED:
            self._to_start.append(server)


def _is_wanted(server: Server) -> bool:
    """Whether the server is supposed to run."""
    handle = handle_in_process(server)
    entry = handle.entry if handle is not None else None
    return entry is not None and (entry.wanted or entry.on_schedule)


def _active_config(server: Server) -> ServerConfig:
    """The configuration that the server runs with, or its configured one if it does not run."""
    handle = handle_in_process(server)
    if handle is None or handle.entry is None:
        return server.config
    return handle.observed.config or server.config


def _files(server: Server) -> Mapping[str, str]:
    handle = handle_in_process(server)
    return handle.entry.observed.files if handle is not None and handle.entry is not None else {}


def _with_tls(config: ServerConfig, default: TLSConfig | None) -> ServerConfig:
    return (
        config.model_copy(update={"tls": default}) if config.tls is True and default is not None else config
    )


def _key_or_empty(bind: str) -> str:
    try:
        return canonical(bind)
    except AddressError:
        return ""


class PoolConfig(Configuration):
    """A pool's configuration: its valid servers, and all errors in `.problems`. The constructor never raises."""

    def __init__(self, servers: Servers = ()) -> None:
        super().__init__()
        self._context: PoolContext | None = None
        valid: list[ServerConfig] = []
        try:
            valid, self._problems = configurations(servers)
        except TypeError:
            self._problems.append(Problem(f"{shown(servers)} is no list of servers", hint="give it a list"))
        self._servers = self._exclude_conflicting(valid)

    @classmethod
    def load(
        cls,
        paths: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
        env: Mapping[str, str] | None = None,
    ) -> PoolConfig:
        """Load the configuration from files and directories; later files override earlier files.

        `env` (default: the process's) resolves `${VAR}`. Servers that name no interpreter run in this one. Blocks on
        the disk. Raises PoolValidateError when a file cannot be read or parsed; problems of single servers are in
        `.problems`.
        """
        if env is not None and not isinstance(env, Mapping):
            raise PoolParamError(
                f"an environment is a mapping, and this is {env!r}", hint="load([one, other])"
            )
        config = cls()
        # A PoolConfig has the same attributes as a Configuration.
        vars(config).update(vars(load(paths, env, python=sys.executable)))
        return config

    def _exclude_conflicting(self, servers: list[ServerConfig]) -> list[ServerConfig]:
        excluded: set[int] = set()
        for index, _, finding in conflicts([(server.name, server.address) for server in servers]):
            excluded.add(index)
            self._problems.append(_problem(servers[index], finding))
        kept = [server for index, server in enumerate(servers) if index not in excluded]
        failed = [problem.name for problem in self._problems]
        for server, finding in dependency_findings(kept, failed):
            excluded.update(index for index, other in enumerate(servers) if other is server)
            self._problems.append(_problem(server, finding))
        for index, findings in wrong_references(servers, failed=failed).items():
            excluded.add(index)
            self._problems += [_problem(servers[index], finding) for finding in findings]
        self._excluded = [servers[index] for index in sorted(excluded)]
        return [server for index, server in enumerate(servers) if index not in excluded]

    def set_handler(self, handler: Handler | None) -> None:
        """Set the function that returns the applications of servers without their own, `{handler_key: ASGI app}`.

        None removes it.
        """
        if handler is not None and not callable(handler):
            raise PoolParamError(
                f"{shown(handler)} is no handler", hint="give it a function: () -> {key: app}"
            )
        self._handler = handler

    def set_default_tls(self, tls: TLSConfig | Mapping[str, Any] | None) -> None:
        """Set the certificates for servers that ask for TLS without their own (`tls=True`); None removes them."""
        if isinstance(tls, Mapping):
            tls = TLSConfig(**tls)
        if tls is not None and not isinstance(tls, TLSConfig):
            raise PoolParamError(f"{shown(tls)} is no TLSConfig", hint="write TLSConfig(cert=…, key=…)")
        self._tls = tls

    def set_context(self, context: PoolContext | None) -> None:
        """Use this PoolContext for the pool's servers; cancelling it stops them."""
        if context is not None and not isinstance(context, PoolContext):
            raise PoolParamError(f"{shown(context)} is no PoolContext", hint="write PoolContext(values={…})")
        self._context = context

    def walk(self, fn: Callable[[ServerConfig], bool | None]) -> bool:
        """Call `fn` with each server in order until it returns False. Returns whether all were visited."""
        return all(fn(server) is not False for server in list(self._servers))

    def validate(self, *, import_apps: bool = True) -> None:
        """Check everything, including the system: files, certificates, interpreters, importable apps.

        Blocks for as long as the apps take to import, each in its own interpreter, never in this process. Raises
        PoolValidateError with every problem of every server.
        """
        missing = [] if self.files else self._missing_settings()
        problems = [*self.problems, *missing, *self.check_external(import_apps=import_apps)]
        if problems:
            count = len(problems)
            raise PoolValidateError(f"the configuration has {count} problem{'s' * (count > 1)}", problems)

    def pool(
        self,
        *,
        handler: Handler | None = None,
        context: PoolContext | None = None,
        runner: Runner | None = None,
    ) -> Pool:
        """Create a pool of the servers, without starting them. Raises PoolAddError if there is any problem.

        The error lists every problem, and the error's `.pool` is a pool of the valid servers.
        """
        pool = Pool(handler=handler or self._handler, context=context or self._context, runner=runner)
        pool._shared.tls = self._tls
        pool._store_each(*with_ports(self, {}))
        return pool


def _problem(server: ServerConfig, finding: Finding) -> Problem:
    return problem_of(finding, name=server.name, bind=server.bind)
