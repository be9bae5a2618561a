"""The events of a journal that match a filter, with or without a supervisor. Blocks on the disk."""

from __future__ import annotations

import re
from collections.abc import Collection
from typing import NamedTuple

from .journal import Document, newest_first

KINDS = ("lifecycle", "health", "config", "audit", "recovery", "scale", "wake", "notify", "pool")
# The most that one answer of the control socket holds; the journal has the rest.
MOST_LINES = 10_000
_STAMP = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z")


class EventFilter(NamedTuple):
    """Which events: of these servers, of these kinds, not older than `since` (as in the journal), numbered `after`.

    Left out, each lets everything pass. `until` is the number of the last one.
    """

    servers: Collection[str] | None = None
    kinds: Collection[str] = ()
    since: str = ""
    after: int = 0
    until: int = 0

    def matches(self, event: Document) -> bool:
        """Whether the event passes."""
        return (
            (self.servers is None or self._concerns(event))
            and (not self.kinds or event.get("kind") in self.kinds)
            and (not self.since or str(event.get("time", "")) >= self.since)
            and event["seq"] > self.after
            and (not self.until or event["seq"] <= self.until)
        )

    def _concerns(self, event: Document) -> bool:
        assert self.servers is not None
        # The event of a command names all servers that the command was for.
        return event.get("server") in self.servers or any(
            name in self.servers for name in event.get("servers") or ()
        )


def recent(path: str, wanted: EventFilter, lines: int | None) -> list[Document]:
    """The last `lines` events (None: all) of the journal that pass the filter, in the order in which they happened."""
    found: list[Document] = []
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
