"""Tracks which hosts an operator has disabled or drained: since when, until when, and why."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from difflib import get_close_matches

from poolctl.json_form import Table, from_json, to_json
from poolctl.routing.route_report import RequestedBackendState

# Ten years: longer than any intended pause, and short enough for a valid date.
_MAX_SECONDS = 10 * 365 * 86_400.0


@dataclass(frozen=True, slots=True, kw_only=True)
class HostRecord:
    """A host's state, and when it began (`since`) and will end (`until`): seconds since 1970, or 0 if not set."""

    host: str
    state: str = RequestedBackendState.ACTIVE
    why: str = ""
    since: float = 0.0
    until: float = 0.0


class UnknownHost(LookupError):
    """No host has this name, or several match it; `hint` names similar hosts."""

    def __init__(self, name: str, hosts: Sequence[str]) -> None:
        self.message = f"no backend is called {name!r}"
        near = get_close_matches(name[:200].lower(), [host.lower() for host in hosts], cutoff=0.5)
        similar = [host for host in hosts if host.lower() in near]
        self.hint = (
            f"did you mean {' or '.join(similar[:3])}?" if similar else "`poolctl backends` lists them"
        )
        super().__init__(f"{self.message}; {self.hint}")


def find_host(name: str, hosts: Sequence[str]) -> str:
    """The host with this name or URL, ignoring case; the URL's scheme may be missing. Raises UnknownHost."""
    if name in hosts:
        return name
    lowered = name.lower().rstrip("/")
    exact = [host for host in hosts if host.lower() == lowered]
    matches = exact or [host for host in hosts if host.lower().partition("://")[2] == lowered]
    if len(matches) != 1:
        raise UnknownHost(name, matches or hosts)
    return matches[0]


class HostStates:
    """The state of each host (active, disabled or draining); a host is a server's name or a URL.

    `changed(host, state, why)` is called after each change. A host that was disabled for a limited time becomes active
    again afterwards: call `enable_expired` at `next_expiry`, so that this is reported. `now` is a monotonic clock,
    `wall` returns seconds since 1970.
    """

    def __init__(
        self,
        now: Callable[[], float],
        changed: Callable[[str, RequestedBackendState, str], None],
        *,
        wall: Callable[[], float] = time.time,
    ) -> None:
        self._now = now
        self._changed = changed
        self.wall = wall
        self.re_enable_seconds = 30.0  # how long a host is disabled by default
        self._records: dict[str, HostRecord] = {}
        self._until: dict[str, float] = {}  # the monotonic times at which hosts become active again

    @property
    def next_expiry(self) -> float:
        """The monotonic time at which the next host becomes active again; infinity without one."""
        return min(self._until.values(), default=math.inf)

    def host_record(self, host: str) -> HostRecord:
        """The current record of the host."""
        until = self._until.get(host)
        if until is not None and until <= self._now():
            self.enable_expired()
        return self._records.get(host) or HostRecord(host=host)

    def disable(self, host: str, for_seconds: float | None = None) -> None:
        """Disable the host for `for_seconds` (None: `re_enable_seconds`; 0: until `enable`).

        New requests go to other hosts; requests in flight are completed.
        """
        seconds = self.re_enable_seconds if for_seconds is None else for_seconds
        self._set(host, RequestedBackendState.DISABLED, "disabled by request", min(seconds, _MAX_SECONDS))

    def drain(self, host: str) -> None:
        """Until `enable`, send the host only clients with its sticky cookie."""
        self._set(host, RequestedBackendState.DRAINING, "drained by request", 0.0)

    def enable(self, host: str) -> None:
        """Send traffic to the host again."""
        if self.host_record(host).state != RequestedBackendState.ACTIVE:
            self._set(host, RequestedBackendState.ACTIVE, "enabled by request", 0.0)

    def enable_expired(self) -> None:
        """Enable the hosts that were disabled for a time that is over."""
        now = self._now()
        expired = [host for host, until in self._until.items() if until <= now]
        why = "the time for which it was disabled is over"
        # Update all hosts first: callbacks may re-enter.
        for host in expired:
            self._record(host, RequestedBackendState.ACTIVE, why, 0.0)
        for host in expired:
            self._changed(host, RequestedBackendState.ACTIVE, why)

    def forget(self, hosts: Iterable[str]) -> None:
        """Remove hosts that are no longer configured. `changed` is not called."""
        for host in hosts:
            self._records.pop(host, None)
            self._until.pop(host, None)

    def to_json(self) -> Table:
        """The state for `restore` after a restart: the hosts that are not active."""
        self.enable_expired()
        records = self._records.values()
        return {"hosts": [to_json(each) for each in records if each.state != RequestedBackendState.ACTIVE]}

    def restore(self, table: Table) -> None:
        """Restore the states from a predecessor's `to_json` that still apply. `changed` is not called.

        Times are in the system's clock, because the monotonic clock may have restarted.
        """
        wall = self.wall()
        for record in (from_json(HostRecord, entry) for entry in table["hosts"]):
            # Never longer than requested, in case the system's clock was set back.
            remaining = min(record.until - wall, record.until - record.since) if record.until else 0.0
            if remaining > 0 or not record.until:
                state = RequestedBackendState(record.state)
                self._record(record.host, state, record.why, remaining, since=record.since)

    def _set(self, host: str, state: RequestedBackendState, why: str, seconds: float) -> None:
        self._record(host, state, why, seconds)
        self._changed(host, state, why)

    def _record(
        self, host: str, state: RequestedBackendState, why: str, seconds: float, *, since: float | None = None
    ) -> None:
        wall = self.wall()
        until = wall + seconds if seconds else 0.0
        self._records[host] = HostRecord(
            host=host, state=state, why=why, since=wall if since is None else since, until=until
        )
        if seconds:
            self._until[host] = self._now() + seconds
        else:
            self._until.pop(host, None)
