"""The command, forked from a process that has imported it. `start` and `run` fork their supervisor as well.

Importing what reads a pool's files takes a command ten times as long as an interpreter's start. The tests of the
command line, and what documents paste into a shell, start the installed command as users do.
"""

from __future__ import annotations

import contextlib
import errno
import gc
import json
import os
import resource
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path

from tests import warm_supervisor

MAX_BYTES = 1 << 17  # the maximum size of a request: arguments and environment
SAMPLE = '[[server]]\nname = "a"\nbind = "127.0.0.1:1"\ncommand = ["true"]\n'


class WarmCommand:
    """A process that forks one command at a time."""

    def __init__(self, env: Mapping[str, str]) -> None:
        self._env = env
        self._one_at_a_time = threading.Lock()
        self._start()

    def _start(self) -> None:
        self._requests, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:  # it ends when the other end is closed
            argv = [sys.executable, "-m", "tests.warm_command", warm_supervisor.ROOM]
            self._process = subprocess.Popen(
                argv, cwd=warm_supervisor.TREE, env=self._env, stdin=theirs, stdout=subprocess.DEVNULL
            )

    def _start_anew(self) -> None:
        """Start another process, because an answer of this one may come too late."""
        self._requests.close()
        self._process.kill()
        self._process.wait()
        self._start()

    def run(
        self, args: Sequence[str], stdin: str, cwd: Path, env: Mapping[str, str], timeout_seconds: float
    ) -> tuple[int, str, str] | None:
        """The exit code, stdout and stderr of the command. TimeoutError if it hangs.

        None if it cannot be run here now: another one runs, or too many descriptors of the user are in flight.
        """
        if not self._one_at_a_time.acquire(blocking=False):
            return None
        with contextlib.ExitStack() as stack:
            stack.callback(self._one_at_a_time.release)
            files = [stack.enter_context(tempfile.TemporaryFile("w+")) for _ in range(3)]
            files[0].write(stdin)
            files[0].seek(0)
            open_files = resource.getrlimit(resource.RLIMIT_NOFILE)
            message = json.dumps([list(args), str(cwd), dict(env), open_files]).encode()
            self._requests.settimeout(timeout_seconds)
            try:
                socket.send_fds(self._requests, [message], [file.fileno() for file in files])
            except OSError as error:
                if (
                    error.errno == errno.ETOOMANYREFS
                ):  # unix(7); a pool of many servers starts in another test
                    return None
                raise
            pid = 0
            try:
                pid = int(self._requests.recv(64))
                code = int(self._requests.recv(64))
            except BaseException:  # the timeout of the test, too
                if pid:
                    os.kill(pid, signal.SIGKILL)
                self._start_anew()
                raise
            for file in files:
                file.seek(0)
            return code, files[1].read(), files[2].read()


@cache
def warm_command() -> WarmCommand:
    """The one of this process."""
    kept = {name: value for name, value in os.environ.items() if name in ("PATH", "HOME", "TMPDIR")}
    return WarmCommand(kept | {"LC_ALL": "C.UTF-8", "TERM": "dumb", "ROOM": warm_supervisor.ROOM})


def _serve(requests: socket.socket) -> None:
    while True:
        message, descriptors, _, _ = socket.recv_fds(requests, MAX_BYTES, 3)
        if not message:
            return
        pid = os.fork()
        if pid == 0:
            requests.close()
            _become(descriptors, *json.loads(message))
        for descriptor in descriptors:
            os.close(descriptor)
        requests.send(b"%d" % pid)
        requests.send(b"%d" % os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))


def _become(
    descriptors: list[int], args: list[str], cwd: str, env: dict[str, str], open_files: tuple[int, int]
) -> None:
    """The command, which ends this process."""
    from poolctl.cli.main import main

    for number, descriptor in enumerate(descriptors):
        os.dup2(descriptor, number)
        os.close(descriptor)
    os.chdir(cwd)
    resource.setrlimit(resource.RLIMIT_NOFILE, open_files)
    script = Path(sys.executable).with_name("poolctl")
    sys.path[0] = str(script.parent)
    warm_supervisor.become([str(script), *args], env)
    main()


def _import_all() -> None:
    """Everything that a command would import first."""
    import poolctl.cli.app
    import poolctl.cli.commands.start
    import poolctl.cli.offline
    import poolctl.supervisor.launch  # noqa: F401
    from poolctl.config import load

    warm_supervisor.import_all()

    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory, "pool.toml")
        path.write_text(SAMPLE)
        assert load(path, {}).problems == []
    warm_supervisor.fork_supervisors()


if __name__ == "__main__":
    given = socket.socket(fileno=os.dup(0))
    os.dup2(os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC), 0)
    _import_all()
    gc.freeze()
    _serve(given)
