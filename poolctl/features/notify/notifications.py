"""The notifications of a pool's problems: what the feature does in the supervisor."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence

from poolctl.config import Tables
from poolctl.control.answers import failure
from poolctl.core.server_entry import Entry
from poolctl.errors import PoolMonitorError
from poolctl.exit_codes import FAILED, NOTHING_MATCHED
from poolctl.monitor.journal import JournalEvent
from poolctl.selection.selector import SelectorError
from poolctl.states import State, Status
from poolctl.supervisor.feature_parts import FeaturePart, PartSite
from poolctl.supervisor.verbs.verb import Call, Verb

from ._answers import NotifyResult, ReceiverResult
from ._notifier import Notifier
from .table import Notify

_FILE_NAME = "notify.json"


class Notifications(FeaturePart):
    """Notifies the configured receivers, and answers the verb `notify`."""

    def __init__(self, site: PartSite) -> None:
        super().__init__(site)
        self._core = site.core
        self._events = site.events
        self._configuration = site.environment.configuration
        self._path = os.path.join(site.environment.state_directory, _FILE_NAME)
        self._notifier: Notifier | None = None
        self._unhealthy: set[str] = set()  # servers that the previous supervisor reported as unhealthy

    @property
    def verbs(self) -> Mapping[str, Verb]:
        """See FeaturePart."""
        return {"notify": self._test}

    def follow(self, tables: Tables) -> None:
        """See FeaturePart."""
        receivers = tables.all(Notify)
        if self._notifier is not None:
            self._notifier.apply(receivers)
        elif receivers:
            self._notifier = Notifier(self._events, self._core.clock, self, self._path)
            self._notifier.apply(receivers)
            self._catch_up(self._notifier)

    def flush(self) -> None:
        """See FeaturePart."""
        if self._notifier is not None:
            self._notifier.remember()

    async def aclose(self) -> None:
        """See FeaturePart."""
        if self._notifier is not None:
            await self._notifier.close()

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
        """The tags of the server; empty for a removed server."""
        entry = self._core.entries.get(server)
        return entry.config.tags if entry is not None else ()

    def _catch_up(self, notifier: Notifier) -> None:
        """Report the end of problems that ended while there was no supervisor."""
        for kind, name in notifier.open_problems:
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
        if self._notifier is not None:
            self._notifier.take(JournalEvent("", 0, kind, after, name, after=after))

    async def _test(self, call: Call) -> NotifyResult:
        """Send a test notification to each receiver, or to those in `receivers`; the answer holds each result."""
        names = call.options.get("receivers") or []
        if not isinstance(names, list) or not all(isinstance(each, str) for each in names):
            raise SelectorError("notify: no such receivers", hint="receivers is a list of names")
        known = self._notifier.labels if self._notifier is not None else []
        unknown = [each for each in names if each not in known]
        if unknown or self._notifier is None or not known:
            what = (
                f"no receiver is named {unknown[0]!r}"
                if unknown
                else "no [[notify]] receivers are configured"
            )
            hint = f"there are: {', '.join(known)}" if known else "add a [[notify]] to the file"
            return NotifyResult(errors=(failure(PoolMonitorError, what, hint),), exit_code=NOTHING_MATCHED)
        found = await self._notifier.test(names)
        errors = tuple(
            failure(PoolMonitorError, f"{label}: {problem}") for label, problem in found.items() if problem
        )
        receivers = tuple(
            ReceiverResult(name=label, ok=not problem, message=problem) for label, problem in found.items()
        )
        return NotifyResult(errors=errors, exit_code=FAILED if errors else 0, receivers=receivers)
