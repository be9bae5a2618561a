"""Links from the supervisor to the pool's other processes: keeper, zygotes, workers, logger and other helpers.

A link carries messages and file descriptors. Each descriptor has one owner, which closes it. Messages from processes
that run application code are limited in size, rate and values. Helpers are pinged, and killed if they hang.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import itertools
import logging
import os
import signal
import socket
import time
import weakref
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from typing import Any, Protocol

from poolctl.clock import HungProcessDetector, RateLimit
from poolctl.keeper import fd_store, wire
from poolctl.keeper.reap import signal_process
from poolctl.platform import close_all, is_stopped, process_start, waits_for_events

from .withheld_variables import withheld_variables

logger = logging.getLogger("poolctl.supervisor")

# Valid messages are a few words; the longest carries 2000 characters of an import's error, in JSON up to 12 bytes each.
MAX_BYTES = 32 * 1024
MAX_UNREAD = 512
_MAX_CHARACTERS = 4000
_BURST = 100
_PER_SECOND = 10.0
_READING_PAUSE_SECONDS = 0.1
_RETRY_SECONDS = 0.002
# Longer than a debugger briefly stops a process to inspect it.
_STOPPED_SECONDS = 3.0
_PAUSED_SECONDS = 1.0
_MAX_RETRY_SECONDS = 0.1

Message = wire.Message
Reply = tuple[Message, list[int]]
PING: wire.Message = {"t": "ping"}


class Malformed(Exception):
    """An invalid message; its text names what was received, such as "a message with an invalid 'pid'"."""


def sanitized_text_or_empty(message: Message, key: str) -> str:
    """The sanitized text under the key; "" if it is missing. Raises Malformed for another type."""
    value = message.get(key)
    if value is None:
        return ""
    if not isinstance(value, str):
        raise _malformed_value(message, key)
    return sanitize_and_truncate_text(value)


def sanitize_and_truncate_text(value: str) -> str:
    """Return the first 4000 characters. Each is replaced by U+FFFD unless it is printable, a tab or a line break."""
    return "".join(
        character if character.isprintable() or character in "\n\t" else "\N{REPLACEMENT CHARACTER}"
        for character in value[:_MAX_CHARACTERS]
    )


def flag_of(message: Message, key: str) -> bool:
    """The boolean under the key; False if it is missing. Raises Malformed for another type."""
    value = message.get(key, False)
    if not isinstance(value, bool):
        raise _malformed_value(message, key)
    return value


def number_of(message: Message, key: str, minimum: int, maximum: int) -> int:
    """The integer under the key. Raises Malformed if it is missing, or not from `minimum` to `maximum` (inclusive)."""
    value = message.get(key)
    if isinstance(value, bool) or not isinstance(value, int) or not minimum <= value <= maximum:
        raise _malformed_value(message, key)
    return value


def _malformed_value(message: Message, key: str) -> Malformed:
    return Malformed(
        f"a message with an invalid {key!r}: {sanitize_and_truncate_text(repr(message.get(key)))[:80]}"
    )


def message_allowance() -> RateLimit:
    """A rate limit for unsolicited messages: it allows bursts, but a low rate in the long run."""
    return RateLimit(_BURST, _PER_SECOND)


class HasDescriptor(Protocol):
    """A socket, or anything else that owns a descriptor; `fileno()` is -1 once it is closed."""

    def fileno(self) -> int:
        """The descriptor."""


class Descriptor:
    """Owns a descriptor that belongs to no socket object."""

    __slots__ = ("_fd",)

    def __init__(self, fd: int) -> None:
        self._fd = fd

    def fileno(self) -> int:
        return self._fd

    def close(self) -> None:
        """Close the descriptor. A second call has no effect."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)


class Duplicate(Descriptor):
    """The duplicate that `owners_of` makes of a descriptor passed as an int. `close_duplicates` closes it."""


def owners_of(fds: Iterable[int | HasDescriptor]) -> list[HasDescriptor]:
    """Return an owner of each descriptor: a new Duplicate of an int, otherwise the object itself. Raises OSError."""
    return [Duplicate(os.dup(fd)) if isinstance(fd, int) else fd for fd in fds]


def close_duplicates(owners: Iterable[HasDescriptor]) -> None:
    """Close every Duplicate among the owners; the others belong to the caller."""
    for owner in owners:
        if isinstance(owner, Duplicate):
            owner.close()


# The runners of this process: a forked child must not keep their descriptors open.
runners_to_forget: weakref.WeakSet[Any] = weakref.WeakSet()
_never_freed: list[object] = []


def _forget_in_child() -> None:
    for runner in list(runners_to_forget):
        runner.release_after_fork()


os.register_at_fork(after_in_child=_forget_in_child)


def redirect_parent_fds_to_null(fds: Iterable[int], owners: object) -> None:
    """In a forked child, redirect these descriptors to /dev/null, which releases their files and sockets.

    The numbers stay in use, so that the objects that own them cannot close another file later. The child never frees
    these `owners`, because freeing them would touch the parent's event loop and sockets.
    """
    _never_freed.append(owners)
    null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
    for fd in fds:
        with contextlib.suppress(OSError):
            os.dup2(null, fd, inheritable=False)
    os.close(null)


class LinkLost(Exception):
    """The link is closed: the process at the other end has exited, does not answer, or violated the protocol."""


class NoAnswer(LinkLost):
    """The link was closed at this end, because the process at the other end sends nothing."""


class Refused(LinkLost):
    """The process at the other end has answered with an error; `errno` is its number (errno(3)), if it has one."""

    errno: int | None = None


class LinkHandler:
    """Handles the events of a link."""

    def received(self, message: Message, fds: list[int]) -> None:
        """Handle a message that is not a reply, and own its descriptors. Raises Malformed for an invalid message."""
        close_all(fds)

    def on_link_lost(self) -> None:
        """Handle the loss of the other end. Called once, unless the link was closed at this end."""

    def on_violation(self, violation: str) -> None:
        """Handle a violation of the protocol, such as "sent no JSON". `on_link_lost` is called next."""


class Link:
    """Exchanges messages with another process, in order, and matches replies to calls. Sending never blocks.

    Messages are queued here while the other end's socket is full. Belongs to the running loop; not thread-safe.

    Pass `trusted=False` for a process that runs application code. It may not send descriptors, and is limited in how
    much it leaves unread. If it breaks a rule, or sends a message that the receiver finds Malformed, the link is
    closed. What it sends unasked is read at a limited rate, and no violation: an ordinary worker may have sent much
    while this process was held up.
    """

    def __init__(
        self, sock: socket.socket, receiver: LinkHandler | None = None, *, trusted: bool = True
    ) -> None:
        sock.setblocking(False)
        self.sock = sock
        self._receiver = receiver or LinkHandler()
        self._trusted = trusted
        limits = (wire.MAX_MESSAGE_BYTES, wire.MAX_DESCRIPTORS) if trusted else (MAX_BYTES, 0)
        self._max_bytes, self._max_descriptors = limits
        self._loop = asyncio.get_running_loop()
        self._allowance = message_allowance()
        # Unique across processes: a successor may read replies to this process's calls from the same socket.
        self._numbers = itertools.count(time.monotonic_ns())
        self._pending_calls: dict[int, asyncio.Future[Reply]] = {}
        self._outbox: deque[tuple[bytes, list[HasDescriptor]]] = deque()
        self._retry: asyncio.TimerHandle | None = None
        self._retry_seconds = _RETRY_SECONDS
        self._pause: asyncio.TimerHandle | None = None  # while nothing is read
        self.heard = 0  # the number of received messages
        self._read()

    def _read(self) -> None:
        self._pause = None
        self._loop.add_reader(self.sock.fileno(), self._receive_messages)

    def send(self, message: Message, fds: Sequence[int | HasDescriptor] = ()) -> None:
        """Send a message without waiting. The caller keeps the descriptors. Has no effect on a lost link.

        A queued message is dropped if an object among `fds`, such as a socket, is closed before the message is sent.
        Raises WireError when the message is too large.
        """
        if self.sock.fileno() < 0:
            return
        # Before it is queued: what cannot be sent must not stay at the head of the queue.
        payload = wire.encode(message)
        if self._outbox:
            self._queue_message(payload, fds)
            return
        try:
            wire.send(self.sock, payload, [fd if isinstance(fd, int) else fd.fileno() for fd in fds])
        except (BlockingIOError, InterruptedError):
            self._queue_message(payload, fds)
            self._schedule_write_retry()
        except OSError:
            return  # the lost link is noticed at end of file, after messages that have already arrived

    def offer(self, payload: bytes) -> bool:
        """Send an encoded message if there is room now; returns whether it was sent."""
        if self._outbox:
            return False
        try:
            self.sock.send(payload, socket.MSG_DONTWAIT)
        except OSError:
            return False
        return True

    @property
    def waits(self) -> bool:
        """Whether messages are queued because the other end has no room."""
        return bool(self._outbox)

    async def call(
        self,
        message: Message,
        fds: Sequence[int | HasDescriptor] = (),
        *,
        patience_seconds: float | None = None,
    ) -> Reply:
        """Send a message and return the reply, with its descriptors, which the caller closes.

        Raises LinkLost when the other end is gone, Refused when it reports an error, and OSError for a closed
        descriptor, with which nothing would be sent. If the other end sends no message at all for `patience_seconds`,
        the link is closed, and NoAnswer raised.
        """
        if self.sock.fileno() < 0:
            raise LinkLost("the other end is gone")
        if any((fd if isinstance(fd, int) else fd.fileno()) < 0 for fd in fds):
            raise OSError(errno.EBADF, "a descriptor of the message is closed")
        number = next(self._numbers)
        future: asyncio.Future[Reply] = self._loop.create_future()
        self._pending_calls[number] = future
        try:
            self.send({**message, "id": number}, fds)
            while patience_seconds is not None and not future.done():
                heard, asked_at = self.heard, self._loop.time()
                await asyncio.wait({future}, timeout=patience_seconds)
                # A timer that fires this late shows that this process was paused, and perhaps the peer too.
                late = self._loop.time() > asked_at + patience_seconds + _PAUSED_SECONDS
                if not future.done() and heard == self.heard and not late:
                    self._end(NoAnswer(f"the other end has not answered for {patience_seconds:g} s"))
            reply, received = await future
        finally:
            self._pending_calls.pop(number, None)
        if reply.get("error") is not None:
            refused = Refused(sanitize_and_truncate_text(str(reply["error"])))
            refused.errno = reply.get("errno")
            raise refused
        return reply, received

    def dispatch_arrived_messages(self) -> None:
        """Handle the messages that have already arrived; for a caller that is about to treat the sender as lost."""
        if self.sock.fileno() >= 0:
            self._receive_messages()

    def close(self) -> None:
        """Close the link. Calls in progress raise LinkLost; the receiver is not called."""
        self._receiver = LinkHandler()
        self._end()

    def cut_off(self, violation: str) -> None:
        """Close an untrusted link after a violation of the protocol, such as "sent no JSON"."""
        if not self._trusted and self.sock.fileno() >= 0:
            self._receiver.on_violation(violation)
            self._end(LinkLost(f"it {violation}"))

    def _queue_message(self, payload: bytes, fds: Sequence[int | HasDescriptor]) -> None:
        if not self._trusted and len(self._outbox) >= MAX_UNREAD:
            self.cut_off(f"left {MAX_UNREAD} messages unread")
            return
        self._outbox.append((payload, owners_of(fds)))

    def _flush_outbox(self) -> None:
        while self._outbox:
            payload, owners = self._outbox[0]
            fds = [owner.fileno() for owner in owners]
            try:
                if -1 not in fds:
                    wire.send(self.sock, payload, fds)
            except (BlockingIOError, InterruptedError):
                self._schedule_write_retry()
                return
            except OSError:
                return  # see send
            self._outbox.popleft()
            self._retry_seconds = _RETRY_SECONDS
            close_duplicates(owners)

    def _schedule_write_retry(self) -> None:
        if self.sock.fileno() < 0:
            return
        # Not add_writer(): the socket stays writable while too many descriptors are in flight.
        self._retry = self._loop.call_later(self._retry_seconds, self._flush_outbox)
        self._retry_seconds = min(self._retry_seconds * 2, _MAX_RETRY_SECONDS)

    def _receive_messages(self) -> None:
        # A limited number of messages per loop iteration, so that a busy worker does not delay the others.
        for _ in range(64):
            try:
                received = wire.receive(
                    self.sock, max_bytes=self._max_bytes, max_descriptors=self._max_descriptors
                )
            except (BlockingIOError, InterruptedError):
                return
            except ConnectionResetError:
                # Reported once if the other end closed without reading everything; its own messages can still be read.
                continue
            except wire.WireError as error:
                if not self._trusted:
                    self.cut_off(f"sent {error}")
                    return
                continue
            except OSError:
                received = None
            if received is None:
                self._end()
                return
            self.heard += 1
            self._dispatch(*received)
            if self.sock.fileno() < 0 or self._pause is not None:
                return

    def _dispatch(self, message: Message, fds: list[int]) -> None:
        number = message.get("id")
        future = self._pending_calls.get(number) if type(number) is int else None
        if future is None:
            self._deliver_message(message, fds)
        elif future.done():
            close_all(fds)
        else:
            future.set_result((message, fds))

    def _deliver_message(self, message: Message, fds: list[int]) -> None:
        try:
            self._receiver.received(message, fds)
        except Malformed as error:
            self.cut_off(f"sent {error}")
        is_open = self.sock.fileno() >= 0
        if is_open and not (self._trusted or self._pause or self._allowance.take(1, self._loop.time())):
            self._loop.remove_reader(self.sock.fileno())
            self._pause = self._loop.call_later(_READING_PAUSE_SECONDS, self._read)

    def _end(self, reason: LinkLost | None = None) -> None:
        if self.sock.fileno() < 0:
            return
        self._loop.remove_reader(self.sock.fileno())
        for timer in (self._retry, self._pause):
            if timer is not None:
                timer.cancel()
        if self._trusted:
            self.sock.close()
        else:
            wire.close_with_unread_descriptors(self.sock.detach())
        for _, owners in self._outbox:
            close_duplicates(owners)
        self._outbox.clear()
        reason = reason or LinkLost("the other end is gone")
        for future in self._pending_calls.values():
            if not future.done():
                future.set_exception(type(reason)(*reason.args))
                future.exception()  # the caller may have been cancelled, and asyncio would log it as never retrieved
        # Breaks a reference cycle with the owner, so that both are freed without the garbage collector.
        receiver, self._receiver = self._receiver, LinkHandler()
        receiver.on_link_lost()


async def spawn(
    keeper: Link,
    argv: Sequence[str],
    output: str | int,
    fds: Sequence[int | HasDescriptor],
    unset_variables: Sequence[str] | None = None,
    *,
    session: bool = True,
) -> int:
    """Have the keeper start a program, with `fds` as its descriptors 3, 4 …, and return its pid.

    With `session` it leads a new session; the keeper ends the session's processes with it.

    The program's output is `output`: a file to which it is appended, or a descriptor. The variables in
    `unset_variables`, by default the withheld variables, are removed from its environment. Raises LinkLost, or Refused
    if the program cannot be executed.
    """
    path, write = (None, [output]) if isinstance(output, int) else (output, [])
    unset = withheld_variables() if unset_variables is None else unset_variables
    order = {"op": "spawn", "argv": argv, "output": path, "session": session, "without": unset}
    reply, _ = await keeper.call(order, [*fds, *write])
    return int(reply["pid"])


async def stored_entries(keeper: Link, prefix: str = "") -> AsyncIterator[tuple[str, Any]]:
    """Yield name and value of the entries of the keeper's store with this prefix of the name. Raises LinkLost."""
    after = prefix[:-1]  # sorts before every name with the prefix
    while entries := (await keeper.call({"op": "list", "after": after}))[0]["entries"]:
        for name, meta in entries:
            if name.startswith(prefix):
                yield name, meta
            elif name > prefix:
                return
        after = entries[-1][0]


class KeeperLink(Link):
    """A Link to the keeper that records the entries of the keeper's store, so that a new keeper can get all of them.

    `entries` maps names to values and owners of descriptors. A descriptor passed as an int is duplicated. A socket or
    other object is recorded itself; once it is closed, a new keeper does not get its descriptor.
    """

    def __init__(self, sock: socket.socket, receiver: LinkHandler | None = None) -> None:
        self.entries: dict[str, tuple[object, list[HasDescriptor]]] = {}
        self.whole = False  # whether `entries` is complete
        self._dropped: set[str] | None = None  # entries dropped while `fetch_missing_entries` runs, else None
        super().__init__(sock, receiver)

    def send(self, message: wire.Message, fds: Sequence[int | HasDescriptor] = ()) -> None:
        self._record(message, fds)
        super().send(message, fds)

    def remember_entry(self, name: str, meta: object, owners: Sequence[HasDescriptor]) -> None:
        """Record an entry, so that a new keeper can get it: the value `meta` and the descriptors of `owners`."""
        self._forget(name)
        self.entries[name] = (meta, list(owners))

    async def fetch_missing_entries(self) -> None:
        """Add to `entries` what earlier supervisors put into the keeper's store, so that a new keeper gets it too."""
        self._dropped = set()
        async for name, _ in stored_entries(self):
            if name in self.entries or name.startswith(fd_store.OF_THE_VERSION):
                continue
            reply, fds = await self.call({"op": "get", "name": name})
            if (
                name in self.entries
                or name in (self._dropped or ())
                or not (fds or reply["meta"] is not None)
            ):
                close_all(fds)
            else:
                self.entries[name] = (reply["meta"], [Duplicate(fd) for fd in fds])
        self._dropped = None
        self.whole = True

    def reconnect(self, sock: socket.socket, receiver: LinkHandler) -> None:
        """Replace a dead keeper with the keeper at `sock`, and give it the recorded entries."""
        self._receiver = LinkHandler()
        self._end()
        super().__init__(sock, receiver)
        for name, (meta, owners) in self.entries.items():
            present = [owner for owner in owners if owner.fileno() >= 0]
            super().send({"op": "put", "name": name, "meta": meta}, present)

    def recorded_entries(self) -> dict[str, tuple[object, list[int]]]:
        """The entries recorded for a new keeper, by name: each with its value and its open descriptors."""
        return {
            name: (meta, [fd for owner in owners if (fd := owner.fileno()) >= 0])
            for name, (meta, owners) in self.entries.items()
        }

    def close(self) -> None:
        """Close the link, empty `entries`, and close the duplicates of descriptors in `entries`."""
        super().close()
        for name in list(self.entries):
            self._forget(name)

    def _record(self, message: wire.Message, fds: Sequence[int | HasDescriptor]) -> None:
        operation, name = message["op"], message.get("name", "")
        if operation == "put" and not name.startswith(fd_store.OF_THE_VERSION):
            self.remember_entry(name, message.get("meta"), owners_of(fds))
        elif operation == "note" and name in self.entries:
            self.entries[name] = (message.get("meta"), self.entries[name][1])
        elif operation == "drop":
            if self._dropped is not None:
                self._dropped.add(name)
            self._forget(name)

    def _forget(self, name: str) -> None:
        close_duplicates(self.entries.pop(name, (None, []))[1])


def identity(pid: int) -> wire.Message:
    """The pid and start time of a process, in a form that a later supervisor can use to watch it."""
    return {"pid": pid, "start": process_start(pid)}


class ProcessWatchdog:
    """Calls `ping` until `stop_watching`, and kills the process if it hangs. Used on the running loop.

    Each call of `received` counts as an answer. A process that waits for events is not pinged. A stopped process
    (SIGSTOP) counts as hung after three seconds without an answer. `name` is for the log; `watchdog` sets the interval
    of the pings and the time limit for an answer.

    `process` is its pid and start time (see `identity`).
    """

    def __init__(
        self,
        ping: Callable[[], object],
        process: wire.Message,
        name: str,
        watchdog: HungProcessDetector | None = None,
    ) -> None:
        self._ping = ping
        self._process = process
        self._name = name
        self._loop = asyncio.get_running_loop()
        self._watchdog = watchdog or HungProcessDetector(self._loop.time())
        self._timer: asyncio.TimerHandle | None = None
        ping()
        self._set_timer()

    def received(self) -> None:
        """Record a sign that the process does not hang."""
        self._watchdog.received(self._loop.time())
        if self._timer is not None:
            self._timer.cancel()
            self._set_timer()

    @property
    def unanswered_seconds(self) -> float:
        """How long the process has not answered the last ping; 0 if it has."""
        return self._watchdog.waited_seconds

    def stop_watching(self) -> None:
        """Stop watching: ping no more, and never kill the process."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _set_timer(self) -> None:
        self._timer = self._loop.call_at(self._watchdog.due, self._ping_or_kill)

    def _ping_or_kill(self) -> None:
        now, pid = self._loop.time(), self._process.get("pid", 0)
        hangs = self._watchdog.check_for_hang(now)
        if hangs or (self.unanswered_seconds >= _STOPPED_SECONDS and is_stopped(pid)):
            self._timer = None
            if pid:
                logger.error("%s (pid %d) does not answer: killing it", self._name, pid)
                kill(self._process)
            return
        if self._watchdog.mark_ping_sent_if_due(now):
            if waits_for_events(pid):
                # A process that waits for events does not hang, and need not be woken by a ping.
                self._watchdog.received(now)
            else:
                self._ping()
        self._set_timer()


def kill(process: wire.Message, number: int = signal.SIGKILL) -> None:
    """Send the signal to the process with this identity, but not to another process that has reused its pid."""
    pid, start = process.get("pid"), process.get("start")
    if pid is not None and start is not None:
        signal_process(pid, start, number)
