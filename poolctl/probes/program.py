"""A probe that is a program: its exit status decides."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess

from poolctl.config import ServerConfig, masked_text
from poolctl.errors import ServerError
from poolctl.platform import bounded_file
from poolctl.runners import withheld
from poolctl.runners.spec import environment, user_ids

from .connection import Told

_LONGEST_WORDS_BYTES = 4096
# What a program prints stays in memory until it ends.
_MOST_WORDS_BYTES = 16 * 1024 * 1024


class ProgramAsker:
    """Runs the program as the server's user, in its directory, with its environment; ends all of it when it is late."""

    def __init__(self, argv: tuple[str, ...], server: ServerConfig, values: dict[str, str]) -> None:
        self._argv = argv
        self._server = server
        self._values = values
        self._process: subprocess.Popen[bytes] | None = None
        self._output = -1
        self._watched = -1
        self._told: Told | None = None

    def ask(self, told: Told) -> None:
        """See Asker."""
        if self._process is not None:
            told(f"{self._argv[0]}: has been killed, and has not ended")
            return
        self._told = told
        self._output = bounded_file("poolctl", _MOST_WORDS_BYTES)
        try:
            self._process = self._begin()
            self._watched = os.pidfd_open(self._process.pid)
        except (OSError, ServerError) as error:
            self._over(f"{self._argv[0]}: {getattr(error, 'strerror', None) or error}")
            return
        asyncio.get_running_loop().add_reader(self._watched, self._ended)

    def _begin(self) -> subprocess.Popen[bytes]:
        server = self._server
        user = user_ids(server)
        return subprocess.Popen(
            self._argv,
            cwd=server.cwd,
            env={**withheld.environment(), **environment(server), **self._values},
            stdin=subprocess.DEVNULL,
            stdout=self._output,
            stderr=self._output,
            start_new_session=True,
            user=None if user is None else user[0],
            group=None if user is None else user[1],
            extra_groups=None if user is None else _groups(server, user[1]),
        )

    def give_up(self) -> None:
        """See Asker. The program, and what it has started, is killed."""
        self._told = None
        if self._process is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)

    def queued(self) -> bool:
        """See Asker."""
        return False

    def close(self) -> None:
        """See Asker."""
        self.give_up()

    def _ended(self) -> None:
        assert self._process is not None
        status = self._process.wait()
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, signal.SIGKILL)  # what it has left behind
        said = _last_line(
            os.pread(self._output, _LONGEST_WORDS_BYTES, _start_of_last(self._output)).rstrip(b"\0")
        )
        self._over("" if not status else _problem(self._argv[0], status, said))

    def _over(self, problem: str) -> None:
        if self._watched >= 0:
            asyncio.get_running_loop().remove_reader(self._watched)
            os.close(self._watched)
        os.close(self._output)
        self._process, self._watched, self._output = None, -1, -1
        told, self._told = self._told, None
        if told is not None:
            told(problem)


def _problem(program: str, status: int, said: str) -> str:
    how = f"killed by {signal.Signals(-status).name}" if status < 0 else f"exited with status {status}"
    return f"{program}: {how}{f': {masked_text(said)}' if said else ''}"


def _start_of_last(fd: int) -> int:
    return max(0, os.lseek(fd, 0, os.SEEK_CUR) - _LONGEST_WORDS_BYTES)


def _last_line(output: bytes) -> str:
    lines = output.decode(errors="replace").split("\n")
    return next((line.strip()[:200] for line in reversed(lines) if line.strip()), "")


def _groups(server: ServerConfig, gid: int) -> list[int]:
    assert server.user is not None
    name, _, group = server.user.partition(":")
    return [gid] if group else os.getgrouplist(name, gid)
