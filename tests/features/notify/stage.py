"""The feature in a supervisor without processes: real HTTP, a state directory, and time that passes at once."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from poolctl.clock import Clock
from poolctl.config import Tables
from poolctl.core.core import Core
from poolctl.features.notify.notifications import Notifications
from poolctl.features.notify.table import Notify
from poolctl.monitor.event_queue import EventBus
from poolctl.monitor.journal import JournalEvent
from tests.features.notify.receivers import Receiver
from tests.unit.core.ordered_core import web
from tests.unit.runners.scripted_runner import BREAKS, SlowRunner
from tests.unit.supervisor.desk import part_context
from tests.virtual_loop import VirtualLoop


class LoopClock(Clock):
    """Passes with the loop's time. `offset` is what the time of day was set by."""

    def __init__(self, loop: VirtualLoop) -> None:
        self._loop = loop
        self.offset = 0.0

    def monotonic(self) -> float:
        return self._loop.time()

    def time(self) -> float:
        return 1_700_000_000 + self._loop.time() + self.offset


class Stage:
    """A pool "shop", whose events a test records, and a receiver that takes its notifications."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.loop = VirtualLoop()
        self.clock = LoopClock(self.loop)
        self.receiver = Receiver()
        self.loop.run_until_complete(self.receiver.start())
        self._recorded: list[JournalEvent] = []
        self.start_supervisor()

    def start_supervisor(self, *failing: str) -> None:
        """Start a supervisor in the place of an earlier one: "web" and "other" run, unless they fail."""
        self._cancel_tasks()
        self.events = EventBus(self.clock)
        self.events.subscribe(self._recorded.append)
        runner = SlowRunner(**dict.fromkeys(failing, BREAKS))
        self.core = Core([web("web"), web("other")], runner, self.clock, self.events)
        configuration = SimpleNamespace(name="shop", environment={}, files=["/srv/pool.toml"])
        environment = SimpleNamespace(configuration=configuration, state_directory=str(self.directory))
        self.part = Notifications(part_context(self.core, self.events, environment))
        self._run(lambda: [self.core.start(entry) for entry in self.core.entries.values()])
        self.pass_time()

    def end_supervisor(self) -> None:
        """Let the supervisor exit in an orderly way."""
        self.loop.run_until_complete(self.part.aclose())

    def close(self) -> None:
        self.loop.run_until_complete(self.receiver.aclose())
        self._cancel_tasks()
        self.loop.close()

    def notify(self, *tables: dict[str, Any]) -> None:
        """Apply these [[notify]] tables, as a start or a reload does. Left out: a webhook at the receiver's URL."""
        usual = {"type": "webhook", "url": self.receiver.url("/hook?a=b"), "delay": 0}
        receivers = tuple(Notify(**{**usual, **table}) for table in tables)
        self._run(lambda: self.part.apply_tables(Tables(notify=receivers)))

    def record(self, kind: str, event: str, **fields: Any) -> None:
        """Record an event of the pool, which for kinds with states is one of the server "web"."""
        if kind in ("lifecycle", "health"):
            fields = {"server": "web", "after": event, **fields}
        self.events.record(kind, event, **fields)
        self.pass_time()

    def fail(self, server: str = "web") -> None:
        """Record that a server has failed."""
        self.record("lifecycle", "failed", server=server)

    def pass_time(self, seconds: float = 0.0) -> None:
        """Let time pass, and finish the requests that have begun."""
        self.loop.pass_time(seconds)
        for _ in range(20):
            self.loop.pass_time()

    def journal(self) -> list[tuple[str, str, str]]:
        """The feature's events since the last call: the outcome, the message and the cause."""
        self.events.flush()
        events = [event for event in self._recorded if event.kind == "notify"]
        self._recorded.clear()
        return [(event.event, event.message, event.cause) for event in events]

    def _run(self, call: Callable[[], object]) -> None:
        """Call this within the loop."""

        async def within() -> None:
            call()

        self.loop.run_until_complete(within())

    def _cancel_tasks(self) -> None:
        """End all tasks at once, as when the process is killed."""
        for task in asyncio.all_tasks(self.loop):
            task.cancel()
        self.loop.pass_time()
