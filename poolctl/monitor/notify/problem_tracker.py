"""Which events are told to one receiver, and when: gathered, told once, told again while they last, told as over.

Pure: what time it is, is given. Times are seconds since the epoch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any

from poolctl.monitor.describe import INFO, SEVERITIES, sentence, severity
from poolctl.units import format_duration

from .message import NEWS, PROBLEM, RESOLVED, Line, Message, composed

if TYPE_CHECKING:
    from poolctl.config import Notify

Document = dict[str, Any]
Tags = Callable[[str], Sequence[str]]

# A server is well again in these states, and when another worker of it is ready.
_WELL = frozenset({"running", "stopped", "disabled", "sleeping", "draining"})
# Nobody asks after the health of these.
_GONE = frozenset({"stopped", "disabled"})
_WELL_HEALTH = frozenset({"ok", "unknown"})
_MOST_NEWS = 1000


class Problem:
    """Something that lasts; `told` is how bad it was when it was told, "" when it was not yet."""

    __slots__ = ("event", "severity", "since", "told", "told_at")

    def __init__(
        self, event: Document, severity: str, since: float, told: str = "", told_at: float = 0.0
    ) -> None:
        self.event = event
        self.severity = severity
        self.since = since
        self.told = told
        self.told_at = told_at

    def to_dict(self) -> Document:
        """As the constructor takes it, for another supervisor."""
        return {key: getattr(self, key) for key in self.__slots__}


class Problems:
    """What there is to tell one receiver; `tags` are those of a server by its name."""

    def __init__(self, notify: Notify, pool: str, tags: Tags) -> None:
        self.pool = pool
        self._notify = notify
        self._tags = tags
        self._open: dict[str, Problem] = {}
        self._over: dict[str, tuple[Problem, Document, float]] = {}
        self._news: list[Line] = []
        self._gathered_at: float | None = None

    def take(self, event: Document, now: float) -> None:
        """Look at an event; what is to be told of it is told by `due`, later."""
        kind = event["kind"]
        # The kind first: `after` of a recovery or of a reload is no word.
        if kind == "lifecycle" and event.get("after") in _GONE:
            self._forget_health(event, now)
        if not self._concerns(event):
            return
        level = severity(event)
        key = _key(event)
        if key is not None and _rank(level) >= max(1, _rank(self._notify.min_severity)):
            self._begin(key, event, level, now)
        elif key is not None and key in self._open and _is_well(event):
            self._over[key] = (self._open.pop(key), event, now)
            self._gather(now)
        elif (
            (key is None or level == INFO)
            and kind in self._notify.events
            and _rank(level) >= _rank(self._notify.min_severity)
            and len(self._news) < _MOST_NEWS
        ):
            self._news.append(Line(NEWS if level == INFO else PROBLEM, level, _text(event), event))
            self._gather(now)

    def _forget_health(self, event: Document, now: float) -> None:
        for key in [key for key in self._open if key.split(" ")[:2] == ["health", event.get("server")]]:
            self._over[key] = (self._open.pop(key), event, now)
            self._gather(now)

    def _concerns(self, event: Document) -> bool:
        # A server that sleeps has no problem with its state any more.
        kind = "lifecycle" if event["kind"] == "wake" and "wake" not in self._notify.events else event["kind"]
        if kind not in self._notify.events or event.get("receiver") == self._notify.label:
            return False
        server, wanted = str(event.get("server") or ""), self._notify.servers
        if not wanted or not server:
            return True
        tags = self._tags(server)
        return any(
            each[4:] in tags if each.startswith("tag:") else fnmatchcase(server.lower(), each.lower())
            for each in wanted
        )

    def _begin(self, key: str, event: Document, level: str, now: float) -> None:
        over = self._over.pop(key, None)
        if over is not None:
            # It was over for so short a time that nobody heard of it.
            self._open[key] = over[0]
        problem = self._open.get(key)
        if problem is None:
            problem = self._open[key] = Problem(event, level, now)
        elif _rank(level) >= _rank(problem.severity):
            problem.event, problem.severity = event, level
        if _rank(problem.severity) > _rank(problem.told):
            self._gather(now)

    def _gather(self, now: float) -> None:
        if self._gathered_at is None:
            self._gathered_at = now

    def next_at(self) -> float | None:
        """When `due` has something to say at the earliest; None while there is nothing."""
        times = [] if self._gathered_at is None else [self._gathered_at + self._notify.delay]
        if self._notify.repeat:
            told = [each.told_at for each in self._open.values() if each.told]
            times += [min(told) + self._notify.repeat] if told else []
        return min(times, default=None)

    def due(self, now: float, *, at_once: bool = False) -> Message | None:
        """What is to be told now, in one message; None for nothing."""
        at = self.next_at()
        if at is None or (now < at and not at_once):
            return None
        self._gathered_at = None
        lines = [*self._problems(now), *self._resolved(), *self._news]
        self._over.clear()
        self._news.clear()
        return composed(self.pool, lines, now) if lines else None

    def _problems(self, now: float) -> list[Line]:
        lines = []
        for problem in self._open.values():
            again = (
                bool(problem.told)
                and bool(self._notify.repeat)
                and now - problem.told_at >= self._notify.repeat
            )
            if _rank(problem.severity) <= _rank(problem.told) and not again:
                continue
            still = f", for {_lasted(now - problem.since)} now" if again else ""
            problem.told, problem.told_at = problem.severity, now
            lines.append(Line(PROBLEM, problem.severity, f"{_text(problem.event)}{still}", problem.event))
        return lines

    def _resolved(self) -> list[Line]:
        if not self._notify.resolved:
            return []
        return [
            Line(RESOLVED, INFO, f"{_end(event)} after {_lasted(ended - problem.since)}", event)
            for problem, event, ended in self._over.values()
            if problem.told
        ]

    def to_dict(self) -> Document:
        """The problems that have been told, for the supervisor that follows."""
        return {key: each.to_dict() for key, each in self._open.items() if each.told}

    def restore(self, document: Document) -> None:
        """Go on with what the supervisor before has told."""
        self._open = {key: Problem(**each) for key, each in document.items()}


def _rank(level: str) -> int:
    return SEVERITIES.index(level) if level else -1


def _key(event: Document) -> str | None:
    """What it is a problem of, for as long as it lasts; None for what only happens."""
    if event["kind"] in ("lifecycle", "wake"):
        return f"state {event.get('server')}"
    if event["kind"] == "health":
        return f"health {event.get('server')}"
    return None


def _is_well(event: Document) -> bool:
    if event["kind"] == "health":
        return event.get("after") in _WELL_HEALTH
    return event.get("after") in _WELL or event.get("event") == "worker ready"


def _text(event: Document) -> str:
    server = event.get("server")
    return f"{server}: {sentence(event)}" if server else sentence(event)


def _end(event: Document) -> str:
    word = "running" if event.get("event") == "worker ready" else event.get("after")
    return (
        f"{event.get('server')}: {word} again"
        if word in ("running", "ok")
        else f"{event.get('server')}: {word}"
    )


def _lasted(seconds: float) -> str:
    return format_duration(float(round(max(seconds, 0.0))))
