"""Composes a receiver's messages: batches problems, repeats them while they last, and reports their resolution.

Pure: the time is an argument, in seconds since the epoch.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, NamedTuple

from poolctl.json_form import Table, from_json
from poolctl.monitor.journal import INFO, SEVERITIES, JournalEvent
from poolctl.runners.stack_report import WorkerStacks
from poolctl.selection.selector import matches_pattern
from poolctl.units import format_duration

if TYPE_CHECKING:
    from .table import Notify

PROBLEM, RESOLVED, NEWS, TEST = "problem", "resolved", "info", "test"
# A server's problem is resolved in these states, or when another of its workers is ready.
_RESOLVED_STATES = frozenset({"running", "stopped", "completed", "disabled", "sleeping", "draining"})
# In these states a server has no health.
_GONE = frozenset({"stopped", "completed", "disabled"})
_RESOLVED_HEALTH = frozenset({"ok", "unknown"})
_MAX_NEWS = 1000
_NAMED = 3
_STACK_LINES = 10
# The end of a problem is reported after this time, because a server in a crash loop runs now and then.
_OVER_SECONDS = 30.0


class NotificationContext(NamedTuple):
    """What notifications need from the pool: `environment` may contain secrets; commands run in `directory`."""

    name: str
    environment: Mapping[str, str]
    directory: str
    tags: Callable[[str], Collection[str]] = lambda server: ()  # returns a server's tags


class Message(NamedTuple):
    """A message to a receiver. `status` is problem, resolved, info or test; `time` is in seconds since the epoch."""

    status: str
    severity: str
    title: str
    lines: tuple[str, ...]
    time: float
    events: tuple[JournalEvent, ...] = ()

    @property
    def text(self) -> str:
        return "\n".join(self.lines)


class MessageLine(NamedTuple):
    status: str
    severity: str
    text: str
    event: JournalEvent


def compose(pool: str, lines: Sequence[MessageLine], now: float) -> Message:
    """Combine one or more lines into a message."""
    counts = {status: sum(line.status == status for line in lines) for status in (PROBLEM, RESOLVED, NEWS)}
    status = next(status for status, count in counts.items() if count)
    worst = max((SEVERITIES.index(line.severity) for line in lines if line.status == status), default=0)
    if len(lines) == 1:
        event = lines[0].event  # the line itself says why
        title = f"{event.server}: {event.event}" if event.server else event.event
        if status == RESOLVED:
            title = _end_text(event)
    else:
        nouns = {
            PROBLEM: "problems" if counts[PROBLEM] > 1 else "problem",
            RESOLVED: "resolved",
            NEWS: "news",
        }
        title = ", ".join(f"{count} {nouns[status]}" for status, count in counts.items() if count)
        if names := list(dict.fromkeys(line.event.server for line in lines if line.event.server)):
            title += f" ({', '.join(names[:_NAMED])}{' …' if len(names) > _NAMED else ''})"
    return Message(
        status,
        SEVERITIES[worst] if status != RESOLVED else INFO,
        f"{pool}: {title}",
        tuple(line.text for line in lines),
        now,
        tuple(line.event for line in lines),
    )


@dataclass(slots=True)
class TrackedProblem:
    """An open problem. `sent` is its severity in the last message about it, "" if there was none."""

    event: JournalEvent
    severity: str
    since: float
    sent: str = ""
    sent_at: float = 0.0

    def to_dict(self) -> Table:
        """The problem as JSON for the next supervisor, possibly of another version."""
        return {
            "event": self.event.to_json(),
            "severity": self.severity,
            "since": self.since,
            "told": self.sent,
            "told_at": self.sent_at,
        }

    @classmethod
    def from_dict(cls, document: Table) -> TrackedProblem:
        """The problem that the previous supervisor saved by `to_dict`."""
        rest = (document[key] for key in ("severity", "since", "told", "told_at"))
        return cls(JournalEvent.from_json(document["event"]), *rest)


class ProblemTracker:
    """Tracks the open problems that one receiver selects, and composes the messages about them when they are due."""

    def __init__(self, notify: Notify, facts: Callable[[], NotificationContext]) -> None:
        self._notify = notify
        self._facts = facts
        self._open: dict[str, TrackedProblem] = {}
        self._over: dict[str, tuple[TrackedProblem, JournalEvent, float]] = {}  # can recur
        self._news: list[MessageLine] = []
        self._delayed_since: float | None = None

    def record(self, event: JournalEvent, now: float) -> None:
        """Record an event of the pool for a later message. Events that the receiver does not select are ignored."""
        if event.kind == "lifecycle" and event.state in _GONE:
            self._resolve(f"health {event.server}", event, now)
        if not self._concerns(event):
            return
        if not self._notify.output:
            event = _without(event, "last_line")
        level = event.severity
        key = _problem_key(event)
        if key is not None and _rank(level) >= max(1, _rank(self._notify.min_severity)):
            self._open_or_escalate(key, event, level, now)
        elif key is not None and key in self._open and _is_resolution(event):
            self._resolve(key, event, now)
        elif (
            (key is None or level == INFO)
            and event.kind in self._notify.events
            and _rank(level) >= _rank(self._notify.min_severity)
            and len(self._news) < _MAX_NEWS
        ):
            status = NEWS if level == INFO else PROBLEM
            self._news.append(MessageLine(status, level, _text_with_stacks(event), _without(event, "stacks")))
            self._start_delay(now)

    def _resolve(self, key: str, event: JournalEvent, now: float) -> None:
        if (problem := self._open.pop(key, None)) is not None:
            self._over[key] = (problem, event, now)

    def _concerns(self, event: JournalEvent) -> bool:
        # Sleep resolves a problem of the server's state.
        kind = "lifecycle" if event.kind == "wake" and "wake" not in self._notify.events else event.kind
        if kind not in self._notify.events or event.detail.get("receiver") == self._notify.label:
            return False
        server, wanted = event.server, self._notify.servers
        if not wanted or not server:
            return True
        tags = self._facts().tags(server)
        return any(
            pattern[4:] in tags if pattern.startswith("tag:") else matches_pattern(server, pattern)
            for pattern in wanted
        )

    def _open_or_escalate(self, key: str, event: JournalEvent, level: str, now: float) -> None:
        if key in self._over:
            self._open[key], _, _ = self._over.pop(key)
        problem = self._open.setdefault(key, TrackedProblem(event, level, now))
        if _rank(level) >= _rank(problem.severity):
            problem.event, problem.severity = event, level
        if _rank(problem.severity) > _rank(problem.sent):
            self._start_delay(now)

    def _start_delay(self, now: float) -> None:
        if self._delayed_since is None:
            self._delayed_since = now

    def next_at(self) -> float | None:
        """The earliest time at which a message is due; None if no message is pending."""
        times = [] if self._delayed_since is None else [self._delayed_since + self._notify.delay]
        times += [ended + self._over_seconds for _, _, ended in self._over.values()]
        if self._notify.repeat:
            sent = [problem.sent_at for problem in self._open.values() if problem.sent]
            times += [min(sent) + self._notify.repeat] if sent else []
        return min(times, default=None)

    def take_due_message(self, now: float, *, at_once: bool = False) -> Message | None:
        """Return the message that is due, or with `at_once` any pending one, else None. Marks its problems as sent."""
        at = self.next_at()
        if at is None or (now < at and not at_once):
            return None
        lines = [
            *self._collect_due_problem_lines(now),
            *self._collect_resolution_lines(now, at_once=at_once),
            *self._news,
        ]
        self._delayed_since = None
        self._news.clear()
        return compose(self._facts().name, lines, now) if lines else None

    def _collect_due_problem_lines(self, now: float) -> list[MessageLine]:
        lines = []
        for problem in self._open.values():
            repeat = self._notify.repeat
            again = bool(problem.sent and repeat) and now - problem.sent_at >= repeat
            if _rank(problem.severity) <= _rank(problem.sent) and not again:
                continue
            still = f", for {_duration_text(now - problem.since)} now" if again else ""
            problem.sent, problem.sent_at = problem.severity, now
            text = f"{_text(problem.event)}{still}"
            lines.append(MessageLine(PROBLEM, problem.severity, text, problem.event))
        return lines

    @property
    def _over_seconds(self) -> float:
        return max(self._notify.delay, min(_OVER_SECONDS, _OVER_SECONDS * self._notify.delay))

    def _collect_resolution_lines(self, now: float, *, at_once: bool) -> list[MessageLine]:
        lines = []
        for key, (problem, event, ended) in list(self._over.items()):
            if at_once or now >= ended + self._over_seconds:
                del self._over[key]
                if problem.sent and self._notify.resolved:
                    text = f"{_end_text(event)} after {_duration_text(ended - problem.since)}"
                    lines.append(MessageLine(RESOLVED, INFO, text, event))
        return lines

    def to_dict(self) -> Table:
        """The reported problems without a reported end, by key, as JSON for the next supervisor."""
        open_or_over = {key: problem for key, (problem, _, _) in self._over.items()} | self._open
        return {key: problem.to_dict() for key, problem in open_or_over.items() if problem.sent}

    def restore(self, document: Table, now: float) -> None:
        self._open = {key: TrackedProblem.from_dict(entry) for key, entry in document.items()}
        for problem in self._open.values():  # the machine's time may have been set back
            problem.since, problem.sent_at = min(problem.since, now), min(problem.sent_at, now)


def _rank(level: str) -> int:
    return SEVERITIES.index(level) if level else -1


def _problem_key(event: JournalEvent) -> str | None:
    """The key of the lasting problem that the event starts or ends; None for other events."""
    if event.kind in ("lifecycle", "wake"):
        return f"state {event.server}"
    return f"health {event.server}" if event.kind == "health" else None


def _is_resolution(event: JournalEvent) -> bool:
    if event.kind == "health":
        return event.state in _RESOLVED_HEALTH
    return event.state in _RESOLVED_STATES or event.event == "worker ready"


def _text(event: JournalEvent) -> str:
    """The event's text, with the last output of a failed run."""
    text = f"{event.server}: {event.sentence}" if event.server else event.sentence
    if last_line := event.detail.get("last_line"):
        return f'{text}; last line: "{last_line}"'
    output = event.detail.get("output")
    if not isinstance(output, list) or (len(output) == 1 and text.endswith(str(output[0]))):
        return text
    return "\n".join([text, *(f"  {line}" for line in output)])


def _text_with_stacks(event: JournalEvent) -> str:
    """The event's text and the innermost calls of the first hung worker, if any; the journal has all hung workers."""
    stacks = event.detail.get("stacks")
    if not isinstance(stacks, list) or not stacks:
        return _text(event)
    lines = from_json(WorkerStacks, stacks[0]).lines()
    return "\n".join([_text(event), *(f"  {line}" for line in islice(lines, _STACK_LINES))])


def _without(event: JournalEvent, field: str) -> JournalEvent:
    return event._replace(detail={name: value for name, value in event.detail.items() if name != field})


def _end_text(event: JournalEvent) -> str:
    word = "running" if event.event == "worker ready" else event.state
    return f"{event.server}: {word}{' again' if word in ('running', 'ok') else ''}"


def _duration_text(seconds: float) -> str:
    return format_duration(float(round(max(seconds, 0.0))))
