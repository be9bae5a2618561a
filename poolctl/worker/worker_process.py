"""A worker process: loads the application, becomes ready, follows orders from its control socket, and exits.

Orders arrive and events leave through the control socket, and no call blocks. A heartbeat is answered without a
message: it is noted on a page of memory that the supervisor reads. When both keeper and supervisor have exited, the
worker drains, and exits.

Processes that the application forks do not keep the worker's sockets and signal handlers (see ForkedChildCleanup).
"""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import os
import signal
import socket
import sys
import threading
from collections.abc import Callable
from time import monotonic_ns, process_time_ns
from typing import NoReturn

import uvicorn

from ..keeper import wire
from ..platform import close_all, name_process
from . import imports, process_setup
from .process_setup import BEAT, FIRST_LISTENER_FD, Spec
from .serving.accepting import AdoptionPair
from .serving.connection_state import PoolServerState
from .serving.pool_server import STARTUP_FAILURE, PoolServer, StartupFailed, load_config
from .serving.route_context import RouteContexts
from .serving.uvicorn_parts import ABOVE_INFO, Tls, apply_and_drop_level, configure, ssl_context
from .tally import BEAT_ANSWERED_NS, BEAT_ASKED_NS, BEAT_CPU_NS, BEAT_LAG_NS, STACK_DUMP, map_page

Socket = socket.socket  # an application may replace it, as gevent and PySocks do

# The encoded events and log lines that every worker sends.
_IMPORTED = b'{"event":"imported"}'
_READY = b'{"event":"ready"}'
_RESTING = b'{"event":"ready","resting":"new"}'
_STACKS = b'{"event":"stacks"}'
_STARTED = b"INFO:     Application startup complete.\n"
_ENDED = b"INFO:     Application shutdown complete.\n"
_NONE_ASKED = 1  # earlier than any heartbeat
UNCOUNTED = "POOLCTL_UNCOUNTED"  # an environment variable for benchmarks: nothing is counted


class WorkerProcess:
    """A worker: its server, its control socket, and the reason for its exit."""

    def __init__(self, spec: Spec) -> None:
        self.spec = spec
        count = spec["listeners"]
        self.listeners = [Socket(fileno=FIRST_LISTENER_FD + place) for place in range(count)]
        self.tls_fds = range(FIRST_LISTENER_FD + count, FIRST_LISTENER_FD + count + spec["tls_files"])
        ends = [Socket(fileno=self.tls_fds.stop + place) for place in range(2 * spec["adoption"])]
        self.adoption = AdoptionPair(*ends) if ends else None
        self.tally_fd = self.tls_fds.stop + 2 * spec["adoption"]
        self.routes = RouteContexts(spec["server"], self.listeners, secure=spec["tls"] is not None)
        self.control = ControlSocket(process_setup.CONTROL_FD, self)
        self.signalled: int | None = None
        self.expired = False
        self.accepting_ordered = False  # whether an order has decided if this worker accepts
        self.idleness: IdleTimer | None = None
        STACK_DUMP.enable_for_page(self.tally_fd, lambda: self.control.send_or_drop(_STACKS))
        self.forked = ForkedChildCleanup(self)

    def run(self) -> int:
        """Serve until ordered to stop; returns the exit status."""
        try:
            config = self._load_config()
            with asyncio.Runner(loop_factory=config.get_loop_factory()) as runner:
                runner.run(self._serve(config))
        except asyncio.CancelledError:
            return STARTUP_FAILURE
        except SystemExit as leaving:
            # The application has called sys.exit(), during its import or later.
            return imports.exit_status(leaving.code)
        except imports.LoadFailed as error:
            process_setup.print_message(imports.explain(error), end="")
            return self._failed(str(error), STARTUP_FAILURE, missing=error.missing)
        except StartupFailed as error:
            return self._failed(str(error), error.status)
        # If its shutdown has failed, uvicorn has logged that.
        if not self.server.lifespan.should_exit:
            self._log_info(_ENDED)
        return 0

    def _load_config(self) -> uvicorn.Config:
        spec = self.spec
        imports.set_argv_and_path(spec)
        settings = apply_and_drop_level(spec["uvicorn"])
        app = imports.load_app(spec)
        process_setup.fill_standard_descriptors()
        config = configure(app, settings)
        load_config(config, spec["requests"], spec["tls"], list(self.tls_fds))
        return config

    async def _serve(self, config: uvicorn.Config) -> None:
        loop = asyncio.get_running_loop()
        self.server = PoolServer(
            config,
            state=self.spec["state"],
            drain_seconds=self.spec["drain_seconds"],
            stop_seconds=self.spec["stop_seconds"],
            adoption=self.adoption,
            resting=self.spec.get("resting", False),
            routes=self.routes,
            woken=self.spec.get("woken", False),
            tally=None if UNCOUNTED in os.environ else map_page(self.tally_fd),
            failed=(self.spec["requests"] or {}).get("failed"),
            **self.spec.get("limits", {}),
        )
        serving = asyncio.current_task()
        assert serving is not None
        self.serving = serving
        self.control.start_reading_orders(self.server.server_state.tally)
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._on_stop_signal, number)
        self.forked.loop_handler = signal.getsignal(signal.SIGTERM)
        self.control.send_or_drop(_IMPORTED)
        await self.server.run(self.listeners, self._on_server_ready)
        self.control.ignore()

    def _on_server_ready(self) -> None:
        if (tally := self.server.server_state.tally) is not None:
            tally[BEAT_ANSWERED_NS] = _NONE_ASKED  # from now on heartbeats are answered
        self.server.server_state.on_limit = self._report_request_limit_reached
        self.server.on_left = self._on_left
        self._log_info(_STARTED)
        # Tells a supervisor that takes over now that the worker has not been allowed to accept yet.
        self.control.send_or_drop(_RESTING if self.server.resting else _READY)
        if self.idleness is None:
            self._watch_idleness(self.spec.get("idle_seconds"))

    def _on_left(self) -> None:
        for listener in self.listeners:
            listener.close()  # frees the addresses if keeper and supervisor have exited
        self.control.send_or_drop({"event": "left"})

    def _report_request_limit_reached(self) -> None:
        # The replacement starts first: this worker serves until it is ordered to drain.
        self.expired = True
        self.control.send_or_drop({"event": "expired"})

    def perform(self, message: wire.Message, fds: list[int]) -> None:
        match message.get("order"):
            case "stop":
                self.stop(migrate=message.get("to") == "pair")
            case "drain":
                self.drain(migrate=message.get("to") == "pair")
            case "out" | "in" as order:
                self.server.set_in_rotation_or_drain(order == "in")
            case "rest" | "work" as order:
                self.accepting_ordered = True
                self.server.accept_or_drain(order == "work")
            case "conn" if self.server.started and len(fds) == 1:
                self.server.answer_probe(message, Socket(fileno=os.dup(fds[0])))
            case "tls":
                self._renew_certificate_and_report(message.get("tls") or self.spec["tls"], fds)
            case "routes":
                try:
                    self.routes.replace_routes(fds, str(message.get("key", "")), message.get("trusted") or ())
                except (OSError, ValueError) as error:
                    self._log(f"ERROR:    the route table cannot be used: {error}\n".encode())
            case "peers" if len(fds) == 1:
                # Not a duplicate: closing any descriptor of a file releases the locks of this process on it (fcntl(2)).
                self.server.balance_by_counts_page(fds.pop())
            case "idle":
                self._watch_idleness(message.get("seconds"))
            case "report" if self.server.started:
                state = {"event": "ready", "leaving": self.server.should_exit}
                if self.server.resting:
                    state["resting"] = "told" if self.accepting_ordered else "new"
                self.control.send_or_drop(state)
                if self.expired:
                    self.control.send_or_drop({"event": "expired"})
                if self.idleness is not None and self.idleness.idle:
                    self._report_idle(True)

    def _renew_certificate_and_report(self, tls: Tls, fds: list[int]) -> None:
        """Use the certificate in `fds` for new connections; report success or the error to the supervisor."""
        try:
            context = ssl_context(tls, fds)
        except (OSError, ValueError) as error:
            self.control.send_or_drop({"event": "tls", "error": str(error)[: imports.MAX_CHARACTERS]})
            return
        self.server.config.ssl = context
        self.control.send_or_drop({"event": "tls", "error": None})

    def _watch_idleness(self, seconds: float | None) -> None:
        """Report when the worker has been idle for `seconds`, and when it is active again; None: stop reporting."""
        if self.idleness is not None:
            self.idleness.stop()
        self.idleness = IdleTimer(self.server.server_state, seconds, self._report_idle) if seconds else None

    def _report_idle(self, idle: bool) -> None:
        self.control.send_or_drop({"event": "idle" if idle else "busy"})

    def _on_stop_signal(self, number: int) -> None:
        # The signal was sent to this process alone, so no request need be lost. A second signal stops at once.
        if self.signalled is None:
            self.drain()
        else:
            self.stop()
        self.signalled = number

    def drain(self, *, migrate: bool = False) -> None:
        if self.server.started:
            self.server.drain(migrate=migrate)
        else:
            self.stop()  # it has accepted nothing

    def stop(self, *, migrate: bool = False) -> None:
        if self.server.started:
            self.server.stop(migrate=migrate)
        else:
            # Cancel the rest of the startup, which is no longer needed.
            self.serving.cancel()

    def _log_info(self, line: bytes) -> None:
        if self.spec["uvicorn"].get("log_level") not in ABOVE_INFO:
            self._log(line)

    def _log(self, line: bytes) -> None:
        with contextlib.suppress(OSError):
            os.write(2, line)

    def _failed(self, message: str, status: int, *, missing: str = "") -> int:
        message = message[: imports.MAX_CHARACTERS]
        self.control.send_or_drop({"event": "failed", "message": message, "missing": missing})
        return status

    def close_in_child(self) -> None:
        # The child must keep neither the port bound nor the worker's connections open.
        STACK_DUMP.disable_and_close()
        self.control.close_in_child()
        sockets = [*self.listeners, *(self.adoption or ())]
        for fd in (self.tally_fd, *(sock.detach() for sock in sockets)):
            with contextlib.suppress(OSError):
                os.close(fd)


class ControlSocket:
    """Receives orders for the worker and sends its events. If keeper and supervisor have exited, the worker drains."""

    def __init__(self, fd: int, worker: WorkerProcess) -> None:
        self.worker = worker
        self._tally: memoryview | None = None
        self._sock = Socket(fileno=fd)
        self._sock.setblocking(False)

    def start_reading_orders(self, tally: memoryview | None) -> None:
        """Read orders from now on. Answer heartbeats in the shared memory `tally`; if it is None, ignore heartbeats."""
        self._tally = tally
        asyncio.get_running_loop().add_reader(self._sock.fileno(), self._handle_next_order)
        # Orders that have already arrived apply to the first connection.
        while self._handle_next_order():
            continue

    def ignore(self) -> None:
        """Stop accepting orders."""
        asyncio.get_running_loop().remove_reader(self._sock.fileno())

    def send_or_drop(self, message: wire.Message | bytes) -> None:
        """Send an event, or drop it if the socket is full: a supervisor that does not read must not delay a request.

        Pass an event as bytes in a newly forked worker: running the JSON encoder would make shared pages private.
        """
        with contextlib.suppress(OSError):
            wire.send(self._sock, message)

    def close_in_child(self) -> None:
        """Close the socket in a process that the application has forked."""
        with contextlib.suppress(OSError):
            os.close(self._sock.detach())

    def _handle_next_order(self) -> bool:
        if answer_if_heartbeat(self._sock, self._tally):
            return True
        try:
            received = wire.receive(self._sock)
        except BlockingIOError:
            return False
        except wire.WireError:
            return True
        except ConnectionError:
            received = None
        if received is None:
            # A socket at end of file stays readable, so it must not be watched.
            self.ignore()
            self.worker.drain()
            return False
        message, fds = received
        try:
            self.worker.perform(message, fds)
        finally:
            close_all(fds)
        return True


def answer_if_heartbeat(control: socket.socket, tally: memoryview | None) -> bool:
    """Read and answer the next message if it is a heartbeat, and return True; leave any other unread (False)."""
    try:
        if control.recv(len(BEAT) + 1, socket.MSG_PEEK) != BEAT:
            return False
        control.recv(len(BEAT))
    except OSError:
        # The next read sees the same error.
        return False
    if tally is not None:
        # Not through the module `time`: the application may have replaced its functions.
        asked_ns = tally[BEAT_ASKED_NS]
        tally[BEAT_LAG_NS] = max(0, monotonic_ns() - asked_ns)
        tally[BEAT_CPU_NS] = process_time_ns()
        tally[BEAT_ANSWERED_NS] = asked_ns
    return True


class IdleTimer:
    """Reports when a server becomes idle (no request, WebSocket, stream or new connection for `seconds`) or active.

    Calls `on_change(True)` when the server becomes idle, and `on_change(False)` when it is active again, until `stop`.
    """

    def __init__(
        self, server_state: PoolServerState, seconds: float, on_change: Callable[[bool], None]
    ) -> None:
        self._server_state = server_state
        self._seconds = seconds
        self._on_change = on_change
        self._loop = asyncio.get_running_loop()
        self._since = self._loop.time()
        self.idle = False
        server_state.on_activity = self._on_activity
        self._timer = self._loop.call_later(seconds, self._report_idle_if_due)

    def stop(self) -> None:
        self._server_state.on_activity = None
        self._timer.cancel()

    def _on_activity(self) -> None:
        self._since = self._loop.time()
        if self.idle:
            self.idle = False
            self._timer = self._loop.call_at(self._since + self._seconds, self._report_idle_if_due)
            self._on_change(False)

    def _report_idle_if_due(self) -> None:
        due = self._since + self._seconds
        if self._server_state.tasks:
            # A request in progress: its end will count as activity.
            due = self._loop.time() + self._seconds
        elif self._loop.time() >= due:
            self.idle = True
            self._on_change(True)
            return
        self._timer = self._loop.call_at(due, self._report_idle_if_due)


class ForkedChildCleanup:
    """Closes the worker's sockets and resets its signal handlers in each child that the application forks.

    asyncio passes signals to its loop through a socket pair, which a forked child shares: without this, a SIGTERM to
    the child, as multiprocessing sends it, would stop the worker and leave the child running.
    """

    def __init__(self, worker: WorkerProcess) -> None:
        self._worker = worker
        self.loop_handler: object = None  # with which the event loop handles signals; None without a loop
        self._masks: dict[int, set[signal.Signals | int]] = {}  # by thread, because several may fork at once
        self._is_cleaned_up = False
        os.register_at_fork(
            before=self._hold_signals,
            after_in_parent=self._release_signals,
            after_in_child=self._after_fork_in_child,
        )

    def _hold_signals(self) -> None:
        # Until the child has its own handlers, a signal to it would go to the worker's loop.
        self._masks[threading.get_ident()] = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())

    def _release_signals(self) -> None:
        signal.pthread_sigmask(signal.SIG_SETMASK, self._masks.pop(threading.get_ident()))

    def _after_fork_in_child(self) -> None:
        if not self._is_cleaned_up:  # in a grandchild these descriptor numbers may have been reused
            self._is_cleaned_up = True
            signal.set_wakeup_fd(-1)
            for number in signal.valid_signals():
                # Reset only the loop's handler; all others belong to the application.
                if self.loop_handler is not None and signal.getsignal(number) == self.loop_handler:
                    signal.signal(number, signal.SIG_DFL)
            self._worker.close_in_child()
        self._release_signals()


def become_worker(fds: list[int], *, preloaded: bool = False) -> NoReturn:
    """Run a worker in this process. `fds`: specification, control socket, output, listeners and further descriptors.

    `preloaded`: this process is a fork of an app zygote, which has set up the server's user and application.
    """
    process_setup.run_and_exit(lambda: _set_up_and_run(fds, preloaded))


def _set_up_and_run(fds: list[int], preloaded: bool) -> int:
    # Signals are not reset: a preloaded application may have set handlers.
    spec_fd, control, output, *rest = fds
    spec = process_setup.read_spec(spec_fd)
    name_process(spec["server"])
    process_setup.wait_start_or_exit(control)
    if spec["kind"] == "command":
        process_setup.run_command(spec, output, rest)
    process_setup.move_descriptors_and_close_others([spec_fd, control, *rest], output)
    if preloaded:
        process_setup.set_index_variable(spec)
    else:
        process_setup.apply_spec(spec)
        if process_setup.needs_exec(spec):
            process_setup.start_interpreter_again(spec, 2 + len(rest), "worker", "serve", str(len(rest)))
    return _run(spec)


def run_after_exec() -> NoReturn:
    """Run the worker in this interpreter, which was started for the server's environment (see `needs_exec`)."""
    spec = process_setup.read_spec_after_exec(2 + int(sys.argv[1]))
    imports.import_libraries_and_set_up()
    imports.hide_poolctl_from_applications()
    os._exit(_run(spec))


def _run(spec: Spec) -> int:
    """Run the worker and its exit handlers; returns the exit status, or ends by the signal that stopped the worker."""
    worker = WorkerProcess(spec)
    status = worker.run()
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    process_setup.flush_output()
    if worker.signalled is not None:
        # The exit status shows the signal, as with any other program.
        signal.signal(worker.signalled, signal.SIG_DFL)
        os.kill(os.getpid(), worker.signalled)
    return status
