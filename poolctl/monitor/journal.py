"""The journal of a pool's events: one JSON object per line; rotated and searchable."""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Collection, Iterator, Mapping
from typing import TYPE_CHECKING, NamedTuple

from poolctl.clock import Clock
from poolctl.json_form import Table
from poolctl.logs.log_file import LogFile
from poolctl.logs.log_tail import OpenLog

if TYPE_CHECKING:
    from poolctl.config import EventsTable


SCHEMA = 1
NAME = "events.jsonl"
MAX_SIZE_BYTES = 10 * 1024 * 1024
KEEP = 5

_encode = json.JSONEncoder(default=str, check_circular=False, ensure_ascii=False).encode

KINDS = ("lifecycle", "health", "config", "audit", "recovery", "scale", "wake", "notify", "pool")
# Maximum events in one answer of the control socket; older ones can be read from the journal.
MAX_LINES = 10_000
_STAMP = r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z"


INFO, WARNING, ERROR = SEVERITIES = ("info", "warning", "error")

_STATE_SEVERITIES = {"failed": ERROR, "backoff": WARNING}
_HEALTH_SEVERITIES = {"ko": ERROR, "warn": WARNING}
_POOL_SEVERITIES = {"keeper lost": ERROR, "keeper silent": ERROR, "events lost": ERROR}
_LEAVING_PHASES = ("draining", "stopping")
_FIELDS = (
    "time", "schema", "seq", "kind", "event", "server", "message", "cause", "by", "before", "after",
)  # fmt: skip
_TEXT_FIELDS = ("time", "kind", "event", "server", "message", "cause")


class JournalEvent(NamedTuple):
    """One event of the pool. `detail` has the fields of its kind: bind, worker, pid, keys, …

    `by` identifies the requester: uid, pid, user, command.
    """

    time: str
    seq: int
    kind: str
    event: str
    server: str = ""
    message: str = ""
    cause: str = ""
    by: Mapping[str, object] | None = None
    before: object = None
    after: object = None
    detail: Mapping[str, object] = {}

    @classmethod
    def from_json(cls, table: Table) -> JournalEvent:
        """Parse an event from the journal, from an answer of the supervisor, or from a previous supervisor's state."""
        detail = {name: value for name, value in table.items() if name not in _FIELDS}
        time, kind, word, server, message, cause = (str(table.get(name) or "") for name in _TEXT_FIELDS)
        by, seq = table.get("by"), int(table.get("seq") or 0)
        if not isinstance(by, dict):
            by = None
        return cls(
            time, seq, kind, word, server, message, cause, by, table.get("before"), table.get("after"), detail
        )

    def to_json(self) -> Table:
        """The event as the JSON object on a line of the journal."""
        time, *others, detail = self
        return {"time": time, "schema": SCHEMA, **dict(zip(_FIELDS[2:], others, strict=True)), **detail}

    @property
    def state(self) -> str:
        """The event's new value, such as the state `running` or the health `ko`; "" if the new value is not text."""
        return self.after if isinstance(self.after, str) else ""

    @property
    def sentence(self) -> str:
        """The change with its cause and consequence, such as `starting → running (restart a)`."""
        what = self._change_text()
        if self.message and self.cause.startswith(self.message):
            what = what.removesuffix(self.message) + self.cause
        elif not what.endswith(self.cause):
            what = f"{what} ({self.cause})"
        return f"{what}; {self.next_step}" if self.next_step else what

    @property
    def next_step(self) -> str:
        """What happens after an unexpected exit of a worker; "" for other events."""
        return str(self.detail.get("next") or "")

    @property
    def author(self) -> str:
        """The user and process that requested the change, such as `root, poolctl 4242`; "" if unknown."""
        if not self.by:
            return ""
        user, command = self.by.get("user", self.by.get("uid", "?")), self.by.get("command") or "pid"
        return f"{user}, {command} {self.by.get('pid', self.by.get('address', '?'))}"

    def _change_text(self) -> str:
        kind, event, message, detail = self.kind, self.event, self.message, self.detail
        if event.startswith("worker ") and kind == "lifecycle":
            pid = f" (pid {detail['pid']})" if detail.get("pid") else ""
            return f"{event}{pid}: {message}" if message else f"{event}{pid}"
        if kind == "scale":
            return message or f"{event}: {self.before} → {self.after}"
        if kind == "audit":
            end = event.partition(" ")[2]
            took = f" after {detail['duration_seconds']:g} s" if end and "duration_seconds" in detail else ""
            return f"{message}: {end}{took}" if end else message
        if kind == "config":
            keys = detail.get("keys")
            text = message or ", ".join(map(str, keys if isinstance(keys, list) else ()))
            return f"{event}: {text}" if text else event
        if kind in ("lifecycle", "wake") and message:
            return message
        return f"{event}: {message}" if message and message != event else event

    @property
    def severity(self) -> str:
        """info, warning or error: as recorded with the event, or else the default for its kind and state."""
        stated = self.detail.get("severity")
        if stated in SEVERITIES:
            return str(stated)
        if self.kind == "health":
            return _HEALTH_SEVERITIES.get(self.state, INFO)
        if self.kind == "lifecycle" and self.event == "worker ended":
            is_unexpected = self.before not in _LEAVING_PHASES
            return WARNING if is_unexpected and self.detail.get("status") != 0 else INFO
        if self.kind == "lifecycle":
            return _STATE_SEVERITIES.get(self.state, INFO)
        if self.kind == "recovery":
            return ERROR if self.event in ("failed", "given up") else WARNING
        if self.kind == "pool":
            return _POOL_SEVERITIES.get(self.event, WARNING if self.detail.get("adopted") else INFO)
        return INFO


class Journal:
    """Appends events to the file at `path`; rotated files are `path.1` (the newest) to `path.keep`.

    A missing directory is created, private if it is `pool_directory` (see LogFile). Never raises OSError: `lost` counts
    the events that could not be written since the last successful write, and `error` says why.
    """

    def __init__(
        self,
        path: str,
        *,
        max_size_bytes: int = MAX_SIZE_BYTES,
        keep: int = KEEP,
        max_age_seconds: float = 0,
        pool_directory: str | None = None,
        clock: Clock | None = None,
    ) -> None:
        self.path = path
        self.lost = 0
        self._file = LogFile(
            path, max_size_bytes=max_size_bytes, keep=keep, max_age_seconds=max_age_seconds,
            pool_directory=pool_directory, clock=clock,
        )  # fmt: skip

    @classmethod
    def configured(cls, table: EventsTable | None, path: str, pool_directory: str | None = None) -> Journal:
        """The journal configured by [events]; `path` is used if the table names no file."""
        if table is None:
            return cls(path, pool_directory=pool_directory)
        return cls(
            table.path or path,
            max_size_bytes=table.max_size,
            keep=table.keep,
            max_age_seconds=table.max_age or 0,
            pool_directory=pool_directory,
        )

    def __repr__(self) -> str:
        return f"<Journal {self.path}, {self.error or 'ok'}>"

    @property
    def error(self) -> str:
        """Why the last events were not written; "" when they were."""
        return self._file.error

    def append(self, events: list[JournalEvent]) -> None:
        """Append the events in one write. Events that do not fit on the disk are lost, and counted."""
        # Unpaired surrogates become JSON escapes.
        lines = [_encode(event.to_json()).encode(errors="backslashreplace") + b"\n" for event in events]
        done = self._file.append_and_count_written(b"".join(lines))
        if done:
            self.lost = 0
        for line in lines:
            done -= len(line)
            self.lost += done < 0

    def close(self) -> None:
        """Close the file; the next event opens it again."""
        self._file.close()


def newest_first(path: str) -> Iterator[JournalEvent]:
    """The events of a journal and its rotated files, newest first; damaged lines are skipped."""
    with contextlib.closing(OpenLog(path)) as log:
        for line in log.backwards():
            if (event := parse_event(line)) is not None:
                yield event


def newest_number_and_damage(path: str) -> tuple[int, int]:
    """The number of the newest event (0 if there is none), and the number of damaged lines after it."""
    damaged = 0
    with contextlib.closing(OpenLog(path)) as log:
        for line in log.backwards():
            if (event := parse_event(line)) is not None:
                return event.seq, damaged
            damaged += bool(line.strip(b"\0"))
    return 0, damaged


def parse_event(line: bytes) -> JournalEvent | None:
    """The event on this line; None for a damaged line, as a killed supervisor may leave it."""
    try:
        table = json.loads(line)
    except (ValueError, RecursionError):
        return None
    is_event = isinstance(table, dict) and isinstance(table.get("seq"), int)
    return JournalEvent.from_json(table) if is_event else None


class EventFilter(NamedTuple):
    """Selects events by server, kind, time (`since` this timestamp) and number (above `after`, up to `until`).

    A field that is not set matches every event.
    """

    servers: Collection[str] | None = None
    kinds: Collection[str] = ()
    since: str = ""
    after: int = 0
    until: int = 0

    def matches(self, event: JournalEvent) -> bool:
        return (
            (self.servers is None or self._concerns(event, self.servers))
            and (not self.kinds or event.kind in self.kinds)
            and (not self.since or event.time >= self.since)
            and event.seq > self.after
            and (not self.until or event.seq <= self.until)
        )

    def _concerns(self, event: JournalEvent, servers: Collection[str]) -> bool:
        # The event of a command lists all servers that the command selected.
        many = event.detail.get("servers")
        return event.server in servers or (isinstance(many, list) and any(name in servers for name in many))


def recent(path: str, wanted: EventFilter, lines: int | None) -> list[JournalEvent]:
    """The last `lines` events (None: all) of the journal that pass the filter, oldest first."""
    events: list[JournalEvent] = []
    if lines == 0:
        return events
    for event in newest_first(path):
        # Numbers only increase, while the machine's clock may be set back.
        if event.seq <= wanted.after:
            break
        if wanted.matches(event):
            events.append(event)
            if len(events) == lines:
                break
    events.reverse()
    return events


def parse_filter_or_none(
    *, servers: Collection[str] | None, kinds: object, since: object, after: object
) -> EventFilter | None:
    """The filter described by a request; None if its values are invalid."""
    kinds, since, after = kinds or [], since or "", after or 0
    if not isinstance(kinds, list) or not all(kind in KINDS for kind in kinds):
        return None
    if not isinstance(since, str) or (since and not re.fullmatch(_STAMP, since)):
        return None
    if not isinstance(after, int) or isinstance(after, bool):
        return None
    return EventFilter(servers, kinds, since, after)
