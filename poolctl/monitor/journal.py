"""The journal of a pool's events: one JSON object a line, appended to, rotated, searched, and described."""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterator
from typing import TYPE_CHECKING, NamedTuple

from poolctl.clock import Clock
from poolctl.logs.log_file import LogFile
from poolctl.logs.read import OpenLog
from poolctl.values import Table

if TYPE_CHECKING:
    from poolctl.config import EventsTable


NAME = "events.jsonl"
MAX_SIZE_BYTES = 10 * 1024 * 1024
KEEP = 5

_encoded = json.JSONEncoder(default=str, check_circular=False, ensure_ascii=False).encode

KINDS = ("lifecycle", "health", "config", "audit", "recovery", "scale", "wake", "notify", "pool")
# The most that one answer of the control socket holds; the journal has the rest.
MOST_LINES = 10_000
_STAMP = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z")


INFO, WARNING, ERROR = SEVERITIES = ("info", "warning", "error")

_STATES = {"failed": ERROR, "backoff": WARNING}
_HEALTH = {"ko": ERROR, "warn": WARNING}
_POOL = {"keeper lost": ERROR, "keeper silent": ERROR, "events lost": ERROR}
_ORDERED = ("draining", "stopping")


class Journal:
    """Appends events to the file at `path`; old ones are `path.1` (the newest) to `path.keep`. Never raises OSError.

    `lost` counts the events that could not be written since the last one that could, `error` says why.
    """

    def __init__(
        self,
        path: str,
        *,
        max_size_bytes: int = MAX_SIZE_BYTES,
        keep: int = KEEP,
        max_age_seconds: float = 0,
        clock: Clock | None = None,
    ) -> None:
        self.path = path
        self.lost = 0
        self._file = LogFile(
            path, max_size_bytes=max_size_bytes, keep=keep, max_age_seconds=max_age_seconds, clock=clock
        )

    @classmethod
    def configured(cls, table: EventsTable | None, path: str) -> Journal:
        """The journal that [events] configures; `path` is the default for its file."""
        if table is None:
            return cls(path)
        return cls(
            table.path or path,
            max_size_bytes=table.max_size,
            keep=table.keep,
            max_age_seconds=table.max_age or 0,
        )

    def __repr__(self) -> str:
        return f"<Journal {self.path}, {self.error or 'ok'}>"

    @property
    def error(self) -> str:
        """Why the last events were not written; "" when they were."""
        return self._file.error

    def limit(self, *, max_size_bytes: int, keep: int, max_age_seconds: float) -> None:
        """Set when the file is rotated and how many old ones are kept."""
        self._file.limit(max_size_bytes=max_size_bytes, keep=keep, max_age_seconds=max_age_seconds)

    def append(self, events: list[Table]) -> None:
        """Write these events, in one write; those that do not fit on the disk are lost, and counted."""
        # Half of a surrogate pair becomes an escape, which JSON has as well.
        lines = [_encoded(event).encode(errors="backslashreplace") + b"\n" for event in events]
        done = self._file.append(b"".join(lines))
        if done:
            self.lost = 0
        for line in lines:
            done -= len(line)
            self.lost += done < 0

    def close(self) -> None:
        """Close the file; the next event opens it again."""
        self._file.close()


def newest_first(path: str) -> Iterator[Table]:
    """The events of a journal and its rotated files, newest first; incomplete lines are skipped."""
    log = OpenLog(path)
    try:
        for line in log.backwards():
            event = parsed(line)
            if event is not None:
                yield event
    finally:
        log.close()


def parsed(line: bytes) -> Table | None:
    """The event on this line; None for an incomplete one, such as the last line of a killed supervisor."""
    try:
        event = json.loads(line)
    except ValueError:
        return None
    return event if isinstance(event, dict) and isinstance(event.get("seq"), int) else None


class EventFilter(NamedTuple):
    """Which events: of these servers, of these kinds, not older than `since` (as in the journal), numbered `after`.

    Left out, each lets everything pass. `until` is the number of the last one.
    """

    servers: Collection[str] | None = None
    kinds: Collection[str] = ()
    since: str = ""
    after: int = 0
    until: int = 0

    def matches(self, event: Table) -> bool:
        """Whether the event passes."""
        return (
            (self.servers is None or self._concerns(event))
            and (not self.kinds or event.get("kind") in self.kinds)
            and (not self.since or str(event.get("time", "")) >= self.since)
            and event["seq"] > self.after
            and (not self.until or event["seq"] <= self.until)
        )

    def _concerns(self, event: Table) -> bool:
        assert self.servers is not None
        # The event of a command names all servers that the command was for.
        return event.get("server") in self.servers or any(
            name in self.servers for name in event.get("servers") or ()
        )


def recent(path: str, wanted: EventFilter, lines: int | None) -> list[Table]:
    """The last `lines` events (None: all) of the journal that pass the filter, in the order in which they happened."""
    found: list[Table] = []
    if lines == 0:
        return found
    for event in newest_first(path):
        # Numbers grow; the time of a machine may be set back.
        if event["seq"] <= wanted.after:
            break
        if wanted.matches(event):
            found.append(event)
            if len(found) == lines:
                break
    found.reverse()
    return found


def parse_filter(
    *, servers: Collection[str] | None, kinds: object, since: object, after: object
) -> EventFilter | None:
    """The filter of a request; None when its values are not valid."""
    kinds, since, after = kinds or [], since or "", after or 0
    if not isinstance(kinds, list) or not all(kind in KINDS for kind in kinds):
        return None
    if not isinstance(since, str) or (since and not _STAMP.fullmatch(since)):
        return None
    if not isinstance(after, int) or isinstance(after, bool):
        return None
    return EventFilter(servers, kinds, since, after)


def sentence(event: Table) -> str:
    """What happened, and why: `starting → running (restart a)`."""
    what, cause = _what(event), str(event.get("cause") or "")
    return what if what.endswith(cause) else f"{what} ({cause})"


def who(event: Table) -> str:
    """The user and process that caused it, `root, poolctl 4242`; "" for none."""
    by = event.get("by")
    if not isinstance(by, dict):
        return ""
    return f"{by.get('user', by.get('uid', '?'))}, {by.get('command') or 'pid'} {by.get('pid', '?')}"


def _what(event: Table) -> str:
    kind, word, message = event.get("kind"), str(event.get("event", "")), str(event.get("message") or "")
    if word.startswith("worker ") and kind == "lifecycle":
        pid = f" (pid {event['pid']})" if event.get("pid") else ""
        return f"{word}{pid}: {message}" if message else f"{word}{pid}"
    if kind == "scale":
        return message or f"{word}: {event.get('before')} → {event.get('after')}"
    if kind == "audit":
        end = word.partition(" ")[2]
        took = f" after {event['duration_seconds']:g} s" if end and "duration_seconds" in event else ""
        return f"{message}: {end}{took}" if end else message
    if kind == "config":
        keys = ", ".join(map(str, event.get("keys") or ()))
        return f"{word}: {message or keys}" if message or keys else word
    if kind in ("lifecycle", "wake") and message:
        return message
    return f"{word}: {message}" if message and message != word else word


def severity(event: Table) -> str:
    """The event's own `severity`, if it has one, else what its kind says."""
    own = event.get("severity")
    if own in SEVERITIES:
        return str(own)
    kind, after = event.get("kind"), event.get("after")
    if kind == "health":
        return _HEALTH.get(str(after), INFO)
    if kind == "lifecycle":
        return _of_lifecycle(event)
    if kind == "recovery":
        return ERROR if event.get("event") in ("failed", "given up") else WARNING
    if kind == "pool":
        return _POOL.get(str(event.get("event")), WARNING if event.get("adopted") else INFO)
    return INFO


def _of_lifecycle(event: Table) -> str:
    if event.get("event") != "worker ended":
        return _STATES.get(str(event.get("after")), INFO)
    unordered = event.get("before") not in _ORDERED
    return WARNING if unordered and event.get("status") != 0 else INFO
