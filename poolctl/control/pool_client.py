"""A running pool as a Python object: the verbs of the command line, with the errors of `Pool`."""

from __future__ import annotations

import builtins
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Literal, TypedDict, cast

from poolctl.control import pool_paths
from poolctl.control.client import Client, NoSupervisor
from poolctl.control.gateway_client import GatewayClient
from poolctl.control.pool_processes import await_end
from poolctl.control.pool_requests import ANSWERED, Selection, Timeout, checked, request_body, seconds_of
from poolctl.errors import PoolMonitorError, PoolParamError, PoolRestartError, PoolStartError, PoolStopError
from poolctl.json_form import Table, to_json

if TYPE_CHECKING:
    from poolctl.config import ServerConfig
    from poolctl.pool.server_monitor import Monitor
    from poolctl.selection.field_filter import Field


class Change(TypedDict):
    """The change that a reload makes to a server. `keys` are the differing keys; `override` undoes a live change."""

    name: str
    bind: str
    change: Literal["add", "remove", "restart", "update", "override"]
    keys: list[str]
    message: str


class ReloadDocument(TypedDict):
    """The document that `poolctl reload -o json` prints."""

    schema: int
    items: list[dict[str, Any]]  # the servers, as `list` prints them
    errors: list[dict[str, Any]]
    warnings: list[str]
    changes: list[Change]
    exit_code: int


def connect(config_or_name: str | os.PathLike[str] | None = None) -> PoolClient:
    """Return a client of a running pool, named by its file, its name, or the working directory.

    Raises NoSupervisor if no such pool is running. Does not read the file, so a broken one does not matter.
    """
    path = find_socket(None if config_or_name is None else os.fspath(config_or_name), os.environ)
    client = Client(path)
    client.ping()
    return PoolClient(client)


def find_socket(config_or_name: str | None, env: Mapping[str, str]) -> str:
    """Return where the control socket of a pool is or would be; NoSupervisor for an unknown name."""
    if config_or_name is None:
        from poolctl.config import ConfigNotFound, find_config

        try:
            first = find_config([], env, os.getcwd())[0]
        except ConfigNotFound as error:
            raise NoSupervisor(error.message, hint=error.hint) from None
    elif _is_path(config_or_name):
        first = os.path.abspath(config_or_name)
    else:
        named = pool_paths.named_pool_dir(env, config_or_name)
        if named is None:
            raise NoSupervisor(
                f"no running pool is named {config_or_name!r}", hint="start it with poolctl start"
            )
        return f"{named}/{pool_paths.SOCKET_NAME}"
    return f"{pool_paths.pool_dir(env, pool_paths.pool_key(first))}/{pool_paths.SOCKET_NAME}"


def _is_path(config_or_name: str) -> bool:
    """Whether it is the path of a file, which may no longer exist, rather than a pool's name."""
    looks_so = "/" in config_or_name or config_or_name.endswith((".toml", ".yaml", ".yml", ".json"))
    return looks_so or os.path.exists(config_or_name)


class PoolClient(GatewayClient):
    """A running pool, reached through its supervisor. Every method blocks, and may be called from any thread.

    Methods take names or addresses (`*` and `?` are wildcards; none means all) and the selector's other keys
    (`name`, `bind`, `expose`, `tag`, `state`, `health`, `not`, `allow_empty`) in `selector`. They return the
    document that the command prints with `-o json`. `scale`, `drain`, `undrain`, `enable`, `disable` and `remove`
    need a selection or `all=True`, else they raise PoolParamError.
    """

    def ping(self) -> Table:
        """Return the supervisor's version and process ids."""
        return to_json(self._client.ping())

    def list(self, *targets: str, selector: Selection = None) -> Table:
        """Return the selected servers as they are now."""
        return self._ask("list", PoolParamError, targets, selector)

    def filter(
        self, field: Field | str, pattern: str = "", regex: str = "", *, selector: Selection = None
    ) -> Table:
        """Return the servers whose field equals the pattern, ignoring case, or contains a match of the expression.

        As in `Pool.filter`: nothing matches when both are empty; PoolParamError for an invalid expression.
        The expression is matched in the caller's thread, without a time limit.
        """
        from poolctl.selection.field_filter import Row, matching

        document = self.list(selector={**(selector or {}), "allow_empty": True})
        rows = {item["bind"]: Row(item["name"], item["expose"] or "") for item in document["items"]}
        found = matching(rows, field, pattern, regex)
        return {**document, "items": [item for item in document["items"] if item["bind"] in found]}

    def walk(self, fn: Callable[[Table], object], *targets: str, selector: Selection = None) -> bool:
        """Call `fn` with each selected server as it is now, in order; False stops. Returns whether all were visited."""
        return all(fn(item) is not False for item in self.list(*targets, selector=selector)["items"])

    def logs(
        self,
        *targets: str,
        selector: Selection = None,
        follow: bool = False,
        lines: int | None = 100,
        since: datetime | None = None,
    ) -> Iterator[Table]:
        """Yield the last `lines` lines of each selected server (None: all), merged by time: time, name, pid, line.

        With `follow` new lines as well, without an end. Raises PoolParamError at the start for unknown servers.
        """
        from poolctl.logs.log_line import stamp
        from poolctl.logs.log_tail import follow as follow_logs
        from poolctl.logs.log_tail import merged_tail

        state = pool_paths.state_dir(os.environ, os.path.basename(os.path.dirname(self._client.socket_path)))
        paths = {
            item["name"]: item["config"].get("log", {}).get("path") or f"{state}/logs/{item['name']}.log"
            for item in self.show(*targets, selector=selector)["items"]
        }
        moment = "" if since is None else stamp(since.timestamp())
        read = follow_logs if follow else merged_tail
        for line in read(paths, lines=lines, since=moment):
            yield {"time": line.time, "name": line.name, "pid": line.pid, "line": line.text}

    def show(self, *targets: str, selector: Selection = None, reveal: bool = False) -> Table:
        """Return everything about the selected servers, effective configuration and its origins included.

        Values of secret-looking keys and passwords in URLs are masked unless `reveal`.
        """
        return self._ask("show", PoolParamError, targets, selector, {"reveal": reveal})

    def status(self, *targets: str, selector: Selection = None) -> Table:
        """Return the selected servers and their summary. Not being in the desired state is not an error here."""
        return self._ask("status", PoolMonitorError, targets, selector, {}, None, ANSWERED)

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
                checked("events", message["result"], PoolParamError)

    def monitor(self, *targets: str, selector: Selection = None) -> builtins.list[Monitor]:
        """Return a snapshot of each selected server, as `Pool.monitor` does; `latency` is the latency of its probes."""
        from poolctl.pool.server_monitor import Monitor

        items = self._ask("monitor", PoolMonitorError, targets, selector)["items"]
        return [Monitor.from_dict(item["name"], item["bind"], item["monitor"]) for item in items]

    def stats(self, *targets: str, selector: Selection = None) -> Table:
        """Return the selected servers with their statistics, each as `"stats"`."""
        return self._ask("stats", PoolMonitorError, targets, selector)

    def stacks(self, *targets: str, selector: Selection = None) -> Table:
        """Return the current stacks of the threads and tasks of the selected servers' workers, which keep running."""
        return self._ask("stacks", PoolMonitorError, targets, selector)

    def metrics(self, *targets: str, openmetrics: bool = False) -> str:
        """Return the metrics of the pool and the selected servers in Prometheus' text format."""
        result = self._ask("metrics", PoolMonitorError, targets, None, {"openmetrics": openmetrics})
        return str(result["text"])

    def notify_test(self, *receivers: str) -> Table:
        """Send a test notification to these receivers (default: all); `receivers` in the result has each outcome.

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
        """Start the selected servers and return when each is ready; PoolStartError with every failure.

        `timeout` is in seconds, or "1m30s", or a timedelta; when it passes, the children of the error have a
        TimeoutError as cause.
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
        """Stop the selected servers; without a selection the supervisor too. PoolStopError with every failure."""
        options = {"timeout": timeout, "deps": deps, "wait": wait}
        result = self._ask("stop", PoolStopError, targets, selector, options, on_progress)
        if result.get("ended"):
            # Like the command, return only when nothing of the pool is left.
            await_end(int(result["keeper_pid"]))
        return result

    def restart(
        self,
        *targets: str,
        selector: Selection = None,
        timeout: Timeout = None,
        deps: bool = True,
        wait: bool = True,
        force: bool = False,
        on_progress: Callable[[Table], None] | None = None,
    ) -> Table:
        """Replace the selected servers without refusing a connection; PoolRestartError with every failure.

        A server whose certificate has expired on disk, but not the one in use, is restarted only with `force`.
        """
        options = {"timeout": timeout, "deps": deps, "wait": wait, "force": force}
        return self._ask("restart", PoolRestartError, targets, selector, options, on_progress)

    def reload(
        self,
        *,
        dry_run: bool = False,
        env: Mapping[str, str] | None = None,
        timeout: Timeout = None,
        wait: bool = True,
        force: bool = False,
        on_progress: Callable[[Table], None] | None = None,
    ) -> ReloadDocument:
        """Apply the changed files and return the `"changes"`; with `dry_run` only report them.

        A dry run's `"exit_code"` is 3 when there is a difference. `env` is the environment to read the files with
        from now on. Raises PoolValidateError with every problem of the files, and changes nothing. Without `force`, a
        certificate that has expired on disk, but not the one in use, is a problem.
        """
        given = None if env is None else dict(env)
        options = {"dry_run": dry_run, "env": given, "timeout": timeout, "wait": wait, "force": force}
        answer = self._ask("reload", PoolRestartError, (), None, options, on_progress, ANSWERED)
        return cast(ReloadDocument, answer)

    def rollout(
        self,
        name: str,
        *,
        canary: float = 0.1,
        seconds: Timeout = "5m",
        abort_on: Sequence[str] = (),
        min_requests: int = 100,
        pause: bool = False,
        force: bool = False,
        wait: bool = True,
    ) -> Table:
        """Try new code or configuration of a server on this share of its traffic, from 0 to 1; return the outcome.

        Its `"items"` hold the state, the reason, and the figures of both generations. PoolRestartError if it was
        withdrawn; PoolParamError for an invalid condition. Without `wait` it returns once the canary serves.
        """
        limit = seconds_of("seconds", seconds)
        options: Table = {
            "op": "begin",
            "share": canary,
            "min_requests": min_requests,
            "pause": pause,
            "force": force,
            "wait": wait,
        }
        options |= {"abort_on": list(abort_on)} if abort_on else {}
        options |= {} if limit is None else {"seconds": limit}
        return self._ask("rollout", PoolRestartError, [name], None, options)

    def rollouts(self, *targets: str) -> Table:
        """Return the progress of each server's rollout, or the outcome of its last one."""
        return self._ask("rollouts", PoolMonitorError, targets)

    def promote_rollout(self, *targets: str) -> Table:
        """Let the canaries of these servers (default: all) replace the other workers now."""
        return self._ask("rollout", PoolRestartError, targets, None, {"op": "promote"})

    def abort_rollout(self, *targets: str) -> Table:
        """End the canaries of these servers (default: all)."""
        return self._ask("rollout", PoolRestartError, targets, None, {"op": "abort"})

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
        """Enable the selected servers and start them, until a reload; PoolStartError with every failure."""
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
        """Add a server, until a reload, and return when it is ready.

        Its keys, as in a file, are given in a mapping or as keyword arguments; paths are relative to `base_dir`.
        PoolValidateError for an invalid server, ControlError (8) for a name or an address that is taken.
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
        """Stop the selected servers and take them out of the pool, until a reload; return what was removed."""
        options = {"timeout": timeout, "deps": deps, "wait": wait, "all": all}
        return self._ask("remove", PoolStopError, targets, selector, options)

    def wait(
        self, *targets: str, selector: Selection = None, timeout: Timeout = None, until: str = "ready"
    ) -> Table:
        """Return when the selected servers are `until` (ready, stopped, healthy, or any state)."""
        return self._ask("wait", PoolMonitorError, targets, selector, {"timeout": timeout, "for": until})

    def upgrade(self, *, force: bool = False) -> Table:
        """Upgrade the pool to this version of poolctl, and return when it is done; the servers' processes keep running.

        A pool that already has this build is left unchanged without `force`.

        Raises ControlError (8) when the running version refuses, PoolValidateError for files with problems.
        """
        return checked("upgrade", to_json(self._client.upgrade(force=force)), PoolRestartError)


def _table(server: Mapping[str, object] | ServerConfig | None) -> Mapping[str, object]:
    """The server's keys and values as a file would have them."""
    if server is None or isinstance(server, Mapping):
        return server or {}
    from poolctl.config import escaped

    if server.app is not None and not isinstance(server.app, str):
        raise PoolParamError("the app is an object of this process", hint='name it: app="module:attribute"')
    table: Table = escaped(server.to_dict())
    return table
