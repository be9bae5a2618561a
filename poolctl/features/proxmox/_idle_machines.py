"""Stops containers and virtual machines that requests have had started, when no request has come for some time.

Others are left alone: those that were running, and those that somebody has started again since.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
from collections.abc import Awaitable, Callable, Mapping
from functools import partial

from poolctl.features.gateway.supervision.outside_targets import Activity
from poolctl.platform import replace_file

from ._machine_starter import MachineStarter

_FILE = "started-machines.json"
# Looked at so often within the idle time, and at least so often.
_LOOKS, _LONGEST_PAUSE_SECONDS = 4, 15.0

logger = logging.getLogger("poolctl.supervisor")


# The activity of the gateway's targets by their URLs; None while it does not answer.
Activities = Callable[[], Awaitable[Mapping[str, Activity] | None]]


async def unknown_activities() -> Mapping[str, Activity] | None:
    """For machines that are never idle."""
    return None


class IdleMachines:
    """Watches the machines that `starter` has started, and those that earlier supervisors have started."""

    def __init__(self, starter: MachineStarter, activities: Activities, state_directory: str) -> None:
        self._starter = starter
        self._activities = activities
        self._path = os.path.join(state_directory, _FILE) if state_directory else ""
        self._idle_seconds = 0.0
        self._quiet: dict[int, tuple[Activity, float]] = {}  # since when a machine has had no request
        self._watching: asyncio.Task[None] | None = None
        starter.started = self._read()
        starter.on_started = self._started_changed

    def follow(self, idle_seconds: float) -> None:
        """Stop those that have had no request for this time; 0: none."""
        self._idle_seconds = idle_seconds
        self._quiet.clear()
        self._watch()

    def close(self) -> None:
        """Stop no machine from now on."""
        if self._watching is not None:
            self._watching.cancel()
            self._watching = None

    def _watch(self) -> None:
        self.close()
        if self._idle_seconds and self._starter.started:
            self._watching = asyncio.ensure_future(self._look_often())

    async def _look_often(self) -> None:
        while True:
            await asyncio.sleep(min(self._idle_seconds / _LOOKS, _LONGEST_PAUSE_SECONDS))
            await self._look()

    async def _look(self) -> None:
        now, found = asyncio.get_running_loop().time(), await self._activities()
        for vmid in self._starter.started:
            activity = self._activity(vmid, found)
            known, since = self._quiet.get(vmid, (None, now))
            if activity is None or activity.in_progress or activity != known:
                self._quiet[vmid] = activity or Activity(), now
            elif now - since >= self._idle_seconds:
                self._quiet[vmid] = activity, now  # if that fails, the next attempt is as much later
                self._starter.stop(vmid, partial(self._is_idle, vmid, activity))

    async def _is_idle(self, vmid: int, known: Activity) -> bool:
        """Whether no request has come since; requests that come from now on wait."""
        return self._activity(vmid, await self._activities()) == known

    def _activity(self, vmid: int, found: Mapping[str, Activity] | None) -> Activity | None:
        """That of all URLs that lead to the machine; None where it is not known."""
        urls = self._starter.urls(vmid)
        if found is None or not urls:
            return None
        its = [found.get(url, Activity()) for url in urls]
        return Activity(sum(each.requests for each in its), sum(each.in_progress for each in its))

    def _started_changed(self) -> None:
        started = self._starter.started
        for vmid in self._quiet.keys() - started.keys():
            del self._quiet[vmid]
        try:
            if self._path:
                replace_file(self._path, json.dumps(started).encode())
        except OSError as error:
            logger.warning("which machines were started is not known to the next supervisor: %s", error)
        if self._watching is None or not started:
            self._watch()

    def _read(self) -> dict[int, float]:
        try:
            with open(self._path, encoding="utf-8") as file:
                return {int(vmid): float(at) for vmid, at in json.load(file).items()}
        except (OSError, ValueError, AttributeError, TypeError):
            return {}
