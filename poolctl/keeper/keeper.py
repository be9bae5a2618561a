"""The keeper's loop: signals, the lifeline, the client."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import socket
import time
from typing import Any

from . import wire
from .channel import Channel
from .charge import Charge
from .reap import Reaper
from .requests import answer
from .spawn import spawn
from .store import Store

VERSION = 1
STOP_SECONDS = 30.0
_ENDING = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


class Keeper:
    """Holds, starts, reaps, reports; `run` returns when the pool has ended, and nothing of it is left."""

    def __init__(
        self, directory: str, supervisor: list[str], lifeline: int, open_files: tuple[int, int]
    ) -> None:
        self.store = Store()
        self.reaper = Reaper()
        self._directory = directory
        self._charge = Charge(supervisor, directory, time.monotonic())
        self._lifeline = lifeline
        self._open_files = open_files
        self._client: Channel | None = None
        self._ending = False
        self._deadline: float | None = None

    def begin(self, plan: dict[str, Any]) -> None:
        """Take what this process was started with into the store, and start the helpers."""
        self.store.put("control", None, [plan["control"]])
        if names := plan["inherited"]:
            first = max(plan["control"], self._lifeline) + 1
            self.store.put("inherited", names, list(range(first, first + len(names))))
        for name, argv in plan["helpers"].items():
            ours, theirs = wire.pair()
            with theirs:
                spawn(argv, None, [theirs.fileno()], f"{self._directory}/helpers.log", session=True)
            self.store.put(name, None, [ours.detach()])

    def attach(self, sock: socket.socket) -> None:
        """Take a new client, and tell it what the one before has not heard."""
        self._client = Channel(sock)
        hello = {"event": "hello", "version": VERSION, "pid": os.getpid(), "open_files": self._open_files}
        self._client.tell(hello)
        for report in self.reaper.unheard:
            self._client.tell(report)
        if self._deadline is not None:
            self._client.tell({"event": "terminate"})

    def run(self) -> None:
        """Serve until the client has said that it is over, or has been asked to end and did not in time."""
        self._wake, waker = socket.socketpair()
        self._wake.setblocking(False)
        waker.setblocking(False)
        signal.set_wakeup_fd(waker.fileno(), warn_on_full_buffer=False)
        for number in (signal.SIGCHLD, *_ENDING):
            signal.signal(number, lambda *_: None)
        while not (self._ending and not self._charge.pid):
            due = self._charge.due
            if due is not None and time.monotonic() >= due and not self._ending:
                self._start()
            self._poll()
            if self._deadline is not None and time.monotonic() >= self._deadline:
                break
        kill_children()

    def _start(self) -> None:
        sock = self._charge.start(time.monotonic())
        if sock is not None:
            self.attach(sock)
        else:
            self._despair()

    def _despair(self) -> None:
        """End if the supervisor cannot be started and nothing depends on it."""
        if self._charge.hopeless and not self.store.holds_work:
            self._ending = True

    def _poll(self) -> None:
        poll = select.poll()
        poll.register(self._wake, select.POLLIN)
        if self._client is not None:
            poll.register(self._client.sock, select.POLLIN | (select.POLLOUT if self._client.blocked else 0))
        if self._lifeline >= 0:
            poll.register(self._lifeline, select.POLLIN)
        for fd, events in poll.poll(self._timeout_milliseconds()):
            if fd == self._wake.fileno():
                self._signals()
            elif fd == self._lifeline:
                self._lifeline_ended()
            elif self._client is not None and fd == self._client.sock.fileno():
                if events & select.POLLOUT:
                    self._client.flush()
                if events & ~select.POLLOUT:
                    self._request(self._client)

    def _timeout_milliseconds(self) -> int | None:
        due = [moment for moment in (self._charge.due, self._deadline) if moment is not None]
        return max(0, int((min(due) - time.monotonic()) * 1000) + 1) if due else None

    def _signals(self) -> None:
        numbers = self._wake.recv(4096)
        for report in self.reaper.reap():
            if report["pid"] == self._charge.pid:
                self._detach()
                self._charge.died(time.monotonic())
                self._despair()
            elif self._client is not None:
                self._client.tell(report)
        if any(number in _ENDING for number in numbers):
            self._terminate()

    def _lifeline_ended(self) -> None:
        if not os.read(self._lifeline, 4096):
            os.close(self._lifeline)
            self._lifeline = -1
            self._terminate()

    def _terminate(self) -> None:
        """Ask the client to stop the pool; after STOP_SECONDS the keeper does it alone."""
        if self._deadline is None:
            self._deadline = time.monotonic() + STOP_SECONDS
        if self._client is not None:
            self._client.tell({"event": "terminate"})
        elif not self.store.holds_work:
            self._ending = True

    def _request(self, client: Channel) -> None:
        try:
            received = wire.receive(client.sock)
        except BlockingIOError:
            return
        except (OSError, wire.WireError) as error:
            client.tell({"error": str(error)})
            return
        if received is None:
            # The end of a supervisor is reported by its death; of another client this is all there is.
            self._detach()
            self._ending = self._ending or not self._charge.command
            return
        message, fds = received
        if message.get("op") == "end":
            self._ending = True
        reply, found = answer(message, fds, self.store, self.reaper)
        if message.get("id") is not None:
            client.tell(reply, found)

    def _detach(self) -> None:
        if self._client is not None:
            self._client.close()
            self._client = None


def kill_children() -> None:
    """Kill and reap every child, with its process group, until there is none."""
    while True:
        with open(f"/proc/self/task/{os.getpid()}/children") as file:
            children = file.read().split()
        if not children:
            return
        for child in map(int, children):
            for kill in (os.killpg, os.kill):
                with contextlib.suppress(ProcessLookupError):
                    kill(child, signal.SIGKILL)
        with contextlib.suppress(ChildProcessError):
            os.wait()
