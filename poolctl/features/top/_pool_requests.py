"""The view's requests to the supervisor, made in threads so that the view never waits."""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, TypeVar

from poolctl.cli.log_rendering import log_paths
from poolctl.cli.pool_ref import PoolRef
from poolctl.cli.supervisor_requests import start_unsignalled
from poolctl.control.client import Client
from poolctl.control.gateway_answers import RoutesResult
from poolctl.control.gateway_status import GatewayStatus
from poolctl.control.show_answers import ShowResult
from poolctl.control.statistics_answers import StatsResult
from poolctl.errors import ControlError
from poolctl.json_form import from_json

from ._server_rows import ServerBoard

if TYPE_CHECKING:
    from ._route_rows import RouteBoard

Answer = TypeVar("Answer")
# Options of the verb `stats`: data for the view in addition to `-o json`.
STATS_OPTIONS = {"errors": True}


class StatsSource:
    """The servers' states and statistics."""

    def __init__(self, ref: PoolRef, selector: Mapping[str, object]) -> None:
        self.client = Client(ref.socket)
        self._ref = ref
        self._selector = selector

    def read(self) -> StatsResult:
        """The newest result. Raises ControlError."""
        return self.client.ask(StatsResult, "stats", {"selector": self._selector, "options": STATS_OPTIONS})

    def routes(self) -> RoutesResult:
        """The gateway's routes. Raises ControlError."""
        return self.client.ask(RoutesResult, "routes")

    def log_path(self, name: str) -> str:
        """The path of the server's log. Raises ControlError."""
        found = self.client.ask(ShowResult, "show", {"selector": {"targets": [name]}}).items
        return log_paths(found, self._ref)[name]


class PoolView:
    """The pool as shown: `servers`, or `routes` if they are given; `gateway` is None if servers were selected."""

    def __init__(
        self,
        source: StatsSource,
        pool: str,
        interval_seconds: float,
        servers: ServerBoard,
        result: StatsResult,
    ) -> None:
        self.source = source
        self.pool = pool
        self.interval_seconds = interval_seconds
        self.servers = servers
        self.routes: RouteBoard | None = None
        self.take(result)

    def take(self, result: StatsResult) -> None:
        """Show the newest result."""
        self.servers.update(result.items)
        self.gateway = None if result.gateway is None else from_json(GatewayStatus, result.gateway)


class BackgroundRequests:
    """Runs requests in threads; `fileno` is readable when there is an answer for `deliver`."""

    def __init__(self) -> None:
        self._read, self._write = os.pipe()
        os.set_blocking(self._read, False)
        os.set_blocking(self._write, False)
        self._answered: deque[Callable[[], None]] = deque()

    def fileno(self) -> int:
        """The descriptor that is readable when there are answers."""
        return self._read

    def ask(self, request: Callable[[], Answer], answered: Callable[[Answer | ControlError], None]) -> None:
        """Make the request; `deliver` calls `answered` with the answer, or with the reason for its absence."""

        def run() -> None:
            answer: Answer | ControlError
            try:
                answer = request()
            except ControlError as error:
                answer = error
            self._answered.append(lambda: answered(answer))
            try:
                os.write(self._write, b".")
            except OSError:
                pass  # full: already readable; closed: the view has ended

        start_unsignalled(threading.Thread(target=run, name="asks", daemon=True))

    def deliver(self) -> None:
        """Deliver all answers since the last call."""
        try:
            os.read(self._read, 4096)
        except BlockingIOError:
            pass
        while self._answered:
            self._answered.popleft()()
