"""A running pool as a Python object: a method for each command, with the errors that `Pool` raises."""

from __future__ import annotations

import builtins
import contextlib
import os
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from itertools import compress
from typing import TYPE_CHECKING, Any, Literal, Self, TypedDict, cast, overload

from poolctl.config.values.path_variables import with_absolute_paths
from poolctl.control import pool_paths
from poolctl.control.client import Client, NoSupervisor, raise_for_errors, wait_for_exit
from poolctl.errors import (
    ControlError,
    PoolError,
    PoolMonitorError,
    PoolParamError,
    PoolRestartError,
    PoolStartError,
    PoolStopError,
)
from poolctl.exit_codes import DONE, NOT_AS_DESIRED
from poolctl.json_form import Table, to_json
from poolctl.routing.route_health import FULL, SIMPLE, SUMMARY
from poolctl.routing.route_report import with_absolute_socket_path
from poolctl.selection.url_of_server import url_of_server
from poolctl.units import timeout_seconds

if TYPE_CHECKING:
    from poolctl.config import ServerConfig
    from poolctl.control.pool_registry import PoolRouteRegistry
    from poolctl.pool.server import Monitor
    from poolctl.selection.field_filter import Field

ANSWERED = (DONE, NOT_AS_DESIRED)
Selection = Mapping[str, object] | None
# Seconds, "1m30s", or a timedelta; None for no limit.
Timeout = float | str | timedelta | None
# The interval of heartbeats as a share of the time-to-live: two may be lost.
_HEARTBEAT_INTERVAL_SHARE = 1 / 3


class Change(TypedDict):
    """A change that a reload makes to `keys`.

    "override" undoes what a command has changed; "signal" sends the `reload_signal`.
    """

    name: str
    bind: str
    change: Literal["add", "remove", "restart", "update", "override", "signal"]
    keys: list[str]
    message: str


class ServerItem(TypedDict):
    """The current state of a server, as `poolctl list -o json` prints it."""

    name: str
    bind: str
    expose: str | None  # None for a program without a port
    state: str
    ready: bool
    health: str
    pids: list[int]
    workers: int
    uptime_seconds: float
    restarts: int
    tags: list[str]


class ServersDocument(TypedDict):
    """The document that `poolctl list -o json` prints."""

    schema: int
    items: list[ServerItem]
    errors: list[dict[str, Any]]
    warnings: list[str]
    exit_code: int


class StatusDocument(ServersDocument):
    """The document that `poolctl status -o json` prints."""

    summary: dict[str, Any]


class ReloadDocument(ServersDocument):
    """The document that `poolctl reload -o json` prints."""

    changes: list[Change]


def find_socket(config_or_name: str | None, env: Mapping[str, str]) -> str:
    """The path of the control socket of the pool with this file or name, or of the working directory.

    The socket need not exist. Raises NoSupervisor for a name that no running pool has.
    """
    if config_or_name is None:
        from poolctl.config import ConfigNotFound, find_config

        try:
            first_file = find_config([], env, os.getcwd())[0]
        except ConfigNotFound as error:
            raise NoSupervisor(error.message, hint=error.hint) from None
    elif (  # a file, which need not exist, not a pool's name
        "/" in config_or_name
        or config_or_name.endswith((".toml", ".yaml", ".yml", ".json"))
        or os.path.exists(config_or_name)
    ):
        first_file = os.path.abspath(config_or_name)
    else:
        directory = pool_paths.named_pool_dir(env, config_or_name)
        if directory is None:
            raise NoSupervisor(
                f"no running pool is named {config_or_name!r}", hint="start it with poolctl start"
            )
        return f"{directory}/{pool_paths.SOCKET_NAME}"
    return f"{pool_paths.pool_dir_of_file(env, first_file)}/{pool_paths.SOCKET_NAME}"


class PoolClient:
    """A running pool, reached through its supervisor. Every method blocks, and may be called from any thread.

    Methods take names or addresses (`*` and `?` are wildcards; none selects all), and further conditions in `selector`
    (`name`, `bind`, `expose`, `tag`, `state`, `health`, `not`, `allow_empty`). They return the document that the
    command prints with `-o json`. `scale`, `drain`, `undrain`, `enable`, `disable` and `remove` raise PoolParamError
    without a selection or `all=True`. Leaving a `with` or `async with` block does not stop the pool.
    """

    def __init__(self, client: Client) -> None:
        self._client = client

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *raised: object) -> None:
        pass

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *raised: object) -> None:
        pass

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self._client.socket_path}>"

    def ping(self) -> Table:
        """Return the supervisor's version and process ids."""
        return to_json(self._client.ping())

    @overload
    def list(  # type: ignore[overload-overlap]  # a Field is a str
        self,
        source: Field,
        target: Field | str,
        pattern: str = "",
        regex: str = "",
        *,
        selector: Selection = None,
    ) -> builtins.list[str]: ...
    @overload
    def list(
        self,
        source: Field | str,
        target: Field | str,
        pattern: str = "",
        *,
        regex: str,
        selector: Selection = None,
    ) -> builtins.list[str]: ...
    @overload
    def list(
        self, source: Field | str, target: Field | str, *, pattern: str, selector: Selection = None
    ) -> builtins.list[str]: ...
    @overload
    def list(self, *targets: str, selector: Selection = None) -> ServersDocument: ...
    def list(
        self, *targets: str, selector: Selection = None, **match: str
    ) -> ServersDocument | builtins.list[str]:
        """Return the current state of the selected servers, or one field of the servers that match another.

        With a Field first, or with `pattern` or `regex` by name, it returns what `Pool.list` does: the `target` field
        of each server whose `source` field matches, as in `filter`. Raises PoolParamError.
        """
        from poolctl.selection.field_filter import Field

        if match or (targets and isinstance(targets[0], Field)):
            return self._list_field(*targets, selector=selector, **match)
        return cast("ServersDocument", self._ask("list", PoolParamError, targets, selector))

    def _list_field(
        self,
        source: Field | str,
        target: Field | str,
        pattern: str = "",
        regex: str = "",
        *,
        selector: Selection = None,
    ) -> builtins.list[str]:
        from poolctl.selection.field_filter import parse_field

        target = parse_field(target)
        items = self.filter(source, pattern, regex, selector=selector)["items"]
        return [item[target.value] or "" for item in items]

    def filter(
        self, field: Field | str, pattern: str = "", regex: str = "", *, selector: Selection = None
    ) -> ServersDocument:
        """Return the servers whose field equals `pattern`, ignoring case, or contains a match of `regex`.

        Nothing matches when both are empty. Raises PoolParamError if `regex` is invalid or takes too long.
        """
        from poolctl.selection.field_filter import parse_field, value_test, values_with_match

        field = parse_field(field)
        document = self.list(selector={**(selector or {}), "allow_empty": True})
        values = [item[field.value] or "" for item in document["items"]]
        matches = value_test(field, pattern, values_with_match(regex, values))
        return {**document, "items": [*compress(document["items"], map(matches, values))]}

    def walk(self, fn: Callable[[ServerItem], object], *targets: str, selector: Selection = None) -> bool:
        """Call `fn` with each selected server as it is now, in order, until it returns False.

        Returns False if `fn` did, otherwise True.
        """
        return all(fn(item) is not False for item in self.list(*targets, selector=selector)["items"])

    def url(self, name: str, path: str = "/") -> str:
        """The URL at which clients reach the server of this name (its `expose`), followed by `path`.

        Raises PoolParamError if there is no such server, or if it has no URL, as `Pool.url` does.
        """
        items = self.list(selector={"allow_empty": True})["items"]
        return url_of_server(name, path, [(item["name"], item["expose"]) for item in items])

    def logs(
        self,
        *targets: str,
        selector: Selection = None,
        follow: bool = False,
        lines: int | None = 100,
        since: datetime | None = None,
    ) -> Iterator[Table]:
        """Yield the last `lines` lines of each selected server (None: all), merged by time.

        A line has time, name, pid, level and line; pid and level are None if they are not known.

        With `follow` new lines as well, without an end. Raises PoolParamError at the start for unknown servers.
        """
        from poolctl.logs.line_filter import LineFilter
        from poolctl.logs.log_line import stamp
        from poolctl.logs.log_tail import follow as follow_logs
        from poolctl.logs.log_tail import merged_tails

        state = pool_paths.state_dir(os.environ, os.path.basename(os.path.dirname(self._client.socket_path)))
        paths = {
            item["name"]: item["config"].get("log", {}).get("path") or f"{state}/logs/{item['name']}.log"
            for item in self.show(*targets, selector=selector)["items"]
        }
        start = "" if since is None else stamp(since.timestamp())
        read = follow_logs if follow else merged_tails
        for line in read(paths, lines=lines, since=start, wanted=LineFilter(levels=True)):
            yield {
                "time": line.time, "name": line.name, "pid": line.pid, "level": line.level or None,
                "line": line.text,
            }  # fmt: skip

    def show(self, *targets: str, selector: Selection = None, reveal: bool = False) -> Table:
        """Return everything about the selected servers, including the effective configuration and its origins.

        Values of secret-looking keys and passwords in URLs are masked unless `reveal`.
        """
        return self._ask("show", PoolParamError, targets, selector, {"reveal": reveal})

    def status(self, *targets: str, selector: Selection = None) -> StatusDocument:
        """Return the selected servers and a summary. Servers that differ from the desired state are not an error."""
        return cast(
            "StatusDocument",
            self._ask("status", PoolMonitorError, targets, selector, {}, None, ANSWERED),
        )

    def events(
        self,
        *targets: str,
        selector: Selection = None,
        follow: bool = False,
        lines: int = 100,
        since: datetime | None = None,
        kinds: Sequence[str] = (),
    ) -> Iterator[Table]:
        """Yield the last events of the selected servers, or of the whole pool; with `follow` new ones as well.

        Ends when the supervisor ends. Raises PoolParamError at the start for servers that do not exist.
        """
        options = {"follow": follow, "lines": lines, "kind": [*kinds]}
        if since is not None:
            options["since"] = f"{since.astimezone(UTC):%Y-%m-%dT%H:%M:%S.%fZ}"
        for message in self._client.messages("events", request_body(targets, selector, options)):
            if "event" in message:
                yield message["event"]
            elif "result" in message:
                raise_for_errors("events", message["result"], PoolParamError)

    def monitor(self, *targets: str, selector: Selection = None) -> builtins.list[Monitor]:
        """Return a snapshot of each selected server; `latency` is the longest duration of its workers' last probes."""
        from poolctl.pool.server import Monitor

        items = self._ask("monitor", PoolMonitorError, targets, selector)["items"]
        return [Monitor.from_dict(item["name"], item["bind"], item["monitor"]) for item in items]

    def stats(self, *targets: str, selector: Selection = None) -> Table:
        """Return the selected servers, each with its statistics under the key `"stats"`."""
        return self._ask("stats", PoolMonitorError, targets, selector)

    def stacks(self, *targets: str, selector: Selection = None) -> Table:
        """Return the current stacks of the threads and tasks of the selected servers' workers, which keep running."""
        return self._ask("stacks", PoolMonitorError, targets, selector)

    def metrics(self, *targets: str) -> str:
        """Return the metrics of the pool and the selected servers in Prometheus' text format."""
        return str(self._ask("metrics", PoolMonitorError, targets)["text"])

    def notify_test(self, *receivers: str) -> Table:
        """Send a test notification to the named receivers, or to all; `receivers` in the result has each outcome.

        Raises PoolMonitorError if a receiver did not accept it, PoolParamError for an unknown name.
        """
        return self._ask("notify", PoolMonitorError, (), None, {"receivers": [*receivers]})

    def start(
        self,
        *targets: str,
        selector: Selection = None,
        timeout: Timeout = None,
        deps: bool = True,
        wait: bool = True,
        on_progress: Callable[[Table], None] | None = None,
    ) -> Table:
        """Start the selected servers and return when all are ready, or without `wait` at once.

        Raises PoolStartError with every failure. `timeout` is in seconds, or "1m30s", or a timedelta; when it passes,
        the children of the error have a TimeoutError as cause. Without `deps` only the selected servers are started.
        """
        options = {"timeout": timeout, "deps": deps, "wait": wait}
        return self._ask("start", PoolStartError, targets, selector, options, on_progress)

    def stop(
        self,
        *targets: str,
        selector: Selection = None,
        timeout: Timeout = None,
        deps: bool = True,
        wait: bool = True,
        on_progress: Callable[[Table], None] | None = None,
    ) -> Table:
        """Stop the selected servers; without a selection, the supervisor too.

        Raises PoolStopError with every failure.
        """
        options = {"timeout": timeout, "deps": deps, "wait": wait}
        result = self._ask("stop", PoolStopError, targets, selector, options, on_progress)
        if result.get("ended"):
            # Like the command, return only when the last process of the pool has exited.
            wait_for_exit(int(result["keeper_pid"]))
        return result

    def restart(
        self,
        *targets: str,
        selector: Selection = None,
        timeout: Timeout = None,
        deps: bool = True,
        wait: bool = True,
        on_progress: Callable[[Table], None] | None = None,
    ) -> Table:
        """Replace the selected servers without refusing a connection. Raises PoolRestartError with every failure."""
        options = {"timeout": timeout, "deps": deps, "wait": wait}
        return self._ask("restart", PoolRestartError, targets, selector, options, on_progress)

    def reload(
        self,
        *targets: str,
        selector: Selection = None,
        dry_run: bool = False,
        env: Mapping[str, str] | None = None,
        timeout: Timeout = None,
        wait: bool = True,
        on_progress: Callable[[Table], None] | None = None,
    ) -> ReloadDocument:
        """Apply the changed files and return the `"changes"`; with `dry_run` only report them.

        A selection limits this to its servers; unchanged servers in it get their `reload_signal`. A dry run's
        `"exit_code"` is 3 when there is a difference. `env` is the environment to read the files with from now on.
        Raises PoolValidateError with every problem of the files; then nothing is changed.
        """
        variables = None if env is None else with_absolute_paths(env)
        options = {"dry_run": dry_run, "env": variables, "timeout": timeout, "wait": wait}
        answer = self._ask("reload", PoolRestartError, targets, selector, options, on_progress, ANSWERED)
        return cast(ReloadDocument, answer)

    def scale(
        self,
        *targets: str | int,
        workers: int | None = None,
        auto: bool = False,
        selector: Selection = None,
        all: bool = False,
        timeout: Timeout = None,
        wait: bool = True,
    ) -> Table:
        """Set the number of workers of each selected server, until a reload; return when they are ready.

        The number is `workers`, or the last argument, as on the command line: `scale("web", 4)`. With `auto` no number
        is given: the servers' triggers set it again.
        """
        names = [target for target in targets if isinstance(target, str)]
        numbers = [target for target in targets if not isinstance(target, str)]
        numbers += [] if workers is None else [workers]
        if len(numbers) != (not auto):
            raise PoolParamError("scale: how many workers?", hint='scale("web", workers=4), or auto=True')
        options: Table = {"timeout": timeout, "wait": wait, "all": all}
        options |= {"auto": True} if auto else {"workers": numbers[0]}
        return self._ask("scale", PoolStartError, names, selector, options)

    def drain(self, *targets: str, selector: Selection = None, all: bool = False) -> Table:
        """Take the selected servers out of rotation; they still answer direct requests."""
        return self._ask("drain", PoolStopError, targets, selector, {"all": all})

    def signal(self, number: int, *targets: str, selector: Selection = None, all: bool = False) -> Table:
        """Send a signal to each worker of the selected servers, not to its children. Applications have to handle it."""
        return self._ask("signal", PoolStartError, targets, selector, {"all": all, "signal": int(number)})

    def undrain(self, *targets: str, selector: Selection = None, all: bool = False) -> Table:
        """Take drained servers back into rotation."""
        return self._ask("undrain", PoolStartError, targets, selector, {"all": all})

    def enable(
        self,
        *targets: str,
        selector: Selection = None,
        all: bool = False,
        timeout: Timeout = None,
        wait: bool = True,
    ) -> Table:
        """Enable the selected servers, until a reload, and start them. Raises PoolStartError with every failure."""
        options = {"timeout": timeout, "wait": wait, "all": all}
        return self._ask("enable", PoolStartError, targets, selector, options)

    def disable(
        self,
        *targets: str,
        selector: Selection = None,
        all: bool = False,
        timeout: Timeout = None,
        wait: bool = True,
    ) -> Table:
        """Stop the selected servers and keep them from starting, until a reload."""
        options = {"timeout": timeout, "wait": wait, "all": all}
        return self._ask("disable", PoolStopError, targets, selector, options)

    def add(
        self,
        server: Mapping[str, object] | ServerConfig | None = None,
        *,
        base_dir: str | os.PathLike[str] = ".",
        timeout: Timeout = None,
        wait: bool = True,
        **keys: object,
    ) -> Table:
        """Add a server to the pool, and return when it is ready. The next reload removes it.

        Its keys, as in a file, are given in a mapping or as keyword arguments; paths are relative to `base_dir`. Raises
        PoolValidateError for an invalid server, ControlError (exit code 8) for a name or an address that is taken.
        """
        place = os.path.abspath(base_dir)
        table = {**_table(server), **keys}
        options = {"server": table, "base_dir": place, "timeout": timeout, "wait": wait}
        return self._ask("add", PoolStartError, (), None, options)

    def remove(
        self,
        *targets: str,
        selector: Selection = None,
        all: bool = False,
        timeout: Timeout = None,
        deps: bool = True,
        wait: bool = True,
    ) -> Table:
        """Stop the selected servers and remove them from the pool, until a reload; return the removed servers."""
        options = {"timeout": timeout, "deps": deps, "wait": wait, "all": all}
        return self._ask("remove", PoolStopError, targets, selector, options)

    def wait(
        self, *targets: str, selector: Selection = None, timeout: Timeout = None, until: str = "ready"
    ) -> Table:
        """Wait until all selected servers are `until`: "ready", "healthy", or in a state such as "stopped"."""
        return self._ask("wait", PoolMonitorError, targets, selector, {"timeout": timeout, "for": until})

    def upgrade(self, *, force: bool = False) -> Table:
        """Upgrade the pool to this version of poolctl, and return when it is done; the servers' processes keep running.

        A pool that already has this build is left unchanged without `force`. Raises ControlError (exit code 8) when the
        running version refuses, PoolValidateError for files with problems.
        """
        return raise_for_errors("upgrade", to_json(self._client.upgrade(force=force)), PoolRestartError)

    def routes(self) -> Table:
        """Return the gateway's routes; empty without a gateway."""
        return self._ask("routes", PoolMonitorError)

    def registry(self) -> PoolRouteRegistry:
        """Return the gateway's routes as a registry that is always up to date; close it, or use it in `with`.

        Its look-ups take microseconds, with any number of routes. Secrets are masked.
        """
        from poolctl.control.pool_registry import PoolRouteRegistry

        return PoolRouteRegistry(self._client)

    def hosts(self) -> Table:
        """Return the gateway's hosts: their state, breaker, connections and errors; empty without a gateway."""
        return self._ask("hosts", PoolMonitorError)

    def disable_host(self, *hosts: str, for_seconds: Timeout = None) -> Table:
        """Send the traffic of the named hosts elsewhere for the given time; with 0, until `enable_host` is called.

        The default is the gateway's `traffic_re_enable`. `disable_host`, `enable_host` and `drain_host` raise
        PoolParamError for an unknown host.
        """
        return self._change_hosts("disable", hosts, timeout_seconds("for_seconds", for_seconds))

    def enable_host(self, *hosts: str) -> Table:
        """Send traffic to the named hosts again, at once."""
        return self._change_hosts("enable", hosts)

    def drain_host(self, *hosts: str) -> Table:
        """Drain each of `hosts`: it still serves clients with its sticky cookie; new clients go to others."""
        return self._change_hosts("drain", hosts)

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
        return {name: entry["status"] for name, entry in self._health(SIMPLE, routes).items()}

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
        """Register the URL `to` of a service as a backend of the route `name`, and return when the gateway uses it.

        With a `ttl`, repeat the call as a heartbeat, or use a `with` block, which sends heartbeats and unregisters at
        the end. If no route `name` exists, `host` and `path` define it. `probe` is a health check: a path, or a table.
        Raises PoolParamError if no route fits, PoolValidateError if invalid, ControlError (exit code 8) if refused.
        """
        settings = {"ttl": timeout_seconds("ttl", ttl), "host": host, "path": path, "probe": probe}
        options = {"name": name, "to": with_absolute_socket_path(to), "weight": weight, **settings}
        service = RegisteredAs(self, {key: value for key, value in options.items() if value is not None})
        service.heartbeat()
        return service

    def unregister(self, name: str, to: str = "") -> Table:
        """Remove the URL `to` from the route `name`, or without `to` all its registered URLs.

        Raises PoolParamError if nothing is registered under that name or URL.
        """
        options = {"name": name, "to": with_absolute_socket_path(to) if to else ""}
        return self._ask("unregister", PoolMonitorError, (), None, options)

    def _health(self, depth: str, routes: bool) -> dict[str, Table]:
        options = {"depth": depth, "routes": routes}
        answer = self._ask("health", PoolMonitorError, (), None, options, None, ANSWERED)
        identity = "name", "kind"
        return {
            item["name"]: {key: value for key, value in item.items() if key not in identity}
            for item in answer["items"]
        }

    def _change_hosts(self, op: str, hosts: Sequence[str], for_seconds: float | None = None) -> Table:
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
        accepted: Sequence[int] = (DONE,),
    ) -> Table:
        body = request_body(targets, selector, options or {})
        seconds = body["options"].get("timeout")
        return raise_for_errors(verb, self._client.call(verb, body, on_progress, seconds), failure, accepted)


class RegisteredAs:
    """A registered service. As a context manager it sends heartbeats from a thread, and unregisters at the end.

    If the pool was down, the next heartbeat registers the service again.
    """

    def __init__(self, pool: PoolClient, options: Table) -> None:
        self._pool = pool
        self._options = options
        self._stopped = threading.Event()
        self._thread: threading.Thread | None = None

    def __repr__(self) -> str:
        return f"<RegisteredAs {self._options['name']} {self._options['to']}>"

    def __enter__(self) -> Self:
        if seconds := self._options.get("ttl"):
            self._stopped.clear()
            self._thread = threading.Thread(
                target=self._heartbeats, args=(seconds * _HEARTBEAT_INTERVAL_SHARE,), daemon=True
            )
            self._thread.start()
        return self

    def __exit__(self, *raised: object) -> None:
        self._stopped.set()
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        with contextlib.suppress(
            PoolError, ControlError
        ):  # the pool has ended, or the registration has expired
            self.unregister()

    def heartbeat(self) -> Table:
        """Register the service again, which renews its time-to-live. Raises the same errors as PoolClient.register."""
        return self._pool._ask("register", PoolMonitorError, (), None, self._options)

    def unregister(self) -> Table:
        """Remove the service; when this returns, the gateway sends it no more requests."""
        return self._pool.unregister(self._options["name"], self._options["to"])

    def _heartbeats(self, pause_seconds: float) -> None:
        while not self._stopped.wait(pause_seconds):
            with contextlib.suppress(PoolError, ControlError, OSError):
                self.heartbeat()


def request_body(targets: Sequence[str], selector: Selection, options: Table) -> Table:
    """The JSON body of a request, with the timeout in seconds. Raises PoolParamError if the timeout is invalid."""
    if "timeout" in options:
        options = {**options, "timeout": timeout_seconds("timeout", options["timeout"])}
    return {"selector": {**(selector or {}), "targets": [*targets]}, "options": options}


def _table(server: Mapping[str, object] | ServerConfig | None) -> Mapping[str, object]:
    if server is None or isinstance(server, Mapping):
        return server or {}
    from poolctl.config import server_table

    if server.app is not None and not isinstance(server.app, str):
        raise PoolParamError("the app is an object of this process", hint='name it: app="module:attribute"')
    return server_table(server.to_dict(), is_limited=server.restart.is_limited)
