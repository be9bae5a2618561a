"""The dashboard in front of a recorded pool."""

from __future__ import annotations

import asyncio
import shutil
import socket
import tempfile
import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

from poolctl.features.dashboard.site import DashboardSite
from poolctl.web.site import SupervisorClient
from poolctl.web.web_process import ServedAddress
from tests.features.dashboard.recorded_pool import RecordedPool
from tests.ports import claim_port
from tests.stand_in import stand_in

TOKEN = "let-me-in-4711"


class Stage:
    """A dashboard on a port of its own; `gone()` takes its pool away, `back()` brings it back."""

    token = TOKEN

    def __init__(self, pool: RecordedPool, directory: Path) -> None:
        self.pool = pool
        self.port = claim_port()
        self.logs = directory
        self._socket = directory / "control.sock"
        self._supervisor: AbstractContextManager[Any] | None = None
        self.requests: list[tuple[str, dict[str, Any]]] = []
        self._thread: threading.Thread | None = None
        self.tls: dict[str, Any] | None = None  # for connections from now on

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/"

    def back(self) -> None:
        self._supervisor = stand_in(self._socket, self.pool.answer)
        self.requests = self._supervisor.__enter__()

    def gone(self) -> None:
        if self._supervisor is not None:
            self._supervisor.__exit__(None, None, None)
            self._supervisor = None
            self._socket.unlink(missing_ok=True)

    def _settings(self, token: str) -> dict[str, Any]:
        return {
            "logs_directory": str(self.logs), "key": "0123456789ab", "name": self.pool.name, "token": token,
            "hosts": ("Page.Example",), "secure": self.tls is not None,
            "ended_path": str(self.logs / "dashboard.ended"),
        }  # fmt: skip

    def begin(self) -> None:
        begun = threading.Event()

        async def serve() -> None:
            self._loop, self._over = asyncio.get_running_loop(), asyncio.Event()
            servers: set[asyncio.Task[None]] = set()
            address = ServedAddress(DashboardSite(SupervisorClient(str(self._socket))), servers)
            listener = socket.create_server(("127.0.0.1", self.port))

            async def serve_with(token: str) -> None:
                listeners = [listener.dup()]
                await address.serve(self._settings(token), self.tls, listeners, lambda problem, changed: None)

            self._serve_with = serve_with
            await serve_with(self.token)
            begun.set()
            await self._over.wait()
            await address.close(drains=False)
            await asyncio.gather(*servers)
            listener.close()

        self._thread = threading.Thread(target=lambda: asyncio.run(serve()), daemon=True)
        self._thread.start()
        assert begun.wait(60)

    def change_token(self, token: str) -> None:
        """Serve with another token from now on, as after a reload."""
        asyncio.run_coroutine_threadsafe(self._serve_with(token), self._loop).result(60)

    @contextmanager
    def hung(self) -> Iterator[None]:
        """The dashboard sends and reads nothing until the end of the block; its connections stay open."""
        over = threading.Event()
        self._loop.call_soon_threadsafe(over.wait, 60)
        try:
            yield
        finally:
            over.set()

    def end(self) -> None:
        if self._thread is not None:
            self._loop.call_soon_threadsafe(self._over.set)
            self._thread.join(60)
            self._thread = None

    def close(self) -> None:
        self.end()
        self.gone()


@contextmanager
def dashboard_of(pool: RecordedPool | None = None) -> Iterator[Stage]:
    """A dashboard that answers, until the end of the block."""
    directory = Path(tempfile.mkdtemp(prefix="pc-"))  # short: Unix socket paths hold 108 bytes
    found = Stage(pool or RecordedPool(), directory)
    try:
        found.back()
        found.begin()
        yield found
    finally:
        found.close()
        shutil.rmtree(directory, ignore_errors=True)
