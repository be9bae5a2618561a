"""A probe by a program, judged by its exit status."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess

from poolctl.config import ServerConfig, masked_text
from poolctl.errors import ServerError
from poolctl.platform import bounded_file, last_line
from poolctl.runners import withheld_variables
from poolctl.runners.worker_spec import environment, user_ids

from .probe_connection import OnResult

# The output stays in memory until the program ends.
_MAX_OUTPUT_BYTES = 16 * 1024 * 1024


class ProgramProber:
    """Runs the program as the server's user, in its directory and environment; kills its process group if late."""

    def __init__(self, argv: tuple[str, ...], server: ServerConfig, values: dict[str, str]) -> None:
        self._argv = argv
        self._server = server
        self._values = values
        self._process: subprocess.Popen[bytes] | None = None
        self._output = -1
        self._watched = -1
        self._on_result: OnResult | None = None

    def start(self, on_result: OnResult) -> None:
        """See Prober."""
        if self._process is not None:
            on_result(f"{self._argv[0]}: was killed, and has not ended")
            return
        self._on_result = on_result
        self._output = bounded_file("poolctl", _MAX_OUTPUT_BYTES)
        try:
            self._process = self._spawn()
            self._watched = os.pidfd_open(self._process.pid)
        except (OSError, ServerError) as error:
            self._finish(f"{self._argv[0]}: {getattr(error, 'strerror', None) or error}")
            return
        asyncio.get_running_loop().add_reader(self._watched, self._ended)

    def _spawn(self) -> subprocess.Popen[bytes]:
        server = self._server
        user = user_ids(server)
        return subprocess.Popen(
            self._argv,
            cwd=server.cwd,
            env={**withheld_variables.environment(), **environment(server), **self._values},
            stdin=subprocess.DEVNULL,
            stdout=self._output,
            stderr=self._output,
            start_new_session=True,
            user=None if user is None else user[0],
            group=None if user is None else user[1],
            extra_groups=None if user is None else _groups(server, user[1]),
        )

    def cancel(self) -> None:
        """See Prober. The program's process group is killed."""
        self._on_result = None
        if self._process is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)

    def queued(self) -> bool:
        """See Prober."""
        return False

    def close(self) -> None:
        """See Prober."""
        self.cancel()

    def _ended(self) -> None:
        assert self._process is not None
        status = self._process.wait()
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, signal.SIGKILL)  # the rest of its group
        self._finish("" if not status else _problem(self._argv[0], status, last_line(self._output)))

    def _finish(self, problem: str) -> None:
        if self._watched >= 0:
            asyncio.get_running_loop().remove_reader(self._watched)
            os.close(self._watched)
        os.close(self._output)
        self._process, self._watched, self._output = None, -1, -1
        on_result, self._on_result = self._on_result, None
        if on_result is not None:
            on_result(problem)


def _problem(program: str, status: int, output: str) -> str:
    how = f"killed by {signal.Signals(-status).name}" if status < 0 else f"exited with status {status}"
    return f"{program}: {how}{f': {masked_text(output)}' if output else ''}"


def _groups(server: ServerConfig, gid: int) -> list[int]:
    assert server.user is not None
    name, _, group = server.user.partition(":")
    return [gid] if group else os.getgrouplist(name, gid)
