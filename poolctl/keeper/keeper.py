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
supervisor to start the one named in the file fd_store.UPGRADE.
"""

from __future__ import annotations

import contextlib
import fcntl
import itertools
import json
import os
import select
import signal
import socket
import sys
import time
from collections import deque

from .. import __version__
from ..clock import HungProcessDetector
from ..platform import (
    become_subreaper,
    memory_file,
    name_process,
    process_start,
    raise_descriptor_limit,
    read_file,
)
from ..private_directory import recreate_pool_directory
from . import fd_store, pool_files, wire
from .reap import KILLED_SECONDS, Reaper, is_child, signal_process, wait_or_kill_children
from .spawn import log_failure, spawn

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any


# Entries of workers, and of the process groups that exited workers have left.
_WORKERS = (fd_store.WORKER, fd_store.LEFT_GROUP)
_PAGE = 200
_PAGE_BYTES = wire.MAX_PACKET_BYTES // 2


class Store:
    """Named entries, each with a few descriptors and a small JSON value that describes them."""

    def __init__(self) -> None:
        self._entries: dict[str, tuple[Any, list[int]]] = {}

    @property
    def holds_work(self) -> bool:
        """Whether the store holds sockets or workers, not only inherited descriptors and the supervisor's state."""
        return any(":" in name for name in self._entries)

    def put(self, name: str, meta: object, fds: list[int]) -> None:
        """Store `fds` under `name`, and take ownership of them. An earlier entry of this name is closed."""
        self.drop(name)
        self._entries[name] = (meta, fds)

    def replace_meta(self, name: str, meta: object) -> None:
        """Replace the value of an entry, if it exists."""
        if name in self._entries:
            self._entries[name] = (meta, self._entries[name][1])

    def get(self, name: str) -> tuple[Any, list[int]] | None:
        """The value and the descriptors of the entry `name`, which still owns them; None if there is no such entry."""
        return self._entries.get(name)

    def drop(self, name: str) -> None:
        """Close and remove the entry `name`, if it exists."""
        _, fds = self._entries.pop(name, (None, []))
        for fd in fds:
            wire.close_with_unread_descriptors(fd)

    def values(self, *prefixes: str) -> list[Any]:
        """The values of the entries whose names start with one of `prefixes`."""
        return [value for name, (value, _) in self._entries.items() if name.startswith(prefixes)]

    def keeps_group(self, pid: int) -> bool:
        """Whether the process is a worker whose process group is left running when it exits."""
        return any(meta["pid"] == pid and meta.get("keeps_group") for meta in self.values(*_WORKERS))

    def release_to_another_version(self) -> None:
        """Drop the zygotes, and clear the marks of helpers: a supervisor of another version starts its own."""
        self.clear(*fd_store.OF_THE_VERSION)
        for meta, _ in self._entries.values():
            if isinstance(meta, dict) and "mark" in meta:
                meta["mark"] = ""

    def rows(self) -> list[tuple[str, object, list[int]]]:
        """All entries, as tuples of name, value and descriptors. The store still owns the descriptors."""
        return [(name, value, fds) for name, (value, fds) in self._entries.items()]

    def clear(self, *prefixes: str) -> None:
        """Close and remove the entries whose names start with one of `prefixes`; without an argument all of them."""
        for name in list(self._entries):
            if name.startswith(prefixes or ("",)):
                self.drop(name)

    def page(self, after: str) -> list[list[object]]:
        """`[name, value]` rows after the name `after`, in name order: as many as fit into a packet, at most 200."""
        names = sorted(name for name in self._entries if name > after)[:_PAGE]
        rows = [[name, self._entries[name][0]] for name in names]
        sizes = itertools.accumulate(len(json.dumps(row)) for row in rows)
        return rows[: max(1, sum(size <= _PAGE_BYTES for size in sizes))]


def fill_and_find_supervisor(store: Store, plan: wire.Message) -> tuple[int, int] | None:
    """Put the descriptors in `plan` into the store. Return the supervisor's pid and link, or None if it is not running.

    A child whose pid is 0 in the plan could not be started: the store gets no entry for it.
    """
    control, names = plan["control"], plan["inherited"]
    lifeline, lock = plan.get("lifeline", -1), plan.get("lock", -1)
    first = max(control, lifeline, lock) + 1
    _keep(store, fd_store.CONTROL, None, [control])
    for name, fd in ((fd_store.LIFELINE, lifeline), (fd_store.LOCK, lock)):
        if fd >= 0:
            _keep(store, name, None, [fd])
    inherited = [*zip(names, range(first, first + len(names)), strict=True)]
    if given := [each for each in inherited if not is_returned(each[0])]:
        _keep(store, fd_store.INHERITED, [name for name, _ in given], [fd for _, fd in given])
    for returned in sorted({name for name in names if is_returned(name)}):
        _keep(store, returned, None, [fd for name, fd in inherited if name == returned])
    supervisor = None
    links = itertools.count(first + len(names))
    for name, pid, link in zip(plan["begun"], plan["pids"], links, strict=False):
        if not pid:
            os.close(link)
        elif name == fd_store.SUPERVISOR:
            supervisor = pid, link
        else:
            # Workers inherit a zygote's environment: the supervisor decides whether it matches.
            without = plan.get("without", [])
            meta = {"without": without, "pid": pid, "start": process_start(pid), "mark": __version__}
            _keep(store, name, meta, [link])
    return supervisor


def is_returned(name: str) -> bool:
    """Whether this is the name of listeners that an earlier run of a pool has stored in the service manager."""
    digits = name.removeprefix(fd_store.RETURNED)
    return name != digits and len(digits) == fd_store.RETURNED_DIGITS and not digits.strip("0123456789abcdef")


def _keep(store: Store, name: str, meta: object, fds: list[int]) -> None:
    for fd in fds:
        # Otherwise every started program would inherit it.
        os.set_inheritable(fd, False)
    store.put(name, meta, fds)


class Channel:
    """One client's connection. No method blocks, since a stopped or hung client must not delay reaping."""

    def __init__(self, sock: socket.socket) -> None:
        sock.setblocking(False)
        self.sock = sock
        self._waiting: deque[tuple[wire.Message, list[int]]] = deque()

    @property
    def blocked(self) -> bool:
        """Whether messages wait in the queue, because the client's socket has no room for them."""
        return bool(self._waiting)

    def send(self, message: wire.Message, fds: list[int] | tuple[int, ...] = ()) -> None:
        """Send a message, or queue it until the client's socket has room. The caller still owns the descriptors."""
        copies: list[int] = []
        try:
            for fd in fds:
                copies.append(os.dup(fd))
        except OSError as error:
            _close(copies)
            message, copies = {"id": message.get("id"), "error": str(error)}, []
        self._waiting.append((message, copies))
        self.flush()

    def flush(self) -> None:
        """Send as many queued messages as the client's socket takes.

        If the client has exited, the queue is dropped: unacknowledged reports are sent to the next client again.
        """
        while self._waiting:
            message, fds = self._waiting[0]
            try:
                wire.send(self.sock, message, fds)
            except BlockingIOError:
                return
            except wire.WireError as error:
                _close(fds)
                self._waiting[0] = ({"id": message.get("id"), "error": str(error)}, [])
                continue
            except OSError:
                self._drop_queue()
                return
            self._waiting.popleft()
            _close(fds)

    def close(self) -> None:
        """Close the connection."""
        self.sock.close()
        self._drop_queue()

    def _drop_queue(self) -> None:
        for _, fds in self._waiting:
            _close(fds)
        self._waiting.clear()


class DonorSupervisor(Channel):
    """The link to a supervisor whose own keeper was lost: the supervisor sends its descriptors to this keeper.

    `process` is the supervisor's pid and start time. A supervisor that stops answering pings gets SIGCONT, then
    SIGKILL. All times are on one monotonic clock.
    """

    def __init__(self, sock: socket.socket, process: wire.Message, now: float) -> None:
        super().__init__(sock)
        self._pid, self._start = int(process["pid"]), int(process["start"] or 0)
        self._restart_watchdog(now)

    def _restart_watchdog(self, now: float) -> None:
        self._watchdog = HungProcessDetector(now)
        # The donor already runs: the long timeout for the first message of a starting process does not apply.
        self._watchdog.received(now)

    @property
    def due(self) -> float:
        """The time of the next `check`."""
        return self._watchdog.due

    def received(self, now: float) -> None:
        """Record that the supervisor sent a message at the time `now`."""
        self._watchdog.received(now)

    def ping_or_kill(self, now: float, *, early: bool = False) -> None:
        """Ping the supervisor if a ping is due or `early` is set; signal it if an answer is overdue."""
        if self._watchdog.check_for_hang(now):
            signal_process(self._pid, self._start, signal.SIGKILL)
            self._restart_watchdog(now)
        elif self._watchdog.may_be_stopped:
            # The supervisor may have been stopped.
            signal_process(self._pid, self._start, signal.SIGCONT)
        elif self._watchdog.mark_ping_sent_if_due(now, early=early):
            self.send({"event": "ping"})


def _close(fds: list[int]) -> None:
    for fd in fds:
        os.close(fd)


_BACKOFF_SECONDS = (0.0, 0.1, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0)
_STEADY_SECONDS = 60.0
_FAILURES_UNTIL_GIVEN_UP = 4
_CALM_FROM = 5


class SupervisorProcess:
    """Starts the supervisor, and restarts it with backoff when it exits.

    `candidate` is the next version's supervisor during an upgrade, else empty: it is started instead of `command`, and
    replaces `command` once it has adopted the pool (`has_adopted`). All times are in seconds on one monotonic clock.
    """

    def __init__(self, command: list[str], directory: str, now: float) -> None:
        self.command = command
        self.candidate: list[str] = []
        self.pid = 0
        self.due: float | None = now if command else None
        self._log = os.path.join(directory, "supervisor.log")
        self._failures = 0
        self._deaths: list[float] = []
        self._started = 0.0
        self.has_adopted = False
        self._running = command  # started last

    def start(self, now: float) -> socket.socket | None:
        """Start the supervisor; return the keeper's end of the link. On failure, schedule a retry and return None."""
        self._started, self.has_adopted = now, False
        self._running = self.candidate or self.command
        with contextlib.ExitStack() as if_failed:
            try:
                ours, theirs = wire.pair()
                if_failed.enter_context(ours)
                with theirs:
                    recreate_pool_directory(os.path.dirname(self._log))
                    calm = [fd_store.CALM] if self.calm else []
                    self.pid = spawn(
                        [*self._running, *calm], None, [theirs.fileno()], self._log, session=False
                    )
            except OSError as error:
                log_failure(self._log, self._running, error)
                self.schedule_restart(now)
                return None
            if_failed.pop_all()
        self.due = None
        return ours

    def record_start(self, pid: int, now: float) -> None:
        """Record that the process `pid`, a running child of the keeper, is the supervisor."""
        self.pid, self._started, self.due, self.has_adopted = pid, now, None, False

    def record_adoption(self) -> bool:
        """Record that the supervisor now manages the pool; return whether it is the candidate."""
        is_candidate = bool(self.candidate) and self._running == self.candidate
        self.has_adopted, self.command, self.candidate = True, self._running, []
        return is_candidate

    def try_candidate(self, command: list[str], now: float) -> None:
        """Start the supervisor of another version, at once or after the exit of the one that runs."""
        self.candidate, self._failures, self._deaths = command, 0, []
        if not self.pid:
            self.due = now

    def give_candidate_up(self) -> bool:
        """Return to the earlier command if the candidate has exited, and its interpreter and program are still there.

        Returns whether this was done. In the same environment both commands are equal: there is nothing to return to.
        """
        has_failed = bool(self.candidate) and self._running == self.candidate != self.command
        # See bootstrap.command: the words before and after the interpreter's option.
        if not has_failed or not all(map(os.path.exists, self.command[:3:2])):
            return False
        self.candidate = []
        return True

    def schedule_restart(self, now: float) -> None:
        """Schedule the restart of a supervisor that has exited.

        There is no delay after `record_adoption`, unless the supervisor has crashed repeatedly (see `calm`). Otherwise
        the delay grows with each exit, from 0 to 30 seconds, and begins at 0 again after a run of more than a minute.
        """
        self.pid = 0
        self._deaths = [*(then for then in self._deaths if now - then < _STEADY_SECONDS), now]
        self._failures = 1 if now - self._started > _STEADY_SECONDS else self._failures + 1
        pause = _BACKOFF_SECONDS[min(self._failures, len(_BACKOFF_SECONDS)) - 1]
        self.due = now if self.has_adopted and not self.calm else now + pause
        self.has_adopted = False

    @property
    def calm(self) -> bool:
        """Whether the next supervisor should take no automatic actions, after repeated crashes within a minute."""
        return len(self._deaths) >= _CALM_FROM

    @property
    def given_up(self) -> bool:
        """Whether the supervisor has failed too often in a row; a keeper without sockets and workers then exits."""
        return self._failures >= _FAILURES_UNTIL_GIVEN_UP


# Each of these signals requests the shutdown of the pool.
ENDING = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
UPGRADE = signal.SIGUSR1

STOP_SECONDS = 30.0
# How long a supervisor may take to confirm a shutdown. Then the keeper stops the workers, and finally kills them.
ANSWER_SECONDS = 5.0
ALONE_SECONDS = 3.0
LAST_OUTPUT_SECONDS = 1.0


class Signals:
    """The signals that this process receives: exits of children, and requests to shut down or to upgrade.

    Its descriptor becomes readable when a signal has arrived; the signal handlers do nothing.
    """

    def __init__(self) -> None:
        self._wake, self._waker = socket.socketpair()
        for end in (self._wake, self._waker):
            end.setblocking(False)
        signal.set_wakeup_fd(self._waker.fileno(), warn_on_full_buffer=False)
        for number in (signal.SIGCHLD, *ENDING, UPGRADE):
            signal.signal(number, lambda *_: None)
        # These were blocked during execve(2), and others by the caller.
        signal.pthread_sigmask(signal.SIG_SETMASK, ())

    def fileno(self) -> int:
        """The descriptor that is readable when `read` has something to report."""
        return self._wake.fileno()

    def read(self) -> bytes:
        """Return the numbers of the received signals. Raises BlockingIOError if there are none."""
        return self._wake.recv(4096)


class Shutdown:
    """The shutdown of the pool.

    `over`: nothing is left to wait for. `alone`: the keeper stops the pool without a supervisor. `last`: the supervisor
    has stopped the pool and is about to exit; it is not restarted, whatever its exit status.

    All times are in seconds on one monotonic clock.
    """

    def __init__(self, store: Store, reaper: Reaper, directory: str) -> None:
        self.over = False
        self.alone = False
        self.last = False
        self.due: float | None = None
        self._begun_at = 0.0
        self._store = store
        self._reaper = reaper
        self._directory = directory

    @property
    def begun(self) -> bool:
        """Whether the shutdown has been requested."""
        return self.due is not None

    def start_confirmation_deadline(self, now: float) -> None:
        """Note that the shutdown is requested; the supervisor has ANSWER_SECONDS to confirm it (see `check`)."""
        if self.due is None:
            self._begun_at = now
            self.due = now + ANSWER_SECONDS

    def expect_no_supervisor(self, now: float) -> None:
        """If the shutdown has been requested, stop the workers now, without a supervisor."""
        if self.due is not None and not self.alone:
            self.due = now

    def set_stop_deadline(self, seconds: float = 0.0) -> None:
        """Set the time limit of a supervisor that has confirmed the shutdown and needs `seconds` to stop the servers.

        The time counts from the request for the shutdown, even if a restarted supervisor confirms the shutdown again.
        """
        if self.begun and not self.alone:
            self.due = self._begun_at + ANSWER_SECONDS + max(STOP_SECONDS, seconds)

    def enforce_limits_and_check_over(self, now: float, supervisor: int) -> bool:
        """Enforce the time limits of the shutdown. Return whether the wait for the workers is over.

        When the supervisor's limit has passed, the supervisor is killed and the workers are asked to stop. Then the
        wait is over when no worker is left, or after ALONE_SECONDS. `supervisor` is a pid, 0 if none runs.
        """
        if self.alone and not any(map(self._is_there, self._workers())):
            return True
        if self.due is None or now < self.due:
            return False
        if self.alone or not self._workers():
            return True
        self.alone = True
        self.due = now + ALONE_SECONDS
        if supervisor:
            self._reaper.signal(supervisor, signal.SIGKILL, group=False)
        # The gateway would keep running without a keeper and a supervisor.
        for meta in self._store.values(*_WORKERS, fd_store.GATEWAY_LINK):
            number, group = meta.get("stop_signal", signal.SIGTERM), bool(meta.get("keeps_group"))
            self._reaper.signal(int(meta["pid"]), number, group=group, start=meta.get("start"))
        return False

    def kill_and_close_store(self) -> None:
        """Kill left groups and watched processes, and close all stored descriptors: readers get end of file.

        If a shutdown was requested, but no supervisor has completed it, also remove the files with the saved state.
        """
        if self.begun and not self.last:
            pool_files.remove_left_states(self._directory)
            pool_files.unlink_quietly(os.path.join(self._directory, pool_files.PROCESSES))
        self._reaper.kill_all(KILLED_SECONDS)
        self._store.clear()

    def _workers(self) -> list[int]:
        return [int(meta["pid"]) for meta in self._store.values(*_WORKERS)]

    def _is_there(self, pid: int) -> bool:
        return is_child(pid) or pid in self._reaper.watcher.starts or pid in self._reaper.left_groups


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
        # The argument vectors of the next version and its supervisor, which is started when this one has exited.
        self._requested: tuple[list[str], list[str]] | None = None
        self._next: list[str] = []  # the argument vector of the next version
        self._is_next_due = False  # its supervisor has adopted the pool

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
            _keep(self.store, name, meta, fds)
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
                self._spawn_supervisor()
            self._poll()
            if self._supervisor.pid:
                self._ping_or_kill_supervisor(time.monotonic())
            if self._donor is not None:
                self._donor.ping_or_kill(time.monotonic())
            if self._shutdown.enforce_limits_and_check_over(time.monotonic(), self._supervisor.pid):
                break
            if self._is_next_due:
                self._try_execute_next_version()
        self._shutdown.kill_and_close_store()
        pool_files.unlink_quietly(self._no_supervisor)
        # If the keeper stopped the pool alone, the logger still needs time to store the servers' last output.
        wait_or_kill_children(LAST_OUTPUT_SECONDS if self._shutdown.alone else 0.0)
        pool_files.clean_up_pool_directory(self._directory)

    def _spawn_supervisor(self) -> None:
        sock = self._supervisor.start(time.monotonic())
        if sock is not None:
            self.begin_client_session(sock)
        else:
            self._choose_next_supervisor()

    def _choose_next_supervisor(self) -> None:
        """Choose the version of the supervisor to start after one has exited, or could not be started.

        If that has happened repeatedly, `run` ends if the store holds no sockets or workers; else clients are told.
        """
        if self._requested is not None:
            self._try_version(*self._requested)
        elif self._supervisor.give_candidate_up():
            self.store.release_to_another_version()
        if self._supervisor.given_up:
            with contextlib.suppress(OSError):
                os.close(os.open(self._no_supervisor, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600))
            self._shutdown.over = self._shutdown.over or not self.store.holds_work
            self._shutdown.expect_no_supervisor(time.monotonic())

    def _try_version(self, argv: list[str], supervisor: list[str]) -> None:
        """Have `run` start the supervisor of another version, and after it has adopted the pool the keeper `argv`."""
        self._requested, self._next = None, argv
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
        # First the entries of processes that have already exited: they tell what becomes of the process groups.
        self._perform_arrived_requests()
        self._process_exit_reports(self.reaper.reap())
        if not {*ENDING}.isdisjoint(received):
            self._request_shutdown()
        elif UPGRADE in received:
            self._try_version_of_client()

    def _try_version_of_client(self) -> None:
        """Start the supervisor that a client has named in a file, unless a supervisor manages the pool."""
        path = os.path.join(self._directory, fd_store.UPGRADE)
        with contextlib.suppress(OSError, ValueError, LookupError), open(path, "rb") as file:
            os.unlink(path)
            order = json.load(file)
            if not self._supervisor.has_adopted and not self._shutdown.begun:
                self._try_version(order["argv"], order["supervisor"])

    def _process_exit_reports(self, reports: list[wire.Message]) -> None:
        for report in reports:
            if report["pid"] == self._supervisor.pid:
                # Sent before its exit, which may be noticed first.
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
            self._is_next_due = False
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
            os.execv(self._next[0], [*self._next, json.dumps(plan)])
        except OSError:
            for fd in kept:
                os.set_inheritable(fd, False)
            _close(kept[:1])
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
        reply, found = self.answer(message, fds)
        if message.get("id") is not None:
            channel.send(reply, found)
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
            _close(fds)

    def _perform(self, message: wire.Message, fds: list[int], reply: wire.Message) -> list[int]:
        operation = message["op"]
        if operation == "get":
            reply["meta"], found = self.store.get(message["name"]) or (None, [])
            return found
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
                self._requested = message["argv"], message["supervisor"]
        elif operation == "terminating":
            self._shutdown.set_stop_deadline(float(message.get("seconds", 0.0)))
        elif operation == "terminate":
            self._request_shutdown()
        elif operation == "whole":
            self._schedule_supervisor_start()
        elif operation == "adopted":
            if self._supervisor.record_adoption():
                self._is_next_due = True
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
            for each in (argument, *begun):
                plan |= json.loads(each)
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
