"""Restarts while clients never pause: every request that was sent gets its whole answer."""

from __future__ import annotations

import http.client
import threading
from collections.abc import Callable

import pytest

from tests.real_pool import RealPool

RESTARTS = 6
PATIENCE_SECONDS = 10.0


class Clients:
    """Threads that ask without a pause and without a second try; `failures` tells of each request that was lost."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.answered = 0
        self.failures: list[str] = []
        self._over = threading.Event()
        self._threads = [
            threading.Thread(target=self._ask, args=(ask,))
            for ask in (self._new, self._new, self._kept, self._kept)
        ]

    def __enter__(self) -> Clients:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join()

    def _ask(self, way: Callable[[], None]) -> None:
        while not self._over.is_set():
            try:
                way()
            except (OSError, http.client.HTTPException) as error:
                self.failures.append(f"{way.__name__}: {error!r}")

    def _new(self) -> None:
        """A connection for one request."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=PATIENCE_SECONDS)
        self._request(connection)
        connection.close()

    def _kept(self) -> None:
        """A connection for as many requests as the server allows."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=PATIENCE_SECONDS)
        while not self._over.is_set() and not self._request(connection):
            continue
        connection.close()

    def _request(self, connection: http.client.HTTPConnection) -> bool:
        connection.request("GET", "/")
        response = connection.getresponse()
        assert response.read().startswith(b"hello")
        self.answered += 1
        return response.will_close


@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
@pytest.mark.parametrize("parser", ["h11", "httptools"])
def test_a_restart_under_load_loses_no_request(pool: RealPool, loop: str, parser: str) -> None:
    ports = pool.write_hello("web", extra=f'http = {{ loop = "{loop}", implementation = "{parser}" }}')
    pool.ok("start")
    with Clients(ports["web"]) as clients:
        for _ in range(RESTARTS):
            before = clients.answered
            pool.ok("restart")
            assert clients.answered > before
    assert clients.failures == []
