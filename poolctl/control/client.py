"""Clients of a running supervisor: one HTTP request over its control socket, JSON lines back.

`Client` blocks; `AsyncClient` is for an event loop. Other functions observe the processes of a pool from outside:
whether and why they have exited, or why the supervisor does not answer. Standard library only.
"""

from __future__ import annotations

import json
import os
import sys
from socket import AF_UNIX, SOCK_STREAM, socket
from time import monotonic, sleep
from typing import TYPE_CHECKING, TypeVar

from poolctl import __version__, exit_codes
from poolctl.control import pool_paths
from poolctl.control.protocol import PROTOCOL
from poolctl.errors import ControlError, PoolError, PoolParamError, PoolValidateError, ServerError
from poolctl.keeper import fd_store

if TYPE_CHECKING:
    import asyncio
    from collections.abc import AsyncGenerator, Callable, Iterator, Mapping, Sequence

    from poolctl.control.answers import PingResult, ProgressLine, UpgradeResult
    from poolctl.json_form import Table

    Answer = TypeVar("Answer")

OK = 200
FORBIDDEN = 403
_BEGINNING = b"HTTP/1."
# After this time without data, the supervisor has to answer a ping: a dead one would leave the client in the backlog.
SILENCE_SECONDS = 10.0
_FAILED_SECONDS = 0.5  # instead, after the keeper has failed repeatedly to start a supervisor
# The supervisor itself enforces a command's timeout and reports late servers; this covers a hung supervisor.
GRACE_SECONDS = 5.0
_READ_BYTES = 256 * 1024
_HANDOVER_SECONDS = 30.0
_AGAIN = "the supervisor was replaced during the reload, and the next one was asked again"
# A reload compares desired and actual state, so that it can be repeated, and so can verbs that change nothing.
_REPEATED = frozenset({"reload", "list", "status", "show", "stats", "health", "metrics", "routes"})
_STATUS = "status.json"
# A running supervisor restores a removed control socket within two seconds; a starting one opens it.
_MISSING_SECONDS = 5.0
# Much longer than a pool needs to exit after its servers have stopped, even on a busy machine.
END_SECONDS = 30.0
_LOOK_SECONDS = 0.02  # the interval of checks for changes that the kernel does not report
_STOPPED = ("T", "t")  # states in proc(5): stopped by a signal, or by a debugger
_DEAD = ("", "Z", "X")
_LOG_BYTES = 4096
_FATAL = "Fatal Python error: "  # from an interpreter that cannot run
_DETAILS = 12  # the maximum number of lines that follow it


class NoSupervisor(ControlError):
    """Nothing listens on the pool's control socket."""

    def __init__(
        self, message: str = "no supervisor is running for this pool", *, hint: str = "poolctl start"
    ) -> None:
        super().__init__(message, exit_code=exit_codes.NO_SUPERVISOR, hint=hint)


class SupervisorFailed(ControlError):
    """The supervisor exited and cannot be restarted; the message says why. The servers keep serving."""

    def __init__(self, message: str, hint: str, keeper_pid: int) -> None:
        super().__init__(message, exit_code=exit_codes.CONFLICT, hint=hint)
        self.keeper_pid = keeper_pid


class SupervisorEnded(ControlError):
    """The supervisor ended during the request."""

    def __init__(self, socket_path: str) -> None:
        super().__init__(
            "the supervisor ended before it answered",
            exit_code=exit_codes.CONFLICT,
            hint=f"poolctl status shows what is there now; {os.path.dirname(socket_path)}/supervisor.log may say why",
        )


class Client:
    """Sends verbs to one running supervisor, over a new connection for each call; usable from any thread.

    `output` is the descriptor that the caller writes to: if it is a pipe, a call raises BrokenPipeError once the reader
    has closed it.
    """

    def __init__(
        self, socket_path: str, *, silence_seconds: float = SILENCE_SECONDS, output: int = -1
    ) -> None:
        self.socket_path = socket_path
        self._output = output
        self._longest_silence_seconds = silence_seconds

    @property
    def _silence_seconds(self) -> float:
        limit = self._longest_silence_seconds
        has_failed = os.path.exists(f"{os.path.dirname(self.socket_path)}/{fd_store.NO_SUPERVISOR}")
        return min(limit, _FAILED_SECONDS) if has_failed else limit

    def __repr__(self) -> str:
        return f"<Client {self.socket_path}>"

    def call(
        self,
        verb: str,
        body: Mapping[str, object] | None = None,
        on_progress: Callable[[Table], None] | None = None,
        timeout: float | None = None,
    ) -> Table:
        """Return the supervisor's result for `verb`. Blocks for at most `timeout` seconds and a short grace period.

        `on_progress` gets every message that comes before the result. If the supervisor ends during `reload` or a verb
        that reads, its successor is asked once more. Raises NoSupervisor if nothing listens, and ControlError: exit
        code 124 after the timeout, 8 if the supervisor is silent, or if it ends and the command is not sent again.
        """
        call = _Call(verb, body, on_progress, timeout)
        while True:
            try:
                for message in self.messages(verb, call.request, call.left_seconds()):
                    if (result := call.receive(message)) is not None:
                        return result
            except SupervisorEnded:
                if not call.prepare_repetition():
                    raise

    def ask(
        self,
        kind: type[Answer],
        verb: str,
        body: Mapping[str, object] | None = None,
        on_progress: Callable[[ProgressLine], None] | None = None,
        timeout: float | None = None,
    ) -> Answer:
        """Like `call`, but returns a typed answer instead of a document."""
        report = None if on_progress is None else lambda line: on_progress(progress_line(line))
        return value_of(kind, self.call(verb, body, report, timeout))

    def messages(
        self, verb: str, body: Mapping[str, object] | None = None, timeout: float | None = None
    ) -> Iterator[Table]:
        """Yield the messages as they arrive: progress, and finally the result. Blocks and raises as `call` does."""
        deadline = None if timeout is None else monotonic() + timeout + GRACE_SECONDS
        connection = self.open(verb, body or {})
        try:
            for message in read_messages(
                verb, self._receive_chunks_with_liveness_checks(connection, deadline)
            ):
                yield message
                if "result" in message:
                    return
        finally:
            connection.close()
        raise SupervisorEnded(self.socket_path)

    def open(self, verb: str, body: Mapping[str, object]) -> socket:
        """Send a request, and return its connection, on which the caller reads the answer. Raises as `call` does."""
        attempts = _ConnectionAttempts(self.socket_path, self._silence_seconds)
        while (connection := attempts.connect(self._silence_seconds)) is None:
            sleep(_LOOK_SECONDS)
        try:
            _send(connection, verb, body)
        except BaseException:
            connection.close()
            raise
        return connection

    def ping(self, timeout: float | None = None) -> PingResult:
        """Return the supervisor's version and process ids; asks the successor if the supervisor ends before it answers.

        Raises ControlError (exit code 8) after `timeout` seconds, and SupervisorEnded if the successor ends too.
        """
        limit = self._silence_seconds if timeout is None else timeout
        try:
            return self._ping_once(limit)
        except SupervisorEnded:
            return self._ping_once(limit)

    def _ping_once(self, limit: float) -> PingResult:
        from poolctl.control.answers import PingResult

        connection = self.open("ping", {})
        try:
            connection.settimeout(limit)
            for message in read_messages("ping", iter(lambda: connection.recv(_READ_BYTES), b"")):
                if "result" in message:
                    return value_of(PingResult, message["result"])
        except TimeoutError:
            raise _silence_error(self.socket_path, limit) from None
        except OSError:
            pass  # reset, because the supervisor was killed
        finally:
            connection.close()
        raise SupervisorEnded(self.socket_path)

    def upgrade(self, *, force: bool) -> UpgradeResult:
        """Replace supervisor and keeper by those of this version; the servers' processes keep running.

        Returns once the new supervisor answers, or at once with errors if the old one refuses. Without `force`, a
        supervisor that already has this build is kept. If the pool's version cannot start a supervisor, the keeper
        tries this version, and `upgraded_from` is 0. Raises NoSupervisor, and ControlError with exit code 8 if the
        pool's version is too old, or 1 if the old supervisor has agreed but was not replaced.
        """
        from dataclasses import replace

        from poolctl.control.answers import Result, UpgradeResult

        try:
            log_start = os.stat(self._supervisor_log).st_size
        except OSError:
            log_start = 0
        try:
            before = self.ping()
        except SupervisorFailed as failed:
            self._order_upgrade_of_keeper(failed.keeper_pid)
            self._await_successor(0, log_start)
            now = self.ask(Result, "list", {"options": {"counts": True}})
            return UpgradeResult(items=now.items, changed=now.changed, upgraded_from=0)
        if before.protocol < PROTOCOL:  # a newer pool refuses by itself
            which = "an earlier build of " if before.version == __version__ else ""
            raise ControlError(
                f"the pool runs {which}poolctl {before.version}, which is too old for {__version__} to take over",
                exit_code=exit_codes.CONFLICT,
                hint=stop_and_start(before.files),
            )
        options = {**upgrade_options(), "force": force}
        result = self.ask(UpgradeResult, "upgrade", {"options": options})
        if result.exit_code or not result.upgraded_from:
            return result
        wait_for_exit(result.upgraded_from, _HANDOVER_SECONDS)
        self._await_successor(result.upgraded_from, log_start)
        now = self.ask(Result, "list", {"options": {"counts": True}})
        return replace(result, items=now.items, changed=now.changed)

    @property
    def _supervisor_log(self) -> str:
        return f"{os.path.dirname(self.socket_path)}/supervisor.log"

    def _order_upgrade_of_keeper(self, keeper_pid: int) -> None:
        """Make a keeper without a supervisor start that of this version, and then replace itself by this version's."""
        import signal

        from poolctl.platform import replace_file

        directory, options = os.path.dirname(self.socket_path), upgrade_options()
        order = {
            "argv": [*options["keeper"], directory],
            "supervisor": [*options["supervisor"], directory, *pool_paths.read_info(directory)["files"]],
        }
        replace_file(f"{directory}/{fd_store.UPGRADE}", json.dumps(order).encode())
        try:
            os.unlink(f"{directory}/{fd_store.NO_SUPERVISOR}")
        except OSError:
            pass
        os.kill(keeper_pid, signal.SIGUSR1)

    def _await_successor(self, previous: int, log_start: int) -> None:
        """Return when a supervisor of this version answers, other than the pid `previous`.

        Raises NoSupervisor once the pool has ended, and ControlError if none answers: with the reason, if it was logged
        after `log_start`.
        """
        from poolctl import bootstrap

        deadline = monotonic() + _HANDOVER_SECONDS
        state = "the servers keep serving, without a supervisor"
        while True:
            try:
                about = self.ping(_FAILED_SECONDS)  # answered once the successor is ready
                with open(f"/proc/{about.supervisor_pid}/cmdline") as file:
                    words = file.read().split("\0")
            except NoSupervisor:
                raise
            except (ControlError, OSError):
                if self._silence_seconds > _FAILED_SECONDS and monotonic() < deadline:
                    continue
                break
            if about.supervisor_pid != previous and os.path.abspath(bootstrap.__file__) in words:
                return
            state = f"the pool still runs poolctl {about.version}"
            break
        why = failure_reason(self._supervisor_log, log_start, records=False)
        raise ControlError(
            f"poolctl {__version__} could not take over{f': {why}' if why else ''}; {state}",
            exit_code=exit_codes.FAILED,
            hint=f"repair that version, then repeat poolctl upgrade; see {self._supervisor_log}",
        )

    def _receive_chunks_with_liveness_checks(
        self, connection: socket, deadline: float | None
    ) -> Iterator[bytes]:
        """Yield the data until the connection ends. While none arrives, check with pings that the supervisor lives.

        Raises ControlError (exit code 124) at the deadline, and the errors of `ping`.
        """
        while True:
            wait = _wait_seconds(self._silence_seconds, deadline)
            try:
                if self._output >= 0:
                    from poolctl.platform import await_readable

                    if not await_readable(connection.fileno(), wait, self._output):
                        raise TimeoutError
                connection.settimeout(wait)
                chunk = connection.recv(_READ_BYTES)
            except TimeoutError:
                if deadline is None or monotonic() < deadline:
                    self.ping()
                continue
            except ConnectionResetError:
                return
            if not chunk:
                return
            yield chunk


class AsyncClient:
    """Sends verbs to one running supervisor from an event loop; a call can be cancelled.

    Results and errors are those of `Client`. While no data arrives for `silence_seconds`, pings check that the
    supervisor lives; with None only the call's own timeout limits a wait.
    """

    def __init__(self, socket_path: str, *, silence_seconds: float | None = SILENCE_SECONDS) -> None:
        self.socket_path = socket_path
        self._silence_seconds = silence_seconds

    def __repr__(self) -> str:
        return f"<AsyncClient {self.socket_path}>"

    async def call(
        self,
        verb: str,
        body: Mapping[str, object] | None = None,
        on_progress: Callable[[Table], None] | None = None,
        timeout: float | None = None,
    ) -> Table:
        """As `Client.call`."""
        import contextlib

        call = _Call(verb, body, on_progress, timeout)
        while True:
            try:
                async with contextlib.aclosing(
                    self.messages(verb, call.request, call.left_seconds())
                ) as messages:
                    async for message in messages:
                        if (result := call.receive(message)) is not None:
                            return result
            except SupervisorEnded:
                if not call.prepare_repetition():
                    raise

    async def ask(
        self,
        kind: type[Answer],
        verb: str,
        body: Mapping[str, object] | None = None,
        on_progress: Callable[[ProgressLine], None] | None = None,
        timeout: float | None = None,
    ) -> Answer:
        """As `Client.ask`."""
        report = None if on_progress is None else lambda line: on_progress(progress_line(line))
        return value_of(kind, await self.call(verb, body, report, timeout))

    async def messages(
        self, verb: str, body: Mapping[str, object] | None = None, timeout: float | None = None
    ) -> AsyncGenerator[Table]:
        """As `Client.messages`. Close the generator to disconnect."""
        import asyncio
        import contextlib

        deadline = None if timeout is None else monotonic() + timeout + GRACE_SECONDS
        attempts = _ConnectionAttempts(self.socket_path, self._silence_seconds)
        # A Unix socket connects at once, unless the backlog is full.
        while (connection := attempts.connect(0.0)) is None:
            await asyncio.sleep(_LOOK_SECONDS)
        reader, writer = await asyncio.open_unix_connection(sock=connection)
        try:
            writer.write(_request(verb, body or {}))
            answer = AnswerReader(verb)
            while chunk := await self._receive_chunk_with_liveness_checks(reader, deadline):
                for message in answer.feed(chunk):
                    yield message
                    if "result" in message:
                        return
        finally:
            # Not close(), which would wait for a supervisor that does not read.
            writer.transport.abort()
            with contextlib.suppress(OSError):
                await writer.wait_closed()
        raise SupervisorEnded(self.socket_path)

    async def ping(self) -> PingResult:
        """As `Client.ping`."""
        limit = self._silence_seconds or SILENCE_SECONDS
        try:
            return await self._ping_once(limit)
        except SupervisorEnded:
            return await self._ping_once(limit)

    async def _ping_once(self, limit: float) -> PingResult:
        import asyncio

        from poolctl.control.answers import PingResult

        try:
            async with asyncio.timeout(limit):
                return await AsyncClient(self.socket_path, silence_seconds=None).ask(PingResult, "ping")
        except TimeoutError:
            raise _silence_error(self.socket_path, limit) from None

    async def _receive_chunk_with_liveness_checks(
        self, reader: asyncio.StreamReader, deadline: float | None
    ) -> bytes:
        """Return data as it arrives, b"" at the end. Raises as `Client` does."""
        import asyncio

        while True:
            try:
                async with asyncio.timeout(_wait_seconds(self._silence_seconds, deadline)):
                    return await reader.read(_READ_BYTES)
            except TimeoutError:
                if deadline is None or monotonic() < deadline:
                    await self.ping()
            except OSError:  # reset, because the supervisor was killed
                return b""


class _Call:
    """The requests of one call: if the supervisor ends during a verb in _REPEATED, a second one to its successor."""

    def __init__(
        self,
        verb: str,
        body: Mapping[str, object] | None,
        on_progress: Callable[[Table], None] | None,
        timeout: float | None,
    ) -> None:
        self._verb = verb
        self.request: Table = {**(body or {})}
        self._on_progress = on_progress
        self._end = None if timeout is None else monotonic() + timeout
        self._is_last = verb not in _REPEATED

    def left_seconds(self) -> float | None:
        """The time left for the request, None without a timeout."""
        return None if self._end is None else max(0.0, self._end - monotonic())

    def receive(self, message: Table) -> Table | None:
        """Return the result if the message holds it; else pass the message on."""
        if "result" in message:
            result: Table = message["result"]
            return result
        if self._on_progress is not None:
            self._on_progress(message)
        return None

    def prepare_repetition(self) -> bool:
        """Whether to send the request once more after the supervisor has ended."""
        if self._is_last:
            return False
        self._is_last = True
        if self._verb == "reload" and self._on_progress is not None:
            self._on_progress({"warning": _AGAIN})
        return True


def upgrade_options() -> Table:
    """Return the options of the verb `upgrade` for an upgrade to this version of poolctl.

    The options are the version, protocol, build and Python version, and the commands for keeper and supervisor.
    """
    from poolctl import bootstrap

    return {
        "version": __version__,
        "protocol": PROTOCOL,
        "build": bootstrap.installed_build(),
        "python": ".".join(map(str, sys.version_info[:3])),
        "keeper": bootstrap.command(sys.executable, "keeper", isolated=True),
        "supervisor": bootstrap.command(sys.executable, "supervisor"),
    }


def stop_and_start(files: Sequence[str]) -> str:
    """Return the commands that move a pool of these files to this version of poolctl where `upgrade` cannot."""
    import shlex

    options = shlex.join(word for file in files for word in ("-c", file))
    return f"poolctl stop {options} && poolctl start {options} (the servers pause)"


def _request(verb: str, body: Mapping[str, object]) -> bytes:
    payload = json.dumps(body).encode()
    # HTTP/1.0, so that the lines arrive unchunked.
    fields = f"Host: poolctl\r\nContent-Type: application/json\r\nContent-Length: {len(payload)}\r\n"
    return f"POST /v1/{verb} HTTP/1.0\r\n{fields}\r\n".encode() + payload


def _send(connection: socket, verb: str, body: Mapping[str, object]) -> None:
    try:
        connection.sendall(_request(verb, body))
    except (BrokenPipeError, ConnectionResetError):
        pass  # the supervisor's answer, sent before it closed the connection, can still be read
    except TimeoutError:
        raise ControlError(
            "the supervisor accepts no commands", exit_code=exit_codes.CONFLICT, hint="try again"
        ) from None


class _ConnectionAttempts:
    """Connects; lets the caller retry while the pool runs but its control socket is being restored.

    The kernel reports neither a new listener nor a released lock, so the caller polls every _POLL_SECONDS.
    """

    def __init__(self, socket_path: str, silence_seconds: float | None) -> None:
        self._socket_path = socket_path
        self._end = monotonic() + min(_MISSING_SECONDS, silence_seconds or _MISSING_SECONDS)

    def connect(self, wait_seconds: float) -> socket | None:
        """Return the connection, or None if the caller has to try again.

        Waits up to `wait_seconds` for room in a full backlog. Raises NoSupervisor if the pool does not run, and
        ControlError.
        """
        try:
            return _connect(self._socket_path, wait_seconds)
        except NoSupervisor:
            # Imported late: most commands find the socket.
            from poolctl.control.pool_lock import holder, user_locks

            directory = os.path.dirname(self._socket_path)
            if not user_locks().is_held(directory):
                raise
            if monotonic() >= self._end:
                pid = holder(directory)
                running = f"the pool is running (pid {pid})" if pid else "the pool is running"
                raise ControlError(
                    f"{running}, but its control socket {self._socket_path} is missing",
                    exit_code=exit_codes.CONFLICT,
                    hint=f"try again in a moment; kill {pid or 'its keeper'} ends the pool",
                ) from None
        return None


def _connect(socket_path: str, timeout_seconds: float) -> socket:
    connection = socket(AF_UNIX, SOCK_STREAM)
    # A full backlog blocks connect(2) on a Unix socket just as silence would block recv(2).
    connection.settimeout(timeout_seconds)
    try:
        connection.connect(socket_path)
    except OSError as error:
        connection.close()
        raise connect_error(socket_path, error) from None
    return connection


def connect_error(socket_path: str, error: OSError) -> ControlError:
    if isinstance(error, (TimeoutError, BlockingIOError)):
        message = "the supervisor accepts no commands: too many are waiting already"
        return ControlError(
            message, exit_code=exit_codes.CONFLICT, hint="the servers keep serving; try again"
        )
    if isinstance(error, PermissionError):
        hint = "run poolctl as the user who started the pool"
        if os.environ.get(pool_paths.RUNTIME_VARIABLE):
            hint += f", or set {pool_paths.RUNTIME_VARIABLE} to a directory of your own"
        message = f"not permitted to use {socket_path}"
        return ControlError(message, exit_code=exit_codes.NOT_PERMITTED, hint=hint)
    # An error without a number: the path is too long for a socket, so nothing can listen there.
    absent = (FileNotFoundError, ConnectionRefusedError, NotADirectoryError)
    if isinstance(error, absent) or error.errno is None:
        return NoSupervisor()
    return ControlError(f"cannot use {socket_path}: {error}", exit_code=exit_codes.CONFLICT, hint="")


def _wait_seconds(silence_seconds: float | None, deadline: float | None) -> float | None:
    """How long to wait for data, None without a limit. Raises ControlError (exit code 124) at the deadline."""
    if deadline is None:
        return silence_seconds
    left = deadline - monotonic()
    if left <= 0:
        raise ControlError(
            "timed out", exit_code=exit_codes.TIMED_OUT, hint="give it more time with --timeout"
        )
    return left if silence_seconds is None else min(silence_seconds, left)


class AnswerReader:
    """Splits the answer to `verb`, JSON lines in an HTTP response, into its messages as its bytes arrive."""

    def __init__(self, verb: str) -> None:
        self._verb = verb
        self._status = 0  # until the head has arrived
        self._rest = b""

    def feed(self, chunk: bytes) -> list[Table]:
        """Return the messages that end in `chunk`. Raises ControlError for a refusal and for an invalid answer."""
        self._rest += chunk
        try:
            if not self._status and not self._read_head():
                return []
            *lines, self._rest = self._rest.split(b"\n")
            messages: list[Table] = [json.loads(line) for line in lines if line]
        except ValueError:
            raise incompatible_answer_error() from None
        if not all(isinstance(message, dict) for message in messages):
            raise incompatible_answer_error()
        if messages and self._status != OK:
            raise refusal_error(self._status, self._verb, messages[0])
        return messages

    def _read_head(self) -> bool:
        """Return whether the head has arrived. Raises ValueError for an invalid head."""
        if not _BEGINNING.startswith(self._rest[: len(_BEGINNING)]):
            raise ValueError("not HTTP")
        head, end, body = self._rest.partition(b"\r\n\r\n")
        if end:
            self._status, self._rest = int(head[9:12]), body
        return bool(end)


def read_messages(verb: str, chunks: Iterator[bytes]) -> Iterator[Table]:
    """Yield the messages of the answer to `verb` as they arrive. Raises ControlError as AnswerReader does."""
    answer = AnswerReader(verb)
    for chunk in chunks:
        yield from answer.feed(chunk)


def refusal_error(status: int, verb: str, message: Table) -> ControlError:
    """The error for a request that was answered with a status other than 200."""
    said = str(message.get("error") or f"HTTP status {status}")
    if status == FORBIDDEN:
        return ControlError(
            said, exit_code=exit_codes.NOT_PERMITTED, hint="run poolctl as the user who started the pool"
        )
    return ControlError(
        f"the supervisor refused {verb!r}: {said}",
        exit_code=exit_codes.CONFLICT,
        hint="it may be of another version: poolctl pools shows it, poolctl --version that of the command",
    )


def progress_line(document: Table) -> ProgressLine:
    """Convert a message that came before the result to a ProgressLine. Raises ControlError for an invalid message."""
    from poolctl.control.answers import ProgressLine

    return value_of(ProgressLine, document)


def value_of(kind: type[Answer], document: object) -> Answer:
    """Convert the JSON document to an instance of `kind`. Raises ControlError if it is not valid for this class."""
    # Imported late, like the answer classes: the import takes as long as the rest of a short command.
    from poolctl.json_form import from_json

    try:
        if isinstance(document, dict):
            return from_json(kind, document)
    except ValueError:
        pass
    raise incompatible_answer_error()


def raise_for_errors(
    verb: str, result: Table, failure: type[PoolError], accepted: Sequence[int] = (exit_codes.DONE,)
) -> Table:
    """Return the result if its exit code is in `accepted`; otherwise raise its errors.

    Raises `failure` if servers failed; PoolParamError, PoolValidateError or ControlError for other exit codes.
    """
    code = result.get("exit_code", exit_codes.DONE)
    if code in accepted:
        return result
    from poolctl.control.answers import ErrorEntry
    from poolctl.json_form import from_json

    children = [from_json(ErrorEntry, entry).to_error() for entry in result.get("errors", ())]
    if code == exit_codes.TIMED_OUT:
        for child in children:
            child.__cause__ = TimeoutError(child.message)
    message = f"{verb} failed" if len(children) != 1 else str(children[0])
    if code in (exit_codes.USAGE, exit_codes.NOTHING_MATCHED):
        raise PoolParamError(message, children)
    if code == exit_codes.INVALID_CONFIGURATION:
        raise PoolValidateError(message, children)
    if code not in (exit_codes.FAILED, exit_codes.NOT_AS_DESIRED, exit_codes.TIMED_OUT):
        raise ControlError(message, exit_code=code, hint=children[0].hint if children else "")
    raise failure(message, children or [ServerError(message)])


def incompatible_answer_error() -> ControlError:
    """The error for a malformed answer."""
    return ControlError(
        "the supervisor's answer is not understood",
        exit_code=exit_codes.CONFLICT,
        hint="poolctl pools shows its version, poolctl --version that of the command",
    )


def wait_for_exit(pid: int, limit_seconds: float = END_SECONDS) -> bool:
    """Wait for the process to exit; return False after `limit_seconds`. True for pid 0 and for a missing process."""
    try:
        process = os.pidfd_open(pid)
    except ProcessLookupError:
        return True
    except OSError:  # pid 0; a kernel or a sandbox without pidfd_open(2)
        deadline = monotonic() + limit_seconds
        while _process_state_letter(pid) not in _DEAD:
            if monotonic() >= deadline:
                return False
            sleep(_LOOK_SECONDS)
        return True
    import select  # imported late, because most commands wait for no process

    try:
        poll = select.poll()
        poll.register(process, select.POLLIN)
        return bool(poll.poll(limit_seconds * 1000))
    finally:
        os.close(process)


def _silence_error(socket_path: str, seconds: float) -> ControlError:
    directory = os.path.dirname(socket_path)
    info = pool_paths.read_info(directory)
    supervisor, keeper = info.get("supervisor_pid", 0), info.get("keeper_pid", 0)
    message = f"the supervisor has not answered for {seconds:g} s"
    hint = f"the servers keep serving; check the process that listens on {socket_path}"
    if supervisor and _process_state_letter(supervisor) in _STOPPED:
        message = f"{message}: its process (pid {supervisor}) is stopped"
        hint = f"kill -CONT {supervisor}"
    elif supervisor and _process_state_letter(supervisor) in _DEAD:
        message = f"{message}: it has ended"
        if _process_state_letter(keeper) in _STOPPED:
            message = f"{message}, and the keeper (pid {keeper}), which would restart it, is stopped"
            hint = f"kill -CONT {keeper}"
        elif _process_state_letter(keeper) not in _DEAD:
            why = failure_reason(f"{directory}/supervisor.log")
            message = f"the supervisor has ended, and cannot be restarted{f': {why}' if why else ''}"
            hint = (
                "the servers keep serving; the keeper tries again within 30 s, "
                f"poolctl upgrade at once with the version installed now; see {directory}/supervisor.log"
            )
            return SupervisorFailed(message, hint, keeper)
    return ControlError(message, exit_code=exit_codes.CONFLICT, hint=hint)


def _process_state_letter(pid: int) -> str:
    """The state letter of the process (proc(5)); "" if there is no such process."""
    try:
        with open(f"/proc/{pid}/stat", encoding="utf-8", errors="replace") as file:
            return file.read().rpartition(")")[2].split()[0]
    except (OSError, IndexError):
        return ""


def failure_reason(log_path: str, start: int = 0, *, records: bool = True) -> str:
    """Why a program ended, from its log after offset `start`; "" if nothing was written since.

    That is the last line, or the fatal error and exception of an interpreter that could not run. Without `records`,
    log records (lines that begin with a time) are ignored: a successor may have written them.
    """
    try:
        with open(log_path, "rb") as file:
            size = file.seek(0, os.SEEK_END)
            # A log shorter than before was truncated because it had grown too large.
            file.seek(max(0 if start > size else start, size - _LOG_BYTES))
            texts = map(str.strip, file.read().decode(errors="replace").split("\n"))
            lines = [line for line in texts if line and (records or not line[0].isdigit())]
    except OSError:
        return ""
    end = lines[-_DETAILS:]
    fatal = max((at for at, line in enumerate(end) if line.startswith(_FATAL)), default=-1)
    if fatal < 0:
        return lines[-1] if lines else ""
    reasons = [line for line in end[fatal + 1 :] if line.partition(":")[0].endswith("Error")]
    return ": ".join([end[fatal], *reasons[:1]])


def write_exit(directory: str, *, status: int, reason: str, keeper_pid: int) -> None:
    """Record for `poolctl run` why the pool ends by itself: status, reason, and the process that exits last."""
    from poolctl.platform import replace_file  # imported late: no client needs it

    try:
        content = json.dumps({"status": status, "reason": reason, "keeper_pid": keeper_pid})
        replace_file(f"{directory}/{_STATUS}", content.encode())
    except OSError:
        pass  # the log contains the reason


def read_exit(directory: str) -> Table:
    """The record of why a pool ended by itself; empty if a command ended it, or it still runs."""
    return pool_paths.read_json_or_empty(f"{directory}/{_STATUS}")


def clear_exit(directory: str) -> None:
    """Remove the record that an earlier pool left, before a new pool starts."""
    try:
        os.unlink(f"{directory}/{_STATUS}")
    except OSError:
        pass
