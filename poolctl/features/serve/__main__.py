"""The process of `poolctl serve`: it loads the application, serves it until SIGTERM, and drains as a worker does."""

from __future__ import annotations

import asyncio
import contextlib
import faulthandler
import os
import signal
import sys
from types import FrameType
from typing import NoReturn

import uvicorn

from poolctl.worker.foreground import InheritedSpec, close_and_unlink, read_and_apply_spec
from poolctl.worker.imports import LoadFailed, exit_status, explain, load_app, set_argv_and_path
from poolctl.worker.serving.pool_server import PoolServer, StartupFailed, load_config
from poolctl.worker.serving.uvicorn_parts import apply_and_drop_level, configure

from ._health import HealthEndpoint

_FAILED = 1
_TERMINATION_LOG = "/dev/termination-log"  # exists in Kubernetes containers only


class SingleServerProcess:
    """One server, served by this process."""

    def __init__(self, inherited: InheritedSpec) -> None:
        self._spec = inherited.spec
        self._listeners = inherited.listeners
        self._tls_fds = inherited.tls_fds
        self._health = HealthEndpoint(
            self._spec["server"], inherited.more, self._spec["probes"], self._spec["expose"]
        )
        self._server: PoolServer | None = None
        self._serving: asyncio.Task[None] | None = None
        self._terminated = False

    def run(self) -> int:
        """Serve until a signal; returns the exit status. The last line of the output is the reason for a failure."""
        # The kernel ignores signals to a container's first process unless it has handlers.
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, _exit_on_signal)
        # For `kill -URG 1` in a container that hangs: nothing else sends this signal, and by default it is ignored.
        faulthandler.register(signal.SIGURG)
        try:
            self._health.begin()
            set_argv_and_path(self._spec)
            settings = apply_and_drop_level(self._spec["uvicorn"] | {"access_log": False})
            config = configure(load_app(self._spec), settings)
            config = load_config(config, self._spec["requests"], self._spec["tls"], self._tls_fds)
            with asyncio.Runner(loop_factory=config.get_loop_factory()) as runner:
                runner.run(self._serve(config))
        except asyncio.CancelledError:
            return 0  # a signal during the start
        except SystemExit as exit_:
            return exit_status(exit_.code)
        except LoadFailed as error:
            print(explain(error), file=sys.stderr, end="")
            return self._failed(str(error))
        except StartupFailed as error:
            return self._failed(str(error))
        finally:
            _leave_message(self._health.problem)
            close_and_unlink(self._listeners)
        return 0

    async def _serve(self, config: uvicorn.Config) -> None:
        spec = self._spec
        self._serving = asyncio.current_task()
        loop = asyncio.get_running_loop()
        loop.add_signal_handler(signal.SIGTERM, self._terminate)
        loop.add_signal_handler(signal.SIGINT, self._stop)
        server = self._server = PoolServer(
            config,
            state=spec["state"],
            drain_seconds=spec["drain_seconds"],
            stop_seconds=spec["stop_seconds"],
            failed=(spec["requests"] or {}).get("failed"),
            **spec["limits"],
        )
        # No other process accepts connections, so they must be refused once this process stops accepting.
        server.on_left = lambda: close_and_unlink(self._listeners)
        await server.run(self._listeners, lambda: self._health.set_application(server))

    def _terminate(self) -> None:
        """Fail readiness, serve for the stop delay, then drain. During startup or at a second signal, stop at once."""
        if self._terminated or self._server is None or not self._server.started:
            self._stop()
            return
        self._terminated = True
        self._health.report_stopping()
        asyncio.get_running_loop().call_later(self._spec["stop_delay_seconds"], self._server.drain)

    def _stop(self) -> None:
        self._health.report_stopping()
        if self._server is not None and self._server.started:
            self._server.stop()
        elif self._serving is not None:
            self._serving.cancel()

    def _failed(self, reason: str) -> int:
        print(f"poolctl: {self._spec['server']}: {reason}", file=sys.stderr, flush=True)
        return _FAILED


def _leave_message(text: str) -> None:
    """Write the termination message, which Kubernetes keeps even after exit status 0."""
    if text:
        with contextlib.suppress(OSError), open(os.open(_TERMINATION_LOG, os.O_WRONLY), "w") as file:
            file.write(text)


def _exit_on_signal(number: int, frame: FrameType | None) -> NoReturn:
    """Exit with status 0 if a signal comes while the application is imported."""
    sys.exit(0)


def main() -> None:
    """Run the server that `poolctl serve` has prepared, and exit with its status."""
    sys.exit(SingleServerProcess(read_and_apply_spec("features.serve", light=True)).run())
