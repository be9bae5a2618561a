"""Forks the first processes of a pool from one that has done their imports already (see tests/warm_command.py).

They are the supervisor, its reader, the logger, and the zygote of the default interpreter. Their imports are most of
what the start of a pool costs. What a fork has in common with its parent is replaced as an exec would: descriptors,
signals, the environment, and what /proc shows of it; but applications find the libraries of the command imported. Every
later process, after a crash, an upgrade or idle time, is started as everywhere else, and so are the pool's others.
"""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import fcntl
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable, Container, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import NoReturn

from poolctl import bootstrap
from poolctl.keeper import spawn
from poolctl.logs import logger_process
from poolctl.supervisor import __main__ as supervisor
from poolctl.worker import __main__ as worker

TREE = Path(__file__).resolve().parent.parent
# An extra argument and variable of the process that forks. A fork writes its own arguments and environment over them.
ROOM = " " * (1 << 15)
_ARG_START, _ENV_START = 48, 50  # fields of /proc/self/stat (proc(5)); the fields after them are the ends
_spawn = spawn.spawn


def import_all() -> None:
    """Import what a supervisor, the logger and a zygote import when they start."""
    import poolctl.logs.internal_log
    import poolctl.runners.local.local_runner
    import poolctl.supervisor.supervisor
    import poolctl.worker.zygote  # noqa: F401
    from poolctl.feature import features
    from poolctl.worker.imports import import_libraries

    for feature in features():
        if feature.supervisor:
            with contextlib.suppress(ImportError):  # a library of an extra, on a plain installation
                feature.load(feature.supervisor)

    import_libraries()


def fork_supervisors() -> None:
    """From now on this process forks what `_FORKED` lists."""
    spawn.spawn = _spawn_or_fork


def become(argv: Sequence[str], env: Mapping[str, str]) -> None:
    """Give this fork these arguments and this environment; /proc shows them, too."""
    os.environ.clear()
    os.environ.update(env)
    time.tzset()
    sys.argv = list(argv)
    _show(_ARG_START, argv)
    _show(_ENV_START, [f"{name}={value}" for name, value in env.items()])


def _show(field: int, words: Sequence[str]) -> None:
    numbers = Path("/proc/self/stat").read_text().rpartition(") ")[2].split()
    start, end = int(numbers[field - 3]), int(numbers[field - 2])
    content = b"".join(os.fsencode(word) + b"\0" for word in words)
    assert len(content) <= end - start, "ROOM is too small"
    ctypes.memmove(start, content.ljust(end - start, b"\0"), end - start)


def _is_plain(env: Mapping[str, str]) -> bool:
    """Whether no variable changes what an interpreter imports. The tree's own PYTHONPATH does not."""
    return all(value == str(TREE) for name, value in env.items() if name.startswith(("PYTHON", "LD_")))


def _spawn_or_fork(
    argv: list[str], env: dict[str, str] | None, fds: list[int], output: str, *, session: bool,
    without: Container[str] = (),
) -> int:  # fmt: skip
    main = next((main for command, main in _FORKED if argv[: len(command)] == command), None)
    if main is None or env is None or not _is_plain(env):
        return _spawn(argv, env, fds, output, session=session, without=without)
    pid = os.fork()
    if pid == 0:
        if session:
            os.setsid()
        variables = {name: value for name, value in env.items() if name not in without}
        _exit_after(lambda: _run(main, argv, variables, fds, output))
    return pid


def _run(
    main: Callable[[], None], argv: Sequence[str], env: Mapping[str, str], fds: Sequence[int], output: str
) -> None:
    end = 3 + len(fds)
    lifted = [fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, end) for fd in fds]
    os.dup2(os.open(os.devnull, os.O_RDWR), 0)
    for number, fd in enumerate(lifted, 3):
        os.dup2(fd, number)
    os.closerange(end, os.sysconf("SC_OPEN_MAX"))
    log = os.open(output, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    os.dup2(log, 1)
    os.dup2(log, 2)
    os.close(log)
    become(argv, env)
    del sys.argv[:3]  # the interpreter, its option, and the file, whose place the name of the part takes
    main()


def _run_zygote() -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] == "tests"]:
        del sys.modules[name]
    sys.modules["__main__"] = ModuleType("__main__")
    del sys.path[0]  # the directory of the command
    worker.main()


# The main functions of forked processes, by the beginning of the command that would execute them.
_FORKED = (
    (bootstrap.command(sys.executable, "supervisor"), supervisor.main),
    (bootstrap.command(sys.executable, "worker", "zygote"), _run_zygote),
    (bootstrap.command(sys.executable, "logs", isolated=True), logger_process.main),
)


def _exit_after(run: Callable[[], None]) -> NoReturn:
    """Run this in a fork as the main program of an interpreter, and exit."""
    status: object = 1
    try:
        signal.set_wakeup_fd(-1)
        signal.pthread_sigmask(signal.SIG_SETMASK, ())
        for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGCHLD):
            signal.signal(number, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        run()
        status = 0
    except SystemExit as exit_:
        status = exit_.code or 0
    except BaseException:
        traceback.print_exc()
    finally:
        atexit._run_exitfuncs()
        os._exit(status if isinstance(status, int) else 1)
