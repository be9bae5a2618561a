"""Notifications of a pool's problems, and the test notifications of the verb `notify`."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence

from poolctl.control.answers import failure
from poolctl.control.observer_answers import NotifyResult, ReceiverResult
from poolctl.core.core import Core
from poolctl.core.server_entry import Entry
from poolctl.errors import PoolMonitorError
from poolctl.exit_codes import FAILED, NOTHING_MATCHED
from poolctl.frozen_value import Table
from poolctl.monitor.event_queue import Events
from poolctl.monitor.journal import JournalEvent
from poolctl.monitor.notify.notifier import Notifier
from poolctl.selection.selector import SelectorError
from poolctl.states import State, Status

from ..active_configuration import ActiveConfiguration


class Notifications(Notifier):
    """The notifier of a supervisor; `path` is the file in which a successor finds pending notifications."""

    def __init__(self, core: Core, events: Events, configuration: ActiveConfiguration, path: str) -> None:
        super().__init__(events, core.clock, self, path)
        self._core = core
        self._configuration = configuration
        self._unhealthy: set[str] = set()  # servers that the previous supervisor reported as unhealthy
        self.apply(configuration.tables.notify)
        self._catch_up()

    # The facts of the pool that receivers need (PoolFacts).

    @property
    def name(self) -> str:
        """The name of the pool."""
        return self._configuration.name

    @property
    def environment(self) -> Mapping[str, str]:
        """The variables that hold secrets."""
        return self._configuration.environment

    @property
    def directory(self) -> str:
        """Where commands run."""
        return os.path.dirname(self._configuration.files[0])

    def tags(self, server: str) -> Sequence[str]:
        """The tags of the server; none for one that is gone."""
        entry = self._core.entries.get(server)
        return entry.config.tags if entry is not None else ()

    def _catch_up(self) -> None:
        """Report the end of problems that ended while there was no supervisor."""
        for kind, name in self.open_problems:
            entry = self._core.entries.get(name)
            if kind == "health" and entry is not None:
                # Its health has to be probed first.
                self._unhealthy.add(name)
                self._core.listeners.add(self._look)
            state = entry.state if entry is not None else State.STOPPED.value
            if state not in (State.FAILED.value, State.BACKOFF.value):
                self._missed("lifecycle", name, state)

    def _look(self, entry: Entry) -> None:
        if entry.name in self._unhealthy and entry.health is Status.OK:
            self._unhealthy.remove(entry.name)
            self._missed("health", entry.name, Status.OK.value)
        if not self._unhealthy:
            self._core.listeners.discard(self._look)

    def _missed(self, kind: str, name: str, after: str) -> None:
        self.take(JournalEvent("", 0, kind, after, name, after=after))


async def test_receivers(notifications: Notifications | None, options: Table) -> NotifyResult:
    """Send a test notification to each receiver, or to those in `receivers`; the answer holds each result."""
    names = options.get("receivers") or []
    if not isinstance(names, list) or not all(isinstance(each, str) for each in names):
        raise SelectorError("notify: no such receivers", hint="receivers is a list of names")
    known = notifications.labels if notifications is not None else []
    unknown = [each for each in names if each not in known]
    if unknown or notifications is None or not known:
        what = f"no receiver is named {unknown[0]!r}" if unknown else "no [[notify]] receivers are configured"
        hint = f"there are: {', '.join(known)}" if known else "add a [[notify]] to the file"
        return NotifyResult(errors=(failure(PoolMonitorError, what, hint),), exit_code=NOTHING_MATCHED)
    found = await notifications.test(names)
    errors = tuple(
        failure(PoolMonitorError, f"{label}: {problem}") for label, problem in found.items() if problem
    )
    receivers = tuple(
        ReceiverResult(name=label, ok=not problem, message=problem) for label, problem in found.items()
    )
    return NotifyResult(errors=errors, exit_code=FAILED if errors else 0, receivers=receivers)
