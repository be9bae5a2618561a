"""Starts stopped containers and virtual machines when a request needs them, one start at a time and rate limited.

A machine started by poolctl is stopped again after the table's `idle` time without requests. Requests that arrive
during the stop wait, and start it again. Other machines, also those that someone else has restarted, are not stopped.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import time
from collections.abc import Awaitable, Callable, Mapping
from functools import partial

from poolctl.features.gateway.repeated_work import RepeatedWork
from poolctl.features.gateway.supervision.outside_targets import Activity
from poolctl.features.gateway.target import MachineState
from poolctl.monitor.event_queue import EventBus
from poolctl.platform import read_json_object, replace_file
from poolctl.units import format_duration

from ._api import RUNNING, STOPPED, ApiError, Guest, ProxmoxApi
from .table import ProxmoxTable

_POLL_SECONDS = 0.5
# The pause between two starts of a machine, doubled after each failure.
_COOLDOWN_SECONDS = 30.0
_MAX_COOLDOWN_SECONDS = 600.0
# If a machine's uptime is shorter than the time since poolctl started it by more than this, someone else restarted it.
_UPTIME_SLACK_SECONDS = 60.0

# The name of the file with the start times of machines, for the next supervisor.
_FILE = "started-machines.json"
# Number of checks within the idle time, and the maximum interval between them.
_LOOKS, _MAX_PAUSE_SECONDS = 4, 15.0

logger = logging.getLogger("poolctl.supervisor")

# The activity of the gateway's targets by URL; None while the gateway does not answer.
Activities = Callable[[], Awaitable[Mapping[str, Activity] | None]]


class _StartState:
    """The state of starting or stopping one machine, and when it may be started again."""

    def __init__(self) -> None:
        self.state = ""  # overrides the inventory's state: starting, stopped, failed or unknown; "" for none
        self.why = ""
        self.cooldown_seconds = _COOLDOWN_SECONDS  # the pause after its next failure
        self.unanswered = False  # whether the API failed to answer the last request about the start
        self.not_before = 0.0  # when it may be started again
        self.answers = 0
        self.asked = False  # whether a request arrived while the machine was being stopped
        self.work: asyncio.Task[None] | None = None
        self.retry: asyncio.TimerHandle | None = None


class MachinePowerManager:
    """Starts and stops machines. `states` are their states by URL; `changed` is called when a state changes.

    `started` holds the start times of the machines that it, or an earlier supervisor, has started, by VMID.
    """

    def __init__(
        self, events: EventBus, changed: Callable[[], None], activities: Activities, state_directory: str
    ) -> None:
        self._events = events
        self._changed = changed
        self._activities = activities
        self._path = os.path.join(state_directory, _FILE)
        self._table: ProxmoxTable | None = None
        self._api: ProxmoxApi | None = None
        self._guests: dict[str, Guest] = {}
        self._start_states: dict[int, _StartState] = {}
        self._idle_since: dict[int, tuple[Activity, float]] = {}  # time of the last activity
        self._watching: asyncio.Task[None] | None = None
        self._epoch = time.time() - time.clock_gettime(time.CLOCK_BOOTTIME)
        self.started: dict[int, float] = {}
        with contextlib.suppress(ValueError, TypeError):
            self.started = {int(vmid): float(at) for vmid, at in read_json_object(self._path).items()}

    @property
    def states_by_url(self) -> dict[str, MachineState]:
        """The states of all machines by URL; empty if requests may not start machines."""
        if self._table is None or not self._table.start:
            return {}
        return {url: self._known_state(guest, self._table) for url, guest in self._guests.items()}

    def configure(self, table: ProxmoxTable | None, api: ProxmoxApi | None) -> None:
        """Use this API and the table's limits from now on. If they are None, no machine is started or stopped."""
        self._table, self._api = table, api
        self._idle_since.clear()
        self._restart_idle_watch_if_needed()

    def set_guests(self, guests: Mapping[str, Guest], *, freshly_read: bool) -> None:
        """Manage the machines in `guests`, a mapping by target URL. `freshly_read`: the states are new from the API."""
        if not freshly_read:
            # The known states are newer than the inventory.
            seen = {guest.vmid: guest.status for guest in self._guests.values()}
            guests = {url: new._replace(status=seen.get(new.vmid, new.status)) for url, new in guests.items()}
        self._guests = dict(guests)
        if freshly_read:
            stopped = {guest.vmid for guest in guests.values() if guest.status == STOPPED}
            for vmid in stopped & self.started.keys():  # someone else has stopped them
                if (case := self._start_states.get(vmid)) is None or case.work is None:
                    self._forget_started(vmid)
        for guest in guests.values() if freshly_read else ():
            case = self._start_states.get(guest.vmid)
            if case is None or case.work is not None:
                continue
            if guest.status == RUNNING or case.state != MachineState.FAILED:
                self._set_state(case, "")
        self._changed()

    def status(self, url: str) -> str:
        """The state of the machine behind this URL, for display; "" if there is none."""
        if (guest := self._guests.get(url)) is None:
            return ""
        case = self._start_states.get(guest.vmid)
        return (case and case.state) or guest.status

    def start_if_needed(self, url: str) -> None:
        """Begin to start the machine behind this URL if it is stopped; call `changed` once its state is known."""
        guest = self._guests.get(url)
        if guest is None or self._api is None:
            return
        case = self._start_states.setdefault(guest.vmid, _StartState())
        if case.work is None:
            case.work = asyncio.ensure_future(self._start_or_mark_unknown(self._api, guest, case))
        else:
            case.asked = True

    def stop(self, vmid: int, is_idle: Callable[[], Awaitable[bool]]) -> None:
        """Begin to stop the machine if poolctl started it and `is_idle` returns True; requests wait meanwhile."""
        guest = next((guest for guest in self._guests.values() if guest.vmid == vmid), None)
        case = self._start_states.setdefault(vmid, _StartState())
        if guest is not None and self._api is not None and case.work is None and vmid in self.started:
            case.work = asyncio.ensure_future(self._stop(self._api, guest, case, is_idle))

    def close(self) -> None:
        """Stop starting and stopping machines."""
        self._stop_watching()
        for case in self._start_states.values():
            self._set_state(case, "")
            if case.work is not None:
                case.work.cancel()

    def _known_state(self, guest: Guest, table: ProxmoxTable) -> MachineState:
        case = self._start_states.get(guest.vmid)
        state = MachineState.STOPPED if guest.status == STOPPED else MachineState.RUNNING
        if case is None:
            return MachineState(state=state, start_seconds=table.start_timeout)
        return MachineState(
            state=case.state or state,
            why=case.why,
            start_seconds=table.start_timeout,
            answers=case.answers,
        )

    async def _start_or_mark_unknown(self, api: ProxmoxApi, guest: Guest, case: _StartState) -> None:
        try:
            await self._start_if_stopped(api, guest, case)
        except ApiError:
            # Whether the machine runs is unknown, so the request tries to connect.
            self._set_state(case, MachineState.UNKNOWN)
        except Exception:
            logger.exception("the %s could not be started", guest.title)
            self._set_state(case, MachineState.UNKNOWN)
        case.work = None
        case.answers += 1
        self._changed()

    async def _stop(
        self, api: ProxmoxApi, guest: Guest, case: _StartState, is_idle: Callable[[], Awaitable[bool]]
    ) -> None:
        """Stop the machine if it is idle, and start it again if a request arrives in the meantime."""
        case.asked = False
        self._set_state(case, MachineState.STOPPED)  # requests wait from now on
        self._changed()
        try:
            if await is_idle() and await self._is_ours(api, guest):
                await self._shut_down(api, guest, case)
            if case.asked:
                await self._start_if_stopped(api, guest, case)
        except ApiError as error:
            self._set_state(case, "")
            why = f"the {guest.title} could not be stopped: {error}"
            self._record("machine stop failed", guest, why, severity="warning")
        except Exception:
            logger.exception("the %s could not be stopped", guest.title)
            self._set_state(case, "")
        if case.state == MachineState.STOPPED:
            self._set_state(case, "")
        case.work = None
        case.answers += 1
        self._changed()

    async def _is_ours(self, api: ProxmoxApi, guest: Guest) -> bool:
        """Whether the machine has run continuously since poolctl started it; if not, poolctl stops managing it."""
        status, uptime_seconds = await api.status_and_uptime(guest)
        since = self._now() - self.started.get(guest.vmid, 0.0)
        if status == RUNNING and (uptime_seconds is None or uptime_seconds + _UPTIME_SLACK_SECONDS >= since):
            return True
        self._record_status(guest, status)
        self._forget_started(guest.vmid)
        return False

    async def _shut_down(self, api: ProxmoxApi, guest: Guest, case: _StartState) -> None:
        """Shut the machine down, and return when it has stopped. Raises ApiError."""
        loop, limit_seconds = asyncio.get_running_loop(), self._table.start_timeout if self._table else 0.0
        began = loop.time()
        self._record("machine stop requested", guest, f"the {guest.title} is idle, and is stopped")
        task = await api.begin_task(guest, "shutdown")
        try:
            async with asyncio.timeout(limit_seconds):
                while await api.status(guest) != STOPPED:
                    if why := await api.task_failure(guest, task) if task else "":
                        raise ApiError(why)
                    await asyncio.sleep(_POLL_SECONDS)
        except TimeoutError:
            raise ApiError(f"it runs still after {format_duration(limit_seconds)}") from None
        case.not_before = 0.0  # poolctl stopped it, so it can start again at once
        self._record_status(guest, STOPPED)
        self._forget_started(guest.vmid)
        self._record(
            "machine stopped", guest, f"the {guest.title} is stopped after {loop.time() - began:.3g} s"
        )

    def _now(self) -> float:
        """Seconds since 1970, independent of clock changes since this object was created; includes sleep."""
        return self._epoch + time.clock_gettime(time.CLOCK_BOOTTIME)

    def _forget_started(self, vmid: int) -> None:
        if self.started.pop(vmid, None) is not None:
            self._idle_since.pop(vmid, None)
            self._save_started_and_watch_idle()

    async def _start_if_stopped(self, api: ProxmoxApi, guest: Guest, case: _StartState) -> None:
        status = await api.status(guest)
        self._record_status(guest, status)
        now = asyncio.get_running_loop().time()
        if status != STOPPED or self._table is None or not self._table.start:
            self._set_state(case, "")
        elif now >= case.not_before:
            await self._try_start_guest(api, guest, case, self._table.start_timeout)
        elif case.state != MachineState.FAILED:
            self._enter_backoff(
                case, f"the {guest.title} has stopped soon after its start", case.not_before - now
            )

    async def _try_start_guest(
        self, api: ProxmoxApi, guest: Guest, case: _StartState, limit_seconds: float
    ) -> None:
        loop = asyncio.get_running_loop()
        began = loop.time()
        self._set_state(case, MachineState.STARTING)
        self._changed()
        self._record("machine start requested", guest, f"a request has the {guest.title} started")
        try:
            async with asyncio.timeout(limit_seconds):
                is_ours = await self._start_unless_started_by_others(api, guest, case)
        except TimeoutError:
            why = f"it does not run after {format_duration(limit_seconds)}"
        except ApiError as error:
            why = str(error)
        else:
            case.cooldown_seconds, case.not_before = _COOLDOWN_SECONDS, began + _COOLDOWN_SECONDS
            self._record_status(guest, RUNNING)
            self._set_state(case, "")
            if is_ours:
                self.started[guest.vmid] = self._now()
                self._save_started_and_watch_idle()
            self._record(
                "machine started", guest, f"the {guest.title} runs after {loop.time() - began:.3g} s"
            )
            return
        why = f"the {guest.title} could not be started: {why}"
        if case.unanswered:
            # It may be running by now.
            self._set_state(case, MachineState.UNKNOWN)
        else:
            pause = case.cooldown_seconds
            case.cooldown_seconds = min(2 * pause, _MAX_COOLDOWN_SECONDS)
            case.not_before = loop.time() + pause
            self._enter_backoff(case, why, pause)
        self._record("machine start failed", guest, why, severity="warning")

    async def _start_unless_started_by_others(self, api: ProxmoxApi, guest: Guest, case: _StartState) -> bool:
        """Start the machine and wait until it runs; returns False if someone else has started it.

        Raises ApiError if the start is refused or fails.
        """
        refusal, task = None, ""
        try:
            task = await api.begin_task(guest, "start")
        except ApiError as error:
            refusal = error if error.status else None
        while True:
            try:
                if await api.status(guest) == RUNNING:
                    return refusal is None
                why = await api.task_failure(guest, task) if task else ""
                case.unanswered = False
            except ApiError as error:
                why, case.unanswered = "", not error.status
            if refusal is not None:
                raise refusal
            if why:
                raise ApiError(why)
            await asyncio.sleep(_POLL_SECONDS)

    def _record_status(self, guest: Guest, status: str) -> None:
        """Record the machine's status for every URL that leads to it."""
        for url, other in self._guests.items():
            if other.vmid == guest.vmid:
                self._guests[url] = other._replace(status=status)

    def _enter_backoff(self, case: _StartState, why: str, pause_seconds: float) -> None:
        """Refuse requests to the machine for `pause_seconds`."""
        self._set_state(case, MachineState.FAILED, why)
        case.retry = asyncio.get_running_loop().call_later(pause_seconds, self._retry, case)

    def _retry(self, case: _StartState) -> None:
        self._set_state(case, "")
        self._changed()

    def _set_state(self, case: _StartState, state: str, why: str = "") -> None:
        case.state, case.why = state, why
        if case.retry is not None:
            case.retry.cancel()
            case.retry = None

    def _record(self, event: str, guest: Guest, message: str, *, severity: str = "info") -> None:
        self._events.record(
            "wake",
            event,
            message=message,
            node=guest.node,
            vmid=guest.vmid,
            name=guest.name,
            severity=severity,
        )

    # Idle machines.

    def _restart_idle_watch_if_needed(self) -> None:
        self._stop_watching()
        if self._table is not None and self._table.start and self._table.idle and self.started:
            self._watching = asyncio.ensure_future(self._watch_idle(self._table.idle))

    def _stop_watching(self) -> None:
        if self._watching is not None:
            self._watching.cancel()
            self._watching = None

    async def _watch_idle(self, idle_seconds: float) -> None:
        stopping = RepeatedWork("the stops of idle machines")
        while True:
            await asyncio.sleep(min(idle_seconds / _LOOKS, _MAX_PAUSE_SECONDS))
            with stopping.attempt():
                await self._stop_idle(idle_seconds)

    async def _stop_idle(self, idle_seconds: float) -> None:
        now, activities = asyncio.get_running_loop().time(), await self._activities()
        for vmid in self.started:
            activity = self._activity(vmid, activities)
            previous, since = self._idle_since.get(vmid, (None, now))
            if activity is None or activity.in_progress or activity != previous:
                self._idle_since[vmid] = activity or Activity(0, 0), now
            elif now - since >= idle_seconds:
                self._idle_since[vmid] = activity, now  # after a failure, retry after the idle time
                self.stop(vmid, partial(self._is_idle, vmid, activity))

    async def _is_idle(self, vmid: int, previous: Activity) -> bool:
        """Whether no request has arrived since the activity `previous` was measured."""
        return self._activity(vmid, await self._activities()) == previous

    def _activity(self, vmid: int, activities: Mapping[str, Activity] | None) -> Activity | None:
        """The total activity of all URLs of the machine; None if unknown."""
        urls = [url for url, guest in self._guests.items() if guest.vmid == vmid]
        if activities is None or not urls:
            return None
        entries = [activities.get(url, Activity(0, 0)) for url in urls]
        return Activity(sum(entry.requests for entry in entries), sum(entry.in_progress for entry in entries))

    def _save_started_and_watch_idle(self) -> None:
        try:
            replace_file(self._path, json.dumps(self.started).encode())
        except OSError as error:
            logger.warning("which machines were started is not known to the next supervisor: %s", error)
        if self._watching is None or not self.started:
            self._restart_idle_watch_if_needed()
