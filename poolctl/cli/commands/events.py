"""`poolctl events`: prints the pool's past events, and with -f follows new ones."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterable
from typing import Annotated

import typer

from poolctl.cli.group import PoolCommand
from poolctl.cli.offline import warning_of_unusable_files
from poolctl.cli.options import (
    Follow,
    LineForm,
    Selection,
    Since,
    examples,
    line_count,
    line_limit,
    one_of,
    with_options,
)
from poolctl.cli.outcome import Failure, Outcome
from poolctl.cli.output import json_without_commands
from poolctl.cli.place import Place
from poolctl.cli.pool_ref import PoolRef, find_pool
from poolctl.cli.render import local_time, print_diagnostics, printable, stdout_fd, styled
from poolctl.cli.supervisor_requests import selected
from poolctl.control import pool_paths
from poolctl.control.answers import ErrorEntry, JournalPositionResult, ProgressLine
from poolctl.control.client import Client
from poolctl.errors import ControlError, PoolError
from poolctl.exit_codes import FAILED, INTERRUPTED
from poolctl.monitor.journal import KINDS, MAX_LINES, NAME, EventFilter, JournalEvent, recent

_RETRY_SECONDS = 0.5
_STYLES = {"error": "red", "warning": "yellow"}
_KIND_WIDTH = max(map(len, KINDS))

app = typer.Typer(add_completion=False)


@app.command(
    cls=PoolCommand, epilog=examples("poolctl events -f", "poolctl events users --since 1h --kind recovery")
)
@with_options
def events(
    place: Place,
    selection: Selection,
    output: LineForm = None,
    follow: Follow = False,
    lines: Annotated[
        int | None,
        typer.Option(
            "-n", "--lines", metavar="N", parser=line_count, help='The last N events (default 100), or "all".'
        ),
    ] = None,
    since: Since = None,
    kind: Annotated[
        list[str] | None,
        typer.Option(
            "--kind", metavar="KIND", help="Only this kind: lifecycle, health, audit, …", **one_of(KINDS)
        ),
    ] = None,
) -> Outcome:
    """Show events: lifecycle, health, recovery, who did what."""
    pool = find_pool(place)
    names = None
    if not selection.selector().selects_all:
        names = [item.name for item in selected(place, selection, pool, command="events").items]
    watched = _EventStream(pool, EventFilter(names, kind or (), since or ""))
    if watched.warning and not place.quiet:
        print_diagnostics(Outcome(warnings=[watched.warning]))  # at once: -f does not end
    try:
        past = _recent(watched.path, watched.wanted, line_limit(lines, since))
        write = _writer(output, place.verbose, [*(names or ()), *(event.server for event in past)])
        watched.show_wanted(past, write)
        if follow:
            watched.follow_forever(write)
    except KeyboardInterrupt:
        return Outcome.of_stream(INTERRUPTED)
    return Outcome.of_stream()


class _EventStream:
    """The events of one pool, across restarts of its supervisor.

    `warning` is set if the journal's path should come from the pool's files, but these are invalid.
    """

    def __init__(self, pool: PoolRef, wanted: EventFilter) -> None:
        self._client = Client(pool.socket)
        self.wanted = wanted
        self.warning = ""
        self.path, self._last = self._journal_position(pool)

    def _journal_position(self, pool: PoolRef) -> tuple[str, int]:
        """The journal's path and last event number, from the supervisor.

        Without an answer the path comes from the files or the default, and the number from the journal.
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
        """Print new events, also from later supervisors, until Ctrl-C. Raises BrokenPipeError once the reader exits."""
        from poolctl.platform import await_readable

        reader = stdout_fd()
        client = Client(self._client.socket_path, output=reader)

        def received(line: ProgressLine) -> None:
            if line.event is not None:
                self.show_wanted([JournalEvent.from_json(line.event)], write)

        while True:
            options = {"follow": True, "after": self._last, "lines": MAX_LINES}
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
    errors = [ErrorEntry.of(problem) for problem in config.problems]
    if problems := [
        error for error in errors if error.key and error.key.partition(".")[0] == EventsTable.table_name
    ]:
        raise Failure(Outcome(errors=problems))
    table = config.tables.get(EventsTable)
    return str(table.path or "") if table else ""


def _writer(output: str | None, verbose: bool, names: Iterable[str]) -> Callable[[JournalEvent], None]:
    if output in ("json", "jsonl"):
        return lambda event: print(json_without_commands(event.to_json()))
    wide = output == "wide" or verbose
    width = max([len(name) for name in names] or [0])

    def write(event: JournalEvent) -> None:
        nonlocal width
        name = printable(event.server or "-")
        width = max(width, len(name))
        text = printable(event.sentence)
        style = _STYLES.get(event.severity)
        by = event.author if wide or event.kind == "audit" else ""
        words = [
            local_time(event.time, "%Y-%m-%d %H:%M:%S"),
            event.kind.ljust(_KIND_WIDTH),
            name.ljust(width),
            styled(text, style, sys.stdout) if style else text,
        ]
        print("  ".join([*words, *([f"[{printable(by)}]"] if by else [])]))

    return write
