"""The problems of a pool's servers, from the events that its supervisors send."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable
from typing import NamedTuple

from poolctl.control.answers import JournalPositionResult, ProgressLine
from poolctl.control.client import AsyncClient
from poolctl.errors import ControlError
from poolctl.logs.log_line import stamp
from poolctl.monitor.journal import ERROR, INFO, MAX_LINES, WARNING, JournalEvent

from ._end_of_work import status_of

_KINDS = ["lifecycle", "recovery", "pool"]
# The pause between attempts while the supervisor is replaced.
_RETRY_SECONDS = 0.2
_LAST_SECONDS = 2.0


class Death(NamedTuple):
    """An unexpected exit of a process: when it was recorded, and the reason."""

    time: str
    reason: str


class PoolEventFollower:
    """Follows the pool's events, and calls `report` with the event, a line and its level, once for each problem.

    `ends_run` gets the status of a server that exited by itself, and returns whether this ends `run`. With `brief`, a
    line does not repeat the reason for an exit.
    """

    def __init__(
        self,
        socket_path: str,
        report: Callable[[JournalEvent, str, str], None],
        *,
        brief: bool = False,
        ends_run: Callable[[int], bool] = lambda status: False,
    ) -> None:
        self._client = AsyncClient(socket_path)
        # No pings are needed, because the keeper replaces a hung supervisor.
        self._patient_client = AsyncClient(socket_path, silence_seconds=None)
        self._report = report
        self._ends_run = ends_run
        self._brief = brief
        self._last_seq = 0
        self._since = stamp(time.time())
        self._following: asyncio.Task[None] | None = None
        self.died: dict[str, list[Death]] = {}  # by server name, in the order of the first death
        # Status and signal of the last worker of a server that ended by itself, and whether any server has changed.
        self.exits: dict[str, tuple[object, object]] = {}
        self.changed = asyncio.Event()

    def start(self) -> None:
        """Follow new events from now on; returns at once."""
        self._following = asyncio.create_task(self._follow())

    async def catch_up(self) -> None:
        """Report all events up to now."""
        with contextlib.suppress(ControlError):  # the supervisor has reported its end
            await self._ask(self._client, timeout_seconds=_LAST_SECONDS)

    async def finish(self) -> None:
        """Report all events up to now, then stop."""
        if self._following is not None:
            self._following.cancel()
            await asyncio.wait([self._following])
            await self.catch_up()

    async def _follow(self) -> None:
        while True:
            with contextlib.suppress(ControlError):
                await self._ask(self._patient_client, follow=True)
            await asyncio.sleep(_RETRY_SECONDS)

    async def _ask(
        self, client: AsyncClient, *, follow: bool = False, timeout_seconds: float | None = None
    ) -> None:
        options = {"after": self._last_seq, "lines": MAX_LINES, "follow": follow, "kind": _KINDS}
        if not self._last_seq:
            options["since"] = self._since
        body = {"options": options}
        await client.ask(JournalPositionResult, "events", body, self._report_event, timeout_seconds)

    def _report_event(self, line: ProgressLine) -> None:
        if line.event is None:
            return
        event = JournalEvent.from_json(line.event)
        if event.seq <= self._last_seq:
            return
        self._last_seq = event.seq
        if event.kind == "lifecycle":
            self.changed.set()
        if event.event == "worker ended":
            self.exits[event.server] = event.detail.get("status"), event.detail.get("signal")
        if event.next_step:
            deaths = self.died.setdefault(event.server, [])
            reason = event.cause or event.message
            is_known = self._brief and deaths and deaths[-1].reason == reason
            text = "died again for the same reason" if is_known else reason
            deaths.append(Death(event.time, reason))
            step, final = event.next_step, ": poolctl logs" in event.next_step
            if self._ends_run(status_of(event.detail.get("status"), event.detail.get("signal"))):
                step, final = "this ends the run (--abort-on-exit)", True
            self._report(event, f"{event.server}: {text}; {step}", ERROR if final else WARNING)
        elif event.kind != "lifecycle" and event.severity != INFO:
            prefix = f"{event.server}: " if event.server else ""
            self._report(event, f"{prefix}{self.without_known_reasons(event.sentence)}", event.severity)

    def without_known_reasons(self, text: str) -> str:
        """The text; with `brief`, without the reasons of deaths, which earlier lines have given."""
        for deaths in self.died.values() if self._brief else ():
            text = text.replace(f": {deaths[-1].reason}", "")
        return text
