"""Sends an operator the number of requests that have arrived for each service, without delaying any of them.

To count is to add to an integer; a task of its own sends. A count is taken off once the operator has confirmed it:
failures and restarts lose none. One whose answer was lost, or whose process was killed meanwhile, may count twice.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import ssl
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from random import Random
from urllib.parse import urlsplit

from poolctl.http.http_client import exchange
from poolctl.http.message_head import BadMessage
from poolctl.json_form import Table
from poolctl.runners.listener_opener import in_daemon_thread

from ._unsent_counts import COUNT, DUE_NS, OtherCounts, UnsentCounts

NOT_REACHED, REACHED = "operator not reached", "operator reached again"

TIMEOUT_SECONDS = 10.0
# Pauses after failures grow up to this, or to `retry` if that is longer.
MOST_PAUSE_SECONDS = 300.0
# Maximum number of requests to the operator in progress, over all services.
REQUESTS_AT_ONCE = 16
# Within this time only one service that cannot be reported is recorded as an event.
_REPORT_SECONDS = 60.0
# Interval at which other processes of the pool are checked for their end and their reports.
_OTHERS_SECONDS = 1.0
_PORTS = {"http": 80, "https": 443}

Report = Callable[[str, str, str], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class OperatorSettings:
    """Where an operator is informed of incoming requests, and how often at most.

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


class _Service:
    """The state of one service; its count is in the page at `slot`."""

    __slots__ = ("busy", "failures", "name", "slot", "why")

    def __init__(self, name: str, slot: int) -> None:
        self.name = name
        self.slot = slot
        self.busy = False  # a request is due or under way
        self.failures = 0  # in a row
        self.why = ""  # the reason for the last failure


class OperatorClient:
    """Informs one operator: at most one request in flight a service, and one in `retry_seconds`.

    In `directory` unsent counts outlive this process: the next client there continues with them, and spares services
    that its predecessor has just reported. `report(kind, message, severity)` hears once when the operator cannot be
    reached, and once when it can again. Made and used on the running loop.
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
        self._services: dict[str, _Service] = {}
        self._failing: set[str] = set()
        self._reported = False
        self._report_again = 0.0
        self._delivered = 0
        self._places = asyncio.Semaphore(REQUESTS_AT_ONCE)
        # The timer of a request that is due, or the task of one that is under way.
        self._sending: dict[_Service, asyncio.TimerHandle | asyncio.Task[None]] = {}
        self._tls: tuple[object, ssl.SSLContext] | None = None
        self._stopped = False
        self._others: list[OtherCounts] = []
        self._looking: asyncio.TimerHandle | None = None
        self._look()

    def __repr__(self) -> str:
        return f"<OperatorClient {self._settings.url}: {self.unsent} unsent>"

    def count(self, name: str, count: int = 1) -> None:
        """Count requests that have arrived for the service. Never blocks."""
        service = self._services.get(name)
        if service is None:
            service = self._add(name)
        self._page.words[service.slot] += count
        if not service.busy:
            self._schedule(service)

    @property
    def unsent(self) -> int:
        """How many requests the operator has not confirmed yet, of all services."""
        return sum(map(self._unsent, self._services.values()))

    def snapshot(self) -> Table:
        """The requests `delivered`, those `unsent` by service, and why the last report of a service failed."""
        services = [*self._services.values()]
        return {
            "delivered": self._delivered,
            "unsent": {each.name: count for each in services if (count := self._unsent(each))},
            "failing": {each.name: each.why for each in services if each.failures},
        }

    def configure(self, settings: OperatorSettings) -> None:
        """Follow these settings from the next request on."""
        if settings != self._settings:
            self._settings = settings
            self._tls = None
            for service in self._services.values():
                service.failures = 0
                self._set_due(service, min(self._due(service), self._loop.time() + settings.retry_seconds))
                self._postpone(service)

    def stop_sending(self) -> None:
        """Only count from now on: a successor sends. A request in progress is completed."""
        self._stopped = True
        for service, sending in [*self._sending.items()]:
            if not isinstance(sending, asyncio.Task):
                sending.cancel()
                del self._sending[service]

    def close(self) -> None:
        """End; the successor in the directory, at the latest the next process, sends the unsent counts."""
        self.stop_sending()
        for sending in self._sending.values():
            sending.cancel()
        if self._looking is not None:
            self._looking.cancel()
        for other in self._others:
            other.close()
        self._others = []
        self._page.close()

    # Services.

    def _add(self, name: str) -> _Service:
        self._forget_idle()
        service = self._services[name] = _Service(name, self._page.slot(name))
        due = max((other.due_ns().get(name, 0) for other in self._others), default=0)
        self._set_due(service, self._bounded(due / 1e9))
        return service

    def _forget_idle(self) -> None:
        """Free the places of idle services for new ones. Only the oldest two are examined per new service."""
        now = self._loop.time()
        for service in [*self._services.values()][:2]:
            del self._services[service.name]
            if service.busy or self._unsent(service) or self._due(service) > now:
                self._services[service.name] = service  # looked at again after the others
            else:
                self._page.release(service.slot)

    def _unsent(self, service: _Service) -> int:
        return int(self._page.words[service.slot + COUNT])

    def _due(self, service: _Service) -> float:
        """When the service may be reported, in the loop's time: the system's monotonic clock in all processes."""
        return float(self._page.words[service.slot + DUE_NS] / 1e9)

    def _set_due(self, service: _Service, at: float) -> None:
        self._page.words[service.slot + DUE_NS] = max(0, int(at * 1e9))

    def _bounded(self, due: float) -> float:
        """The time noted by another process, but no later than the longest pause from now."""
        most = max(MOST_PAUSE_SECONDS, self._settings.retry_seconds) * 1.5
        return min(due, self._loop.time() + most)

    # Sending.

    def _schedule(self, service: _Service) -> None:
        """Report the service when it is due."""
        service.busy = True
        former = self._sending.get(service)
        if former is not None:
            former.cancel()
        if not self._stopped:
            self._sending[service] = self._loop.call_at(self._due(service), self._begin, service)

    def _begin(self, service: _Service) -> None:
        self._sending[service] = self._loop.create_task(self._send(service))

    async def _send(self, service: _Service) -> None:
        async with self._places:
            settings = self._settings
            began = self._loop.time()
            count = self._unsent(service)
            # For a successor, should this process be killed meanwhile.
            self._set_due(service, began + max(settings.retry_seconds, TIMEOUT_SECONDS))
            try:
                await self._post(settings, service.name, count)
            except Exception as error:  # any error: the service must not wait forever
                why = str(error) or f"no answer within {TIMEOUT_SECONDS:g} s"
                self._failed(service, began, settings, why)
            else:
                self._page.words[service.slot] -= count
                self._set_due(service, began + settings.retry_seconds)
                self._succeeded(service, count)
        del self._sending[service]
        service.busy = self._unsent(service) > 0
        if service.busy:
            self._schedule(service)

    async def _post(self, settings: OperatorSettings, service: str, count: int) -> None:
        """Deliver the count. Raises OSError, BadMessage, ValueError, TimeoutError."""
        where, host, path = _place(settings.url)
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
            tls = await self._context(settings) if settings.url.startswith("https:") else None
            async with exchange(where, "POST", target, fields, body, tls=tls) as response:
                if not 200 <= response.status < 300:
                    raise ConnectionError(f"it answers {response.status}")
                limit.reschedule(None)
                # The rest is not needed, but KubeElasti's operator gives up scaling when its client leaves.
                with contextlib.suppress(OSError, BadMessage, TimeoutError):
                    async with asyncio.timeout(TIMEOUT_SECONDS):
                        async for _ in response.body():
                            pass

    async def _context(self, settings: OperatorSettings) -> ssl.SSLContext:
        """The TLS context, made again when one of its files has changed: reading them blocks."""

        def made() -> tuple[object, ssl.SSLContext]:
            mark = (
                settings,
                [os.stat(path).st_mtime_ns for path in (settings.ca, settings.cert, settings.key) if path],
            )
            if self._tls is not None and self._tls[0] == mark:
                return self._tls
            context = ssl.create_default_context(cafile=settings.ca or None)
            if settings.cert:
                # Without a password OpenSSL would ask for one on the terminal.
                context.load_cert_chain(settings.cert, settings.key or None, settings.key_password)
            return mark, context

        self._tls = await in_daemon_thread(made)
        return self._tls[1]

    def _failed(self, service: _Service, began: float, settings: OperatorSettings, why: str) -> None:
        retry = settings.retry_seconds
        most = max(MOST_PAUSE_SECONDS, retry)
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
        self._failing.add(service.name)

    def _succeeded(self, service: _Service, count: int) -> None:
        self._delivered += count
        service.failures, service.why = 0, ""
        self._failing.discard(service.name)
        if self._reported and not self._failing:
            self._reported, self._report_again = False, 0.0
            self._report(REACHED, f"{self._settings.url} is informed of all requests again", "info")

    # Predecessors, and processes that end while this process already serves.

    def _look(self) -> None:
        """Take over the counts of processes that have ended; look again while there are others."""
        for other in self._others:
            other.close()
        self._others, self._looking = self._page.others(), None
        for other in [*self._others]:
            if other.is_left():
                self._others.remove(other)
                self._take(other)
            else:
                self._postpone_until(other.due_ns())
        if self._others:
            self._looking = self._loop.call_later(_OTHERS_SECONDS, self._look)

    def _take(self, other: OtherCounts) -> None:
        for name, count, slot in other.counts():
            # Both counts are in files for a moment: a kill between the two counts twice instead of losing.
            self.count(name, count)
            other.taken(slot)
        self._postpone_until(other.due_ns())
        other.remove()

    def _postpone_until(self, due_ns: Mapping[str, int]) -> None:
        """Report these services no earlier than the time at which another process would have reported them again."""
        for name in due_ns.keys() & self._services.keys():
            service, due = self._services[name], self._bounded(due_ns[name] / 1e9)
            if due > self._due(service):
                self._set_due(service, due)
                self._postpone(service)

    def _postpone(self, service: _Service) -> None:
        """Reschedule the service's report, whose time has changed, unless it is in progress."""
        if service in self._sending and not isinstance(self._sending[service], asyncio.Task):
            self._schedule(service)


def _place(url: str) -> tuple[str | tuple[str, int], str, str]:
    """The address to connect to, the value of the Host header, and the path. Raises ValueError."""
    if url.startswith("unix:"):
        return url.removeprefix("unix:"), "localhost", ""
    parts = urlsplit(url)
    if parts.scheme not in _PORTS or not parts.hostname:
        raise ValueError("the operator's url is neither http://HOST:PORT, https://HOST:PORT nor unix:/PATH")
    return (parts.hostname, parts.port or _PORTS[parts.scheme]), parts.netloc, parts.path
