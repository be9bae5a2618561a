"""What a running pool tells a Python program: the verbs that change nothing."""

from __future__ import annotations

import builtins
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from poolctl.control.failing import error_of
from poolctl.errors import PoolError, PoolMonitorError, PoolParamError
from poolctl.exit_codes import DONE, NOT_AS_DESIRED

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from poolctl.control.client import Client
    from poolctl.pool.monitor import Monitor

Result = dict[str, Any]


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

    def show(self, *targets: str, selector: Mapping[str, Any] | None = None) -> Result:
        """Return everything about the selected servers, effective configuration and its origins included."""
        return self._ask("show", targets, selector, {}, None, PoolParamError)

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
        body = {"selector": {**(selector or {}), "targets": [*targets]}, "options": options}
        result = self._client.call(verb, body, on_progress, options.get("timeout"))
        code = result.get("exit_code", 0)
        if code not in accepted:
            raise error_of(verb, code, result, failure)
        return result
