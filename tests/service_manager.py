"""A stand-in for the service manager: runs a unit, and keeps its descriptors while it restarts it.

As systemd does with `Type=notify`, `NotifyAccess=main` and `FileDescriptorStoreMax=` (sd_pid_notify_with_fds(3)): what
another process than the main one sends is ignored.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import struct
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from tests.deadline import wait_until
from tests.real_pool import RealPool

# What systemd does between fork and exec: LISTEN_PID is the pid of the program itself.
_EXECUTE = """
import fcntl, os, sys
given = [int(each) for each in sys.argv[1].split(",") if each]
fds = [fcntl.fcntl(fd, fcntl.F_DUPFD, 3 + len(given)) for fd in given]
for number, fd in enumerate(fds, 3):
    os.dup2(fd, number)
    os.close(fd)
if fds:
    os.environ.update(LISTEN_PID=str(os.getpid()), LISTEN_FDS=str(len(fds)), LISTEN_FDNAMES=sys.argv[2])
os.execv(sys.argv[3], sys.argv[3:])
"""
_CREDENTIALS = struct.Struct("3i")


class ServiceManager:
    """Runs `argv` as the main process of a unit. `lines` are what it has said, `store` what it has stored by name.

    `env` is the environment of its next start.
    """

    def __init__(self, argv: Sequence[str], cwd: Path, env: Mapping[str, str], directory: Path) -> None:
        self.lines: list[str] = []
        self.ignored: list[str] = []
        self.store: list[tuple[str, int]] = []
        self.sockets: list[tuple[str, socket.socket]] = []  # of .socket units
        self._argv, self._cwd = argv, cwd
        path = str(directory / "manager.sock")
        self.env = {**env, "NOTIFY_SOCKET": path}
        self._sock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._sock.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
        self._sock.bind(path)
        self._main: subprocess.Popen[bytes] | None = None
        self._pids: set[int] = set()  # of main processes; what one said before it ended may be read later
        self._thread = threading.Thread(target=self._receive, daemon=True)
        self._thread.start()

    @property
    def names(self) -> list[str]:
        """The names in the store, in order."""
        return [name for name, _ in self.store]

    def start(self) -> None:
        """Start the main process, and wait until it says that it is ready."""
        given = [*((name, sock.fileno()) for name, sock in self.sockets), *self.store]
        fds = [fd for _, fd in given]
        words = [",".join(map(str, fds)), ":".join(name for name, _ in given)]
        self.lines.clear()
        self._main = subprocess.Popen(
            [sys.executable, "-c", _EXECUTE, *words, *self._argv], cwd=self._cwd, env=self.env, pass_fds=fds
        )
        self._pids.add(self._main.pid)
        wait_until(
            lambda: "READY=1" in self.lines or self._main.poll() is not None, what=lambda: str(self.lines)
        )
        assert "READY=1" in self.lines, f"{self.lines}, ignored: {self.ignored}"

    def stop(self, number: int = signal.SIGTERM) -> int:
        """Send the main process SIGTERM, and wait for its end; the store stays, as for a restart."""
        assert self._main is not None
        self._main.send_signal(number)
        return self.wait()

    def wait(self) -> int:
        """The exit status of the main process, once it has ended."""
        assert self._main is not None
        return self._main.wait(60)

    def restart(self) -> None:
        """What `systemctl restart` does."""
        assert self.stop() == 0
        self.start()

    def await_line(self, start: str) -> str:
        """The newest line that begins so."""
        wait_until(
            lambda: any(line.startswith(start) for line in self.lines),
            what=lambda: f"{start} in {self.lines}, ignored: {self.ignored}",
        )
        return [line for line in self.lines if line.startswith(start)][-1]

    def close(self) -> None:
        """Stop the main process if it still runs, and close everything."""
        if self._main is not None:
            self.stop()
        self._sock.shutdown(socket.SHUT_RDWR)
        self._thread.join(60)
        self._sock.close()
        for _, fd in self.store:
            os.close(fd)
        for _, sock in self.sockets:
            sock.close()

    def _receive(self) -> None:
        while True:
            data, ancillary, _, _ = self._sock.recvmsg(4096, socket.CMSG_SPACE(253 * 4) + 64)
            fds: list[int] = []
            sender = 0
            for level, kind, content in ancillary:
                if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
                    fds += struct.unpack(f"{len(content) // 4}i", content)
                elif level == socket.SOL_SOCKET and kind == socket.SCM_CREDENTIALS:
                    sender = _CREDENTIALS.unpack(content)[0]
            if not data and not sender:
                return
            lines = os.fsdecode(data).splitlines()
            if sender not in self._pids:
                self.ignored += lines
                for fd in fds:
                    os.close(fd)
                continue
            self._perform(lines, fds)

    def _perform(self, lines: list[str], fds: list[int]) -> None:
        values = dict(line.partition("=")[::2] for line in lines)
        name = values.get("FDNAME", "stored")
        if "FDSTOREREMOVE" in values:
            for each in [each for each in self.store if each[0] == name]:
                os.close(each[1])
                self.store.remove(each)  # so that nobody listens any more once a test sees this
        elif "FDSTORE" in values:
            self.store += [(name, fd) for fd in fds]
        self.lines += lines


@contextlib.contextmanager
def service_manager(
    argv: Sequence[str], cwd: Path, env: Mapping[str, str], directory: Path
) -> Iterator[ServiceManager]:
    """Context manager: a stand-in for the service manager of this unit."""
    manager = ServiceManager(argv, cwd, env, directory)
    try:
        yield manager
    finally:
        manager.close()


@contextlib.contextmanager
def run_with_socket(pool: RealPool, listener: socket.socket) -> Iterator[None]:
    """`poolctl run` with this socket, named "web", as a service has it; the socket is closed here."""
    fd = listener.fileno()
    argv = [sys.executable, "-c", _EXECUTE, str(fd), "web", *pool.command(), "run"]
    with listener:
        running = subprocess.Popen(argv, cwd=pool.directory, env=pool.env, pass_fds=[fd])
    try:
        yield
    finally:
        running.terminate()
        running.wait(timeout=60)
