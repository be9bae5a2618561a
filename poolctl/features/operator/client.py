"""Reports to an operator how many requests have arrived for each service, without delaying the requests.

Counting increments an integer; a separate task sends the counts. A count is subtracted once the operator has confirmed
it, and unsent counts are stored in a file, so failures and restarts lose nothing. A count may be reported twice if the
response was lost, or if the process was killed before the file was written again. Standard library only.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import ssl
from collections.abc import Callable
from dataclasses import dataclass
from random import Random
from urllib.parse import urlsplit

from poolctl.daemon_threads import in_daemon_thread
from poolctl.http.http_client import exchange
from poolctl.http.messages import BadMessage
from poolctl.json_form import Table
from poolctl.platform import read_json_object, replace_file

NOT_REACHED, REACHED = "operator not reached", "operator reached again"

TIMEOUT_SECONDS = 10.0
# The longest pause after failures, unless `retry` is longer.
MAX_PAUSE_SECONDS = 300.0
# Maximum number of requests to the operator in progress, over all services.
REQUESTS_AT_ONCE = 16
# Minimum time between two events about services that cannot be reported.
_REPORT_SECONDS = 60.0
# A count is stored within this time.
_SAVE_SECONDS = 1.0
_PORTS = {"http": 80, "https": 443}

FILE = "operator-unsent.json"

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
    """A service with its unsent requests, and its scheduled or current report."""

    __slots__ = ("due", "failures", "name", "sending", "unsent", "why")

    def __init__(self, name: str) -> None:
        self.name = name
        self.unsent = 0
        # The earliest time of its next report, on the monotonic clock, which all processes share.
        self.due = 0.0
        # The timer of the next report, or the task of the report in progress.
        self.sending: asyncio.TimerHandle | asyncio.Task[None] | None = None
        self.failures = 0  # in a row
        self.why = ""  # the reason for the last failure


class OperatorClient:
    """Reports request counts to one operator: one report in flight per service, and at most one per `retry_seconds`.

    Unsent counts are stored in `directory`, which one client at a time uses; without a directory they are in memory
    only. The next client with the same directory sends them, at the earliest `retry_seconds` after a service's last
    report. `report(kind, message, severity)` is called once when the operator becomes unreachable, and once when it is
    reachable again. Create and use the client on the running loop.
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
        self._path = os.path.join(directory, FILE) if directory else ""
        self._saving: asyncio.TimerHandle | None = None
        self._can_save = True
        self._services: dict[str, _CountedService] = {}
        self._reported = False
        self._report_again = 0.0
        self._delivered = 0
        self._turns = asyncio.Semaphore(REQUESTS_AT_ONCE)
        self._tls: tuple[object, ssl.SSLContext] | None = None
        self._stopped = False
        for name, (unsent, due) in (read_json_object(self._path) if directory else {}).items():
            service = self._services[name] = _CountedService(name)
            # A time of an earlier boot is limited to the longest pause from now.
            longest = max(MAX_PAUSE_SECONDS, settings.retry_seconds) * 1.5
            service.unsent, service.due = unsent, min(due, self._loop.time() + longest)
            if unsent:
                self._schedule(service)

    def __repr__(self) -> str:
        return f"<OperatorClient {self._settings.url}: {self.unsent} unsent>"

    def count(self, name: str, count: int = 1) -> None:
        """Count requests that have arrived for the service. Never blocks."""
        service = self._services.get(name)
        if service is None:
            service = self._services[name] = _CountedService(name)
        service.unsent += count
        if service.sending is None:
            self._schedule(service)
        self._save_soon()

    @property
    def unsent(self) -> int:
        """The number of requests, over all services, that the operator has not confirmed yet."""
        return sum(service.unsent for service in self._services.values())

    def snapshot(self) -> Table:
        """The number of requests `delivered`, the numbers `unsent` by service, and the errors of `failing` services."""
        services = [*self._services.values()]
        return {
            "delivered": self._delivered,
            "unsent": {service.name: service.unsent for service in services if service.unsent},
            "failing": {service.name: service.why for service in services if service.failures},
        }

    def configure(self, settings: OperatorSettings) -> None:
        """Use these settings from the next request to the operator on."""
        if settings != self._settings:
            self._settings = settings
            self._tls = None
            for service in self._services.values():
                service.failures = 0
                service.due = min(service.due, self._loop.time() + settings.retry_seconds)
                if isinstance(service.sending, asyncio.TimerHandle):
                    self._schedule(service)

    def close(self) -> None:
        """Stop sending. Unsent counts stay in the client's directory, for the next process to send."""
        self._stopped = True
        for service in self._services.values():
            if service.sending is not None:
                service.sending.cancel()
        self.save()

    def save(self) -> None:
        """Store the unsent counts for the next client with this directory. If that fails, they are in memory only."""
        if self._saving is not None:
            self._saving.cancel()
            self._saving = None
        if not self._path:
            return
        now, services = self._loop.time(), self._services.values()
        counts = {
            service.name: (service.unsent, service.due)
            for service in services
            if service.unsent or service.due > now
        }
        try:
            replace_file(self._path, json.dumps(counts).encode())
        except OSError as error:
            if self._can_save:
                logger.error("unsent counts for the operator are kept in memory only: %s", error)
            self._can_save = False
        else:
            self._can_save = True

    def _save_soon(self) -> None:
        if self._path and self._saving is None and not self._stopped:
            self._saving = self._loop.call_later(_SAVE_SECONDS, self.save)

    # Sending.

    def _schedule(self, service: _CountedService) -> None:
        """Schedule the service's next report for the time when it is due, unless sending has stopped."""
        if service.sending is not None:
            service.sending.cancel()
        if not self._stopped:
            service.sending = self._loop.call_at(service.due, self._begin, service)

    def _begin(self, service: _CountedService) -> None:
        service.sending = self._loop.create_task(self._report_request_count(service))

    async def _report_request_count(self, service: _CountedService) -> None:
        async with self._turns:
            settings = self._settings
            began = self._loop.time()
            count = service.unsent
            try:
                await self._post(settings, service.name, count)
            except Exception as error:  # any error: the service must not wait forever
                why = str(error) or f"no answer within {TIMEOUT_SECONDS:g} s"
                self._record_failure(service, began, settings, why)
            else:
                service.unsent -= count
                service.due = began + settings.retry_seconds
                self._record_success(service, count)
        service.sending = None
        self._save_soon()
        if service.unsent:
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
        service.due = max(began + pause, self._loop.time())
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


def _parsed_url(url: str) -> tuple[str | tuple[str, int], str, str]:
    """The address to connect to, the value of the Host header, and the path. Raises ValueError."""
    if url.startswith("unix:"):
        return url.removeprefix("unix:"), "localhost", ""
    parts = urlsplit(url)
    if parts.scheme not in _PORTS or not parts.hostname:
        raise ValueError("the operator's url is neither http://HOST:PORT, https://HOST:PORT nor unix:/PATH")
    return (parts.hostname, parts.port or _PORTS[parts.scheme]), parts.netloc, parts.path
