"""Notifies systemd of the pool's state: ready, status, reloading, stopping, watchdog (sd_notify(3))."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping
from contextlib import asynccontextmanager
from functools import partial

from poolctl.control import sd_notify
from poolctl.control.control_server import Handler, Progress, Request
from poolctl.core.core import Core
from poolctl.core.server_entry import Entry
from poolctl.keeper import fd_store
from poolctl.runners.process_link import Link
from poolctl.states import in_words

_SOON_SECONDS = 0.05
# The added delay per server: checking one takes up to 30 µs, which is a twentieth of this.
_SOON_SECONDS_PER_SERVER = 0.0006
_PINGS_PER_PERIOD = 2  # as sd_watchdog_enabled(3) recommends


async def link_to_run(keeper: Link, env: Mapping[str, str]) -> Link | None:
    """A link to `poolctl run`, the main process of a unit, which passes notifications on to the service manager.

    None without a service manager, or if the unit's main process is the keeper: then this process notifies it directly.
    """
    if not sd_notify.enabled(env):
        return None
    _, fds = await keeper.call({"op": "get", "name": fd_store.LIFELINE})
    return Link(socket.socket(fileno=fds[0])) if fds else None


class SystemdNotifier:
    """Notifies systemd of the pool's state, on the running event loop, until `notify_stopping`.

    It runs in the supervisor. If the supervisor dies, the keeper starts a successor at once, and the successor repeats
    all notifications. If the supervisor hangs, the watchdog is not notified until the keeper has replaced the
    supervisor. The pool is ready once its servers are ready and `opened` returns, which waits for the features'
    addresses. `run` is the link to `poolctl run` (see `link_to_run`).
    """

    def __init__(
        self,
        env: Mapping[str, str],
        core: Core,
        opened: Callable[[], Awaitable[object]],
        run: Link | None = None,
    ) -> None:
        self._send: Callable[..., object] = partial(sd_notify.notify, env)
        if run is not None:
            self._send = lambda *lines: run.send({"notify": lines})
        self._core = core
        self._opened = opened
        self._opening: asyncio.Task[None] | None = None
        self._ready = self._stopping = False
        self._reloads = 0
        self._status = ""
        self._timer: asyncio.TimerHandle | None = None
        self._period_seconds = sd_notify.watchdog_seconds(env) / _PINGS_PER_PERIOD
        core.observers.add(lambda entry: self._schedule_notification())
        if self._period_seconds:
            self._ping_watchdog()
        self._schedule_notification()

    def wrap(self, handle: Handler) -> Handler:
        """The request handler, extended so that systemd is notified of the beginning and end of each reload."""

        async def notified(request: Request, progress: Progress) -> object:
            options = request.body.get("options") or {}
            if request.verb != "reload" or options.get("dry_run"):
                return await handle(request, progress)
            async with self._reloading():
                return await handle(request, progress)

        return notified

    def _schedule_notification(self) -> None:
        if self._timer is None and not self._stopping:
            delay = _SOON_SECONDS + _SOON_SECONDS_PER_SERVER * len(self._core.entries)
            self._timer = asyncio.get_running_loop().call_later(delay, self._notify)

    def notify_stopping(self) -> None:
        """Notify systemd that the pool ends. From then on, only the watchdog is notified."""
        if not self._stopping:
            self._stopping = True
            self._send(sd_notify.STOPPING, sd_notify.status("stopping"))

    @asynccontextmanager
    async def _reloading(self) -> AsyncIterator[None]:
        # Only once ready: before that, systemd would mistake the end of the reload for the end of the start.
        if self._ready and not self._reloads and not self._stopping:
            self._send(*sd_notify.reloading())
        self._reloads += 1
        try:
            yield
        finally:
            self._reloads -= 1
            if self._ready and not self._reloads and not self._stopping:
                self._send(sd_notify.READY)
            self._schedule_notification()

    def _notify(self) -> None:
        self._timer = None
        if self._stopping:
            return
        wanted, missing = _wanted_and_missing_servers(self._core.entries.values())
        line = sd_notify.status(_sentence(wanted or 0, missing))
        if line != self._status:
            self._status = line
            self._send(line)
        if not missing and wanted is not None and self._opening is None:
            self._opening = asyncio.ensure_future(self._notify_ready_when_open())

    async def _notify_ready_when_open(self) -> None:
        await self._opened()
        if not self._stopping:
            self._ready = True
            self._send(sd_notify.READY)

    def _ping_watchdog(self) -> None:
        self._send(sd_notify.WATCHDOG)
        asyncio.get_running_loop().call_later(self._period_seconds, self._ping_watchdog)


def _wanted_and_missing_servers(entries: Iterable[Entry]) -> tuple[int | None, list[Entry]]:
    """Return the number of servers that should run, and those among them that are neither ready nor asleep.

    If no server should run, the number depends on the reason: 0 if every server is stopped, removed or disabled,
    and None if any server still waits for its first start.
    """
    startable = [entry for entry in entries if entry.should_run]
    wanted = [entry for entry in startable if entry.wanted]
    if startable and not wanted:
        return None, []
    return len(wanted), [entry for entry in wanted if entry.is_missing]


def _sentence(wanted: int, missing: list[Entry]) -> str:
    if not missing:
        return f"{wanted} servers ready" if wanted != 1 else "1 server ready"
    first = missing[0]
    why = f": {first.observed.failure.message}" if first.observed.failure is not None else ""
    more = f", and {len(missing) - 1} more" if len(missing) > 1 else ""
    return f"{wanted - len(missing)} of {wanted} servers ready; {first.name} is {in_words(first.state)}{why}{more}"
