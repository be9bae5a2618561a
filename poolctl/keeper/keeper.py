"""The keeper: holds descriptors, starts and reaps programs. It knows nothing about servers and makes no decisions.

    keeper DIRECTORY PLAN [BEGUN]
    keeper DIRECTORY LINK_FD

In the first form the supervisor is the only client, and may die at any moment: the keeper restarts it, and sends the
new supervisor all reports that the old one has not acknowledged. PLAN is a JSON object with these members:

- `supervisor`: the supervisor's argument vector
- `control`: the descriptor of its listener
- `lifeline`: -1, or a socket whose end of file requests the shutdown of the pool
- `lock`: -1, or the descriptor of the pool's lock
- `inherited`: the names of systemd's sockets, and of listeners that come back from its descriptor store
- `begun`: the names of children started before the keeper; BEGUN holds their pids (see spawn.start_with_companions)
- `without`: the variables removed from the environment of the other children

Systemd's sockets have the descriptors after `control`, `lifeline` and `lock`. The links to the `begun` children come
last.

A supervisor that has lost its keeper gives the new keeper a plan with `supervisor`, `donor` and `donor_process`.
`donor`: a link over which the supervisor sends everything. `donor_process`: the supervisor's pid and start time.

In the second form the client is the program that holds the other end of LINK_FD; when it exits, everything ends.

The pool shuts down within a time limit, with or without a supervisor.

For an upgrade, the next version's supervisor is started first. Once it has adopted the pool, the keeper upgrades itself
by execve(2), which keeps the pid, the children with their exit statuses, the subreaper flag, and every inheritable
descriptor; the rest of its state is passed to the next program in a file in memory. If the next supervisor exits before
that, the earlier one is started, unless it has been removed or replaced on disk. SIGUSR1 asks a keeper without a
supervisor to start the supervisor named in the file fd_store.UPGRADE.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import select
import signal
import socket
import sys
import time

from ..clock import HungProcessDetector
from ..platform import (
    become_subreaper,
    close_all,
    memory_file,
    name_process,
    raise_descriptor_limit,
    read_file,
)
from . import fd_store, pool_files, wire
from .channels import Channel, DonorSupervisor
from .reap import Reaper, wait_or_kill_children
from .shutdown import ENDING, UPGRADE, Shutdown, Signals
from .spawn import spawn
from .store import Store, fill_and_find_supervisor, put_close_on_exec
from .supervisor_process import SupervisorProcess

LAST_OUTPUT_SECONDS = 1.0


class Keeper:
    """Holds descriptors, starts and reaps programs, and reports their exits.

    A donor is a supervisor whose keeper was killed or is to be replaced: it sends every descriptor to this keeper, and
    keeps its own duplicates until the supervisor started by this keeper has received them.
    """

    def __init__(self, directory: str, supervisor: list[str], open_files: tuple[int, int]) -> None:
        self.store = Store()
        self.reaper = Reaper(self.store.keeps_group)
        self._directory = directory
        self._no_supervisor = os.path.join(directory, fd_store.NO_SUPERVISOR)
        self._supervisor = SupervisorProcess(supervisor, directory, time.monotonic())
        self._watchdog = HungProcessDetector(0.0)
        self._lifeline = -1
        self._open_files = open_files
        self._client: Channel | None = None
        self._donor: DonorSupervisor | None = None
        self._shutdown = Shutdown(self.store, self.reaper, directory)
        # The argument vectors of the next keeper and its supervisor. That supervisor starts when this one has exited.
        self._requested_upgrade: tuple[list[str], list[str]] | None = None
        self._next_keeper: list[str] = []  # the argument vector of the next keeper
        self._is_upgrade_due = False  # the next version's supervisor has adopted the pool

    def take_over_descriptors(self, plan: wire.Message) -> None:
        """If `plan` has a donor, begin to receive the donor's descriptors. Otherwise store the plan's descriptors."""
        pool_files.unlink_quietly(self._no_supervisor)
        if "donor" in plan:
            self._begin_from_donor(
                DonorSupervisor(wire.socket_from_fd(plan["donor"]), plan["donor_process"], time.monotonic())
            )
            return
        begun = fill_and_find_supervisor(self.store, plan)
        self._take_lifeline()
        if begun is not None:
            pid, link = begun
            self._supervisor.record_start(pid, time.monotonic())
            self.begin_client_session(wire.socket_from_fd(link))

    def resume(self, file: int) -> None:
        """Restore the state in `file`, written by the keeper that this process was before execve(2)."""
        state: wire.Message = json.loads(read_file(file))
        os.close(file)
        for name, meta, fds in state["entries"]:
            put_close_on_exec(self.store, name, meta, fds)
        watched = {int(pid): start for pid, start in state["watched"].items()}
        self.reaper.resume(state["unheard"], state["sequence"], watched, state["left_groups"])
        self._open_files = tuple(state["open_files"])
        self._take_lifeline()
        now = time.monotonic()
        self._supervisor.record_start(state["supervisor_pid"], now)
        self._supervisor.record_adoption()
        self._client = Channel(wire.socket_from_fd(state["client"]))
        self._watchdog = HungProcessDetector(now)
        self._watchdog.received(now)

    def _begin_from_donor(self, donor: DonorSupervisor) -> None:
        """Begin to receive the donor's descriptors. If another keeper holds the lock, refuse the donor and exit."""
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
        donor.ping_or_kill(time.monotonic(), early=True)

    def begin_client_session(self, sock: socket.socket) -> None:
        """Accept a new client, and send it the reports that the previous one did not acknowledge."""
        self._client = Channel(sock)
        self._watchdog = HungProcessDetector(time.monotonic())
        self._client.send(self._hello())
        for report in self.reaper.unacknowledged:
            self._client.send(report)
        if self._shutdown.begun:
            self._client.send({"event": "terminate"})

    def _hello(self) -> wire.Message:
        return {"event": "hello", "pid": os.getpid(), "open_files": self._open_files}

    def run(self) -> None:
        """Serve until the pool has ended, or the time limit of its shutdown has passed; then kill what is left."""
        self._signals = Signals()
        # Children that exited earlier have not been reported yet.
        self._process_exit_reports(self.reaper.reap())
        while not (self._shutdown.over and not self._supervisor.pid):
            now = time.monotonic()
            due = self._supervisor.due
            if due is not None and now >= due and not self._shutdown.over and not self._shutdown.alone:
                sock = self._supervisor.start(now)
                if sock is not None:
                    self.begin_client_session(sock)
                else:
                    self._choose_next_supervisor()
            self._poll()
            if self._supervisor.pid:
                self._ping_or_kill_supervisor(time.monotonic())
            if self._donor is not None:
                self._donor.ping_or_kill(time.monotonic())
            if self._shutdown.tick(time.monotonic(), self._supervisor.pid):
                break
            if self._is_upgrade_due:
                self._try_execute_next_version()
        self._shutdown.kill_and_close_store()
        pool_files.unlink_quietly(self._no_supervisor)
        # If the keeper stopped the pool alone, the logger still needs time to store the servers' last output.
        wait_or_kill_children(LAST_OUTPUT_SECONDS if self._shutdown.alone else 0.0)
        pool_files.clean_up_pool_directory(self._directory)

    def _choose_next_supervisor(self) -> None:
        """Choose the version of the supervisor to start after one has exited, or could not be started.

        After repeated failures, `run` ends if the store holds no sockets or workers; otherwise a file informs clients.
        """
        if self._requested_upgrade is not None:
            self._try_version(*self._requested_upgrade)
        elif self._supervisor.give_up_candidate():
            self.store.release_to_another_version()
        if self._supervisor.given_up:
            with contextlib.suppress(OSError):
                os.close(os.open(self._no_supervisor, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600))
            self._shutdown.over = self._shutdown.over or not self.store.holds_work
            self._shutdown.expect_no_supervisor(time.monotonic())

    def _try_version(self, argv: list[str], supervisor: list[str]) -> None:
        """Have `run` start the supervisor of another version, and after it has adopted the pool the keeper `argv`."""
        self._requested_upgrade, self._next_keeper = None, argv
        self._supervisor.try_candidate(supervisor, time.monotonic())
        self.store.release_to_another_version()

    def _ping_or_kill_supervisor(self, now: float) -> None:
        if self._watchdog.check_for_hang(now):
            with contextlib.suppress(ProcessLookupError):
                os.kill(self._supervisor.pid, signal.SIGKILL)
            self._watchdog = HungProcessDetector(now)
        elif self._client is not None and self._watchdog.mark_ping_sent_if_due(now):
            self._client.send({"event": "ping"})

    def _poll(self) -> None:
        poll = select.poll()
        poll.register(self._signals, select.POLLIN)
        poll.register(self.reaper.watcher, select.POLLIN)
        poll.register(self.reaper.left_groups, select.POLLIN)
        for channel in (self._client, self._donor):
            if channel is not None:
                poll.register(channel.sock, select.POLLIN | (select.POLLOUT if channel.blocked else 0))
        if self._lifeline >= 0:
            poll.register(self._lifeline, select.POLLIN)
        for fd, events in poll.poll(self._timeout_milliseconds()):
            if fd == self._signals.fileno():
                self._process_signals()
            elif fd == self.reaper.watcher.fileno():
                self._process_exit_reports(self.reaper.report_exited())
            elif fd == self.reaper.left_groups.fileno():
                self._process_exit_reports(self.reaper.report_gone())
            elif fd == self._lifeline:
                self._terminate_if_lifeline_closed()
            else:
                self._serve_channel(fd, events)

    def _timeout_milliseconds(self) -> int | None:
        due = [self._supervisor.due, self._shutdown.due, self._watchdog.due if self._supervisor.pid else None]
        due.append(self._donor.due if self._donor is not None else None)
        moments = [moment for moment in due if moment is not None]
        return max(0, int((min(moments) - time.monotonic()) * 1000) + 1) if moments else None

    def _process_signals(self) -> None:
        received = self._signals.read()
        # Requests first: they may store the entry of a process that has already exited, and the entry decides what
        # happens to its process group.
        self._perform_arrived_requests()
        self._process_exit_reports(self.reaper.reap())
        if not {*ENDING}.isdisjoint(received):
            self._request_shutdown()
        elif UPGRADE in received:
            self._try_requested_version()

    def _try_requested_version(self) -> None:
        """Start the supervisor that a client has named in a file, unless a supervisor manages the pool."""
        path = os.path.join(self._directory, fd_store.UPGRADE)
        with contextlib.suppress(OSError, ValueError, LookupError), open(path, "rb") as file:
            os.unlink(path)
            request = json.load(file)
            if not self._supervisor.has_adopted and not self._shutdown.begun:
                self._try_version(request["argv"], request["supervisor"])

    def _process_exit_reports(self, reports: list[wire.Message]) -> None:
        for report in reports:
            if report["pid"] == self._supervisor.pid:
                # The supervisor sent them before it exited, but its exit may be noticed first.
                self._perform_arrived_requests()
                self._close_client()
                self._supervisor.schedule_restart(time.monotonic())
                self._choose_next_supervisor()
                self._shutdown.over = self._shutdown.over or self._shutdown.last
            elif self._client is not None:
                self._client.send(report)

    def _try_execute_next_version(self) -> None:
        """Replace this process by the next version of the keeper, which continues with the connected supervisor.

        Does nothing while messages to the supervisor or signals wait. Also returns if the program cannot be executed,
        or the state not be written: this keeper then continues with its state unchanged.
        """
        client = self._client
        if client is None or client.blocked or not self._supervisor.has_adopted or self._donor is not None:
            return
        signals = select.poll()
        signals.register(self._signals, select.POLLIN)
        # Signals that arrive from here on stay pending for the next program.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, (*ENDING, UPGRADE))
        kept: list[int] = []
        try:
            if self._shutdown.begun or signals.poll(0):
                return
            self._is_upgrade_due = False
            state = {
                "entries": (rows := self.store.rows()),
                "unheard": self.reaper.unacknowledged,
                "sequence": self.reaper.sequence,
                "watched": self.reaper.watcher.starts,
                "left_groups": self.reaper.left_groups.leaders,
                "open_files": self._open_files,
                "client": client.sock.fileno(),
                "supervisor_pid": self._supervisor.pid,
            }
            file = memory_file("poolctl-keeper", json.dumps(state).encode())
            kept += [file, client.sock.fileno(), *(fd for _, _, fds in rows for fd in fds)]
            for fd in kept:
                os.set_inheritable(fd, True)
            plan = {"supervisor": self._supervisor.command, "restored": file}
            os.execv(self._next_keeper[0], [*self._next_keeper, json.dumps(plan)])
        except OSError:
            for fd in kept:
                os.set_inheritable(fd, False)
            close_all(kept[:1])
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)

    def _terminate_if_lifeline_closed(self) -> None:
        received = b""
        with contextlib.suppress(ConnectionResetError):  # the other end has left notifications unread
            received = os.read(self._lifeline, 4096)
        if not received:
            self.store.drop(fd_store.LIFELINE)
            self._lifeline = -1
            self._request_shutdown()

    def _request_shutdown(self) -> None:
        """Begin the shutdown of the pool.

        A connected client is asked to stop the pool. If no client is connected and the store holds no sockets or
        workers, `run` returns.
        """
        self._shutdown.start_confirmation_deadline(time.monotonic())
        if self._client is not None:
            self._client.send({"event": "terminate"})
        elif not self.store.holds_work:
            self._shutdown.over = True
        elif self._supervisor.given_up:
            self._shutdown.expect_no_supervisor(time.monotonic())

    def _serve_channel(self, fd: int, events: int) -> None:
        for channel in (self._client, self._donor):
            if channel is not None and fd == channel.sock.fileno():
                if events & select.POLLOUT:
                    channel.flush()
                if events & ~select.POLLOUT:
                    self._perform_next_request(channel)

    def _perform_arrived_requests(self) -> None:
        while self._client is not None and self._perform_next_request(self._client):
            pass

    def _perform_next_request(self, channel: Channel) -> bool:
        """Perform the next request that has arrived; returns whether there was one."""
        try:
            received = wire.receive(channel.sock)
        except BlockingIOError:
            return False
        except wire.WireError as error:
            channel.send(({} if error.number is None else {"id": error.number}) | {"error": str(error)})
            return True
        except OSError:
            received = None
        if received is None:
            self._handle_closed_channel(channel)
            return False
        message, fds = received
        (channel if isinstance(channel, DonorSupervisor) else self._watchdog).received(time.monotonic())
        reply, reply_fds = self.answer(message, fds)
        if message.get("id") is not None:
            channel.send(reply, reply_fds)
        if reply.get("report") is not None:
            self._process_exit_reports([reply["report"]])
        return True

    def answer(self, message: wire.Message, fds: list[int]) -> tuple[wire.Message, list[int]]:
        """Perform one request; return the reply and the descriptors to send with it, which the keeper still owns.

        The request's own descriptors are closed unless they are put into the keeper's store. A failure is reported in
        the reply.
        """
        reply: wire.Message = {"id": message.get("id")}
        try:
            return reply, self._perform(message, fds, reply)
        except Exception as error:
            # Any exception is caught: if the keeper failed, the whole pool would end.
            reply["error"] = str(error) or repr(error)
            reply["errno"] = getattr(error, "errno", None)
            return reply, []
        finally:
            close_all(fds)

    def _perform(self, message: wire.Message, fds: list[int], reply: wire.Message) -> list[int]:
        operation = message["op"]
        if operation == "get":
            reply["meta"], stored = self.store.get(message["name"]) or (None, [])
            return stored
        if operation == "put":
            self.store.put(message["name"], message.get("meta"), [*fds])
            fds.clear()  # the store owns them now
        elif operation == "drop":
            self.store.drop(message["name"])
        elif operation == "note":
            self.store.replace_meta(message["name"], message.get("meta"))
        elif operation == "list":
            reply["entries"] = self.store.page(message.get("after", ""))
        elif operation == "spawn":
            file = message["output"]  # null: the last descriptor
            reply["pid"] = spawn(
                message["argv"],
                message.get("env"),
                fds if file else fds[:-1],
                file or fds[-1],
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
            self._control_keeper_lifecycle(message)
        return []

    def _control_keeper_lifecycle(self, message: wire.Message) -> None:
        operation = message["op"]
        if operation == "end":
            self._shutdown.over = True
        elif operation == "last":
            self._shutdown.last = True
        elif operation == "upgrade":
            if not self._shutdown.begun:
                self._requested_upgrade = message["argv"], message["supervisor"]
        elif operation == "terminating":
            self._shutdown.set_stop_deadline(float(message.get("seconds", 0.0)))
        elif operation == "terminate":
            self._request_shutdown()
        elif operation == "whole":
            self._schedule_supervisor_start()
        elif operation == "adopted":
            if self._supervisor.record_adoption():
                self._is_upgrade_due = True
            pool_files.unlink_quietly(self._no_supervisor)
            if self._donor is not None:
                self._donor.send({"event": "adopted"})
        elif operation not in ("ping", "pong"):
            raise ValueError(f"unknown operation {operation!r}")

    def _schedule_supervisor_start(self) -> None:
        """Have `run` start the supervisor, if none runs. Called when the donor (see Keeper) is done or exits."""
        self._take_lifeline()
        if not self._supervisor.pid:
            self._supervisor.due = time.monotonic()

    def _take_lifeline(self) -> None:
        _, fds = self.store.get(fd_store.LIFELINE) or (None, [])
        self._lifeline = fds[0] if fds else -1

    def _handle_closed_channel(self, channel: Channel) -> None:
        if channel is self._donor:
            channel.close()
            self._donor = None
            if not self._supervisor.pid and self._supervisor.due is None:
                # The donor exited before it had sent everything. The new supervisor uses the descriptors that were
                # received, and finds the other processes itself.
                self._schedule_supervisor_start()
                self._shutdown.over = self._shutdown.over or self.store.get(fd_store.CONTROL) is None
            return
        # SIGCHLD also reports the exit of a supervisor; only the closed connection reports the exit of other clients.
        self._close_client()
        self._shutdown.over = self._shutdown.over or not self._supervisor.command

    def _close_client(self) -> None:
        if self._client is not None:
            self._client.close()
            self._client = None


def _detach_from_log() -> None:
    """Redirect stderr to /dev/null: once the keeper runs, the log belongs to the supervisor."""
    null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
    os.dup2(null, 2)
    os.close(null)


def main() -> None:
    """Run the keeper described by the arguments until the pool has ended."""
    directory, argument, *begun = sys.argv[1:]
    name_process("poolctl-keeper")
    if begun:
        _detach_from_log()
    become_subreaper()
    open_files = raise_descriptor_limit()
    try:
        if argument.startswith("{"):
            plan: wire.Message = {"open_files": open_files, "pids": []}
            for part in (argument, *begun):
                plan |= json.loads(part)
            keeper = Keeper(directory, plan["supervisor"], tuple(plan["open_files"]))
            if "restored" in plan:
                keeper.resume(plan["restored"])
            else:
                keeper.take_over_descriptors(plan)
        else:
            keeper = Keeper(directory, [], open_files)
            keeper.begin_client_session(wire.socket_from_fd(int(argument)))
        keeper.run()
    except BaseException:
        import traceback  # imported late, because it is rarely needed

        with open(os.path.join(directory, "supervisor.log"), "a") as log:
            traceback.print_exc(file=log)
        raise
