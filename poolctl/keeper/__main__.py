"""The keeper: holds descriptors, starts programs, reaps. It knows no servers and makes no decision.

    keeper DIRECTORY PLAN
    keeper DIRECTORY LINK_FD

In the first form the supervisor, its only client, may die at any moment; the keeper starts it again and reports to the
new one what the old one did not hear. PLAN is a JSON object: `supervisor`, its argument vector; `control`, the
descriptor of its listener; `lifeline`, -1 or a pipe whose end of file asks for the end of the pool; `inherited`, the
names of systemd's sockets, which follow it; `helpers`, programs to start at once, by the name under which their socket
is kept. In the second form the client is the program that made the other end of LINK_FD, and everything ends with it.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import socket
import sys
import time
import traceback
from collections import deque
from typing import Any

from ..platform import become_subreaper, name_process, raise_descriptor_limit
from . import wire
from .reap import Reaper, signal_child
from .spawn import spawn
from .store import Store

VERSION = 1
STOP_SECONDS = 30.0
_BACKOFF_SECONDS = (0.0, 0.1, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0)
_STEADY_SECONDS = 60.0
# A supervisor that cannot even start is tried so often while the keeper holds nothing that is worth it.
_HOPELESS = 4


class Keeper:
    def __init__(
        self, directory: str, supervisor: list[str], lifeline: int, open_files: tuple[int, int]
    ) -> None:
        self.directory = directory
        self.command = supervisor
        self.lifeline = lifeline
        self.open_files = open_files
        self.store = Store()
        self.reaper = Reaper()
        self.supervisor_pid = 0
        self.link: socket.socket | None = None
        self.outbox: deque[tuple[wire.Message, list[int]]] = deque()
        self.failures = 0
        self.started_at = 0.0
        self.start_at: float | None = time.monotonic()
        self.ending = False
        self.deadline: float | None = None

    def begin(self, plan: dict[str, Any]) -> None:
        """Take what this process was started with into the store, and start the helpers."""
        self.store.put("control", None, [plan["control"]])
        if names := plan["inherited"]:
            first = max(plan["control"], self.lifeline) + 1
            self.store.put("inherited", names, list(range(first, first + len(names))))
        for name, argv in plan["helpers"].items():
            ours, theirs = wire.pair()
            with theirs:
                spawn(argv, None, [theirs.fileno()], f"{self.directory}/helpers.log", session=True)
            self.store.put(name, None, [ours.detach()])

    # The loop: signals, the lifeline, the supervisor.

    def run(self) -> None:
        self.wake, waker = socket.socketpair()
        self.wake.setblocking(False)
        waker.setblocking(False)
        signal.set_wakeup_fd(waker.fileno(), warn_on_full_buffer=False)
        for number in (signal.SIGCHLD, signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, lambda *_: None)
        while not (self.ending and not self.supervisor_pid):
            self._start_supervisor_when_due()
            self._poll()
            if self.deadline is not None and time.monotonic() >= self.deadline:
                break
        self._kill_all()

    def _poll(self) -> None:
        poll = select.poll()
        poll.register(self.wake, select.POLLIN)
        if self.link is not None:
            poll.register(self.link, select.POLLIN | (select.POLLOUT if self.outbox else 0))
        if self.lifeline >= 0:
            poll.register(self.lifeline, select.POLLIN)
        for fd, events in poll.poll(self._timeout_milliseconds()):
            if fd == self.wake.fileno():
                self._signals()
            elif fd == self.lifeline:
                self._lifeline()
            elif self.link is not None and fd == self.link.fileno():
                if events & select.POLLOUT:
                    self._flush(self.link)
                if events & ~select.POLLOUT:
                    self._request(self.link)

    def _timeout_milliseconds(self) -> int | None:
        due = [moment for moment in (self.start_at, self.deadline) if moment is not None]
        return max(0, int((min(due) - time.monotonic()) * 1000) + 1) if due else None

    def _signals(self) -> None:
        numbers = self.wake.recv(4096)
        for report in self.reaper.reap():
            if report["pid"] == self.supervisor_pid:
                self._supervisor_died()
            else:
                self._tell(report)
        if any(number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP) for number in numbers):
            self._terminate()

    def _lifeline(self) -> None:
        if not os.read(self.lifeline, 4096):
            os.close(self.lifeline)
            self.lifeline = -1
            self._terminate()

    def _terminate(self) -> None:
        """Ask the supervisor to stop the pool; after STOP_SECONDS the keeper does it alone."""
        if not self.supervisor_pid and not self.store.holds_work:
            self.ending = True
        if self.deadline is None:
            self.deadline = time.monotonic() + STOP_SECONDS
        self._tell({"event": "terminate"})

    def _kill_all(self) -> None:
        while True:
            with open(f"/proc/self/task/{os.getpid()}/children") as file:
                found = file.read().split()
            if not found:
                return
            for child in map(int, found):
                for kill in (os.killpg, os.kill):
                    with contextlib.suppress(ProcessLookupError):
                        kill(child, signal.SIGKILL)
            with contextlib.suppress(ChildProcessError):
                os.wait()

    # The supervisor's life.

    def _start_supervisor_when_due(self) -> None:
        if self.ending or self.start_at is None or time.monotonic() < self.start_at:
            return
        self.start_at = None
        self.started_at = time.monotonic()
        ours, theirs = wire.pair()
        log = os.path.join(self.directory, "supervisor.log")
        self.supervisor_pid = spawn(self.command, None, [theirs.fileno()], log, session=False)
        theirs.close()
        self.attach(ours)

    def _supervisor_died(self) -> None:
        self.supervisor_pid = 0
        self._detach()
        steady = time.monotonic() - self.started_at > _STEADY_SECONDS
        self.failures = 0 if steady else self.failures + 1
        pause = _BACKOFF_SECONDS[min(max(self.failures - 1, 0), len(_BACKOFF_SECONDS) - 1)]
        self.start_at = time.monotonic() + pause
        if self.failures >= _HOPELESS and not self.store.holds_work:
            self.ending = True

    def _tell(self, message: wire.Message, fds: list[int] | tuple[int, ...] = ()) -> None:
        # A supervisor that is gone hears it later: reports are kept until they are acknowledged.
        if self.link is not None:
            self.outbox.append((message, [os.dup(fd) for fd in fds]))
            self._flush(self.link)

    def _flush(self, link: socket.socket) -> None:
        """Send what the supervisor takes now: one that is stopped or stuck must not hold up the reaping."""
        while self.outbox:
            message, fds = self.outbox[0]
            try:
                wire.send(link, message, fds)
            except BlockingIOError:
                return
            except OSError:
                self._empty_outbox()
                return
            self.outbox.popleft()
            for fd in fds:
                os.close(fd)

    def _empty_outbox(self) -> None:
        for _, fds in self.outbox:
            for fd in fds:
                os.close(fd)
        self.outbox.clear()

    def attach(self, link: socket.socket) -> None:
        link.setblocking(False)
        self.link = link
        self._tell({"event": "hello", "version": VERSION, "pid": os.getpid(), "open_files": self.open_files})
        for report in self.reaper.unheard:
            self._tell(report)
        if self.deadline is not None:
            self._tell({"event": "terminate"})

    def _detach(self) -> None:
        if self.link is not None:
            self.link.close()
            self.link = None
        self._empty_outbox()

    # Requests.

    def _request(self, link: socket.socket) -> None:
        try:
            received = wire.receive(link)
        except BlockingIOError:
            return
        except (OSError, wire.WireError) as error:
            self._tell({"error": str(error)})
            return
        if received is None:
            self._detach()
            self.ending = self.ending or not self.command
            return
        message, fds = received
        reply: wire.Message = {"id": message.get("id")}
        out: list[int] = []
        try:
            out = self._perform(message, fds, reply)
        except (OSError, KeyError, TypeError, ValueError) as error:
            reply["error"] = str(error)
            reply["errno"] = getattr(error, "errno", None)
        if message.get("id") is not None:
            self._tell(reply, out)

    def _perform(self, message: wire.Message, fds: list[int], reply: wire.Message) -> list[int]:
        operation = message["op"]
        if operation == "put":
            self.store.put(message["name"], message.get("meta"), fds)
            return []
        try:
            if operation == "get":
                meta, kept = self.store.get(message["name"]) or (None, [])
                reply["meta"] = meta
                return kept
            if operation == "drop":
                self.store.drop(message["name"])
            elif operation == "note":
                self.store.note(message["name"], message.get("meta"))
            elif operation == "list":
                reply["entries"] = self.store.page(message.get("after", ""))
            elif operation == "spawn":
                reply["pid"] = spawn(
                    message["argv"], message.get("env"), fds, message["output"], session=message["session"]
                )
            elif operation == "signal":
                reply["sent"] = signal_child(
                    message["pid"], message["signal"], group=message.get("group", False)
                )
            elif operation == "heard":
                self.reaper.heard(message["sequence"])
            elif operation == "end":
                self.ending = True
            else:
                raise ValueError(f"unknown operation {operation!r}")
        finally:
            for fd in fds:
                os.close(fd)
        return []


def main() -> None:
    """Run the keeper described by the arguments until the pool has ended."""
    directory, argument = sys.argv[1:]
    name_process("poolctl-keeper")
    become_subreaper()
    open_files = raise_descriptor_limit()
    if argument.startswith("{"):
        plan = json.loads(argument)
        keeper = Keeper(directory, plan["supervisor"], plan["lifeline"], open_files)
        keeper.begin(plan)
    else:
        keeper = Keeper(directory, [], -1, open_files)
        keeper.start_at = None
        keeper.attach(wire.over(int(argument)))
    try:
        keeper.run()
    except BaseException:
        with open(os.path.join(directory, "supervisor.log"), "a") as log:
            traceback.print_exc(file=log)
        raise
