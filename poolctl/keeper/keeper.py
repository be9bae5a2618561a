"""The keeper's loop: signals, the lifeline, the client."""

from __future__ import annotations

import contextlib
import fcntl
import os
import select
import signal
import socket
import time

from . import stored, wire
from .beginning import take_in
from .channel import Channel
from .charge import Charge
from .donor import Donor
from .ending import LAST_WORDS_SECONDS, Ending, kill_children
from .pulse import Pulse
from .reap import Reaper
from .renewal import Renewal, restore
from .requests import answer
from .signals import Signals
from .store import Store

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

VERSION = 2


class Keeper:
    """Holds, starts, reaps, reports; `run` returns when the pool has ended, and nothing of it is left.

    A donor is the supervisor of a keeper that was killed, or is to be replaced: it gives us all that is to be kept,
    and keeps it too, until a supervisor of ours has it.
    """

    def __init__(self, directory: str, supervisor: list[str], open_files: tuple[int, int]) -> None:
        self.store = Store()
        self.reaper = Reaper()
        self._directory = directory
        self._charge = Charge(supervisor, directory, time.monotonic())
        self._pulse = Pulse(0.0)
        self._lifeline = -1
        self._open_files = open_files
        self._client: Channel | None = None
        self._donor: Donor | None = None
        self._ending = Ending(self.store, self.reaper, directory)
        self._renewal: Renewal | None = None

    def begin(self, plan: dict[str, Any]) -> None:
        """Take what this process was started with into the store."""
        if "donor" in plan:
            self._begin_after(Donor(wire.over(plan["donor"]), plan.get("donor_process"), time.monotonic()))
            return
        begun = take_in(plan, self.store)
        self._take_lifeline()
        if begun is not None:
            pid, link = begun
            self._charge.begun(pid, time.monotonic())
            self.attach(wire.over(link))

    def resume(self, file: int) -> None:
        """Go on where the program that this process was before has stopped."""
        self._open_files = restore(file, self.store, self.reaper)
        self._take_lifeline()

    def _begin_after(self, donor: Donor) -> None:
        """Take everything from a supervisor whose keeper is gone. Only one keeper does so at a time."""
        self._charge.due = None
        try:
            # Held for as long as we live: two supervisors may have lost the same keeper.
            lock = os.open(f"{self._directory}/keeper.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            donor.tell({"event": "refused", "reason": str(error)})
            self._ending.over = True
            return
        self._donor = donor
        donor.tell(self._hello())
        donor.look(time.monotonic(), early=True)

    def attach(self, sock: socket.socket) -> None:
        """Take a new client, and tell it what the one before has not heard."""
        self._client = Channel(sock)
        self._pulse = Pulse(time.monotonic())
        self._client.tell(self._hello())
        for report in self.reaper.unheard:
            self._client.tell(report)
        if self._ending.begun:
            self._client.tell({"event": "terminate"})

    def _hello(self) -> wire.Message:
        return {"event": "hello", "version": VERSION, "pid": os.getpid(), "open_files": self._open_files}

    def run(self) -> None:
        """Serve until the client has said that it is over, or has been asked to end and did not in time."""
        self._signals = Signals()
        # What ended before has told nobody.
        self._report(self.reaper.reap())
        while not (self._ending.over and not self._charge.pid):
            now = time.monotonic()
            due = self._charge.due
            if due is not None and now >= due and not self._ending.over and not self._ending.alone:
                self._start()
            self._poll()
            if self._charge.pid:
                self._feel_pulse(time.monotonic())
            if self._donor is not None:
                self._donor.look(time.monotonic())
            if self._ending.check(time.monotonic(), self._charge.pid):
                break
        self._ending.finish()
        # Without a supervisor nobody has waited until the logger has stored the servers' last words.
        kill_children(LAST_WORDS_SECONDS if self._ending.alone else 0.0)

    def _start(self) -> None:
        sock = self._charge.start(time.monotonic())
        if sock is not None:
            self.attach(sock)
        else:
            self._despair()

    def _despair(self) -> None:
        """End if the supervisor cannot be started and nothing depends on it."""
        if self._charge.hopeless and not self.store.holds_work:
            self._ending.over = True

    def _feel_pulse(self, now: float) -> None:
        if self._pulse.is_silent(now):
            with contextlib.suppress(ProcessLookupError):
                os.kill(self._charge.pid, signal.SIGKILL)
            self._pulse = Pulse(now)
        elif self._client is not None and self._pulse.should_ask(now):
            self._client.tell({"event": "ping"})

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
                self._spoken_to(fd, events)

    def _timeout_milliseconds(self) -> int | None:
        due = [self._charge.due, self._ending.due, self._pulse.due if self._charge.pid else None]
        due.append(self._donor.due if self._donor is not None else None)
        moments = [moment for moment in due if moment is not None]
        return max(0, int((min(moments) - time.monotonic()) * 1000) + 1) if moments else None

    def _signalled(self) -> None:
        told_to_end = self._signals.taken()
        self._report(self.reaper.reap())
        if told_to_end:
            self._terminate()

    def _report(self, reports: list[wire.Message]) -> None:
        for report in reports:
            if report["pid"] == self._charge.pid:
                self._detach()
                self._charge.died(time.monotonic())
                self._ending.over = self._ending.over or self._ending.last
                self._renew()
                self._despair()
            elif self._client is not None:
                self._client.tell(report)

    def _renew(self) -> None:
        """Become another version, if that is what the supervisor has ended for."""
        renewal, self._renewal = self._renewal, None
        if renewal is not None:
            renewal.take_place(self.store, self.reaper, self._open_files)

    def _lifeline_ended(self) -> None:
        if not os.read(self._lifeline, 4096):
            self.store.drop(stored.LIFELINE)
            self._lifeline = -1
            self._terminate()

    def _terminate(self) -> None:
        """Ask the client to stop the pool; one that does not answer is not waited for."""
        self._ending.begin(time.monotonic())
        if self._client is not None:
            self._client.tell({"event": "terminate"})
        elif not self.store.holds_work:
            self._ending.over = True

    def _spoken_to(self, fd: int, events: int) -> None:
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
            channel.tell({"error": str(error)})
            return
        except OSError:
            received = None
        if received is None:
            self._hung_up(channel)
            return
        message, fds = received
        (channel if isinstance(channel, Donor) else self._pulse).heard(time.monotonic())
        self._take_note(message)
        reply, found = answer(message, fds, self.store, self.reaper)
        if message.get("id") is not None:
            channel.tell(reply, found)
        if reply.get("report") is not None:
            self._report([reply["report"]])

    def _take_note(self, message: wire.Message) -> None:
        """What concerns this process, and not its store or its children."""
        operation = message.get("op")
        if operation == "end":
            self._ending.over = True
        elif operation == "last":
            self._ending.last = True
        elif operation == "renew" and not self._ending.begun:
            # When the supervisor has gone, which does so by itself now.
            self._renewal = Renewal(message["argv"], message["supervisor"])
        elif operation == "terminating":
            self._ending.answered(float(message.get("seconds", 0.0)))
        elif operation == "terminate":
            self._terminate()
        elif operation == "whole":
            self._whole()
        elif operation == "adopted" and self._donor is not None:
            self._donor.tell({"event": "adopted"})

    def _whole(self) -> None:
        """The store is filled: the supervisor can begin."""
        self._take_lifeline()
        if not self._charge.pid:
            self._charge.due = time.monotonic()

    def _take_lifeline(self) -> None:
        _, fds = self.store.get(stored.LIFELINE) or (None, [])
        self._lifeline = fds[0] if fds else -1

    def _hung_up(self, channel: Channel) -> None:
        if channel is self._donor:
            channel.close()
            self._donor = None
            if not self._charge.pid and self._charge.due is None:
                # It died before it had given everything. What is here goes on; the rest is found by the supervisor.
                self._whole()
                self._ending.over = self._ending.over or self.store.get(stored.CONTROL) is None
            return
        # The end of a supervisor is reported by its death; of another client this is all there is.
        self._detach()
        self._ending.over = self._ending.over or not self._charge.command

    def _detach(self) -> None:
        if self._client is not None:
            self._client.close()
            self._client = None
