"""Checks with the kernel that a process named by a zygote is the requested fork.

A preloaded application runs in its zygote and can forge its answers. The keeper later signals the named process with
its own rights, so the process must be a child of the keeper, run as the zygote's user, be no older than the zygote, and
not be in use already. For the same reason the keeper sends the signals: only the parent of a process can be sure that a
pid is still that process's.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from collections.abc import Callable, Iterator
from typing import NamedTuple

from poolctl.keeper.wire import Message
from poolctl.platform import process_parent, process_start, process_users

from .. import untrusted_messages
from ..process_link import Link, LinkLost
from ..runner_protocol import Exit

_MOST_PID = 1 << 22  # of any Linux (proc(5), pid_max)
# Until then the intermediate process, which forks for the zygote, is the parent.
_FIRST_LOOK_SECONDS = 0.1
_LAST_LOOK_SECONDS = 3.0
_TRIES = 20
_AGAIN_SECONDS = 0.005
# Longer than it takes to detect that the keeper does not answer, and to replace it.
_KEEPER_SECONDS = 15.0


class Process(NamedTuple):
    """The pid and the start time (see process_start) of a process. The start time is None if it has exited."""

    pid: int
    start: int | None


class Forged(Exception):
    """A zygote has named a process that it cannot have forked; the text says which ("named …")."""


class Children:
    """The processes of this runner that were forked by zygotes.

    `keeper_pid` is the pid of their parent, 0 if unknown. `early` has the exits that were reported before the fork's
    reply.
    """

    def __init__(self, keeper: Link, keeper_pid: int) -> None:
        self.keeper_pid = keeper_pid
        self.early: dict[int, Exit] = {}
        self._keeper = keeper
        self._known: set[int] = set()
        self._unconfirmed: dict[Process, tuple[float, Callable[[str], None]]] = {}
        self._forks = 0  # in progress
        self._look: asyncio.TimerHandle | None = None
        self._killing: set[asyncio.Task[None]] = set()
        self._sees_processes = process_start(os.getpid()) is not None

    @contextlib.contextmanager
    def forking(self) -> Iterator[None]:
        """Record the exits of unknown processes while a fork is in progress."""
        if not self._forks:
            self.early.clear()  # of others, whose pids may be reused
        self._forks += 1
        try:
            yield
        finally:
            self._forks -= 1

    async def verify(self, reply: Message, uid: int | None, not_before: int | None) -> Process:
        """The process that the reply names. Raises Forged if it is not new or does not run as `uid` (None: any user).

        Raises LinkLost if the keeper is gone.
        """
        try:
            pid = untrusted_messages.number(reply, "pid", 2, _MOST_PID)
        except untrusted_messages.Malformed as error:
            raise Forged(f"answered with {error}") from None
        if pid in self._known:
            raise Forged(f"named pid {pid} as a new process, but it is another process of the pool")
        start = process_start(pid) if self._sees_processes else None
        if start is None and self._sees_processes:
            # All earlier exits are reported before the answer to this.
            await self._keeper.call({"op": "list", "after": "\U0010ffff"})
            if pid not in self.early:
                raise Forged(f"named pid {pid} as a new process, but there is no such process")
        elif start is not None:
            if uid is not None and process_users(pid) != {uid}:
                raise Forged(f"named pid {pid} as a new process, but it runs as another user")
            if not_before is not None and start < not_before:
                raise Forged(f"named pid {pid} as a new process, but it is older than the request")
        return Process(pid, start)

    def add(self, pid: int) -> Exit | None:
        """Register the process. Returns its exit if it has exited already."""
        exit_ = self.early.pop(pid, None)
        if exit_ is None:
            self._known.add(pid)
        return exit_

    def ended(self, pid: int) -> None:
        """Forget a process that has exited, since its pid may be reused."""
        self._known.discard(pid)
        for process in [each for each in self._unconfirmed if each.pid == pid]:
            del self._unconfirmed[process]

    def confirm(self, process: Process, on_forged: Callable[[str], None]) -> None:
        """Check that the process becomes a child of the keeper; if not, call `on_forged` once."""
        if process.start is None or not self.keeper_pid:
            return
        loop = asyncio.get_running_loop()
        self._unconfirmed[process] = loop.time() + _LAST_LOOK_SECONDS, on_forged
        if self._look is None:
            self._look = loop.call_later(_FIRST_LOOK_SECONDS, self._confirm)

    def _confirm(self) -> None:
        loop = asyncio.get_running_loop()
        self._look = None
        for process, (until, on_forged) in list(self._unconfirmed.items()):
            if process_parent(process.pid) == (self.keeper_pid, process.start):
                del self._unconfirmed[process]
            elif loop.time() >= until:
                del self._unconfirmed[process]
                self._known.discard(process.pid)
                on_forged(f"named pid {process.pid} as a new process, but it is not a process of the pool")
        if self._unconfirmed:
            self._look = loop.call_later(_FIRST_LOOK_SECONDS, self._confirm)

    def kill(self, process: Process) -> None:
        """Have the keeper kill the process and its session, if the process is still the keeper's child."""
        if process.start is not None:
            self._keeper.send(_signal_message(process, signal.SIGKILL, group=True))

    async def signal(
        self, process: Process, exited: asyncio.Future[Exit], number: int, *, group: bool = False
    ) -> None:
        """Have the keeper signal the process or its session, unless it has `exited`."""
        order = _signal_message(process, number, group=group)
        with contextlib.suppress(LinkLost, TimeoutError):
            # Again, because the keeper becomes the parent a moment after the fork.
            for _ in range(_TRIES):
                async with asyncio.timeout(_KEEPER_SECONDS):
                    reply, _ = await self._keeper.call(order)
                if reply["sent"] or exited.done():
                    return
                await asyncio.sleep(_AGAIN_SECONDS)

    def kill_after(self, process: Process, exited: asyncio.Future[Exit], seconds: float) -> None:
        """Kill the process and its session if it has not exited within that time. Does not wait."""

        async def kill() -> None:
            await asyncio.wait({exited}, timeout=seconds)
            if not exited.done():
                await self.signal(process, exited, signal.SIGKILL, group=True)

        task = asyncio.ensure_future(kill())
        self._killing.add(task)
        task.add_done_callback(self._killing.discard)


def _signal_message(process: Process, number: int, *, group: bool) -> Message:
    return {"op": "signal", "pid": process.pid, "start": process.start, "signal": number, "group": group}
