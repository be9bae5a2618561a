"""UDP streams: the datagrams of each client are a session with one target, until it has been idle for a while."""

from __future__ import annotations

import asyncio
import errno
import random
import socket
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any

_NOT_BLOCKING = int(socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
_AT_ONCE = 32  # datagrams read in one iteration of the loop
_BUFFER = bytearray(64 * 1024)  # more than any datagram holds
_VIEW = memoryview(_BUFFER)
# The default maximum of a stream: a flood from forged addresses must not use up all descriptors.
_MOST_SESSIONS = 16_384
_LEAST_SWEEP_SECONDS = 0.05
_WILDCARDS = ("0.0.0.0", "::")
_IP_PKTINFO = 8
_PKTINFO_SPACE = socket.CMSG_SPACE(20)

# A client's address, and the control data with the address to which it has sent; b"" unless the kernel reports that.
_Key = tuple[Any, bytes]


@dataclass(frozen=True, slots=True, kw_only=True)
class DatagramTarget:
    """A target of a stream: its key, its numeric address and its weight."""

    key: str
    host: str
    port: int
    weight: int = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class DatagramRules:
    """The targets that get new sessions, and the limits of a stream. `most_sessions` of 0 is a default limit.

    A session ends when it was idle for `idle_seconds`, and when it is older than `total_seconds`; 0 is no limit.
    """

    targets: tuple[DatagramTarget, ...]
    policy: str
    idle_seconds: float
    total_seconds: float = 0.0
    most_sessions: int = 0


class DatagramStream:
    """Forwards datagrams between the clients of `listeners`, which it owns, and its targets. Starts when it is created.

    At the maximum number of sessions a new one replaces the one that has been idle longest. A datagram without a target
    is dropped: clients of UDP send again. `counts` has numbers since the start, `answers` and `failures` those of
    each target.
    """

    def __init__(self, listeners: Sequence[socket.socket], rules: DatagramRules) -> None:
        self.rules = rules
        self.counts = dict.fromkeys(("opened", "failed", "dropped", "evicted", "bytes_in", "bytes_out"), 0)
        self.answers: dict[str, int] = {}
        self.failures: dict[str, int] = {}
        self._loop = asyncio.get_running_loop()
        self._sessions: OrderedDict[_Key, _Session] = (
            OrderedDict()
        )  # the one that has been idle longest first
        self._open = Counter[str]()  # sessions by target
        self._choice = _choices(rules)
        self._emptied = asyncio.Event()
        self._sweeping: asyncio.TimerHandle | None = None
        self._listeners = [_DatagramListener(each, self._forward) for each in listeners]

    def __len__(self) -> int:
        """The number of open sessions."""
        return len(self._sessions)

    def set_rules(self, rules: DatagramRules) -> None:
        """Apply these rules: targets and policy to new sessions, limits to all."""
        self.rules, self._choice = rules, _choices(rules)
        while len(self) > self._most_sessions:
            self._evict()
        self._sweep()

    async def drain(self, seconds: float) -> None:
        """Stop reading clients' datagrams, which other processes with these listeners get, but forward answers.

        Returns when all sessions have been idle, or after `seconds`.
        """
        for listener in self._listeners:
            listener.stop_reading()
        self._emptied.clear()
        if self._sessions:
            await asyncio.wait({asyncio.ensure_future(self._emptied.wait())}, timeout=seconds)
        self.close()

    def close(self) -> None:
        """End all sessions, and close the listeners."""
        if self._sweeping is not None:
            self._sweeping.cancel()
        for session in [*self._sessions.values()]:
            self._end(session)
        for listener in self._listeners:
            listener.close()

    def count_sessions(self, target: DatagramTarget) -> int:
        """The number of open sessions with the target."""
        return self._open[target.key]

    @property
    def _most_sessions(self) -> int:
        return self.rules.most_sessions or _MOST_SESSIONS

    def _forward(self, listener: _DatagramListener, key: _Key, size: int) -> None:
        self.counts["bytes_in"] += size
        session, now = self._sessions.get(key), self._loop.time()
        total = self.rules.total_seconds
        if session is not None and total and now - session.began >= total:
            self._end(session)
            session = None
        for _ in self.rules.targets:
            session = session or self._begin(listener, key)
            if session is None or self._is_sent(session, size):
                break
            session = None  # another target gets it
        if session is None:
            self.counts["dropped"] += 1

    def _is_sent(self, session: _Session, size: int) -> bool:
        """Send the datagram in the buffer to the target; False if that is unreachable, which ends the session."""
        try:
            session.sock.send(_VIEW[:size])
        except (BlockingIOError, InterruptedError):
            self.counts["dropped"] += 1
        except OSError as error:
            if error.errno != errno.EMSGSIZE:
                self._fail(session)  # an earlier datagram was refused
                return False
            self.counts["dropped"] += 1
        session.used = self._loop.time()
        self._sessions.move_to_end(session.key)
        return True

    def _begin(self, listener: _DatagramListener, key: _Key) -> _Session | None:
        while len(self) >= self._most_sessions:
            self._evict()
        target = self._choice(key[0][0], self)
        sock = None if target is None else self._connected_socket(target)
        if target is None or sock is None:
            return None
        self.counts["opened"] += 1
        session = self._sessions[key] = _Session(listener, key, sock, target, self._loop.time())
        self._open[target.key] += 1
        self._loop.add_reader(sock.fileno(), self._answer, session)
        if self._sweeping is None:
            self._sweep()
        return session

    def _connected_socket(self, target: DatagramTarget) -> socket.socket | None:
        """A socket that is connected to the target; None if it has no route, or no descriptor is free."""
        family = socket.AF_INET6 if ":" in target.host else socket.AF_INET
        while True:
            try:
                sock = socket.socket(family, _NOT_BLOCKING)
                break
            except OSError:
                if not self._sessions:
                    return None
                self._evict()
        try:
            sock.connect((target.host, target.port))
        except OSError:
            sock.close()
            self._count_failure(target)
            return None
        return sock

    def _answer(self, session: _Session) -> None:
        try:
            size = session.sock.recv_into(_BUFFER)
        except (BlockingIOError, InterruptedError):
            return
        except OSError:  # an ICMP message: port or host unreachable
            self._fail(session)
            return
        key = session.target.key
        self.answers[key] = self.answers.get(key, 0) + 1
        session.used = self._loop.time()
        self._sessions.move_to_end(session.key)
        try:
            session.listener.send(session.key, size)
        except OSError:
            self.counts["dropped"] += 1
        else:
            self.counts["bytes_out"] += size

    def _fail(self, session: _Session) -> None:
        self._count_failure(session.target)
        self._end(session)

    def _count_failure(self, target: DatagramTarget) -> None:
        self.counts["failed"] += 1
        self.failures[target.key] = self.failures.get(target.key, 0) + 1

    def _evict(self) -> None:
        self.counts["evicted"] += 1
        self._end(next(iter(self._sessions.values())))

    def _end(self, session: _Session) -> None:
        if self._sessions.pop(session.key, None) is not None:
            self._loop.remove_reader(session.sock.fileno())
            session.sock.close()
            self._open[session.target.key] -= 1
            if not self._sessions:
                self._emptied.set()

    def _sweep(self) -> None:
        """End the sessions that have been idle too long; again when the next one may have been."""
        if self._sweeping is not None:
            self._sweeping.cancel()
            self._sweeping = None
        idle, now = self.rules.idle_seconds, self._loop.time()
        while idle and self._sessions and (oldest := next(iter(self._sessions.values()))).used + idle <= now:
            self._end(oldest)
        if idle and self._sessions:
            due = next(iter(self._sessions.values())).used + idle
            self._sweeping = self._loop.call_at(max(due, now + _LEAST_SWEEP_SECONDS), self._sweep)


@dataclass(slots=True, eq=False)
class _Session:
    """The session of a client with a target, to which `sock` is connected."""

    listener: _DatagramListener
    key: _Key
    sock: socket.socket
    target: DatagramTarget
    began: float
    used: float = 0.0

    def __post_init__(self) -> None:
        self.used = self.began


class _DatagramListener:
    """A socket to which clients send their datagrams; `forward` is called with each one that is in the buffer.

    If it is bound to all addresses of the machine, the kernel reports to which one a datagram was sent, and the
    answer is sent from that address.
    """

    def __init__(self, sock: socket.socket, forward: Callable[[_DatagramListener, _Key, int], None]) -> None:
        self._sock = sock
        self._forward = forward
        everywhere = sock.getsockname()[0] in _WILDCARDS
        if everywhere and sock.family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_RECVPKTINFO, 1)
        elif everywhere:
            sock.setsockopt(socket.IPPROTO_IP, _IP_PKTINFO, 1)
        asyncio.get_running_loop().add_reader(sock.fileno(), self._read)

    def send(self, key: _Key, size: int) -> None:
        """Send the first `size` bytes of the buffer, a target's answer, to a client. Raises OSError."""
        client, local = key
        self._sock.sendmsg((_VIEW[:size],), [_source_address_message(local)] if local else [], 0, client)

    def stop_reading(self) -> None:
        """Read no more datagrams of clients."""
        asyncio.get_running_loop().remove_reader(self._sock.fileno())

    def close(self) -> None:
        """Close the socket."""
        if self._sock.fileno() >= 0:
            self.stop_reading()
            self._sock.close()

    def _read(self) -> None:
        for _ in range(_AT_ONCE):
            try:
                size, control, _, client = self._sock.recvmsg_into((_BUFFER,), _PKTINFO_SPACE)
            except OSError:
                return
            self._forward(self, (client, control[0][2] if control else b""), size)


def _source_address_message(local: bytes) -> tuple[int, int, bytes]:
    """Return the control message (ip(7)) that sets an answer's source to the address in the control data `local`."""
    if len(local) > 12:
        # Only a link-local address needs the interface, and the client's address has it.
        return socket.IPPROTO_IPV6, socket.IPV6_PKTINFO, local[:16] + bytes(4)
    return socket.IPPROTO_IP, _IP_PKTINFO, bytes(4) + local[4:8] + bytes(4)


# Chooses the target of a session from the IP address of its client; None without a target.
_Choice = Callable[[str, DatagramStream], DatagramTarget | None]


def _choices(rules: DatagramRules) -> _Choice:
    """The function that chooses targets by the policy of these rules."""
    targets = rules.targets
    if not targets:
        return lambda client, stream: None
    match rules.policy:
        case "first":
            return lambda client, stream: targets[0]
        case "ip-hash":
            return lambda client, stream: max(targets, key=lambda each: _affinity(client, each))
        case "least-connections":
            return lambda client, stream: min(targets, key=lambda each: _load(each, stream))
        case "random-two":
            return lambda client, stream: min(_two_of(targets), key=lambda each: _load(each, stream))
    turns = _turns(targets)
    return lambda client, stream: next(turns)


def _turns(targets: Sequence[DatagramTarget]) -> Iterator[DatagramTarget]:
    """The targets in turn, endlessly, as often as their weights say, and evenly spread (a, b, a for 2 and 1)."""
    total = sum(each.weight for each in targets)
    credit = dict.fromkeys(targets, 0)
    while True:
        for each in targets:
            credit[each] += each.weight
        chosen = max(targets, key=lambda each: credit[each])
        credit[chosen] -= total
        yield chosen


def _affinity(client: str, target: DatagramTarget) -> float:
    """The score of a target for a client (rendezvous hashing): if a target is removed, only its clients move."""
    number = int.from_bytes(blake2b(f"{client} {target.key}".encode(), digest_size=7).digest(), "big")
    return float(((number + 1) / (1 << 56)) ** (1 / target.weight))


def _load(target: DatagramTarget, stream: DatagramStream) -> float:
    return stream.count_sessions(target) / target.weight


def _two_of(targets: Sequence[DatagramTarget]) -> Iterable[DatagramTarget]:
    return random.choices(targets, weights=[each.weight for each in targets], k=2)
