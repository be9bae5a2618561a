"""The keeper's children, as the supervisor identifies, signals and kills them."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from collections.abc import Callable, Iterator
from typing import NamedTuple, TypeVar

from poolctl.keeper.wire import Message
from poolctl.platform import parent_and_start, process_start, process_users

from .. import process_link
from ..process_link import Link, LinkLost
from ..runner_protocol import Exit

T = TypeVar("T")

_MAX_PID = 1 << 22  # the highest pid on any Linux system (proc(5), pid_max)
# Earlier, the zygote's forker may still be the parent (see worker.zygote.serve_forks).
_FIRST_CHECK_SECONDS = 0.1
_CONFIRM_TIMEOUT_SECONDS = 3.0
_SIGNAL_TRIES = 20
_SIGNAL_AGAIN_SECONDS = 0.005
# Longer than it takes to notice that the keeper does not answer, and to replace it.
_KEEPER_SECONDS = 15.0


class ProcessIdentity(NamedTuple):
    """The pid and the start time (see process_start) of a process. The start time is None if it has exited."""

    pid: int
    start: int | None


class Forged(Exception):
    """A zygote has reported a process that it cannot have forked. The text says what the zygote did."""


class Children:
    """The processes of this runner that were forked by zygotes.

    `keeper_pid` is the pid of their parent, 0 if unknown. `early` maps pids to exits that were reported before
    the process was registered with `add`.
    """

    def __init__(self, keeper: Link, keeper_pid: int) -> None:
        self.keeper_pid = keeper_pid
        self.early: dict[int, Exit] = {}
        self._keeper = keeper
        self._registered: set[int] = set()
        self._unconfirmed: dict[ProcessIdentity, tuple[float, Callable[[str], None]]] = {}
        self._forks = 0  # in progress
        self._confirm_timer: asyncio.TimerHandle | None = None
        self._killing: set[asyncio.Task[None]] = set()
        self._sees_processes = process_start(os.getpid()) is not None

    @contextlib.contextmanager
    def recording_early_exits(self) -> Iterator[None]:
        """Context manager: record the exits of unknown processes while a fork is in progress."""
        if not self._forks:
            self.early.clear()  # earlier exits are of other processes: their pids may be reused
        self._forks += 1
        try:
            yield
        finally:
            self._forks -= 1

    async def verified_process(
        self, reply: Message, uid: int | None, not_before: int | None
    ) -> ProcessIdentity:
        """Return the process that a zygote reports as newly forked. Raises Forged if the report must be false.

        The process must not be registered yet, must run as user `uid`, and must not have started before `not_before`.
        A check is omitted if its value is None. Raises LinkLost if the keeper is gone.
        """
        try:
            pid = process_link.number_of(reply, "pid", 2, _MAX_PID)
        except process_link.Malformed as error:
            raise Forged(f"answered with {error}") from None
        if pid in self._registered:
            raise Forged(f"named pid {pid} as a new process, but it is another process of the pool")
        start = process_start(pid) if self._sees_processes else None
        if start is None and self._sees_processes:
            # A call without a result: all earlier exits are reported before its answer.
            await self._keeper.call({"op": "list", "after": "\U0010ffff"})
            if pid not in self.early:
                raise Forged(f"named pid {pid} as a new process, but there is no such process")
        elif start is not None:
            if uid is not None and process_users(pid) != {uid}:
                raise Forged(f"named pid {pid} as a new process, but it runs as another user")
            if not_before is not None and start < not_before:
                raise Forged(f"named pid {pid} as a new process, but it is older than the request")
        return ProcessIdentity(pid, start)

    def register_unless_exited(self, pid: int) -> Exit | None:
        """Register the process. Returns its exit if it has exited already."""
        exit_ = self.early.pop(pid, None)
        if exit_ is None:
            self._registered.add(pid)
        return exit_

    def forget(self, pid: int) -> None:
        """Forget a process that has exited, since its pid may be reused."""
        self._registered.discard(pid)
        for process in [process for process in self._unconfirmed if process.pid == pid]:
            del self._unconfirmed[process]

    def schedule_parent_check(self, process: ProcessIdentity, on_forged: Callable[[str], None]) -> None:
        """Check later that the process has become the keeper's child; if not, call `on_forged` with an error text."""
        if process.start is None or not self.keeper_pid:
            return
        loop = asyncio.get_running_loop()
        self._unconfirmed[process] = loop.time() + _CONFIRM_TIMEOUT_SECONDS, on_forged
        if self._confirm_timer is None:
            self._confirm_timer = loop.call_later(_FIRST_CHECK_SECONDS, self._confirm_parentage)

    def _confirm_parentage(self) -> None:
        loop = asyncio.get_running_loop()
        self._confirm_timer = None
        for process, (until, on_forged) in list(self._unconfirmed.items()):
            if parent_and_start(process.pid) == (self.keeper_pid, process.start):
                del self._unconfirmed[process]
            elif loop.time() >= until:
                del self._unconfirmed[process]
                self._registered.discard(process.pid)
                on_forged(f"named pid {process.pid} as a new process, but it is not a process of the pool")
        if self._unconfirmed:
            self._confirm_timer = loop.call_later(_FIRST_CHECK_SECONDS, self._confirm_parentage)

    def kill_group_now(self, process: ProcessIdentity) -> None:
        """Have the keeper kill the process and its session, if the process is still the keeper's child."""
        if process.start is not None:
            self.signal_group_now(process, signal.SIGKILL)

    def signal_group_now(self, process: ProcessIdentity, number: int) -> None:
        """Have the keeper signal the process group that the process leads, or has led. Does not wait."""
        self._keeper.send(_signal_message(process, number, group=True))

    def continue_now(self, process: ProcessIdentity) -> None:
        """Have the keeper let the process run if it is suspended, so that it reads its orders. Does not wait."""
        self._keeper.send(_signal_message(process, signal.SIGCONT, group=False))

    async def try_signal(
        self, process: ProcessIdentity, exited: asyncio.Future[T], number: int, *, group: bool = False
    ) -> bool:
        """Have the keeper signal the process or, with `group`, its process group, unless the process has `exited`.

        Returns False if the keeper has not sent the signal.
        """
        order = _signal_message(process, number, group=group)
        with contextlib.suppress(LinkLost, TimeoutError):
            # Repeated, because the keeper becomes the parent a moment after the fork.
            for _ in range(_SIGNAL_TRIES):
                async with asyncio.timeout(_KEEPER_SECONDS):
                    reply, _ = await self._keeper.call(order)
                if reply["sent"] or exited.done():
                    return True
                await asyncio.sleep(_SIGNAL_AGAIN_SECONDS)
        return False

    def kill_group_after(self, process: ProcessIdentity, exited: asyncio.Future[T], seconds: float) -> None:
        """Kill the process and its session if `exited` is not done within that time. Does not wait."""

        async def kill_unless_exited() -> None:
            await asyncio.wait({exited}, timeout=seconds)
            if not exited.done():
                await self.try_signal(process, exited, signal.SIGKILL, group=True)

        task = asyncio.ensure_future(kill_unless_exited())
        self._killing.add(task)
        task.add_done_callback(self._killing.discard)


def _signal_message(process: ProcessIdentity, number: int, *, group: bool) -> Message:
    return {"op": "signal", "pid": process.pid, "start": process.start, "signal": number, "group": group}
