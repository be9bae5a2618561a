"""Everybody who is told: the receivers of the configuration, and what is left of them to another supervisor."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from poolctl.clock import Clock
from poolctl.monitor.events import Events

from .delivery import Channel
from .message import TEST, Message
from .problem_tracker import Problems, Tags
from .send import Sender, Unsent

if TYPE_CHECKING:
    from poolctl.config import Notify

_LAST_SECONDS = 2.0

Document = dict[str, Any]


class Around(NamedTuple):
    """What the receivers need to know of their pool."""

    pool: Callable[[], str]
    env: Callable[[], Mapping[str, str]]
    directory: str  # where commands run
    tags: Tags


class Notifier:
    """Takes events from `events` and tells them; `path` is the file in which a successor finds what is left."""

    def __init__(self, events: Events, clock: Clock, around: Around, path: str) -> None:
        self._events = events
        self._clock = clock
        self._around = around
        self._path = path
        self._told: dict[str, Notify] = {}
        self._channels: dict[str, Channel] = {}
        self._left: Document = self._read()
        self._leaving: set[asyncio.Task[None]] = set()
        self._unsubscribe = events.subscribe(self._take)

    def apply(self, told: Sequence[Notify]) -> None:
        """Tell these from now on; those that stay as they were go on undisturbed."""
        wanted = {each.label: each for each in told}
        for label in [label for label, each in self._told.items() if wanted.get(label) != each]:
            channel = self._channels.pop(label)
            self._left[label] = channel.to_dict()
            task = asyncio.ensure_future(channel.close())
            self._leaving.add(task)
            task.add_done_callback(self._leaving.discard)
        for label, each in wanted.items():
            if label not in self._channels:
                self._channels[label] = self._channel(each)
        self._left = {}
        self._told = wanted
        self._save()

    def _channel(self, notify: Notify) -> Channel:
        around = self._around
        channel = Channel(
            notify.label,
            Problems(notify, around.pool(), around.tags),
            Sender(notify, around.pool(), around.env, around.directory),
            self._clock,
            self._events.record,
            self._save,
            notify.retry_for,
        )
        channel.restore(self._left.get(notify.label, {}))
        channel.start()
        return channel

    def _take(self, event: Document) -> None:
        for channel in self._channels.values():
            channel.take(event)

    def missed(self, event: Document) -> None:
        """Look at what has happened while there was no supervisor."""
        self._take(event)

    async def test(self, labels: Collection[str] = ()) -> dict[str, str]:
        """What is wrong with each of these receivers (default: all), "" for those that took a test message."""
        chosen = [each for label, each in self._told.items() if not labels or label in labels]
        around = self._around
        return await tested(chosen, around.pool(), around.env(), around.directory)

    @property
    def troubled(self) -> set[tuple[str, str]]:
        """What somebody was told to be a problem: ("state" or "health", the server's name)."""
        return {each for channel in self._channels.values() for each in channel.troubled}

    @property
    def labels(self) -> list[str]:
        """The names of the receivers."""
        return list(self._channels)

    def remember(self) -> None:
        """Leave to a successor what is not told yet."""
        for channel in self._channels.values():
            channel.gather()

    async def close(self) -> None:
        """Try for two seconds to get out what is not told yet; what remains is left to a successor."""
        self._unsubscribe()
        self.remember()
        await asyncio.gather(*[channel.close(_LAST_SECONDS) for channel in self._channels.values()])
        self._save()

    def _read(self) -> Document:
        try:
            with open(self._path, encoding="utf-8") as file:
                found = json.load(file)
        except (OSError, ValueError):
            return {}
        return found if isinstance(found, dict) else {}

    def _save(self) -> None:
        found = {label: left for label, channel in self._channels.items() if (left := channel.to_dict())}
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
            # A disk that is full keeps nobody from being told.
            return


async def tested(told: Sequence[Notify], pool: str, env: Mapping[str, str], directory: str) -> dict[str, str]:
    """What is wrong with each of these receivers by its name, "" for those that took a test message."""
    title = f"{pool}: this is a test"
    message = Message(TEST, "info", title, ("If you read this, problems will be told here.",), Clock().time())

    async def attempt(notify: Notify) -> str:
        try:
            await Sender(notify, pool, lambda: env, directory).send(message)
        except Unsent as problem:
            return str(problem)
        return ""

    return dict(zip([each.label for each in told], await asyncio.gather(*map(attempt, told)), strict=True))
