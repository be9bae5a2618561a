"""The pool's state and recent history: queried once for all viewers, and only while there are viewers."""

from __future__ import annotations

import asyncio
import bisect
import contextlib
import json
import logging
import os
from collections import deque
from collections.abc import AsyncGenerator, Iterable, Mapping
from datetime import datetime
from typing import TypeVar

from poolctl.cli.reload_plan import drift_line_without_values
from poolctl.clock import Clock
from poolctl.config import masked_text
from poolctl.control.answers import Item, PingResult
from poolctl.control.client import AsyncClient
from poolctl.control.server_answers import ShowResult, StatsResult
from poolctl.errors import ControlError
from poolctl.json_form import Table, field_names, to_json
from poolctl.logs.log_line import stamp
from poolctl.monitor.journal import INFO, JournalEvent

SPAN_SECONDS = 3600.0
INTERVAL_SECONDS = 2.0
# After an event of the journal the state is queried soon, once for events in quick succession.
_SOON_SECONDS = 0.1
_RETRY_SECONDS = 0.5
_ANSWER_SECONDS = 10.0
_LINGER_SECONDS = 5.0
_MAX_CHANGES = 400
_MAX_EVENTS = 300
_MAX_WAITING = 200

Changes = list[tuple[float, str]]  # seconds since the epoch and level, oldest first
Answer = TypeVar("Answer")

_ITEM_FIELDS = tuple(field_names(Item))

OK, WARN, KO, BUSY, ASLEEP, OFF = "ok", "warn", "ko", "busy", "asleep", "off"
_RESTING = {
    "stopped": OFF, "completed": OK, "disabled": OFF, "sleeping": ASLEEP, "failed": KO, "backoff": KO, "starting": BUSY,
    "draining": BUSY, "stopping": BUSY,
}  # fmt: skip
STATES = frozenset({*_RESTING, "running"})
SERIES = ("requests_per_second", "errors_per_second", "latency_p99_seconds", "memory_bytes")
# Options of the verb `stats`: include error rates, and the files that have changed since the pool read them.
_STATS_OPTIONS: Table = {"errors": True, "files": True}
# The reasons of further failing servers are shown only on their pages.
_MAX_REASONS = 100
FIGURES = (
    "requests_total", "requests_per_second", "errors_total", "errors_per_second", "in_flight", "connections",
    "latency_p50_seconds", "latency_p99_seconds", "memory_bytes", "cpu_percent", "loop_lag_seconds", "wakes_total",
)  # fmt: skip

logger = logging.getLogger("poolctl.dashboard")


def level(state: str, ready: bool, health: str = "", *, ended: bool = False) -> str:
    """The level of a server in this state: ok, warn, ko, busy, asleep or off.

    `ended`: it has ended by itself, though it should run.
    """
    if ended:
        return WARN
    if state in _RESTING:
        return _RESTING[state]
    if health in (KO, WARN):
        return health
    return OK if ready else BUSY


class StatusLevelHistory:
    """The times at which each server's level (ok, warn, ko, …) changed. The level before the first time is unknown."""

    def __init__(self) -> None:
        self._changes: dict[str, Changes] = {}

    def add_event(self, event: JournalEvent) -> None:
        """Record a server's level, such as ok, from a journal event of its state or health; ignore other events."""
        word = ""
        if event.kind in ("lifecycle", "wake") and event.state in STATES:
            ended = event.event == "ended" and event.severity != INFO
            word = level(event.state, event.state == "running", ended=ended)
        elif event.kind == "health" and event.state in (OK, WARN, KO):
            word = event.state
        if word and event.server:
            self.add(event.server, word, datetime.fromisoformat(event.time).timestamp())

    def add(self, name: str, word: str, now: float) -> None:
        """Record that the level of server `name` is `word`, such as ok or ko, from Unix time `now` on."""
        changes = self._changes.setdefault(name, [])
        # The journal's events may arrive after the current state was queried.
        place = bisect.bisect_right(changes, now, key=lambda change: change[0])
        if place == 0 or changes[place - 1][1] != word:
            changes.insert(place, (round(now, 1), word))
            del changes[:-_MAX_CHANGES]

    def forget(self, names: Iterable[str]) -> None:
        for name in names:
            self._changes.pop(name, None)

    def since(self, now: float) -> dict[str, Changes]:
        """Return {server: [(time, level)]}: the level (ok, ko, …) an hour before `now` if known, then each change."""
        recent = {}
        for name, changes in self._changes.items():
            before = sum(when <= now - SPAN_SECONDS for when, _ in changes)
            recent[name] = changes[max(0, before - 1) :]
        return recent


class Hub:
    """Queries the pool's state for all viewers. Each viewer gets the whole state first, then messages about changes."""

    def __init__(self, socket_path: str, clock: Clock) -> None:
        self._client = AsyncClient(socket_path, silence_seconds=None)
        self._clock = clock
        self._viewers: set[asyncio.Queue[str | None]] = set()
        self._work: asyncio.Task[None] | None = None
        self._reset_state()

    def _reset_state(self) -> None:
        # The pool, its servers, their figures, and series of figures for charts (oldest first), as the page gets them;
        # by name in the order of the file.
        self._about: Table = {}
        self._items: dict[str, Table] = {}
        self._figures: dict[str, Table] = {}
        self._series: dict[str, Table] = {}
        self._levels = StatusLevelHistory()
        self._reasons: dict[str, str] = {}
        self._files = ""  # the sentence about changed files
        self._events: deque[Table] = deque(maxlen=_MAX_EVENTS)
        self._gone: str | None = "has not answered yet"
        self._last = 0  # the number of the newest known event
        self._query_wanted, self._again = asyncio.Event(), asyncio.Event()

    async def view(self) -> AsyncGenerator[str]:
        """The messages for one viewer, as server-sent events; ends if the viewer reads them too slowly."""
        queue: asyncio.Queue[str | None] = asyncio.Queue(_MAX_WAITING)
        if self._gone is None:
            queue.put_nowait(self._whole_state())
        elif self._work is not None:
            queue.put_nowait(event_message("gone", {"message": self._gone, "now": self._clock.time()}))
        self._viewers.add(queue)
        if self._work is None:
            self._work = asyncio.ensure_future(self._watch())
        try:
            while (message := await queue.get()) is not None:
                yield message
        finally:
            self._viewers.discard(queue)

    async def ask(
        self,
        kind: type[Answer],
        verb: str,
        targets: list[str],
        options: Mapping[str, object],
        by: Mapping[str, object] | None = None,
        *,
        timeout_seconds: float = _ANSWER_SECONDS,
    ) -> Answer:
        """Send `verb` to the supervisor for the client `by`; returns the answer. Raises ControlError, TimeoutError."""
        body = {"selector": {"targets": targets}, "options": options, "by": by or {}}
        async with asyncio.timeout(timeout_seconds):
            return await self._client.ask(kind, verb, body)

    async def _watch(self) -> None:
        """Query the pool until five seconds after the last viewer has left, so that a reloaded page finds the data."""
        following = asyncio.ensure_future(self._follow())
        unwatched = 0.0
        try:
            while unwatched < _LINGER_SECONDS:
                await self._query()
                self._query_wanted.clear()
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(_RETRY_SECONDS if self._gone else INTERVAL_SECONDS):
                        await self._query_wanted.wait()
                        await asyncio.sleep(_SOON_SECONDS)
                unwatched = 0.0 if self._viewers else unwatched + INTERVAL_SECONDS
        finally:
            following.cancel()
            self._reset_state()
            self._work = None

    async def _query(self) -> None:
        try:
            await self._query_and_broadcast()
        except (ControlError, TimeoutError) as error:
            reason = str(error) or "it does not answer"
            if self._gone is None or reason != self._gone:
                self._gone = reason
                self._send_event("gone", {"message": reason, "now": self._clock.time()})
        except Exception:
            logger.exception("the pool could not be queried")

    async def _query_and_broadcast(self) -> None:
        is_first = self._gone is not None
        if is_first:
            about = await self.ask(PingResult, "ping", [], {})
            self._about = to_json(about, "name", "version", "python", "supervisor_pid", "files")
            self._items = {}
            since = stamp(self._clock.time() - SPAN_SECONDS)
            async with asyncio.timeout(_ANSWER_SECONDS):
                await self._read_events({"since": since, "after": self._last})
        result = await self.ask(StatsResult, "stats", [], _STATS_OPTIONS)
        changed, removed, figures = self._apply(result)
        await self._load_failure_reasons(changed)
        files, known_files = "", self._files
        if result.changed is not None:
            first = (self._about.get("files") or [""])[0]
            files = drift_line_without_values(result.changed, os.path.dirname(first))
        self._files = files
        if is_first:
            self._gone = None
            self._broadcast(self._whole_state())
            self._again.set()
            return
        now = self._clock.time()
        if changed or removed:
            levels = self._levels.since(now)
            document = {
                "items": self._page_items(changed),
                "removed": removed,
                "order": list(self._items),
                "levels": {name: levels.get(name, []) for name in changed},
            }
            self._send_event("changed", document)
        self._send_event("stats", {"now": now, "servers": figures})
        if files != known_files:
            self._send_event("files", {"message": files})

    def _apply(self, result: StatsResult) -> tuple[list[str], list[str], Table]:
        """Store the result of the verb `stats`. A new uptime alone does not count as a change of a server.

        Return the names of changed servers, the names of removed servers, and {name: figures} where figures changed.
        """
        before, self._items = self._items, {}
        previous, self._figures, self._series = self._figures, {}, {}
        changed, now = [], self._clock.time()
        for server in result.items:
            item = to_json(server, *_ITEM_FIELDS)
            item["expose"] = masked_text(server.expose)
            ended = bool(server.ended) and not server.on_demand
            item["level"] = level(server.state, server.ready, server.health, ended=ended)
            if server.ended:
                item["reason"] = server.end_text
            self._items[server.name] = item
            self._figures[server.name] = to_json(server.stats, *FIGURES)
            self._series[server.name] = {  # rounded to four digits to save bytes
                figure: None
                if values is None
                else [value if value is None else float(f"{value:.4g}") for value in values]
                for figure, values in to_json(server.stats.history, *SERIES).items()
            }
            if {**before.get(server.name, {}), "uptime_seconds": server.uptime_seconds} != item:
                changed.append(server.name)
                self._levels.add(server.name, item["level"], now)
        removed = [name for name in before if name not in self._items]
        self._levels.forget(removed)
        for name in removed:
            self._reasons.pop(name, None)
        news = {name: figures for name, figures in self._figures.items() if figures != previous.get(name)}
        return changed, removed, news

    async def _load_failure_reasons(self, changed: Iterable[str]) -> None:
        """Query why servers among `changed` are failing or not ready, and store the reasons."""
        failing = []
        for name in changed:
            word = self._items[name]["level"]
            if word != BUSY:  # keep the reason while the server restarts
                self._reasons.pop(name, None)
            if word in (KO, WARN, BUSY) and not self._items[name].get("ended"):
                failing.append(name)
        failing = failing[:_MAX_REASONS]
        if failing:
            for server in (await self.ask(ShowResult, "show", failing, {})).items:
                reason = server.complaint or (server.failure.message if server.failure is not None else "")
                if reason:
                    self._reasons[server.name] = reason

    def _page_items(self, names: Iterable[str]) -> list[Table]:
        """The servers in the form sent to the page; failing servers with the reason."""
        reasons = {name: {"reason": reason} for name, reason in self._reasons.items()}
        return [{**self._items[name], **reasons.get(name, {})} for name in names]

    def _whole_state(self) -> str:
        now = self._clock.time()
        pool = {
            "about": self._about,
            "now": now,
            "interval_seconds": INTERVAL_SECONDS,
            "span_seconds": SPAN_SECONDS,
            "items": self._page_items(self._items),
            "figures": self._figures,
            "levels": self._levels.since(now),
            "events": list(self._events),
            "files": self._files,
        }
        # Most of the state is series, which the page does not need at once.
        return event_message("pool", pool) + event_message("series", self._series)

    # Events.

    async def _follow(self) -> None:
        """Follow the events, also after a restart of the supervisor. Never returns."""
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_RETRY_SECONDS):
                    await self._again.wait()
            self._again.clear()
            if self._gone is None:
                with contextlib.suppress(ControlError):
                    await self._read_events({"follow": True, "after": self._last})
                self._query_wanted.set()

    async def _read_events(self, options: Table) -> None:
        body = {"selector": {}, "options": options}
        async with contextlib.aclosing(self._client.messages("events", body)) as lines:
            async for line in lines:
                if event := line.get("event"):
                    self._apply_event(JournalEvent.from_json(event))

    def _apply_event(self, event: JournalEvent) -> None:
        self._last = event.seq
        self._levels.add_event(event)
        # Severity and title, as in `events` and notifications.
        document = {**event.to_json(), "severity": event.severity, "text": event.sentence}
        self._events.append(document)
        if self._gone is None:
            self._send_event("event", document)
            self._query_wanted.set()

    # Messages to viewers.

    def _send_event(self, name: str, document: Table) -> None:
        self._broadcast(event_message(name, document))

    def _broadcast(self, message: str) -> None:
        for queue in list(self._viewers):
            if queue.qsize() >= _MAX_WAITING - 1:
                # End the stream of a slow viewer. The page reconnects, and gets the whole state first.
                self._viewers.discard(queue)
                queue.put_nowait(None)
            else:
                queue.put_nowait(message)


def event_message(name: str, document: object) -> str:
    return f"event: {name}\ndata: {json.dumps(document, separators=(',', ':'))}\n\n"
