"""The keeper's loop: signals, the lifeline, the client and its requests. It takes no decisions about servers."""

from __future__ import annotations

import contextlib
import fcntl
import os
import select
import signal
import socket
import time

from ..clock import Watchdog
from . import fd_store, wire
from .fd_store import Store, fill
from .keeper_clients import Channel, Donor, SupervisorProcess
from .keeper_exit import LAST_OUTPUT_SECONDS, Shutdown, Signals, execute_next, restore
from .reap import Reaper, kill_children
from .spawn import spawn

VERSION = 2


class Keeper:
    """Holds descriptors, starts and reaps programs, and reports their exits.

    A donor is the supervisor of a keeper that was killed or is to be replaced: it sends every descriptor to be kept,
    and holds its own duplicates until the supervisor started by this keeper has received them.
    """

    def __init__(self, directory: str, supervisor: list[str], open_files: tuple[int, int]) -> None:
        self.store = Store()
        self.reaper = Reaper()
        self._directory = directory
        self._supervisor = SupervisorProcess(supervisor, directory, time.monotonic())
        self._watchdog = Watchdog(0.0)
        self._lifeline = -1
        self._open_files = open_files
        self._client: Channel | None = None
        self._donor: Donor | None = None
        self._shutdown = Shutdown(self.store, self.reaper, directory)
        self._next: tuple[list[str], list[str]] | None = None  # the next version, and its supervisor

    def begin(self, plan: wire.Message) -> None:
        """Put the descriptors with which this process was started into the store."""
        if "donor" in plan:
            self._begin_after(Donor(wire.over(plan["donor"]), plan["donor_process"], time.monotonic()))
            return
        begun = fill(self.store, plan)
        self._take_lifeline()
        if begun is not None:
            pid, link = begun
            self._supervisor.begun(pid, time.monotonic())
            self.attach(wire.over(link))

    def resume(self, file: int) -> None:
        """Restore the state of the program that this process ran before."""
        self._open_files = restore(file, self.store, self.reaper)
        self._take_lifeline()

    def _begin_after(self, donor: Donor) -> None:
        """Receive everything from a supervisor that has lost its keeper. Only one keeper does so at a time."""
        self._supervisor.due = None
        try:
            # Locked until this process exits: two supervisors may have lost the same keeper.
            lock = os.open(f"{self._directory}/keeper.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            donor.send({"event": "refused", "reason": str(error)})
            self._shutdown.over = True
            return
        self._donor = donor
        donor.send(self._hello())
        donor.check(time.monotonic(), early=True)

    def attach(self, sock: socket.socket) -> None:
        """Accept a new client, and send it the reports that the previous one did not acknowledge."""
        self._client = Channel(sock)
        self._watchdog = Watchdog(time.monotonic())
        self._client.send(self._hello())
        for report in self.reaper.unacknowledged:
            self._client.send(report)
        if self._shutdown.begun:
            self._client.send({"event": "terminate"})

    def _hello(self) -> wire.Message:
        return {"event": "hello", "version": VERSION, "pid": os.getpid(), "open_files": self._open_files}

    def run(self) -> None:
        """Serve until the client reports the end of the pool, or exceeds its time limit after a stop request."""
        self._signals = Signals()
        # Children that exited before are not reported yet.
        self._report(self.reaper.reap())
        while not (self._shutdown.over and not self._supervisor.pid):
            now = time.monotonic()
            due = self._supervisor.due
            if due is not None and now >= due and not self._shutdown.over and not self._shutdown.alone:
                self._start()
            self._poll()
            if self._supervisor.pid:
                self._check_watchdog(time.monotonic())
            if self._donor is not None:
                self._donor.check(time.monotonic())
            if self._shutdown.check(time.monotonic(), self._supervisor.pid):
                break
        self._shutdown.finish()
        # Without a supervisor, the logger has had no time yet to store the servers' last output.
        kill_children(LAST_OUTPUT_SECONDS if self._shutdown.alone else 0.0)
        self._shutdown.leave()

    def _start(self) -> None:
        sock = self._supervisor.start(time.monotonic())
        if sock is not None:
            self.attach(sock)
        else:
            self._end_if_given_up()

    def _end_if_given_up(self) -> None:
        """End if the supervisor cannot be started and nothing depends on it."""
        if self._supervisor.given_up and not self.store.holds_work:
            self._shutdown.over = True

    def _check_watchdog(self, now: float) -> None:
        if self._watchdog.is_silent(now):
            with contextlib.suppress(ProcessLookupError):
                os.kill(self._supervisor.pid, signal.SIGKILL)
            self._watchdog = Watchdog(now)
        elif self._client is not None and self._watchdog.should_ping(now):
            self._client.send({"event": "ping"})

    def _poll(self) -> None:
        poll = select.poll()
        poll.register(self._signals, select.POLLIN)
        poll.register(self.reaper.watcher, select.POLLIN)
        for channel in (self._client, self._donor):
            if channel is not None:
                poll.register(channel.sock, select.POLLIN | (select.POLLOUT if channel.blocked else 0))
        if self._lifeline >= 0:
            poll.register(self._lifeline, select.POLLIN)
        for fd, events in poll.poll(self._timeout_milliseconds()):
            if fd == self._signals.fileno():
                self._signalled()
            elif fd == self.reaper.watcher.fileno():
                self._report(self.reaper.ended())
            elif fd == self._lifeline:
                self._lifeline_ended()
            else:
                self._ready(fd, events)

    def _timeout_milliseconds(self) -> int | None:
        due = [self._supervisor.due, self._shutdown.due, self._watchdog.due if self._supervisor.pid else None]
        due.append(self._donor.due if self._donor is not None else None)
        moments = [moment for moment in due if moment is not None]
        return max(0, int((min(moments) - time.monotonic()) * 1000) + 1) if moments else None

    def _signalled(self) -> None:
        to_end = self._signals.taken()
        self._report(self.reaper.reap())
        if to_end:
            self._terminate()

    def _report(self, reports: list[wire.Message]) -> None:
        for report in reports:
            if report["pid"] == self._supervisor.pid:
                self._detach()
                self._supervisor.died(time.monotonic())
                self._shutdown.over = self._shutdown.over or self._shutdown.last
                self._become_next_version()
                self._end_if_given_up()
            elif self._client is not None:
                self._client.send(report)

    def _become_next_version(self) -> None:
        """Execute the next version, if the supervisor has exited for that."""
        following, self._next = self._next, None
        if following is not None:
            execute_next(*following, self.store, self.reaper, self._open_files)

    def _lifeline_ended(self) -> None:
        if not os.read(self._lifeline, 4096):
            self.store.drop(fd_store.LIFELINE)
            self._lifeline = -1
            self._terminate()

    def _terminate(self) -> None:
        """Ask the client to stop the pool; the time limit runs whether or not it answers."""
        self._shutdown.begin(time.monotonic())
        if self._client is not None:
            self._client.send({"event": "terminate"})
        elif not self.store.holds_work:
            self._shutdown.over = True

    def _ready(self, fd: int, events: int) -> None:
        for channel in (self._client, self._donor):
            if channel is not None and fd == channel.sock.fileno():
                if events & select.POLLOUT:
                    channel.flush()
                if events & ~select.POLLOUT:
                    self._request(channel)

    def _request(self, channel: Channel) -> None:
        try:
            received = wire.receive(channel.sock)
        except BlockingIOError:
            return
        except wire.WireError as error:
            channel.send({"error": str(error)})
            return
        except OSError:
            received = None
        if received is None:
            self._closed(channel)
            return
        message, fds = received
        (channel if isinstance(channel, Donor) else self._watchdog).received(time.monotonic())
        reply, found = self.answer(message, fds)
        if message.get("id") is not None:
            channel.send(reply, found)
        if reply.get("report") is not None:
            self._report([reply["report"]])

    def answer(self, message: wire.Message, fds: list[int]) -> tuple[wire.Message, list[int]]:
        """Perform one request; the reply and the descriptors that go with it, which stay the store's.

        The request's own descriptors are closed, unless they are put into the store. A failure is reported in the
        reply.
        """
        reply: wire.Message = {"id": message.get("id")}
        kept = False
        try:
            if message["op"] == "put":
                self.store.put(message["name"], message.get("meta"), fds)
                kept = True
                return reply, []
            return reply, self._perform(message, fds, reply)
        except Exception as error:
            # Any exception: if the keeper failed, the whole pool would end.
            reply["error"] = str(error) or repr(error)
            reply["errno"] = getattr(error, "errno", None)
            return reply, []
        finally:
            if not kept:
                for fd in fds:
                    os.close(fd)

    def _perform(self, message: wire.Message, fds: list[int], reply: wire.Message) -> list[int]:
        """Handle a request about the store or a child."""
        operation = message["op"]
        if operation == "get":
            reply["meta"], found = self.store.get(message["name"]) or (None, [])
            return found
        if operation == "drop":
            self.store.drop(message["name"])
        elif operation == "note":
            self.store.note(message["name"], message.get("meta"))
        elif operation == "list":
            reply["entries"] = self.store.page(message.get("after", ""))
        elif operation == "spawn":
            reply["pid"] = spawn(
                message["argv"],
                message.get("env"),
                fds,
                message["output"],
                session=message["session"],
                without=message.get("without", ()),
            )
        elif operation == "signal":
            reply["sent"] = self.reaper.signal(
                message["pid"],
                message["signal"],
                group=message.get("group", False),
                start=message.get("start"),
            )
        elif operation == "heard":
            self.reaper.acknowledge(message["sequence"])
        elif operation == "watch":
            reply["report"] = self.reaper.watch(message["pid"], message["start"])
        else:
            self._handle(message)
        return []

    def _handle(self, message: wire.Message) -> None:
        """Handle a request about this process itself."""
        operation = message["op"]
        if operation == "end":
            self._shutdown.over = True
        elif operation == "last":
            self._shutdown.last = True
        elif operation == "renew":
            if not self._shutdown.begun:
                # Done when the supervisor, which is already exiting, has exited.
                self._next = message["argv"], message["supervisor"]
        elif operation == "terminating":
            self._shutdown.answered(float(message.get("seconds", 0.0)))
        elif operation == "terminate":
            self._terminate()
        elif operation == "whole":
            self._whole()
        elif operation == "adopted":
            self._supervisor.adopted()
            if self._donor is not None:
                self._donor.send({"event": "adopted"})
        elif operation not in ("ping", "pong"):
            raise ValueError(f"unknown operation {operation!r}")

    def _whole(self) -> None:
        """Start the supervisor, because the store is complete."""
        self._take_lifeline()
        if not self._supervisor.pid:
            self._supervisor.due = time.monotonic()

    def _take_lifeline(self) -> None:
        _, fds = self.store.get(fd_store.LIFELINE) or (None, [])
        self._lifeline = fds[0] if fds else -1

    def _closed(self, channel: Channel) -> None:
        if channel is self._donor:
            channel.close()
            self._donor = None
            if not self._supervisor.pid and self._supervisor.due is None:
                # It exited before it had sent everything. The supervisor uses the received descriptors, and finds
                # the rest.
                self._whole()
                self._shutdown.over = self._shutdown.over or self.store.get(fd_store.CONTROL) is None
            return
        # A supervisor's exit is reported by SIGCHLD; another client's only by the end of its connection.
        self._detach()
        self._shutdown.over = self._shutdown.over or not self._supervisor.command

    def _detach(self) -> None:
        if self._client is not None:
            self._client.close()
            self._client = None
