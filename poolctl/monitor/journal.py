"""The journal of a pool's events: one JSON object a line, appended to, rotated, kept over every restart."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from poolctl.logs.log_file import LogFile
from poolctl.logs.read import OpenLog

if TYPE_CHECKING:
    from poolctl.config import EventsTable

NAME = "events.jsonl"
MAX_SIZE_BYTES = 10 * 1024 * 1024
KEEP = 5

_encoded = json.JSONEncoder(default=str, check_circular=False, ensure_ascii=False).encode

Document = dict[str, Any]


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
        clock: Callable[[], float] | None = None,
    ) -> None:
        self.path = path
        self.lost = 0
        own_time = {} if clock is None else {"clock": clock}
        self._file = LogFile(
            path, max_size_bytes=max_size_bytes, keep=keep, max_age_seconds=max_age_seconds, **own_time
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

    def append(self, events: list[Document]) -> None:
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


def newest_first(path: str) -> Iterator[Document]:
    """The events of a journal and its rotated files, newest first; incomplete lines are skipped."""
    log = OpenLog(path)
    try:
        for line in log.backwards():
            event = parsed(line)
            if event is not None:
                yield event
    finally:
        log.close()


def parsed(line: bytes) -> Document | None:
    """The event on this line; None for an incomplete one, such as the last line of a killed supervisor."""
    try:
        event = json.loads(line)
    except ValueError:
        return None
    return event if isinstance(event, dict) and isinstance(event.get("seq"), int) else None
