"""Starts, watches, replaces and ends the gateway's process, next to the supervisor.

The keeper also holds the sockets of the process and the link to it, so that the next supervisor can adopt it.
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import sys
from collections import deque
from typing import ClassVar, Self

from poolctl.bootstrap import command
from poolctl.errors import ServerError
from poolctl.json_form import Table
from poolctl.keeper import wire
from poolctl.monitor.event_queue import EventBus
from poolctl.runners.process_link import Link, LinkHandler, LinkLost, ProcessWatchdog, identity, kill, spawn
from poolctl.units import format_duration

UP_SECONDS = 30.0
_ENDS_SECONDS = 10.0
_FIRST_PAUSE_SECONDS = 0.2
_LONGEST_PAUSE_SECONDS = 30.0
# If this many exits occur within the time below, restarting does not help.
_UNSTABLE_ENDS = 3
_UNSTABLE_SECONDS = 600.0

logger = logging.getLogger("poolctl.supervisor")


class SidecarProcess(LinkHandler):
    """A process, such as the gateway, controlled over the socket `sock`. `mark` identifies its version and settings.

    `known` has its pid and start time; `part` is the package that it runs. `exited` is done when it exits by itself.
    """

    part: ClassVar[str]
    label: ClassVar[str]
    output: ClassVar[str]  # the name of its log in the runtime directory

    def __init__(self, sock: socket.socket, known: Table, mark: str) -> None:
        self.mark = mark
        self.known = known
        self.up = asyncio.Event()
        self.began = asyncio.get_running_loop().time()
        self.exited: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._watched: ProcessWatchdog | None = None
        # The exit is not reported at once: the link may be found lost by the first message that is sent.
        self.link = Link(sock, self)
        self._watched = ProcessWatchdog(self.link, known, f"{self.label}'s process")

    @classmethod
    async def spawn(cls, keeper: Link, directory: str, mark: str, part: str = "") -> Self:
        """Have the keeper start the package `part` (default: `cls.part`), which then waits for a first message.

        Its log is in `directory`. `mark` identifies its version and settings. Raises LinkLost.
        """
        ours, theirs = wire.pair()
        argv = command(sys.executable, part or cls.part)
        try:
            pid = await spawn(keeper, argv, os.path.join(directory, cls.output), theirs)
        except BaseException:
            ours.close()
            raise
        return cls(ours, identity(pid), mark)

    @classmethod
    async def adopt(cls, keeper: Link, entry: str) -> Self | None:
        """Return the process whose connection the keeper holds as `entry`, None if it holds none. Raises LinkLost."""
        reply, fds = await keeper.call({"op": "get", "name": entry})
        return cls(wire.socket_from_fd(fds[0]), reply["meta"], str(reply["meta"]["mark"])) if fds else None

    def save_to_keeper(self, keeper: Link, entry: str) -> None:
        """Put the connection to the process into the keeper's store as `entry`, for the next supervisor."""
        meta = {**self.known, "mark": self.mark}
        keeper.send({"op": "put", "name": entry, "meta": meta}, [self.link.sock.fileno()])

    async def wait_until_ready(self, directory: str) -> None:
        """Wait until the process serves. If it exits or takes too long, end it and raise LinkLost or TimeoutError.

        `directory` is where its log is.
        """
        try:
            async with asyncio.timeout(UP_SECONDS):
                await self.up.wait()
            if self.link.sock.fileno() < 0:
                output = os.path.join(directory, self.output)
                raise LinkLost(f"its process ended at its start; see {output}")
        except BaseException:
            self.end()
            raise

    async def wait_until_performed(self) -> None:
        """Wait until the process has carried out every order sent so far. Raises LinkLost."""
        await self.link.call({"t": "performed"})

    def end(self) -> None:
        """Ask the process to exit, without waiting; it is killed later if it hangs.

        A process that hangs would hold its listeners forever.
        """
        self.end_with({"t": "end"}, _ENDS_SECONDS)

    def end_with(self, order: wire.Message, seconds: float) -> None:
        """Send this last order, without waiting; the process is killed if it still runs after `seconds`."""
        self._stop_watching()
        self.link.send(order)
        self.link.close()
        asyncio.get_running_loop().call_later(seconds, kill, self.known)

    def received(self, message: wire.Message, fds: list[int]) -> None:
        if self._watched is not None:
            self._watched.received()
        if message.get("t") == "up":
            self.up.set()

    def _stop_watching(self) -> None:
        if self._watched is not None:
            self._watched.stop_watching()
            self._watched = None

    def on_link_lost(self) -> None:
        asyncio.get_running_loop().call_soon(self._mark_exited)

    def _mark_exited(self) -> None:
        self._stop_watching()
        self.up.set()
        if not self.exited.done():
            self.exited.set_result(None)


class SidecarManager:
    """Keeps a process running as configured, and restarts it with backoff; `problem` is why it is not up, or "".

    No method raises: the pool does not depend on the process. A subclass applies the configuration in `_reconcile`,
    which is called again after a pause if it has failed or the process has exited.
    """

    label: ClassVar[str]
    entry: ClassVar[str]  # the link's name in the keeper's store
    first_pause_seconds: ClassVar[float] = _FIRST_PAUSE_SECONDS
    calm_seconds: ClassVar[float] = 60.0  # after a longer life the process is restarted after the first pause

    def __init__(self, keeper: Link, events: EventBus) -> None:
        self.problem = ""
        self.failures: tuple[ServerError, ...] = ()  # why part of the configuration is not in force
        self.restarts = 0  # the number of exits of its process that were not ordered
        self._ends: deque[float] = deque(maxlen=_UNSTABLE_ENDS)
        self._keeper = keeper
        self._events = events
        self._process: SidecarProcess | None = None
        self._pause_seconds = self.first_pause_seconds
        self._turn = asyncio.Lock()
        self._work: set[asyncio.Task[None]] = set()
        self._changed = asyncio.Event()  # set and replaced at each change
        self._tried = asyncio.Event()  # set once it is known whether it can listen
        # Numbers of configurations: the newest, the one being applied, and the last one that was applied or failed.
        self._configured_times = self._reconciling_times = self._attempted_times = 0
        self._retry: asyncio.TimerHandle | None = None
        self._over = False

    @property
    def instability(self) -> str:
        """A message if the process keeps exiting, else ""."""
        ended = len(self._ends) == _UNSTABLE_ENDS
        if not ended or asyncio.get_running_loop().time() - self._ends[0] > _UNSTABLE_SECONDS:
            return ""
        return f"its process has ended {_UNSTABLE_ENDS} times within {format_duration(_UNSTABLE_SECONDS)}"

    async def wait_for_opening_attempt(self) -> None:
        """Wait until the process has opened its addresses or failed to; `problem` has the reason of a failure."""
        await self._tried.wait()

    async def aclose(self) -> None:
        """End the process; from now on connections are refused."""
        self._over = True
        if self._retry is not None:
            self._retry.cancel()
        for task in list(self._work):
            task.cancel()
        async with self._turn:
            await self._shut_down()

    async def _reconcile(self) -> None:
        raise NotImplementedError

    async def _shut_down(self) -> None:
        raise NotImplementedError

    def _on_configured(self) -> None:
        """Call `_reconcile` soon, because the configuration has changed."""
        self._pause_seconds = self.first_pause_seconds
        self._configured_times += 1
        self._tried.clear()
        self._schedule_reconcile()

    def _schedule_reconcile(self) -> None:
        task = asyncio.ensure_future(self._reconcile_now())
        self._work.add(task)
        task.add_done_callback(self._work.discard)

    async def _reconcile_now(self) -> None:
        async with self._turn:
            if self._over:
                return
            times = self._reconciling_times = self._configured_times
            try:
                await self._reconcile()
            except ServerError as error:
                self._failed(error)
            except (LinkLost, OSError, TimeoutError) as error:
                self._failed(ServerError(str(error) or "its process does not come up"))
            except Exception as error:
                logger.exception("%s could not be started", self.label)
                self._failed(ServerError(repr(error)))
            self._attempted_times = times
            self._release_opening_waiters()
        self._notify_changed()

    def _release_opening_waiters(self) -> None:
        """Let `wait_for_opening_attempt` return if this attempt was made for the newest configuration."""
        if self._reconciling_times == self._configured_times:
            self._tried.set()

    def _notify_changed(self) -> None:
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()

    def _failed(self, *failures: ServerError) -> None:
        self._report_problem(*failures)
        self._schedule_retry()

    def _succeeded(self) -> None:
        self.failures, self.problem = (), ""

    def _report_problem(self, *failures: ServerError) -> None:
        self.failures = failures
        problem = "; ".join(each.message for each in failures)
        if problem != self.problem:
            self.problem = problem
            logger.error("%s: %s", self.label, problem)
            name = self.label.removeprefix("the ")
            self._events.record("pool", f"{name} failed", message=problem)

    def _schedule_retry(self) -> None:
        if self._retry is not None:
            self._retry.cancel()
        if not self._over:
            self._retry = asyncio.get_running_loop().call_later(self._pause_seconds, self._schedule_reconcile)
            self._pause_seconds = min(
                max(self._pause_seconds * 2, _FIRST_PAUSE_SECONDS), _LONGEST_PAUSE_SECONDS
            )

    def _store_and_watch(self, process: SidecarProcess) -> None:
        """Use `process` from now on, and let the keeper hold its connection, so that the next supervisor finds it."""
        process.save_to_keeper(self._keeper, self.entry)
        self._manage_process(process)

    def _manage_process(self, process: SidecarProcess) -> None:
        """Manage `process` from now on, and handle its exit. The keeper already holds the connection to the process."""
        self._process = process
        process.exited.add_done_callback(lambda _: self._handle_process_exit(process))

    def _handle_process_exit(self, process: SidecarProcess) -> None:
        if self._process is not process:
            return
        self._process = None
        self.restarts += 1
        self._ends.append(asyncio.get_running_loop().time())
        self._keeper.send({"op": "drop", "name": self.entry})
        logger.error("%s's process has ended; another one is started", self.label)
        self._events.record(
            "pool",
            f"{self.label.removeprefix('the ')} ended",
            message=f"{self.label}'s process has ended; another one is started",
            severity="warning",
            pid=process.known.get("pid"),
        )
        if asyncio.get_running_loop().time() - process.began > self.calm_seconds:
            self._pause_seconds = self.first_pause_seconds
        self._schedule_retry()

    def _end_process(self) -> None:
        if self._process is not None:
            process, self._process = self._process, None
            self._keeper.send({"op": "drop", "name": self.entry})
            process.end()
