"""What a running pool tells a Python program: the verbs that change nothing."""

from __future__ import annotations

import builtins
import os
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

from poolctl.control.failing import error_of
from poolctl.errors import PoolError, PoolMonitorError, PoolParamError
from poolctl.exit_codes import DONE, NOT_AS_DESIRED
from poolctl.units import parse_duration

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from poolctl.control.client import Client
    from poolctl.pool.monitor import Monitor
    from poolctl.states import Field

Result = dict[str, Any]
# Seconds, "1m30s", or a timedelta.
Timeout = float | str | timedelta


class Looking:
    """The half of PoolClient that looks."""

    def __init__(self, client: Client) -> None:
        self._client = client

    def __repr__(self) -> str:
        return f"<PoolClient {self._client.socket_path}>"

    def ping(self) -> Result:
        """Return the supervisor's version and process ids."""
        return self._client.ping()

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
        from poolctl.pool.match import Row, matching

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

        With `follow` each that comes as well, without an end. Raises, as it begins, PoolParamError for what is not
        there.
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
        """Return the selected servers and their summary. Not being in the desired state is no error here."""
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
        """Yield the last events of the selected servers, or of the whole pool; with `follow` each that comes as well.

        Ends when the supervisor ends. Raises, as it begins, PoolParamError for what is not there.
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
        """Return the selected servers with their figures, each as `"stats"`."""
        return self._ask("stats", targets, selector, {}, None, PoolMonitorError)

    def metrics(self, *targets: str, openmetrics: bool = False) -> str:
        """Return the metrics as Prometheus reads them; of the pool, and of the selected servers."""
        text = self._ask("metrics", targets, None, {"openmetrics": openmetrics}, None, PoolMonitorError)[
            "text"
        ]
        return str(text)

    def notify_test(self, *receivers: str) -> Result:
        """Send a test message to those who are told of problems (default: all); `receivers` says what came of it.

        Raises PoolMonitorError when one did not take it, PoolParamError when there is none of that name.
        """
        return self._ask("notify", (), None, {"receivers": [*receivers]}, None, PoolMonitorError)

    def routes(self) -> Result:
        """Return the gateway's table; without a gateway it is empty."""
        return self._ask("routes", (), None, {}, None, PoolMonitorError)

    def hosts(self) -> Result:
        """Return the gateway's backends and their breakers; without a gateway there are none."""
        return self._ask("hosts", (), None, {}, None, PoolMonitorError)

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
        seconds = _seconds(options.get("timeout"))
        if seconds is not None:
            options = {**options, "timeout": seconds}
        body = {"selector": {**(selector or {}), "targets": [*targets]}, "options": options}
        result = self._client.call(verb, body, on_progress, seconds)
        code = result.get("exit_code", 0)
        if code not in accepted:
            raise error_of(verb, code, result, failure)
        return result


def _seconds(timeout: Timeout | None) -> float | None:
    if timeout is None:
        return None
    try:
        return parse_duration(timeout)
    except ValueError as wrong:
        raise PoolParamError(f"timeout: {wrong}") from None
