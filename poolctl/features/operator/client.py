"""Reports to an operator how many requests have arrived for each service, without delaying the requests.

Counting increments an integer in a memory-mapped file, which survives SIGKILL; a separate task sends the counts. A
count is subtracted once the operator has confirmed it, so failures and restarts lose nothing. A count may be reported
twice if the response was lost, or if the process was killed before it was subtracted. Standard library only.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import json
import logging
import mmap
import os
import secrets
import ssl
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from random import Random
from urllib.parse import urlsplit

from poolctl.daemon_threads import in_daemon_thread
from poolctl.http.http_client import exchange
from poolctl.http.messages import BadMessage
from poolctl.json_form import Table

NOT_REACHED, REACHED = "operator not reached", "operator reached again"

TIMEOUT_SECONDS = 10.0
# Pauses after failures grow up to this, or to `retry` if that is longer.
MAX_PAUSE_SECONDS = 300.0
# Maximum number of requests to the operator in progress, over all services.
REQUESTS_AT_ONCE = 16
# At most one event about a service that cannot be reported is recorded within this time.
_REPORT_SECONDS = 60.0
# Interval at which other processes of the pool are checked for their end and their reports.
_OTHERS_SECONDS = 1.0
_PORTS = {"http": 80, "https": 443}

PREFIX = "operator-counts."
# Identifies the layout; a file with another layout is left alone.
LAYOUT = int.from_bytes(b"poolop\x00\x01", "big")
# A record: its count, when its service may be reported again (ns of the system's monotonic clock), the length of the
# service's name, and the name. The first record is the header: the layout, and the number of records.
RECORD_BYTES = 512
_WORDS = RECORD_BYTES // 8
COUNT, DUE_NS, _LENGTH, _NAME = 0, 1, 2, 3
MAX_NAME_BYTES = RECORD_BYTES - 8 * _NAME
_FIRST_RECORDS = 8

Report = Callable[[str, str, str], None]

logger = logging.getLogger("poolctl.gateway")


@dataclass(frozen=True, slots=True, kw_only=True)
class OperatorSettings:
    """An operator's address and credentials, and `retry_seconds`, the minimum time between two reports of a service.

    `url` is http://HOST:PORT, https://HOST:PORT, either with a path, or unix:/PATH. With https the operator's
    certificate is checked against the authorities in the file `ca`, or against the system's, and `cert` and `key` are
    the files of the certificate that is presented to it.
    """

    url: str
    endpoint: str = "/informer/incoming-request"
    retry_seconds: float = 30.0
    namespace: str = ""
    token: str = ""
    ca: str = ""
    cert: str = ""
    key: str = ""
    key_password: str = ""

    def __repr__(self) -> str:
        return f"<OperatorSettings {self.url}>"


class _CountedService:
    """A service with its count of requests in UnsentCounts.words[slot], and its scheduled or current report."""

    __slots__ = ("failures", "name", "sending", "slot", "why")

    def __init__(self, name: str, slot: int) -> None:
        self.name = name
        self.slot = slot
        # The timer of a scheduled request, or the task of a current one.
        self.sending: asyncio.TimerHandle | asyncio.Task[None] | None = None
        self.failures = 0  # in a row
        self.why = ""  # the reason for the last failure


class OperatorClient:
    """Reports request counts to one operator: one report in flight per service, and at most one per `retry_seconds`.

    Unsent counts stay in `directory` when the process ends. The next client with the same directory sends them, at the
    earliest `retry_seconds` after a service's last report. `report(kind, message, severity)` is called once when the
    operator becomes unreachable, and once when it is reachable again. Create and use the client on the running loop.
    """

    def __init__(
        self,
        settings: OperatorSettings,
        directory: str = "",
        *,
        report: Report = lambda kind, message, severity: None,
        random: Random | None = None,
    ) -> None:
        self._settings = settings
        self._loop = asyncio.get_running_loop()
        self._report = report
        self._random = random or Random()
        self._page = UnsentCounts(directory)
        self._services: dict[str, _CountedService] = {}
        self._reported = False
        self._report_again = 0.0
        self._delivered = 0
        self._turns = asyncio.Semaphore(REQUESTS_AT_ONCE)
        self._tls: tuple[object, ssl.SSLContext] | None = None
        self._stopped = False
        self._others: list[OtherProcessCounts] = []
        self._next_check: asyncio.TimerHandle | None = None
        self._take_over_counts()

    def __repr__(self) -> str:
        return f"<OperatorClient {self._settings.url}: {self.unsent} unsent>"

    def count(self, name: str, count: int = 1) -> None:
        """Count requests that have arrived for the service. Never blocks."""
        service = self._services.get(name)
        if service is None:
            service = self._add(name)
        self._page.words[service.slot] += count
        if service.sending is None:
            self._schedule(service)

    @property
    def unsent(self) -> int:
        """The number of requests, over all services, that the operator has not confirmed yet."""
        return sum(map(self._unsent, self._services.values()))

    def snapshot(self) -> Table:
        """The number of requests `delivered`, the numbers `unsent` by service, and the errors of `failing` services."""
        services = [*self._services.values()]
        return {
            "delivered": self._delivered,
            "unsent": {service.name: count for service in services if (count := self._unsent(service))},
            "failing": {service.name: service.why for service in services if service.failures},
        }

    def configure(self, settings: OperatorSettings) -> None:
        """Use these settings from the next request to the operator on."""
        if settings != self._settings:
            self._settings = settings
            self._tls = None
            for service in self._services.values():
                service.failures = 0
                latest = self._loop.time() + settings.retry_seconds
                self._set_due(service, min(self._due_time(service), latest))
                self._reschedule_unless_sending(service)

    def close(self) -> None:
        """Stop sending and counting. Unsent counts stay in the client's directory, for the next process to send."""
        self._stopped = True
        for service in self._services.values():
            if service.sending is not None:
                service.sending.cancel()
        if self._next_check is not None:
            self._next_check.cancel()
        for other in self._others:
            other.close()
        self._others = []
        self._page.close()

    # Services.

    def _add(self, name: str) -> _CountedService:
        self._forget_oldest_idle()
        service = self._services[name] = _CountedService(name, self._page.allocate_slot(name))
        due = max((other.due_ns().get(name, 0) for other in self._others), default=0)
        self._set_due(service, self._capped_due_time(due / 1e9))
        return service

    def _forget_oldest_idle(self) -> None:
        """Free the slots of idle services. Called for each new service, and examines only the two oldest ones."""
        now = self._loop.time()
        for service in [*self._services.values()][:2]:
            del self._services[service.name]
            if service.sending is not None or self._unsent(service) or self._due_time(service) > now:
                self._services[service.name] = service  # looked at again after the others
            else:
                self._page.release(service.slot)

    def _unsent(self, service: _CountedService) -> int:
        return int(self._page.words[service.slot + COUNT])

    def _due_time(self, service: _CountedService) -> float:
        """Return the earliest time of the service's next report, on the monotonic clock that all processes share."""
        return float(self._page.words[service.slot + DUE_NS] / 1e9)

    def _set_due(self, service: _CountedService, at: float) -> None:
        self._page.words[service.slot + DUE_NS] = max(0, int(at * 1e9))

    def _capped_due_time(self, due: float) -> float:
        """Limit `due`, a time that another process recorded, to the longest allowed pause from now."""
        most = max(MAX_PAUSE_SECONDS, self._settings.retry_seconds) * 1.5
        return min(due, self._loop.time() + most)

    # Sending.

    def _schedule(self, service: _CountedService) -> None:
        """Schedule the service's next report for the time when it is due, unless sending has stopped."""
        if service.sending is not None:
            service.sending.cancel()
        if not self._stopped:
            service.sending = self._loop.call_at(self._due_time(service), self._begin, service)

    def _begin(self, service: _CountedService) -> None:
        service.sending = self._loop.create_task(self._report_request_count(service))

    async def _report_request_count(self, service: _CountedService) -> None:
        async with self._turns:
            settings = self._settings
            began = self._loop.time()
            count = self._unsent(service)
            # For a successor, should this process be killed meanwhile.
            self._set_due(service, began + max(settings.retry_seconds, TIMEOUT_SECONDS))
            try:
                await self._post(settings, service.name, count)
            except Exception as error:  # any error: the service must not wait forever
                why = str(error) or f"no answer within {TIMEOUT_SECONDS:g} s"
                self._record_failure(service, began, settings, why)
            else:
                self._page.words[service.slot] -= count
                self._set_due(service, began + settings.retry_seconds)
                self._record_success(service, count)
        service.sending = None
        if self._unsent(service):
            self._schedule(service)

    async def _post(self, settings: OperatorSettings, service: str, count: int) -> None:
        """Report the service's count to the operator by HTTP. Raises OSError, BadMessage, ValueError, TimeoutError."""
        where, host, path = _parsed_url(settings.url)
        body = json.dumps({"count": count, "svc": service, "namespace": settings.namespace}).encode()
        fields = [
            ("host", host),
            ("content-type", "application/json"),
            ("content-length", str(len(body))),
            ("connection", "close"),
        ]
        if settings.token:
            fields.append(("authorization", f"Bearer {settings.token}"))
        target = path.rstrip("/") + settings.endpoint
        async with asyncio.timeout(TIMEOUT_SECONDS) as limit:
            tls = await self._tls_context(settings) if settings.url.startswith("https:") else None
            async with exchange(where, "POST", target, fields, body, tls=tls) as response:
                if not 200 <= response.status < 300:
                    raise ConnectionError(f"it answers {response.status}")
                limit.reschedule(None)
                # The body is not needed, but KubeElasti's operator stops scaling if the client disconnects.
                with contextlib.suppress(OSError, BadMessage, TimeoutError):
                    async with asyncio.timeout(TIMEOUT_SECONDS):
                        async for _ in response.body():
                            pass

    async def _tls_context(self, settings: OperatorSettings) -> ssl.SSLContext:
        """The TLS context, recreated when its files change. Reads the files in a thread; raises OSError."""

        def load() -> tuple[object, ssl.SSLContext]:
            paths = filter(None, (settings.ca, settings.cert, settings.key))
            mark = settings, [os.stat(path).st_mtime_ns for path in paths]
            if self._tls is not None and self._tls[0] == mark:
                return self._tls
            context = ssl.create_default_context(cafile=settings.ca or None)
            if settings.cert:
                # Without a password OpenSSL would ask for one on the terminal.
                context.load_cert_chain(settings.cert, settings.key or None, settings.key_password)
            return mark, context

        self._tls = await in_daemon_thread(load)
        return self._tls[1]

    def _record_failure(
        self, service: _CountedService, began: float, settings: OperatorSettings, why: str
    ) -> None:
        retry = settings.retry_seconds
        most = max(MAX_PAUSE_SECONDS, retry)
        pause = min(most, retry * 2 ** min(service.failures, 20)) * self._random.uniform(1.0, 1.5)
        # The attempt itself may have taken long.
        self._set_due(service, max(began + pause, self._loop.time()))
        if not service.failures and self._loop.time() >= self._report_again:
            self._reported = True
            self._report_again = self._loop.time() + _REPORT_SECONDS
            message = f"{settings.url} was not informed of requests for {service.name}: {why}; they are kept"
            self._report(NOT_REACHED, message, "warning")
        service.failures += 1
        service.why = why

    def _record_success(self, service: _CountedService, delivered: int) -> None:
        self._delivered += delivered
        service.failures, service.why = 0, ""
        if self._reported and not any(other.failures for other in self._services.values()):
            self._reported, self._report_again = False, 0.0
            self._report(REACHED, f"{self._settings.url} is informed of all requests again", "info")

    # Predecessors, and processes that end while this process already serves.

    def _take_over_counts(self) -> None:
        """Take over the unsent counts of processes that have ended. While other processes run, check again later."""
        for other in self._others:
            other.close()
        self._others, self._next_check = self._page.open_other_counts(), None
        for other in [*self._others]:
            ended, due_ns = other.lock_if_ended(), other.due_ns()
            if ended:
                self._others.remove(other)
                other.take_over(self.count)
            self._postpone_reports_until(due_ns)
        if self._others:
            self._next_check = self._loop.call_later(_OTHERS_SECONDS, self._take_over_counts)

    def _postpone_reports_until(self, due_ns: Mapping[str, int]) -> None:
        """Postpone each service's next report to the due time recorded by another process, if that is later."""
        for name in due_ns.keys() & self._services.keys():
            service, due = self._services[name], self._capped_due_time(due_ns[name] / 1e9)
            if due > self._due_time(service):
                self._set_due(service, due)
                self._reschedule_unless_sending(service)

    def _reschedule_unless_sending(self, service: _CountedService) -> None:
        """Reschedule the service's report after its due time has changed, unless the report is in progress."""
        if isinstance(service.sending, asyncio.TimerHandle):
            self._schedule(service)


def _parsed_url(url: str) -> tuple[str | tuple[str, int], str, str]:
    """The address to connect to, the value of the Host header, and the path. Raises ValueError."""
    if url.startswith("unix:"):
        return url.removeprefix("unix:"), "localhost", ""
    parts = urlsplit(url)
    if parts.scheme not in _PORTS or not parts.hostname:
        raise ValueError("the operator's url is neither http://HOST:PORT, https://HOST:PORT nor unix:/PATH")
    return (parts.hostname, parts.port or _PORTS[parts.scheme]), parts.netloc, parts.path


class UnsentCounts:
    """The counts of unreported requests, in an array with one slot per service.

    `words[slot]` is the count of a service, `words[slot + DUE_NS]` the monotonic time when it may be reported. With a
    directory the array is in a file there, locked by this process; otherwise it is in private memory. `words` is
    replaced when the array grows.
    """

    def __init__(self, directory: str) -> None:
        self.words = memoryview(bytearray(RECORD_BYTES * _FIRST_RECORDS)).cast("Q")
        self._directory = directory
        self._path = ""
        self._fd = -1
        self._free: list[int] = []
        if directory:
            try:
                self._create()
            except OSError as error:
                self._continue_in_memory(error)

    def __repr__(self) -> str:
        return f"<UnsentCounts: {self.words[1]} services{', ' if self._path else ''}{self._path}>"

    def allocate_slot(self, service: str) -> int:
        """Allocate a slot for a new service; returns its index in `words`."""
        name = service.encode()
        slot = self._free.pop() if self._free else self._append_slot()
        # A process killed here leaves a place without a count.
        self.words[slot : slot + _NAME] = memoryview(bytes(8 * _NAME)).cast("Q")
        self.words[slot + _LENGTH] = length = len(name) if len(name) <= MAX_NAME_BYTES else 0
        if length:
            # With a longer name the counts do not outlive the process.
            place = memoryview(self.words).cast("B")
            place[(slot + _NAME) * 8 : (slot + _NAME) * 8 + length] = name
        return slot

    def release(self, slot: int) -> None:
        """Set the count in a service's slot to 0, and let a new service use the slot."""
        self.words[slot + COUNT] = 0
        self._free.append(slot)

    def close(self) -> None:
        """Unlock the file of counts, so that another process may take the counts over; delete the file if all are 0."""
        if self._fd >= 0:
            if self._path and not any(count for _, count, _ in _records(self.words)):
                _unlink(self._path)
            fcntl.flock(self._fd, fcntl.LOCK_UN)  # the mapping has a descriptor of its own
            os.close(self._fd)
            self._fd, self._path = -1, ""

    def open_other_counts(self) -> list[OtherProcessCounts]:
        """Return the counts that other processes, running or ended, have in the directory of this process's counts."""
        if not self._path:
            return []
        try:
            names = os.listdir(self._directory)
        except OSError:
            return []
        paths = [os.path.join(self._directory, name) for name in names if name.startswith(PREFIX)]
        return [other for path in paths if path != self._path and (other := _open_counts(path)) is not None]

    def _create(self) -> None:
        # Lock the file before another process can find it.
        name = f"{os.getpid()}.{secrets.token_hex(4)}"
        path = os.path.join(self._directory, f".{PREFIX}{name}")
        self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        fcntl.flock(self._fd, fcntl.LOCK_EX)
        self._map(RECORD_BYTES * _FIRST_RECORDS)
        self.words[0] = LAYOUT
        self._path = os.path.join(self._directory, PREFIX + name)
        os.rename(path, self._path)

    def _map(self, size: int) -> None:
        # Fails on a full disk, where a later write to the memory would kill the process with SIGBUS.
        os.posix_fallocate(self._fd, 0, size)
        self.words = memoryview(mmap.mmap(self._fd, size)).cast("Q")

    def _append_slot(self) -> int:
        number = self.words[1] + 1
        if (number + 1) * _WORDS > len(self.words):
            self._grow(2 * self.words.nbytes)
        self.words[1] = number
        return number * _WORDS

    def _grow(self, size: int) -> None:
        before = self.words
        if self._fd >= 0:
            try:
                self._map(size)
            except OSError as error:
                self._continue_in_memory(error)
            else:
                return
        self.words = memoryview(bytearray(size)).cast("Q")
        self.words[: len(before)] = before

    def _continue_in_memory(self, error: OSError) -> None:
        """Continue without a file: unsent counts are lost if the process is killed."""
        logger.error("unsent counts for the operator are kept in memory only: %s", error)
        if self._fd >= 0:
            if self._path:
                _unlink(self._path)
            os.close(self._fd)
        self._fd, self._path = -1, ""


class OtherProcessCounts:
    """The counts in the file of another process, which this process may take over once the other has ended."""

    def __init__(self, path: str, fd: int, words: memoryview) -> None:
        self.path = path
        self._fd = fd
        self._words = words

    def __repr__(self) -> str:
        return f"<OtherProcessCounts {self.path}>"

    def due_ns(self) -> dict[str, int]:
        """For each service, the monotonic time in nanoseconds at which it may be reported again."""
        return {name: self._words[slot + DUE_NS] for name, _, slot in _records(self._words)}

    def lock_if_ended(self) -> bool:
        """Return whether the process that wrote the counts has ended; if so, lock the file against other processes."""
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            return False
        return True

    def take_over(self, count: Callable[[str, int], object]) -> None:
        """Pass each service with its count to `count`, then delete the file. Its process must have ended."""
        for name, number, slot in _records(self._words):
            if number:
                # Both counts are in files for a moment: a kill between the two counts twice instead of losing.
                count(name, number)
                self._words[slot + COUNT] = 0
        _unlink(self.path)
        self.close()

    def close(self) -> None:
        """Close the file of counts without changing or deleting it."""
        self._words.release()
        os.close(self._fd)


def _open_counts(path: str) -> OtherProcessCounts | None:
    try:
        fd = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
    except OSError:
        return None
    try:
        words = memoryview(mmap.mmap(fd, os.fstat(fd).st_size)).cast("Q")
        if words[0] == LAYOUT:
            return OtherProcessCounts(path, fd, words)
    except (OSError, ValueError, IndexError, TypeError):
        logger.warning("%s holds no counts", path)
    os.close(fd)
    return None


def _records(words: memoryview) -> list[tuple[str, int, int]]:
    """The (service name, count, slot) of each allocated slot in the array `words`."""
    content, records = words.cast("B"), []
    last = min(words[1], len(words) // _WORDS - 1)
    for slot in range(_WORDS, (last + 1) * _WORDS, _WORDS):
        start, length = (slot + _NAME) * 8, min(words[slot + _LENGTH], MAX_NAME_BYTES)
        if length:
            name = bytes(content[start : start + length]).decode(errors="replace")
            records.append((name, words[slot + COUNT], slot))
    return records


def _unlink(path: str) -> None:
    with contextlib.suppress(OSError):
        os.unlink(path)
