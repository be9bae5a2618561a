"""Ends left groups: process groups of programs whose leader has exited.

The keeper does not reap such a leader before its group is empty, so its pid still names the group.
"""

from __future__ import annotations

import asyncio
import signal
from dataclasses import dataclass

from poolctl.keeper import fd_store

from ..process_link import Link, Message
from .children import Children, ProcessIdentity
from .local_worker import KILL_SECONDS, LocalWorker


@dataclass
class _LeftGroup:
    """A process group whose leader has exited. `stays`: it runs on until the pool is stopped."""

    key: str  # of its server
    leader: ProcessIdentity
    stop_signal: int
    stop_seconds: float
    stays: bool
    ended: asyncio.Future[None]

    def meta(self) -> Message:
        return {
            "key": self.key,
            "pid": self.leader.pid,
            "start": self.leader.start,
            "stop_signal": self.stop_signal,
            "stop_seconds": self.stop_seconds,
            "stays": self.stays,
            "keeps_group": True,
        }


class LeftGroups:
    """Sends each left group its server's stop signal, and kills it after the server's stop_timeout.

    The groups are in the keeper's store, for a later supervisor.
    """

    def __init__(self, keeper: Link, children: Children) -> None:
        self._keeper = keeper
        self._children = children
        self._groups: dict[int, _LeftGroup] = {}  # by the leader's pid
        self._gone_early: set[int] = set()  # reported before the group was added

    def __contains__(self, leader: int) -> bool:
        return leader in self._groups

    @property
    def leaders(self) -> list[ProcessIdentity]:
        return [group.leader for group in self._groups.values()]

    def add(self, worker: LocalWorker) -> None:
        """Begin to end the rest of the group of a worker that has exited, unless its `stop_group` is "leader"."""
        server, leader = worker.server, worker.process
        stays = server.stop_group == "leader"
        # A group that stays has not ended, although nothing waits for it.
        ended = asyncio.get_running_loop().create_future() if stays else worker.group_ended
        group = _LeftGroup(server.key, leader, server.stop_signal_number, server.stop_timeout, stays, ended)
        self._keeper.send({"op": "put", "name": _name(leader.pid), "meta": group.meta()})
        if self._track_unless_gone(group) and not stays:
            if not (worker.asked_to_end and server.stop_group == "together"):
                self._children.signal_group_now(leader, group.stop_signal)
            if not worker.asked_to_end:
                # The stop of a worker that was asked to end has its own time limit.
                self._kill_after_stop_seconds(group)

    def adopt(self, _: str, meta: Message, fds: list[int]) -> tuple[()]:
        """Adopt a left group of an earlier supervisor, which has sent the stop signal to a group that does not stay."""
        leader = ProcessIdentity(int(meta["pid"]), meta["start"])
        group = _LeftGroup(
            str(meta["key"]),
            leader,
            int(meta["stop_signal"]),
            float(meta["stop_seconds"]),
            bool(meta["stays"]),
            asyncio.get_running_loop().create_future(),
        )
        # A keeper that was started meanwhile does not watch the group yet.
        self._keeper.send({"op": "watch", "pid": leader.pid, "start": leader.start})
        if self._track_unless_gone(group) and not group.stays:
            self._kill_after_stop_seconds(group)
        return ()

    def _track_unless_gone(self, group: _LeftGroup) -> bool:
        pid = group.leader.pid
        self._groups[pid] = group
        if pid in self._gone_early:
            self._gone_early.discard(pid)
            self.handle_gone(pid)
        return pid in self._groups

    def handle_gone(self, pid: int) -> None:
        """Handle the keeper's report that the last process of this leader's group has ended."""
        group = self._groups.pop(pid, None)
        if group is None:
            self._gone_early.add(pid)
            return
        if not group.ended.done():
            group.ended.set_result(None)
        self._keeper.send({"op": "drop", "name": _name(pid)})

    def _kill_after_stop_seconds(self, group: _LeftGroup) -> None:
        self._children.kill_group_after(group.leader, group.ended, group.stop_seconds)

    async def wait_until_gone(self, key: str) -> None:
        """Wait for the end of this server's groups that are being ended; return after a time limit."""
        await _wait_until_ended(
            [group for group in self._groups.values() if group.key == key and not group.stays]
        )

    async def end_all(self) -> None:
        """End all groups, including groups that stay, each within its stop_timeout; return when they have ended."""
        for group in self._groups.values():
            if group.stays:
                group.stays = False
                self._children.signal_group_now(group.leader, group.stop_signal)
                self._kill_after_stop_seconds(group)
        await _wait_until_ended([*self._groups.values()])

    def kill_all(self) -> None:
        """Kill all groups. Does not wait."""
        for leader in self.leaders:
            self._children.signal_group_now(leader, signal.SIGKILL)


async def _wait_until_ended(groups: list[_LeftGroup]) -> None:
    if groups:
        limit = max(group.stop_seconds for group in groups) + KILL_SECONDS
        await asyncio.wait([group.ended for group in groups], timeout=limit)


def _name(pid: int) -> str:
    return f"{fd_store.LEFT_GROUP}{pid}"
