"""Reports what happens to the servers of a `run`: one line per crash, restart, and server given up."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import TYPE_CHECKING

from poolctl.cli.supervisor_requests import start_unsignalled
from poolctl.control.answers import EventsResult, ProgressLine
from poolctl.control.client import Client
from poolctl.errors import ControlError
from poolctl.monitor.journal import ERROR, INFO, MOST_LINES, WARNING, JournalEvent

if TYPE_CHECKING:
    from poolctl.json_form import Table

_KINDS = ["lifecycle", "recovery", "pool"]
# The pause between attempts while the supervisor is replaced.
_AGAIN_SECONDS = 0.2
# No pings are needed, because the keeper replaces a hung supervisor.
_SILENCE_SECONDS = 86400.0
_LAST_SECONDS = 2.0


class PoolEvents:
    """Follows the pool's events, and reports the line and level of each problem once."""

    def __init__(self, client: Client, report: Callable[[JournalEvent, str, str], None]) -> None:
        self._client = client
        self._patient = Client(client.socket_path, silence_seconds=_SILENCE_SECONDS)
        self._report = report
        self._last = 0
        self._over = threading.Event()
        self._lock = threading.Lock()
        self.died: dict[str, list[str]] = {}  # reasons by server name, in the order of the first problem

    def start(self) -> None:
        """Follow new events from now on; returns at once."""
        start_unsignalled(threading.Thread(target=self._follow, name="events", daemon=True))

    def finish(self) -> None:
        """Report all events up to now, then stop."""
        with self._lock:
            if self._over.is_set():
                return
        try:
            self._ask(self._client, {"after": self._last, "lines": MOST_LINES}, _LAST_SECONDS)
        except ControlError:
            pass  # the supervisor has reported its end
        self._over.set()

    def _follow(self) -> None:
        options: Table = {"lines": 0}
        while not self._over.is_set():
            try:
                self._ask(self._patient, options | {"follow": True})
            except ControlError:
                pass
            options = {"after": self._last, "lines": MOST_LINES}
            self._over.wait(_AGAIN_SECONDS)

    def _ask(self, client: Client, options: Table, timeout_seconds: float | None = None) -> None:
        body = {"options": options | {"kind": _KINDS}}
        client.ask(EventsResult, "events", body, self._take, timeout_seconds)

    def _take(self, line: ProgressLine) -> None:
        if line.event is None:
            return
        event = JournalEvent.from_json(line.event)
        with self._lock:
            if event.seq <= self._last or self._over.is_set():
                return
            self._last = event.seq
            if event.next_step:
                reason = event.cause or event.message
                self.died.setdefault(event.server, []).append(reason)
                final = ": poolctl logs" in event.next_step
                self._report(
                    event, f"{event.server}: {reason}; {event.next_step}", ERROR if final else WARNING
                )
            elif event.kind != "lifecycle" and event.severity != INFO:
                who = f"{event.server}: " if event.server else ""
                self._report(event, f"{who}{event.sentence}", event.severity)
