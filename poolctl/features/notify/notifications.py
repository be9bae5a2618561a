"""The supervisor's part for [[notify]]: sends notifications, retries, and saves unsent ones for the next supervisor."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import random
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from poolctl.config import Tables, directory_of
from poolctl.core.server_entry import Entry
from poolctl.json_form import Table
from poolctl.monitor.journal import JournalEvent
from poolctl.platform import read_json_object, replace_file
from poolctl.selection.selector import SelectorError
from poolctl.states import State, Status
from poolctl.supervisor.feature_parts import FeaturePart, PartContext
from poolctl.supervisor.verbs.verb import Call, Verb

from ._problem_tracker import PROBLEM, RESOLVED, Message, NotificationContext, ProblemTracker
from ._send import NotificationSender, NotifyResult, SendFailed, send_test
from .table import Notify

_FILE_NAME = "notify.json"
INITIAL_SECONDS = 1.0
MAX_DELAY_SECONDS = 300.0
JITTER = 0.2
MAX_WAITING = 100
_EXIT_SEND_SECONDS = 2.0


class Outbox:
    """The queue of messages to one receiver. A message is dropped `retry_for` seconds after it was queued."""

    def __init__(self, retry_for: float) -> None:
        self._retry_for = retry_for
        self._waiting: deque[tuple[Message, float]] = deque()
        self._attempts = 0
        self._not_before = 0.0

    def put(self, message: Message, now: float) -> Message | None:
        """Queue a message. If too many are waiting, the oldest is dropped and returned; otherwise returns None."""
        self._waiting.append((message, now))
        if len(self._waiting) <= MAX_WAITING:
            return None
        self._attempts, self._not_before = 0, min(self._not_before, now + MAX_DELAY_SECONDS)
        return self._waiting.popleft()[0]

    def next_at(self) -> float | None:
        """When the next attempt is due; None if no message is waiting."""
        return self._not_before if self._waiting else None

    def due(self, now: float) -> Message | None:
        """The first message if an attempt to send it is due, else None. It stays in the queue."""
        return self._waiting[0][0] if self._waiting and now >= self._not_before else None

    def remove_first(self) -> None:
        """Remove the first message, because it was delivered or is given up."""
        self._waiting.popleft()
        self._attempts, self._not_before = 0, 0.0

    def retry_or_drop(
        self, now: float, *, again: bool = True, after_seconds: float = 0.0, jitter: float = 0.0
    ) -> bool:
        """Return True if the first message will be retried; drop it and return False if it expires or `again` is false.

        The delay doubles with each failure, and is at least `after_seconds`. `jitter` is a random number from -1 to 1.
        """
        since = self._waiting[0][1]
        delay = min(INITIAL_SECONDS * 2.0 ** min(self._attempts, 30), MAX_DELAY_SECONDS)
        delay = max(delay * (1 + JITTER * jitter), min(after_seconds, 3600.0))
        if not again or now + delay - since > self._retry_for:
            self.remove_first()
            return False
        self._attempts += 1
        self._not_before = now + delay
        return True

    def to_list(self) -> list[object]:
        """The waiting messages as JSON, for `restore`."""
        return [
            [[*message[:-1], [event.to_json() for event in message.events]], since]
            for message, since in self._waiting
        ]

    def restore(self, waiting: list[Any], now: float) -> None:
        """Add the messages that an earlier outbox could not send, from its `to_list`."""
        for (status, severity, title, lines, time, events), since in waiting:
            journal = tuple(map(JournalEvent.from_json, events))
            message = Message(status, severity, title, tuple(lines), time, journal)
            self._waiting.append((message, min(since, now)))  # the machine's time may have been set back


class DeliveryTask:
    """Sends to one receiver and retries in its own task, so that receivers do not delay each other."""

    def __init__(self, notify: Notify, part: Notifications, saved: Table) -> None:
        """Begin to send messages. `saved` is from `to_dict` of the receiver's previous task; {} if there was none."""
        self.notify = notify
        self._part = part
        self._problems = ProblemTracker(notify, part.facts)
        self._problems.restore(saved.get("open", {}), part.now())
        self._outbox = Outbox(notify.retry_for)
        self._outbox.restore(saved.get("waiting", []), part.now())
        self._sender = NotificationSender(notify, part.facts)
        self._wakeup = asyncio.Event()
        self._is_delay_reported = False
        self._task = asyncio.ensure_future(self._run())

    def record(self, event: JournalEvent) -> None:
        """Record an event; it is sent later if the receiver's settings select it."""
        previous = self._problems.next_at()
        self._problems.record(event, self._part.now())
        if self._problems.next_at() != previous:
            self._wakeup.set()

    def queue_pending_message_early(self) -> None:
        """Compose and queue the pending message before it is due, because the supervisor is exiting."""
        message = self._problems.take_due_message(self._part.now(), at_once=True)
        if message is not None:
            self._queue_and_save(message)

    def stop(self) -> None:
        """Stop sending."""
        self._task.cancel()

    async def send_waiting_and_stop(self) -> None:
        """Stop, after trying for two seconds to send the waiting messages."""
        self.stop()
        await asyncio.wait({self._task})
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_EXIT_SEND_SECONDS):
                while (message := self._outbox.due(self._part.now())) is not None:
                    await self._attempt(message)

    def to_dict(self) -> Table:
        """Return the open problems and the unsent messages, for a later task of the same receiver; {} if none."""
        state = {"open": self._problems.to_dict(), "waiting": self._outbox.to_list()}
        return state if any(state.values()) else {}

    async def _run(self) -> None:
        while True:
            self._wakeup.clear()
            now = self._part.now()
            composed = self._problems.take_due_message(now)
            if composed is not None:
                self._queue_and_save(composed)
            message = self._outbox.due(now)
            if message is not None:
                await self._attempt(message)
                continue
            times = [at for at in (self._problems.next_at(), self._outbox.next_at()) if at is not None]
            try:
                async with asyncio.timeout(max(0.001, min(times) - now) if times else None):
                    await self._wakeup.wait()
            except TimeoutError:
                continue

    def _queue_and_save(self, message: Message) -> None:
        message = message._replace(time=self._part.context.core.clock.time())
        given_up = self._outbox.put(message, self._part.now())
        if given_up is not None:
            self._report("given up", given_up, "too many are waiting")
        self._part.save()

    async def _attempt(self, message: Message) -> None:
        try:
            await self._sender.send(message)
        except SendFailed as problem:
            again = self._outbox.retry_or_drop(
                self._part.now(),
                again=problem.again,
                after_seconds=problem.after_seconds,
                jitter=random.uniform(-1, 1),
            )
            if not again or not self._is_delay_reported:
                self._report("delayed" if again else "given up", message, str(problem))
            self._is_delay_reported = again
        else:
            self._outbox.remove_first()
            self._is_delay_reported = False
            self._report("sent", message)
        self._part.save()

    def _report(self, event: str, message: Message, cause: str = "") -> None:
        severity = "info" if event == "sent" else "warning"
        prefix = "" if message.status in (PROBLEM, RESOLVED) else f"{message.status}: "
        text, label = f"{self.notify.label}: {prefix}{message.title}", self.notify.label
        self._part.context.events.record(
            "notify", event, message=text, cause=cause, receiver=label, severity=severity
        )


class Notifications(FeaturePart):
    """Notifies the configured receivers, and answers the verb `notify`."""

    def __init__(self, context: PartContext) -> None:
        super().__init__(context)
        self._epoch = context.core.clock.time() - context.core.clock.monotonic()
        self._configuration = context.environment.configuration
        self._path = os.path.join(context.environment.state_directory, _FILE_NAME)
        self._deliveries: dict[str, DeliveryTask] = {}
        self._unsubscribe: Callable[[], None] | None = None  # set once a receiver is configured
        self._unhealthy: set[str] = set()  # servers that the previous supervisor reported as unhealthy

    @property
    def verbs(self) -> Mapping[str, Verb]:
        return {"notify": self._send_test_notifications}

    def apply_tables(self, tables: Tables) -> None:
        """Notify the receivers in these configuration tables. Deliveries to unchanged receivers are not interrupted."""
        receivers = {receiver.label: receiver for receiver in tables.all(Notify)}
        is_first = self._unsubscribe is None
        if is_first and not receivers:
            return
        saved = read_json_object(self._path) if is_first else {}
        previous, self._deliveries = self._deliveries, {}
        for label, delivery in previous.items():
            if receivers.get(label) == delivery.notify:
                self._deliveries[label] = delivery
            else:
                delivery.stop()
                saved[label] = delivery.to_dict()
        for label, receiver in receivers.items():
            if label not in self._deliveries:
                self._deliveries[label] = DeliveryTask(receiver, self, saved.get(label, {}))
        self.save()
        if is_first:
            self._unsubscribe = self.context.events.subscribe(self._record)
            self._resolve_ended_problems()

    def flush(self) -> None:
        for delivery in self._deliveries.values():
            delivery.queue_pending_message_early()

    async def aclose(self) -> None:
        """Try for two seconds to send the pending messages, and save unsent ones for the next supervisor."""
        if self._unsubscribe is None:
            return
        self._unsubscribe()
        self.flush()
        await asyncio.gather(*[delivery.send_waiting_and_stop() for delivery in self._deliveries.values()])
        self.save()

    def save(self) -> None:
        """Write the open problems and unsent messages to a file for the next supervisor."""
        unsent = {
            label: state for label, delivery in self._deliveries.items() if (state := delivery.to_dict())
        }
        # Notifications are sent even if the disk is full.
        with contextlib.suppress(OSError):
            if unsent:
                replace_file(self._path, json.dumps(unsent, default=str).encode())
            elif os.path.exists(self._path):
                os.unlink(self._path)

    def now(self) -> float:
        """Seconds since the epoch, unaffected by changes of the machine's time since this object was created."""
        return self._epoch + self.context.core.clock.monotonic()

    def facts(self) -> NotificationContext:
        """Return the pool's current name, environment, directory and tags; a reload can change them."""
        pool = self._configuration
        return NotificationContext(pool.name, pool.environment, directory_of(pool.files[0]), self._tags)

    def _tags(self, server: str) -> Sequence[str]:
        entry = self.context.core.entries.get(server)
        return entry.config.tags if entry is not None else ()

    def _record(self, event: JournalEvent) -> None:
        for delivery in self._deliveries.values():
            delivery.record(event)

    def _resolve_ended_problems(self) -> None:
        """Report the end of problems that ended while there was no supervisor."""
        core = self.context.core
        deliveries = [delivery.to_dict() for delivery in self._deliveries.values()]
        open_problems = dict.fromkeys(key for delivery in deliveries for key in delivery.get("open", ()))
        for kind, _, name in (key.partition(" ") for key in open_problems):
            entry = core.entries.get(name)
            if kind == "health" and entry is not None:
                # Its current health is unknown until its first probe.
                self._unhealthy.add(name)
                core.observers.add(self._record_if_recovered)
            state = entry.state if entry is not None else State.STOPPED.value
            is_open = state in (State.FAILED.value, State.BACKOFF.value) or (
                entry is not None and entry.ended
            )
            if not is_open:
                self._record(JournalEvent("", 0, "lifecycle", state, name, after=state))

    def _record_if_recovered(self, entry: Entry) -> None:
        if entry.name in self._unhealthy and entry.health is Status.OK:
            self._unhealthy.remove(entry.name)
            status = Status.OK.value
            self._record(JournalEvent("", 0, "health", status, entry.name, after=status))
        if not self._unhealthy:
            self.context.core.observers.discard(self._record_if_recovered)

    async def _send_test_notifications(self, call: Call) -> NotifyResult:
        """Send a test notification to all receivers, or to the named `receivers`; returns the result of each."""
        names = call.options.get("receivers") or []
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            raise SelectorError("notify: no such receivers", hint="receivers is a list of names")
        return await send_test(
            [delivery.notify for delivery in self._deliveries.values()], names, self.facts()
        )
