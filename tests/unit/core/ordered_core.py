"""A core over a scripted runner, whose orders are awaited as commands await them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from types import SimpleNamespace
from typing import Any

from poolctl import ServerConfig, ServerError
from poolctl.core.command_goal import CommandGoal
from poolctl.core.core import Core
from poolctl.core.server_entry import Entry
from poolctl.errors import PoolError, PoolRestartError, PoolStartError, PoolStopError
from tests.coroutines import run as run
from tests.coroutines import turns as turns
from tests.manual_clock import ManualClock
from tests.unit.runners.scripted_runner import SlowRunner


class RecordedEvents(list[Any]):
    """A recorder that keeps the events, each with its fields as attributes."""

    def record(self, kind: str, event: str, **fields: Any) -> None:
        self.append(SimpleNamespace(kind=kind, event=event, **{"message": "", **fields}))


class OrderedCore:
    """Orders select servers by name, all without names, and return the problems of those that did not arrive."""

    def __init__(self, *servers: ServerConfig, **script: str) -> None:
        self.runner = SlowRunner(**script)
        self.clock = ManualClock()
        self.events = RecordedEvents()
        self.core = Core(servers, self.runner, self.clock, self.events)
        self._begun: set[asyncio.Task[list[ServerError]]] = set()

    def begin(self, order: Coroutine[Any, Any, list[ServerError]]) -> asyncio.Task[list[ServerError]]:
        """Carry out the order while the test goes on."""
        task = asyncio.ensure_future(order)
        self._begun.add(task)
        return task

    async def start(self, *names: str, deps: bool = True) -> list[ServerError]:
        """Start them, after their dependencies with `deps`."""
        chosen = self._selected(names)
        if deps:
            chosen = self.core.servers.closure(chosen, self.core.servers.dependencies)
        chosen = [entry for entry in chosen if not entry.is_disabled]

        def start(entry: Entry) -> None:
            if not (entry.wanted and entry.ready):
                self.core.start(entry, ignore_dependencies=not deps)

        return await self.order(PoolStartError, chosen, start)

    async def restart(self, *names: str) -> list[ServerError]:
        return await self.order(PoolRestartError, self._selected(names), self.core.restart)

    async def stop(self, *names: str) -> list[ServerError]:
        """Stop them after their dependents."""
        chosen = self.core.servers.closure(self._selected(names), self.core.servers.dependents)
        return await self.order(PoolStopError, chosen, self.core.stop)

    async def order(
        self, kind: type[PoolError], entries: list[Entry], order: Callable[[Entry], None]
    ) -> list[ServerError]:
        """Give each of them the order, and wait until it has reached its goal or failed."""
        goal = CommandGoal(self.core, kind, entries)
        for entry in entries:
            order(entry)
        await goal.wait_until_settled(None)
        return [problem for entry in entries if (problem := goal.problem(entry)) is not None]

    def _selected(self, names: tuple[str, ...]) -> list[Entry]:
        return [entry for entry in self.core.entries.values() if not names or entry.name in names]

    def states(self) -> dict[str, str]:
        return {name: entry.state for name, entry in self.core.entries.items()}


def let_wait(entry: Entry, index: int = 0) -> asyncio.TimerHandle:
    """Put the next worker with this index into a backoff that does not end by itself; returns its timer."""
    loop = asyncio.new_event_loop()
    timer = entry.slot(index).backoff = loop.call_later(60, print)
    loop.close()
    return timer


def web(name: str = "web", **keys: Any) -> ServerConfig:
    keys.setdefault("bind", f"127.0.0.1:{9000 + sum(map(ord, name)) % 900}")
    return ServerConfig(**{"name": name, "app": "any:app", "restart": "no"} | keys)
