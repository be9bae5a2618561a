"""The running pool as a Python object: the same verbs as the command line, the same errors as the pool's."""

from __future__ import annotations

import builtins
import os
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from poolctl.control.messages import Timeout, error_of, server_table, timeout_seconds
from poolctl.control.pool_exit import await_end
from poolctl.errors import (
    PoolError,
    PoolMonitorError,
    PoolParamError,
    PoolRestartError,
    PoolStartError,
    PoolStopError,
)
from poolctl.exit_codes import DONE, NOT_AS_DESIRED

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from poolctl.config import ServerConfig
    from poolctl.control.client import Client
    from poolctl.pool.monitor import Monitor
    from poolctl.states import Field

Result = dict[str, Any]


class PoolClient:
    """A running pool, reached through its supervisor. Every method blocks, and may be called from any thread.

    Methods take names or addresses (`*` and `?` are wildcards; none means all) and the selector's other keys
    (`name`, `bind`, `expose`, `tag`, `state`, `health`, `not`, `allow_empty`) in `selector`. They return the
    document that the command prints with `-o json`. `scale`, `drain`, `undrain`, `enable`, `disable` and `remove`
    need a selection or `all=True`, else they raise PoolParamError.
    """

    def __init__(self, client: Client) -> None:
        self._client = client

    def __repr__(self) -> str:
        return f"<PoolClient {self._client.socket_path}>"

    def ping(self) -> Result:
        """Return the supervisor's version and process ids."""
        return self._client.ping().to_json()

    def list(self, *targets: str, selector: Mapping[str, Any] | None = None) -> Result:
        """Return the selected servers as they are now."""
        return self._ask("list", targets, selector, {}, None, PoolParamError)

    def filter(
        self,
        field: Field | str,
        pattern: str = "",
        regex: str = "",
        *,
        selector: Mapping[str, Any] | None = None,
    ) -> Result:
        """Return the servers of which the field equals the pattern, ignoring case, or contains the expression.

        As in `Pool.filter`: nothing matches when both are empty; PoolParamError for an invalid expression.
        The expression is matched in the caller's thread, without a time limit.
        """
        from poolctl.selection.field_filter import Row, matching

        document = self.list(selector={**(selector or {}), "allow_empty": True})
        rows = {item["bind"]: Row(item["name"], item["expose"]) for item in document["items"]}
        found = matching(rows, field, pattern, regex)
        return {**document, "items": [item for item in document["items"] if item["bind"] in found]}

    def walk(
        self,
        fn: Callable[[Result], object],
        *targets: str,
        selector: Mapping[str, Any] | None = None,
    ) -> bool:
        """Call `fn` with each selected server as it is now, in order; False stops. Returns whether all were visited."""
        return all(fn(item) is not False for item in self.list(*targets, selector=selector)["items"])

    def logs(
        self,
        *targets: str,
        selector: Mapping[str, Any] | None = None,
        follow: bool = False,
        lines: int | None = 100,
        since: datetime | None = None,
    ) -> Iterator[Result]:
        """Yield the last `lines` lines of each selected server (None: all), merged by time: time, name, pid, line.

        With `follow` new lines as well, without an end. Raises PoolParamError at the start for servers that do not
        exist.
        """
        from poolctl.control.directory import state_dir
        from poolctl.logs.follow import follow as follow_logs
        from poolctl.logs.log_line import stamp
        from poolctl.logs.read import merged_tail

        state = state_dir(os.environ, os.path.basename(os.path.dirname(self._client.socket_path)))
        paths = {
            item["name"]: item["config"].get("log", {}).get("path") or f"{state}/logs/{item['name']}.log"
            for item in self.show(*targets, selector=selector)["items"]
        }
        moment = "" if since is None else stamp(since.timestamp())
        if follow:
            found = follow_logs(paths, lines=lines, since=moment)
        else:
            found = iter(merged_tail(paths, lines, since=moment))
        for line in found:
            yield {"time": line.time, "name": line.name, "pid": line.pid, "line": line.text}

    def show(self, *targets: str, selector: Mapping[str, Any] | None = None, reveal: bool = False) -> Result:
        """Return everything about the selected servers, effective configuration and its origins included.

        Values of secret-looking keys and passwords in URLs are masked unless `reveal`.
        """
        return self._ask("show", targets, selector, {"reveal": reveal}, None, PoolParamError)

    def status(self, *targets: str, selector: Mapping[str, Any] | None = None) -> Result:
        """Return the selected servers and their summary. Not being in the desired state is not an error here."""
        return self._ask(
            "status", targets, selector, {}, None, PoolMonitorError, accepted=(DONE, NOT_AS_DESIRED)
        )

    def events(
        self,
        *targets: str,
        selector: Mapping[str, Any] | None = None,
        follow: bool = False,
        lines: int = 100,
        since: datetime | None = None,
        kinds: Sequence[str] = (),
    ) -> Iterator[Result]:
        """Yield the last events of the selected servers, or of the whole pool; with `follow` new ones as well.

        Ends when the supervisor ends. Raises PoolParamError at the start for servers that do not exist.
        """
        options = {"follow": follow, "lines": lines, "kind": [*kinds]}
        if since is not None:
            options["since"] = f"{since.astimezone(UTC):%Y-%m-%dT%H:%M:%S.%fZ}"
        body = {"selector": {**(selector or {}), "targets": [*targets]}, "options": options}
        for message in self._client.messages("events", body):
            if "event" in message:
                yield message["event"]
            elif message.get("result", {}).get("exit_code"):
                result = message["result"]
                raise error_of("events", result["exit_code"], result, PoolParamError)

    def monitor(self, *targets: str, selector: Mapping[str, Any] | None = None) -> builtins.list[Monitor]:
        """Return a snapshot of each selected server, as `Pool.monitor` does; `latency` is that of its probes."""
        from poolctl.pool.monitor import Monitor

        items = self._ask("monitor", targets, selector, {}, None, PoolMonitorError)["items"]
        return [Monitor.from_dict(item["name"], item["bind"], item["monitor"]) for item in items]

    def stats(self, *targets: str, selector: Mapping[str, Any] | None = None) -> Result:
        """Return the selected servers with their statistics, each as `"stats"`."""
        return self._ask("stats", targets, selector, {}, None, PoolMonitorError)

    def metrics(self, *targets: str, openmetrics: bool = False) -> str:
        """Return the metrics of the pool and the selected servers in Prometheus' text format."""
        text = self._ask("metrics", targets, None, {"openmetrics": openmetrics}, None, PoolMonitorError)[
            "text"
        ]
        return str(text)

    def notify_test(self, *receivers: str) -> Result:
        """Send a test notification to these receivers (default: all); `receivers` in the result has each outcome.

        Raises PoolMonitorError when a receiver did not take it, PoolParamError for an unknown name.
        """
        return self._ask("notify", (), None, {"receivers": [*receivers]}, None, PoolMonitorError)

    def routes(self) -> Result:
        """Return the gateway's routes; empty without a gateway."""
        return self._ask("routes", (), None, {}, None, PoolMonitorError)

    def hosts(self) -> Result:
        """Return the gateway's backends and their breakers; empty without a gateway."""
        return self._ask("hosts", (), None, {}, None, PoolMonitorError)

    def start(
        self,
        *targets: str,
        selector: Mapping[str, Any] | None = None,
        timeout: Timeout | None = None,
        deps: bool = True,
        wait: bool = True,
        on_progress: Callable[[Result], None] | None = None,
    ) -> Result:
        """Start the selected servers and return when each is ready; PoolStartError with every failure.

        `timeout` is in seconds, or "1m30s", or a timedelta; when it passes, the children of the error have a
        TimeoutError as cause.
        """
        options = {"timeout": timeout, "deps": deps, "wait": wait}
        return self._ask("start", targets, selector, options, on_progress, PoolStartError)

    def stop(
        self,
        *targets: str,
        selector: Mapping[str, Any] | None = None,
        timeout: Timeout | None = None,
        deps: bool = True,
        wait: bool = True,
        on_progress: Callable[[Result], None] | None = None,
    ) -> Result:
        """Stop the selected servers; without a selection the supervisor too. PoolStopError with every one."""
        options = {"timeout": timeout, "deps": deps, "wait": wait}
        result = self._ask("stop", targets, selector, options, on_progress, PoolStopError)
        if result.get("ended"):
            # As the command does: afterwards nothing of the pool is left.
            await_end(int(result["keeper_pid"]))
        return result

    def restart(
        self,
        *targets: str,
        selector: Mapping[str, Any] | None = None,
        timeout: Timeout | None = None,
        deps: bool = True,
        wait: bool = True,
        force: bool = False,
        on_progress: Callable[[Result], None] | None = None,
    ) -> Result:
        """Replace the selected servers without refusing a connection; PoolRestartError with every failure.

        A server whose certificate has expired on the disk, while the one in use has not, is restarted with `force`
        only.
        """
        options = {"timeout": timeout, "deps": deps, "wait": wait, "force": force}
        return self._ask("restart", targets, selector, options, on_progress, PoolRestartError)

    def reload(
        self,
        *,
        dry_run: bool = False,
        env: Mapping[str, str] | None = None,
        timeout: Timeout | None = None,
        wait: bool = True,
        force: bool = False,
        on_progress: Callable[[Result], None] | None = None,
    ) -> Result:
        """Apply the changed files and return the `"changes"`; with `dry_run` only report them.

        A dry run's `"exit_code"` is 3 when there is a difference. `env` is the environment to read the files with
        from now on. PoolValidateError with every problem of the files, which then change nothing; a certificate that
        has expired, while the one in use has not, is one without `force`.
        """
        options = {
            "dry_run": dry_run,
            "env": None if env is None else dict(env),
            "timeout": timeout,
            "wait": wait,
            "force": force,
        }
        return self._ask(
            "reload", (), None, options, on_progress, PoolRestartError, accepted=(DONE, NOT_AS_DESIRED)
        )

    def scale(
        self,
        *targets: str | int,
        workers: int | None = None,
        selector: Mapping[str, Any] | None = None,
        all: bool = False,
        timeout: Timeout | None = None,
        wait: bool = True,
    ) -> Result:
        """Set the number of workers of each selected server, until a reload; return when they are ready.

        The number is `workers`, or the last argument, as on the command line: `scale("web", 4)`.
        """
        names = [target for target in targets if isinstance(target, str)]
        numbers = [target for target in targets if not isinstance(target, str)]
        numbers += [] if workers is None else [workers]
        if len(numbers) != 1:
            raise PoolParamError("scale: how many workers?", hint='scale("web", workers=4)')
        options = {"workers": numbers[0], "timeout": timeout, "wait": wait, "all": all}
        return self._ask("scale", names, selector, options, None, PoolStartError)

    def drain(self, *targets: str, selector: Mapping[str, Any] | None = None, all: bool = False) -> Result:
        """Take the selected servers out of rotation; they still answer direct requests."""
        return self._ask("drain", targets, selector, {"all": all}, None, PoolStopError)

    def undrain(self, *targets: str, selector: Mapping[str, Any] | None = None, all: bool = False) -> Result:
        """Take drained servers back into rotation."""
        return self._ask("undrain", targets, selector, {"all": all}, None, PoolStartError)

    def enable(
        self,
        *targets: str,
        selector: Mapping[str, Any] | None = None,
        all: bool = False,
        timeout: Timeout | None = None,
        wait: bool = True,
    ) -> Result:
        """Enable the selected servers and start them, until a reload; PoolStartError with every failure."""
        options = {"timeout": timeout, "wait": wait, "all": all}
        return self._ask("enable", targets, selector, options, None, PoolStartError)

    def disable(
        self,
        *targets: str,
        selector: Mapping[str, Any] | None = None,
        all: bool = False,
        timeout: Timeout | None = None,
        wait: bool = True,
    ) -> Result:
        """Stop the selected servers and keep them from starting, until a reload."""
        options = {"timeout": timeout, "wait": wait, "all": all}
        return self._ask("disable", targets, selector, options, None, PoolStopError)

    def add(
        self,
        server: Mapping[str, Any] | ServerConfig | None = None,
        *,
        base_dir: str | os.PathLike[str] = ".",
        timeout: Timeout | None = None,
        wait: bool = True,
        **keys: Any,
    ) -> Result:
        """Add a server, until a reload, and return when it is ready.

        Its keys are as in a file, in a mapping or as keyword arguments; relative paths begin in `base_dir`.
        PoolValidateError for an invalid one, ControlError (8) for a name or an address that is taken.
        """
        options = {
            "server": {**server_table(server), **keys},
            "base_dir": os.path.abspath(base_dir),
            "timeout": timeout,
            "wait": wait,
        }
        return self._ask("add", (), None, options, None, PoolStartError)

    def remove(
        self,
        *targets: str,
        selector: Mapping[str, Any] | None = None,
        all: bool = False,
        timeout: Timeout | None = None,
        deps: bool = True,
        wait: bool = True,
    ) -> Result:
        """Stop the selected servers and take them out of the pool, until a reload; return what was removed."""
        options = {"timeout": timeout, "deps": deps, "wait": wait, "all": all}
        return self._ask("remove", targets, selector, options, None, PoolStopError)

    def wait(
        self,
        *targets: str,
        selector: Mapping[str, Any] | None = None,
        timeout: Timeout | None = None,
        until: str = "ready",
    ) -> Result:
        """Return when the selected servers are `until` (ready, stopped, healthy, or any state)."""
        return self._ask(
            "wait", targets, selector, {"timeout": timeout, "for": until}, None, PoolMonitorError
        )

    def upgrade(self) -> Result:
        """Upgrade the pool to this version of poolctl, and return when it is done; the servers' processes keep running.

        Raises ControlError (8) when the running version refuses, PoolValidateError for files with problems.
        """
        from poolctl.control.upgrading import upgrade

        result = upgrade(self._client).to_json()
        if result["exit_code"]:
            raise error_of("upgrade", result["exit_code"], result, PoolRestartError)
        return result

    def _ask(
        self,
        verb: str,
        targets: Sequence[str],
        selector: Mapping[str, Any] | None,
        options: Result,
        on_progress: Callable[[Result], None] | None,
        failure: type[PoolError],
        accepted: Sequence[int] = (DONE,),
    ) -> Result:
        seconds = timeout_seconds(options.get("timeout"))
        if seconds is not None:
            options = {**options, "timeout": seconds}
        body = {"selector": {**(selector or {}), "targets": [*targets]}, "options": options}
        result = self._client.call(verb, body, on_progress, seconds)
        code = result.get("exit_code", 0)
        if code not in accepted:
            raise error_of(verb, code, result, failure)
        return result
