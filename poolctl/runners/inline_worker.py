"""Serves one server as a task of this process: loads the application, serves it, drains and ends."""

from __future__ import annotations

import asyncio
import contextvars
import functools
import socket
import sys
from collections.abc import Callable, Sequence
from typing import Any

import uvicorn

from poolctl.config import ServerConfig
from poolctl.daemon_threads import in_daemon_thread
from poolctl.errors import ServerError
from poolctl.json_form import Table
from poolctl.worker.imports import LoadFailed, load_app
from poolctl.worker.serving.accepting import stop_reading
from poolctl.worker.serving.pool_server import STARTUP_FAILURE, PoolServer, StartupFailed
from poolctl.worker.serving.request_records import AccessLogMiddleware
from poolctl.worker.serving.uvicorn_parts import LifespanOn, configure, ssl_context

from . import worker_spec
from .runner_protocol import Exit, Placement
from .worker_spec import uvicorn_settings

_CANCEL_SECONDS = 0.2
_CANCEL_ATTEMPTS = 25


class InlineWorker:
    """Serves one server as a task of this process. The semaphore `turn` limits how many applications load at once.

    The futures `begun` (its turn to load has come), `answered` (it is ready) and `exited` never raise; several tasks
    may await them.
    """

    def __init__(
        self,
        placement: Placement,
        server: ServerConfig,
        state: Table,
        turn: asyncio.Semaphore,
        on_expired: Callable[[], None],
    ) -> None:
        loop = asyncio.get_running_loop()
        self.placement = placement
        self.server = server
        self.reason = ""
        self.missing_module = ""
        self.begun: asyncio.Future[None] = loop.create_future()
        self.answered: asyncio.Future[None] = loop.create_future()
        self.exited: asyncio.Future[Exit] = loop.create_future()
        self._state = state
        self._turn = turn
        self._on_expired = on_expired  # called when it has served its `max_requests`
        self._uvicorn: PoolServer | None = None
        self._lifespan: _Lifespan | None = None
        self._forced_exit: Exit | None = None
        self._task: asyncio.Task[Exit]

    def start(self, listeners: Sequence[socket.socket], *, resting: bool = False) -> None:
        """Start the task that loads the application and serves it on these listeners.

        With `resting`, it accepts nothing until `set_accepting` is called.
        """
        # A separate context, because the values of the caller's context must not reach requests.
        work = self._load_and_serve(listeners, resting)
        self._task = asyncio.get_running_loop().create_task(work, context=contextvars.Context())
        self._task.add_done_callback(self._on_task_done)

    def begin_shutdown(self, *, drain: bool) -> None:
        """Let the worker stop accepting, finish current requests and end. Does not wait; may be called again.

        With `drain`, idle connections get time before they are closed; otherwise they are closed at once. A worker that
        is still loading its application is cancelled.
        """
        if self._uvicorn is None:
            self._task.cancel()  # the application is still being loaded
            return
        if self._lifespan is not None and not self.answered.done():
            self._lifespan.fail_startup()
        for served in self._uvicorn.acceptor.servers:
            # At once, so that connections after a restart reach the new instance.
            stop_reading(served.sockets)
        if drain:
            self._uvicorn.drain()
        else:
            self._uvicorn.stop()

    def set_accepting(self, accepting: bool) -> None:
        """Start or stop accepting connections."""
        if self._uvicorn is not None:
            self._uvicorn.accept_or_drain(accepting)

    def connect(self, kind: str, plain: bool) -> socket.socket:
        """Connect to the worker for a probe (see Runner.connect); returns the caller's end. Raises OSError."""
        if self._uvicorn is None or not self._uvicorn.started:
            raise ConnectionRefusedError("it has not started")
        ours, theirs = socket.socketpair()
        self._uvicorn.answer_probe({"kind": kind, "plain": plain}, theirs)
        return ours

    def reload_tls(self, server: ServerConfig) -> None:
        """Use the server's current certificate files for new handshakes. Raises ServerError."""
        settings = worker_spec.tls_settings(server)
        if self._uvicorn is None or self._uvicorn.config.ssl is None or settings is None:
            return
        try:
            with worker_spec.memory_files(worker_spec.tls_contents(server)) as fds:
                # A new context: the old one would still trust the client authorities that are no longer in the file.
                self._uvicorn.config.ssl = ssl_context(settings, fds)
        except OSError as error:  # ssl.SSLError is one
            message = f"its certificates cannot be used: {error.strerror or error}"
            raise ServerError(message, name=server.name, bind=server.bind, hint="check `tls`") from error

    async def kill(self, exit_: Exit) -> None:
        """Cancel the worker's task and wait briefly; if `exited` has no result yet, it becomes `exit_`."""
        self._forced_exit = exit_
        # Give it a moment first, because a task that has been asked to end may end cleanly.
        await asyncio.wait({self._task}, timeout=_CANCEL_SECONDS / 4)
        for _ in range(0 if self._task.done() else _CANCEL_ATTEMPTS):
            self._task.cancel()
            await asyncio.wait({self._task}, timeout=_CANCEL_SECONDS)
            if self._task.done():
                break
        if not self.exited.done():
            self.exited.set_result(exit_)

    async def _load_and_serve(self, listeners: Sequence[socket.socket], resting: bool) -> Exit:
        try:
            config = await self._load_uvicorn_config()
            self._uvicorn = PoolServer(
                config,
                state=self._state,
                drain_seconds=self.server.drain_timeout,
                stop_seconds=worker_spec.stop_seconds(self.server),
                resting=resting or self.server.health.gated,
                failed="logger" if self.server.http.access_log == "errors" else None,
                **worker_spec.connection_limits(self.server),
            )
            await self._uvicorn.run(listeners, self._on_ready)
        except (LoadFailed, StartupFailed) as error:
            self.reason = self.reason or str(error)
            self.missing_module = getattr(error, "missing", "")
            return Exit.from_returncode(getattr(error, "status", STARTUP_FAILURE))
        except ServerError as error:
            self.reason = error.message
            return Exit.from_returncode(1)
        except Exception as error:
            self.reason = f"{type(error).__name__}: {error}"
            return Exit.from_returncode(1)
        finally:
            if self._lifespan is not None and self._lifespan.task is not None:
                self._lifespan.task.cancel()
        return Exit.from_returncode(0)

    def _on_ready(self) -> None:
        assert self._uvicorn is not None
        self._uvicorn.server_state.on_limit = self._on_expired
        self.answered.set_result(None)

    async def _load_uvicorn_config(self) -> uvicorn.Config:
        server = self.server
        async with self._turn:
            self.begun.set_result(None)
            load = functools.partial(_load_application, server)
            app = load() if callable(server.app) and not server.factory else await in_daemon_thread(load)
        settings = uvicorn_settings(server)
        # uvicorn turns its access log off for the whole process; here the setting is per server.
        access_log = settings.pop("access_log")
        config = configure(app, settings)
        config.load()
        if config.lifespan != "off":
            config.lifespan_class = functools.partial(_Lifespan, self)
        config.access_log = False
        if access_log is True or server.http.request_id:
            log = "logger" if access_log is True else None
            config.loaded_app = AccessLogMiddleware(
                config.loaded_app, log=log, answer=bool(server.http.request_id)
            )
        tls = worker_spec.tls_settings(server)
        if tls is not None:
            with worker_spec.memory_files(worker_spec.tls_contents(server)) as fds:
                config.ssl = ssl_context(tls, fds)
        return config

    def _on_task_done(self, task: asyncio.Task[Exit]) -> None:
        if not self.exited.done():
            exit_ = Exit(message="stopped while it was loading") if task.cancelled() else task.result()
            self.exited.set_result(self._forced_exit or exit_)


class _Lifespan(LifespanOn):
    """uvicorn's lifespan, with a task that can be cancelled and the reason for a failed startup."""

    def __init__(self, worker: InlineWorker, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.task: asyncio.Task[object] | None = None
        self._worker = worker
        worker._lifespan = self

    def fail_startup(self) -> None:
        """Treat a startup that has not completed as failed, so that no request is served."""
        if not self.startup_event.is_set():
            self.startup_failed = True
            if self.task is not None:
                self.task.cancel()

    async def main(self) -> None:
        self.task = asyncio.current_task()
        if self.startup_failed:
            self.startup_event.set()
            self.shutdown_event.set()
        else:
            await super().main()

    async def send(self, message: Any) -> None:
        if message["type"] == "lifespan.startup.failed":
            # Starlette's message is a traceback; its last line is the error.
            lines = str(message.get("message") or "").strip().splitlines()
            self._worker.reason = lines[-1] if lines else "the application refused to start"
        await super().send(message)


def _load_application(server: ServerConfig) -> Any:
    if not callable(server.app) and server.app_dir not in sys.path:
        sys.path.insert(0, server.app_dir)
    names = ("app", "factory", "handlers", "handler_key")
    return load_app({name: getattr(server, name) for name in names} | worker_spec.interface_settings(server))
