"""The configured receivers, and the state that they leave to a successor."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

from poolctl.clock import Clock
from poolctl.monitor.event_queue import Events
from poolctl.values import Table

from .delivery import DeliveryTask
from .message import TEST, Message, PoolFacts
from .send import Sender, Unsent

if TYPE_CHECKING:
    from poolctl.config import Notify

_LAST_SECONDS = 2.0


class FixedFacts(NamedTuple):
    """A pool without a supervisor, for test notifications."""

    name: str
    environment: Mapping[str, str]
    directory: str

    def tags(self, server: str) -> Collection[str]:
        """None: a test notification is about no server."""
        return ()


class Notifier:
    """Sends notifications of `events`; `path` is the file that keeps the state for a successor."""

    def __init__(self, events: Events, clock: Clock, facts: PoolFacts, path: str) -> None:
        self._events = events
        self._clock = clock
        self._facts = facts
        self._path = path
        self._receivers: dict[str, Notify] = {}
        self._deliveries: dict[str, DeliveryTask] = {}
        self._left: Table = self._read()
        self._leaving: set[asyncio.Task[None]] = set()
        self._unsubscribe = events.subscribe(self._take)

    def apply(self, receivers: Sequence[Notify]) -> None:
        """Notify these receivers from now on; unchanged ones are not interrupted."""
        wanted = {each.label: each for each in receivers}
        for label in [label for label, each in self._receivers.items() if wanted.get(label) != each]:
            delivery = self._deliveries.pop(label)
            self._left[label] = delivery.to_dict()
            task = asyncio.ensure_future(delivery.close())
            self._leaving.add(task)
            task.add_done_callback(self._leaving.discard)
        for label, each in wanted.items():
            if label not in self._deliveries:
                self._deliveries[label] = self._delivery(each)
        self._left = {}
        self._receivers = wanted
        self.save()

    def _delivery(self, notify: Notify) -> DeliveryTask:
        delivery = DeliveryTask(notify, self._facts, self._clock, self._events, self)
        delivery.restore(self._left.get(notify.label, {}))
        delivery.start()
        return delivery

    def _take(self, event: Table) -> None:
        for delivery in self._deliveries.values():
            delivery.take(event)

    def missed(self, event: Table) -> None:
        """Consider an event that happened while there was no supervisor."""
        self._take(event)

    async def test(self, labels: Collection[str] = ()) -> dict[str, str]:
        """Send a test notification to these receivers (default: all); the error of each, "" for success."""
        chosen = [each for label, each in self._receivers.items() if not labels or label in labels]
        return await send_test(chosen, self._facts)

    @property
    def open_problems(self) -> set[tuple[str, str]]:
        """The problems that were sent to a receiver and are not resolved: ("state" or "health", the server's name)."""
        return {each for delivery in self._deliveries.values() for each in delivery.open_problems}

    @property
    def labels(self) -> list[str]:
        """The names of the receivers."""
        return list(self._deliveries)

    def remember(self) -> None:
        """Compose what is not sent yet, for a successor."""
        for delivery in self._deliveries.values():
            delivery.gather()

    async def close(self) -> None:
        """Try for two seconds to send what is not sent yet; the rest is left to a successor."""
        self._unsubscribe()
        self.remember()
        await asyncio.gather(*[delivery.close(_LAST_SECONDS) for delivery in self._deliveries.values()])
        self.save()

    def _read(self) -> Table:
        try:
            with open(self._path, encoding="utf-8") as file:
                found = json.load(file)
        except (OSError, ValueError):
            return {}
        return found if isinstance(found, dict) else {}

    def save(self) -> None:
        """Write what deliveries leave to a successor."""
        found = {label: left for label, delivery in self._deliveries.items() if (left := delivery.to_dict())}
        try:
            if not found:
                if os.path.exists(self._path):
                    os.unlink(self._path)
                return
            fd = os.open(f"{self._path}.new", os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
            with open(fd, "w", encoding="utf-8") as file:
                json.dump(found, file, default=str)
            os.replace(f"{self._path}.new", self._path)
        except OSError:
            # Notifications go out even when the disk is full.
            return


async def send_test(receivers: Sequence[Notify], facts: PoolFacts) -> dict[str, str]:
    """Send a test notification to these receivers; the error of each by its name, "" for success."""
    title = f"{facts.name}: this is a test"
    message = Message(
        TEST, "info", title, ("If you can read this, problems will be reported here.",), Clock().time()
    )

    async def attempt(notify: Notify) -> str:
        try:
            await Sender(notify, facts).send(message)
        except Unsent as problem:
            return str(problem)
        return ""

    return dict(
        zip([each.label for each in receivers], await asyncio.gather(*map(attempt, receivers)), strict=True)
    )
