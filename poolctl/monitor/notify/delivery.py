"""One receiver at work: a task that gathers, sends, and tries again, in nobody's way."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from typing import Any, Protocol

from poolctl.clock import Clock

from .message import PROBLEM, RESOLVED, Message
from .outbox import Outbox
from .problem_tracker import Problems
from .send import Sender, Unsent

Document = dict[str, Any]


class Record(Protocol):
    """How a channel's own events are recorded (see Events.record)."""

    def __call__(self, kind: str, event: str, *, message: str, cause: str = "", **detail: Any) -> None: ...


class Channel:
    """`changed` is called when what a successor has to know is another."""

    def __init__(
        self,
        label: str,
        problems: Problems,
        sender: Sender,
        clock: Clock,
        record: Record,
        changed: Callable[[], None],
        retry_for: float,
    ) -> None:
        self.label = label
        self._problems = problems
        self._sender = sender
        self._clock = clock
        self._record = record
        self._changed = changed
        self._outbox = Outbox(retry_for, lambda: random.uniform(-1, 1))
        self._news = asyncio.Event()
        self._delayed = False
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin to send."""
        self._task = asyncio.ensure_future(self._run())

    def take(self, event: Document) -> None:
        """Look at an event, and tell of it if it is to be told."""
        before = self._problems.next_at()
        self._problems.take(event, self._clock.time())
        if self._problems.next_at() != before:
            self._news.set()

    @property
    def troubled(self) -> set[tuple[str, str]]:
        """What was told to be a problem: ("state" or "health", the server's name)."""
        return {(kind, name) for kind, _, name in (key.partition(" ") for key in self._problems.to_dict())}

    def gather(self) -> None:
        """Make what is to be told a message at once: the supervisor ends."""
        message = self._problems.due(self._clock.time(), at_once=True)
        if message is not None:
            self._put(message)

    async def close(self, limit_seconds: float = 0.0) -> None:
        """Stop; before, try for so long to get out what waits."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait({self._task})
        try:
            async with asyncio.timeout(limit_seconds):
                while limit_seconds and (message := self._outbox.due(self._clock.time())) is not None:
                    await self._attempt(message)
        except TimeoutError:
            pass

    def to_dict(self) -> Document:
        """What a successor has to know; empty when it is nothing."""
        found = {"open": self._problems.to_dict(), "waiting": self._outbox.to_list()}
        return found if any(found.values()) else {}

    def restore(self, document: Document) -> None:
        """Go on where another has stopped."""
        self._problems.restore(document.get("open", {}))
        self._outbox.restore(document.get("waiting", []))

    async def _run(self) -> None:
        while True:
            self._news.clear()
            now = self._clock.time()
            told = self._problems.due(now)
            if told is not None:
                self._put(told)
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
            self._tell("given up", given_up, "too many wait")
        self._changed()

    async def _attempt(self, message: Message) -> None:
        try:
            await self._sender.send(message)
        except Unsent as problem:
            again = self._outbox.failed(
                self._clock.time(), again=problem.again, after_seconds=problem.after_seconds
            )
            if not again or not self._delayed:
                self._tell("delayed" if again else "given up", message, str(problem))
            self._delayed = again
        else:
            self._outbox.sent()
            self._delayed = False
            self._tell("sent", message)
        self._changed()

    def _tell(self, event: str, message: Message, cause: str = "") -> None:
        severity = "info" if event == "sent" else "warning"
        words = (
            message.title if message.status in (PROBLEM, RESOLVED) else f"{message.status}: {message.title}"
        )
        self._record(
            "notify",
            event,
            message=f"{self.label}: {words}",
            cause=cause,
            receiver=self.label,
            severity=severity,
        )
