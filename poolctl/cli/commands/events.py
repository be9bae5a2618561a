"""`poolctl events`: prints the pool's past events, and with -f follows new ones."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterable

from poolctl.cli.command_line import (
    LINES_OUTPUT,
    SELECTION,
    SINCE,
    Command,
    CommandRequest,
    Option,
    check_line_format,
    flag,
    validate_choice,
)
from poolctl.cli.offline import warning_of_unusable_files
from poolctl.cli.outcome import Failure, Outcome
from poolctl.cli.pool_ref import PoolRef, find_pool
from poolctl.cli.render import coloured, local_time, paint, print_diagnostics, printable, stdout_fd
from poolctl.cli.supervisor_requests import selected
from poolctl.control import pool_paths
from poolctl.control.answers import ErrorEntry, JournalPositionResult, ProgressLine
from poolctl.control.client import Client
from poolctl.errors import ControlError, PoolError
from poolctl.exit_codes import FAILED, INTERRUPTED
from poolctl.monitor.journal import KINDS, MOST_LINES, NAME, EventFilter, JournalEvent, recent

_RETRY_SECONDS = 0.5
_COLOURS = {"error": "31", "warning": "33"}
_KIND_WIDTH = max(map(len, KINDS))

COMMAND = Command(
    "Show events: lifecycle, health, recovery, who did what.",
    SELECTION,
    LINES_OUTPUT,
    flag("-f, --follow", "Keep following new events."),
    Option("-n, --lines", "N", 'The last N events (default 100), or "all".'),
    SINCE,
    Option("--kind", "KIND", "Only this kind: lifecycle, health, audit, recovery, …", kind="list"),
    section="Look",
    examples=("poolctl events -f", "poolctl events users --since 1h --kind recovery"),
)


def perform(request: CommandRequest) -> Outcome:
    """Print the last events, and with -f new ones until interrupted. `-o json` prints JSON lines."""
    check_line_format(request)
    for kind in request.get("kind") or ():
        validate_choice("--kind", kind, KINDS)
    lines, since = request.line_limit(), request.log_timestamp("since")
    pool = find_pool(request)
    names = None
    if not request.selector().selects_all:
        names = [item.name for item in selected(request, pool).items]
    watched = _EventStream(pool, EventFilter(names, request.get("kind") or (), since))
    if watched.warning and not request.quiet:
        print_diagnostics(Outcome(warnings=[watched.warning]))  # at once: -f does not end
    try:
        past = _recent(watched.path, watched.wanted, lines)
        write = _writer(request, [*(names or ()), *(each.server for each in past)])
        watched.show_wanted(past, write)
        if request.get("follow"):
            watched.follow_forever(write)
    except KeyboardInterrupt:
        return Outcome.of_stream(INTERRUPTED)
    return Outcome.of_stream()


class _EventStream:
    """The events of one pool, across restarts of its supervisor.

    The `warning` is not "" if the pool's files, which name the journal, are needed and cannot be used.
    """

    def __init__(self, pool: PoolRef, wanted: EventFilter) -> None:
        self._client = Client(pool.socket)
        self.wanted = wanted
        self.warning = ""
        self.path, self._last = self._journal_path_and_last_seq(pool)

    def _journal_path_and_last_seq(self, pool: PoolRef) -> tuple[str, int]:
        """The journal's path and its last event's number, from the supervisor's answer.

        Without an answer the path is the configured or the default one, and the number is read from that file.
        """
        try:
            answer = self._client.ask(JournalPositionResult, "events", {"options": {"lines": 0}}, timeout=5)
            if answer.path:
                return answer.path, answer.seq
        except ControlError:
            pass
        path = f"{pool_paths.state_dir(os.environ, pool.key)}/{NAME}"
        if pool.files:  # a journal in the default place may be older than the configuration
            try:
                path = _configured_path(pool) or path
            except (Failure, PoolError) as failure:
                consequence = f"the path of [events] is not known, and events are read from {path}"
                self.warning = warning_of_unusable_files(failure, consequence)
        return path, next((event.seq for event in _recent(path, EventFilter(), 1)), 0)

    def show_wanted(self, events: Iterable[JournalEvent], write: Callable[[JournalEvent], None]) -> None:
        for event in events:
            self._last = max(self._last, event.seq)
            if self.wanted.matches(event):
                write(event)
        sys.stdout.flush()

    def follow_forever(self, write: Callable[[JournalEvent], None]) -> None:
        """Print new events, even from later supervisors, until Ctrl-C. BrokenPipeError if the reader is gone."""
        from poolctl.platform import await_readable

        reader = stdout_fd()
        client = Client(self._client.socket_path, output=reader)

        def received(line: ProgressLine) -> None:
            if line.event is not None:
                self.show_wanted([JournalEvent.from_json(line.event)], write)

        while True:
            options = {"follow": True, "after": self._last, "lines": MOST_LINES}
            try:
                client.ask(JournalPositionResult, "events", {"options": options}, received)
            except ControlError:
                newest = next((event.seq for event in _recent(self.path, EventFilter(), 1)), 0)
                if newest < self._last:
                    self._last = 0  # the journal was removed, and a new one started
                self.show_wanted(_recent(self.path, self.wanted._replace(after=self._last), None), write)
            await_readable(-1, _RETRY_SECONDS, reader)


def _recent(path: str, wanted: EventFilter, lines: int | None) -> list[JournalEvent]:
    """The last events in the journal at `path`. Raises Failure if it cannot be read."""
    try:
        return recent(path, wanted, lines)
    except OSError as error:
        raise Failure(Outcome.failed(FAILED, f"{path} cannot be read: {error.strerror}")) from None


def _configured_path(pool: PoolRef) -> str:
    """The journal's path from [events]; "" for the default. Raises PoolError or Failure if it cannot be known."""
    from poolctl.config import EventsTable, load

    config = load(pool.files, os.environ)
    errors = [ErrorEntry.of(each) for each in config.problems]
    if wrong := [
        each for each in errors if each.key and each.key.partition(".")[0] == EventsTable.table_name
    ]:
        raise Failure(Outcome(errors=wrong))
    table = config.tables.get(EventsTable)
    return str(table.path or "") if table else ""


def _writer(request: CommandRequest, names: Iterable[str]) -> Callable[[JournalEvent], None]:
    if request.output in ("json", "jsonl"):
        return lambda event: print(json.dumps(event.to_json()))
    colours, wide = coloured(sys.stdout), request.output == "wide" or request.verbose
    width = max([len(name) for name in names] or [0])

    def write(event: JournalEvent) -> None:
        nonlocal width
        name = printable(event.server or "-")
        width = max(width, len(name))
        text = printable(event.sentence)
        colour = _COLOURS.get(event.severity)
        by = event.author if wide or event.kind == "audit" else ""
        words = [
            local_time(event.time, "%Y-%m-%d %H:%M:%S"),
            event.kind.ljust(_KIND_WIDTH),
            name.ljust(width),
            paint(text, colour) if colours and colour else text,
        ]
        print("  ".join([*words, *([f"[{printable(by)}]"] if by else [])]))

    return write
