"""The configured receivers: sends messages to each, retries, and leaves unsent messages to a successor."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import random
from collections import deque
from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING, Any

from poolctl.clock import Clock
from poolctl.json_form import Table
from poolctl.monitor.event_queue import Events
from poolctl.monitor.journal import JournalEvent
from poolctl.platform import replace_file

from ._problem_tracker import PROBLEM, RESOLVED, Message, PoolFacts, ProblemTracker
from ._send import Sender, Unsent, send_test

if TYPE_CHECKING:
    from .table import Notify

INITIAL_SECONDS = 1.0
MAX_DELAY_SECONDS = 300.0
JITTER = 0.2
MAX_WAITING = 100
_LAST_SECONDS = 2.0


class Outbox:
    """Messages in their order; `retry_for` and times are in seconds."""

    def __init__(self, retry_for: float) -> None:
        self._retry_for = retry_for
        self._waiting: deque[tuple[Message, float]] = deque()
        self._attempts = 0
        self._not_before = 0.0

    def __len__(self) -> int:
        return len(self._waiting)

    def put(self, message: Message, now: float) -> Message | None:
        """Queue a message; returns the oldest one, which is dropped, when too many are waiting."""
        self._waiting.append((message, now))
        if len(self._waiting) <= MAX_WAITING:
            return None
        self._attempts, self._not_before = 0, min(self._not_before, now + MAX_DELAY_SECONDS)
        return self._waiting.popleft()[0]

    def next_at(self) -> float | None:
        """When the next attempt is due; None if no message is waiting."""
        return self._not_before if self._waiting else None

    def due(self, now: float) -> Message | None:
        """The message to send now."""
        return self._waiting[0][0] if self._waiting and now >= self._not_before else None

    def sent(self) -> None:
        """Remove the first message, because it was delivered."""
        self._waiting.popleft()
        self._attempts, self._not_before = 0, 0.0

    def failed(
        self, now: float, *, again: bool = True, after_seconds: float = 0.0, jitter: float = 0.0
    ) -> bool:
        """Handle a failed attempt; returns whether it is retried, after at least `after_seconds`, or dropped.

        `jitter` is a random number from -1 to 1.
        """
        since = self._waiting[0][1]
        delay = min(INITIAL_SECONDS * 2.0 ** min(self._attempts, 30), MAX_DELAY_SECONDS)
        delay = max(delay * (1 + JITTER * jitter), min(after_seconds, 3600.0))
        if not again or now + delay - since > self._retry_for:
            self.sent()
            return False
        self._attempts += 1
        self._not_before = now + delay
        return True

    def to_list(self) -> list[object]:
        """The waiting messages, for a successor."""
        return [
            [[*message[:-1], [event.to_json() for event in message.events]], since]
            for message, since in self._waiting
        ]

    def restore(self, waiting: list[Any]) -> None:
        """Continue with the messages that a predecessor could not send."""
        for (status, severity, title, lines, time, events), since in waiting:
            found = tuple(map(JournalEvent.from_json, events))
            self._waiting.append((Message(status, severity, title, tuple(lines), time, found), since))


class DeliveryTask:
    """Sends to one receiver and retries in its own task, so that receivers do not delay each other."""

    def __init__(
        self, notify: Notify, facts: PoolFacts, clock: Clock, events: Events, notifier: Notifier, left: Table
    ) -> None:
        """`left` is the state left by a predecessor."""
        self.notify = notify
        self._problems = ProblemTracker(notify, facts)
        self._problems.restore(left.get("open", {}))
        self._outbox = Outbox(notify.retry_for)
        self._outbox.restore(left.get("waiting", []))
        self._sender = Sender(notify, facts)
        self._clock = clock
        self._events = events
        self._notifier = notifier
        self._news = asyncio.Event()
        self._delayed = False
        self._task = asyncio.ensure_future(self._run())

    def take(self, event: JournalEvent) -> None:
        """Consider an event; it is sent later, if the receiver wants it."""
        before = self._problems.next_at()
        self._problems.take(event, self._clock.time())
        if self._problems.next_at() != before:
            self._news.set()

    @property
    def open_problems(self) -> set[tuple[str, str]]:
        """The problems that were sent and are not resolved: ("state" or "health", the server's name)."""
        return {(kind, name) for kind, _, name in (key.partition(" ") for key in self._problems.to_dict())}

    def gather(self) -> None:
        """Compose the due message now, because the supervisor is exiting."""
        message = self._problems.due(self._clock.time(), at_once=True)
        if message is not None:
            self._put(message)

    def stop(self) -> None:
        """Stop sending."""
        self._task.cancel()

    async def close(self) -> None:
        """Stop, after trying for two seconds to send the waiting messages."""
        self.stop()
        await asyncio.wait({self._task})
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_LAST_SECONDS):
                while (message := self._outbox.due(self._clock.time())) is not None:
                    await self._attempt(message)

    def to_dict(self) -> Table:
        """The state for a successor; may be empty."""
        found = {"open": self._problems.to_dict(), "waiting": self._outbox.to_list()}
        return found if any(found.values()) else {}

    async def _run(self) -> None:
        while True:
            self._news.clear()
            now = self._clock.time()
            composed = self._problems.due(now)
            if composed is not None:
                self._put(composed)
            message = self._outbox.due(now)
            if message is not None:
                await self._attempt(message)
                continue
            times = [at for at in (self._problems.next_at(), self._outbox.next_at()) if at is not None]
            try:
                async with asyncio.timeout(max(0.001, min(times) - now) if times else None):
                    await self._news.wait()
            except TimeoutError:
                continue

    def _put(self, message: Message) -> None:
        given_up = self._outbox.put(message, self._clock.time())
        if given_up is not None:
            self._report("given up", given_up, "too many are waiting")
        self._notifier.save()

    async def _attempt(self, message: Message) -> None:
        try:
            await self._sender.send(message)
        except Unsent as problem:
            again = self._outbox.failed(
                self._clock.time(),
                again=problem.again,
                after_seconds=problem.after_seconds,
                jitter=random.uniform(-1, 1),
            )
            if not again or not self._delayed:
                self._report("delayed" if again else "given up", message, str(problem))
            self._delayed = again
        else:
            self._outbox.sent()
            self._delayed = False
            self._report("sent", message)
        self._notifier.save()

    def _report(self, event: str, message: Message, cause: str = "") -> None:
        severity = "info" if event == "sent" else "warning"
        prefix = "" if message.status in (PROBLEM, RESOLVED) else f"{message.status}: "
        text, label = f"{self.notify.label}: {prefix}{message.title}", self.notify.label
        self._events.record("notify", event, message=text, cause=cause, receiver=label, severity=severity)


class Notifier:
    """Sends notifications of `events`; `path` is the file that keeps the state for a successor."""

    def __init__(self, events: Events, clock: Clock, facts: PoolFacts, path: str) -> None:
        self._events = events
        self._clock = clock
        self._facts = facts
        self._path = path
        self._deliveries: dict[str, DeliveryTask] = {}
        self._left: Table = self._read()
        self._unsubscribe = events.subscribe(self.take)

    def apply(self, receivers: Sequence[Notify]) -> None:
        """Notify these receivers from now on; unchanged receivers are not interrupted."""
        before, self._deliveries = self._deliveries, {}
        wanted = {each.label: each for each in receivers}
        for label, delivery in before.items():
            if wanted.get(label) == delivery.notify:
                self._deliveries[label] = delivery
            else:
                delivery.stop()
                self._left[label] = delivery.to_dict()
        for label, each in wanted.items():
            if label not in self._deliveries:
                left = self._left.get(label, {})
                self._deliveries[label] = DeliveryTask(
                    each, self._facts, self._clock, self._events, self, left
                )
        self._left = {}
        self.save()

    def take(self, event: JournalEvent) -> None:
        """Consider an event, also one that happened while there was no supervisor."""
        for delivery in self._deliveries.values():
            delivery.take(event)

    async def test(self, labels: Collection[str] = ()) -> dict[str, str]:
        """Send a test notification to these receivers (default: all); the error of each, "" for success."""
        chosen = [each.notify for label, each in self._deliveries.items() if not labels or label in labels]
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
        """Compose all pending messages, for a successor."""
        for delivery in self._deliveries.values():
            delivery.gather()

    async def close(self) -> None:
        """Try for two seconds to send pending messages; the rest is left to a successor."""
        self._unsubscribe()
        self.remember()
        await asyncio.gather(*[delivery.close() for delivery in self._deliveries.values()])
        self.save()

    def _read(self) -> Table:
        try:
            with open(self._path, encoding="utf-8") as file:
                found = json.load(file)
        except (OSError, ValueError):
            return {}
        return found if isinstance(found, dict) else {}

    def save(self) -> None:
        """Write the deliveries' state for a successor."""
        found = {label: left for label, delivery in self._deliveries.items() if (left := delivery.to_dict())}
        # Notifications are sent even if the disk is full.
        with contextlib.suppress(OSError):
            if found:
                replace_file(self._path, json.dumps(found, default=str).encode())
            elif os.path.exists(self._path):
                os.unlink(self._path)
