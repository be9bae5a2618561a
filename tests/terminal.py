"""Terminals: a command on one of its own, or streams of this process; what is shown there, and keys pressed."""

from __future__ import annotations

import fcntl
import os
import pty
import select
import shlex
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Callable
from types import TracebackType
from typing import Any

from tests.real_pool import RealPool


class Terminal:
    """`with Terminal(pool, "run") as terminal`: the command in the foreground of a new session's terminal."""

    def __init__(
        self,
        pool: RealPool,
        *args: str,
        env: dict[str, str] | None = None,
        size: tuple[int, int] = (80, 24),
        shell: str = "",
    ) -> None:
        """`size` in columns and lines. With `shell` its commands are run instead, `poolctl` being the tested one."""
        self.shown = ""
        self._master, slave = pty.openpty()
        self.resize(*size)
        command = (
            ["bash", "-c", f'poolctl() {{ {shlex.join(pool.command())} "$@"; }}; {shell}'] if shell else []
        )
        self.process = subprocess.Popen(
            command or [*pool.command(), *args],
            cwd=pool.directory,
            env={**pool.env, "TERM": "xterm", "COLUMNS": "200", **(env or {})},
            stdin=slave,
            stdout=slave,
            stderr=slave,
            start_new_session=True,
            preexec_fn=_take_terminal,
        )
        os.close(slave)

    def __enter__(self) -> Terminal:
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        os.close(self._master)

    def resize(self, columns: int, lines: int) -> None:
        """Give the terminal another size, of which SIGWINCH notifies its process."""
        fcntl.ioctl(self._master, termios.TIOCSWINSZ, struct.pack("4H", lines, columns, 0, 0))

    def modes(self) -> list[Any]:
        """The terminal's modes, as tcgetattr(3) gives them."""
        return termios.tcgetattr(self._master)

    def press(self, keys: str) -> None:
        """Type the keys; "\\x03" is Ctrl-C."""
        os.write(self._master, keys.encode())

    def until(self, condition: Callable[[str], object], timeout_seconds: float = 60.0) -> str:
        """The text shown so far, as soon as the condition is true of it."""
        deadline = time.monotonic() + timeout_seconds
        while not condition(self.shown):
            left = deadline - time.monotonic()
            assert left > 0, f"not shown in time; shown was: {self.shown!r}"
            if not self._read(left) and not condition(self.shown):
                raise AssertionError(f"ended without it; shown was: {self.shown!r}")
        return self.shown

    def end(self, timeout_seconds: float = 60.0) -> int:
        """The exit status, after everything that was shown has been read."""
        deadline = time.monotonic() + timeout_seconds
        while self._read(max(0.0, deadline - time.monotonic())):
            assert time.monotonic() < deadline, f"did not end; shown was: {self.shown!r}"
        return self.process.wait(timeout=timeout_seconds)

    def _read(self, timeout_seconds: float) -> bool:
        ready, _, _ = select.select([self._master], [], [], timeout_seconds)
        if not ready:
            return True
        try:
            chunk = os.read(self._master, 65536)
        except OSError:  # EIO: no process has the terminal open
            return False
        self.shown += chunk.decode(errors="replace")
        return bool(chunk)


def _take_terminal() -> None:
    fcntl.ioctl(0, termios.TIOCSCTTY, 0)


class Screen:
    """`with Screen("stdin", "stderr") as screen`: these streams of this process are a terminal; stdout by default.

    It is `columns` wide, or of unknown width if that is 0. Its keyboard has `typed` this text, and then Ctrl-D.
    """

    def __init__(self, *names: str, columns: int = 0, typed: str = "") -> None:
        self._names = names or ("stdout",)
        self._before: dict[str, Any] = {}
        self._shown = b""
        self._master, self._slave = pty.openpty()
        modes = termios.tcgetattr(self._slave)
        modes[1] &= ~termios.OPOST
        modes[3] &= ~termios.ECHO
        termios.tcsetattr(self._slave, termios.TCSANOW, modes)
        termios.tcsetwinsize(self._slave, (24, columns))
        os.write(self._master, f"{typed}\x04".encode())
        self.stream = os.fdopen(self._slave, "w", encoding="utf-8")

    def __enter__(self) -> Screen:
        self._before = {name: getattr(sys, name) for name in self._names}
        for name in self._names:
            stream = os.fdopen(os.dup(self._slave), encoding="utf-8") if name == "stdin" else self.stream
            setattr(sys, name, stream)
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.text()
        for name, stream in self._before.items():
            getattr(sys, name).close()
            setattr(sys, name, stream)
        os.close(self._master)

    def text(self) -> str:
        """The text that was shown so far."""
        if not self.stream.closed:
            self.stream.flush()
            os.write(self._slave, b"\0")  # the kernel passes it on later than it is written
            while b"\0" not in self._shown:
                self._shown += os.read(self._master, 65536)
            self._shown = self._shown.replace(b"\0", b"")
        return self._shown.decode()
