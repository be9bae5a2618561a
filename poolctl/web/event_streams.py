"""What a viewer receives: the lines of servers' logs, and the heartbeat of every stream."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
from collections.abc import AsyncGenerator, Mapping, Sequence
from typing import Any

from poolctl.cli.log_rendering import record_lines
from poolctl.control.show_answers import ShowResult
from poolctl.logs.follow import Follower
from poolctl.logs.log_level import canonical_level, stated_level
from poolctl.logs.log_line import LogLine, parse_record

from .state_hub import Hub

FIRST_LINES = 300
PULSE_SECONDS = 15.0
MOST_SERVERS = 50
# For files that do not exist yet, and systems without inotify.
_LOOK_SECONDS = 1.0
_GATHER_SECONDS = 0.05


class Tails:
    """Reads the logger's files; `logs_directory` is that of servers without a path of their own."""

    def __init__(self, hub: Hub, logs_directory: str) -> None:
        self._hub = hub
        self._logs_directory = logs_directory

    async def paths(self, servers: Sequence[str]) -> dict[str, str]:
        """The log file of each of these servers (none: of every one). Raises ControlError, TimeoutError."""
        result = await self._hub.ask(ShowResult, "show", [], {})
        wanted = set(servers)
        found = {
            item.name: (item.config.get("log") or {}).get("path")
            or os.path.join(self._logs_directory, f"{item.name}.log")
            for item in result.items
            if not wanted or item.name in wanted
        }
        return dict(list(found.items())[:MOST_SERVERS])

    async def follow(self, paths: Mapping[str, str]) -> AsyncGenerator[str]:
        """Server-sent events `lines`, each a list of [time, name, text, level]: the last lines, then new ones.

        Lines in JSON are shown as readable text; `level` is the one that a line states, "" without one.
        """
        each = max(20, FIRST_LINES // len(paths))
        follower = await asyncio.to_thread(lambda: Follower(paths, lines=each))
        loop = asyncio.get_running_loop()
        news = asyncio.Event()
        try:
            if follower.fileno() >= 0:
                loop.add_reader(follower.fileno(), news.set)
            yield _message(follower.first)
            while True:
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(_LOOK_SECONDS):
                        await news.wait()
                # The lines of a busy server are sent in batches, not one by one.
                await asyncio.sleep(_GATHER_SECONDS)
                lines = await asyncio.to_thread(follower.read)
                news.clear()
                if lines:
                    yield _message(lines)
        finally:
            if follower.fileno() >= 0:
                loop.remove_reader(follower.fileno())
            follower.close()


def _message(lines: Sequence[LogLine]) -> str:
    rows = [[line.time, line.name, *_readable(line.text)] for line in lines]
    return f"event: lines\ndata: {json.dumps(rows, separators=(',', ':'))}\n\n"


def _readable(text: str) -> tuple[str, str]:
    record = parse_record(text)
    if record is None:
        return text, stated_level(text)
    record.time = ""  # the line's own time is shown already
    return "\n".join(record_lines(record)), canonical_level(record.level)


async def with_pulse(
    messages: AsyncGenerator[str], over: asyncio.Event, *, pulse_seconds: float = PULSE_SECONDS
) -> AsyncGenerator[str]:
    """The messages, and a comment after `pulse_seconds` without one. Begins with the delay before a reconnect.

    Ends when `over` is set, so that the server need not wait for viewers.
    """
    yield "retry: 1000\n\n"
    upcoming: asyncio.Future[str] | None = None
    ending = asyncio.ensure_future(over.wait())
    try:
        while True:
            upcoming = upcoming or asyncio.ensure_future(anext(messages))
            waiting: set[asyncio.Future[Any]] = {upcoming, ending}
            done, _ = await asyncio.wait(waiting, timeout=pulse_seconds, return_when=asyncio.FIRST_COMPLETED)
            if ending in done:
                return
            if not done:
                yield ": still here\n\n"
                continue
            try:
                message = upcoming.result()
            except StopAsyncIteration:
                return
            upcoming = None
            yield message
    finally:
        ending.cancel()
        if upcoming is not None:
            upcoming.cancel()
            with contextlib.suppress(asyncio.CancelledError, StopAsyncIteration):
                await upcoming
        await messages.aclose()
