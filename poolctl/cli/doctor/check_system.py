"""The kernel's features, /proc, the clock, and logind's handling of a logout."""

from __future__ import annotations

import ctypes
import glob
import json
import os
import pwd
import re
import signal
import time
from collections.abc import Callable, Iterator

from poolctl.platform import LINUX, copy_descriptor, proc_problem, process_start

from .check import CheckContext, CheckResult, ok, problem, read, warning

_PR_GET_CHILD_SUBREAPER = 37


def features(context: CheckContext) -> Iterator[CheckResult]:
    """Each call with what is lost without it."""
    if not LINUX:
        yield problem(
            "kernel", "this is not Linux", "only `run`, the library and commands that read files work"
        )
        return
    missing = [(name, loss, needed) for name, loss, needed, attempt in _FEATURES if not _works(attempt)]
    for name, loss, needed in missing:
        fix = "allow it in the sandbox (--security-opt seccomp=…), or use a newer kernel"
        yield (problem if needed else warning)("kernel", f"{name} does not work: {loss}", fix)
    if not missing:
        yield ok("kernel", f"Linux {os.uname().release} has what the pool needs")


def proc(context: CheckContext) -> Iterator[CheckResult]:
    """Whether /proc lists processes: a pool cannot start without it."""
    found, fix = proc_problem()
    yield problem("proc", found, fix) if found else ok("proc", "/proc shows this process")


def _works(attempt: Callable[[], None]) -> bool:
    try:
        attempt()
    except OSError:
        return False
    return True


def _pidfd() -> None:
    fd = os.pidfd_open(os.getpid())
    try:
        signal.pidfd_send_signal(fd, 0)
    finally:
        os.close(fd)


def _getfd() -> None:
    read, write = os.pipe()
    try:
        os.close(copy_descriptor(os.getpid(), read))
    finally:
        os.close(read)
        os.close(write)


def _subreaper() -> None:
    found = ctypes.c_int()
    if ctypes.CDLL(None, use_errno=True).prctl(_PR_GET_CHILD_SUBREAPER, ctypes.byref(found), 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl")


def _memfd() -> None:
    os.close(os.memfd_create("poolctl-doctor"))


_FEATURES = (
    ("PR_SET_CHILD_SUBREAPER", "the keeper does not learn how servers exited", True, _subreaper),
    ("memfd_create", "TLS keys cannot be passed on, and upgrades are impossible", True, _memfd),
    ("pidfd_open", "workers are not adopted after their keeper was killed", False, _pidfd),
    (
        "pidfd_getfd",
        "a command's socket is not adopted after keeper and supervisor were killed",
        False,
        _getfd,
    ),
)


_ISSUED = 1_735_689_600  # 2025: no clock that is right says less
_JUMP_SECONDS = 5.0
_START_SECONDS = 60.0
_FIX = "set the clock and keep it synchronized: timedatectl set-ntp true"


def clock(context: CheckContext) -> Iterator[CheckResult]:
    """Whether it can be right."""
    now = time.time()
    if now < _ISSUED:
        yield problem("clock", f"the date is {time.strftime('%Y-%m-%d', time.gmtime(now))}", _FIX)
        return
    ahead = [
        file for file in (context.pool.files if context.pool else []) if _written(file) > now + _JUMP_SECONDS
    ]
    if ahead:
        said = f"{ahead[0]} was written in the future: the clock is, or was, wrong"
        yield warning("clock", said, f"{_FIX}; then touch {ahead[0]}")
    elif abs(jump := _jump(context)) > _JUMP_SECONDS:
        said = (
            f"the clock was set by {jump:+.0f} s since the supervisor started: its log times are inconsistent"
        )
        yield warning("clock", said, _FIX)
    else:
        yield ok("clock", time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(now)))


def _written(file: str) -> float:
    try:
        return os.stat(file).st_mtime
    except OSError:
        return 0.0


def _jump(context: CheckContext) -> float:
    """By how much the realtime clock has gone other than the monotonic one since the supervisor's start."""
    pid = context.about.get("supervisor_pid")
    start = process_start(int(pid)) if pid else None
    if start is None or context.pool is None:
        return 0.0
    try:
        noted = float(json.loads(read(f"{context.pool.directory}/info.json"))["started"])
    except (ValueError, KeyError, TypeError):
        return 0.0
    lived = time.clock_gettime(time.CLOCK_BOOTTIME) - start / os.sysconf("SC_CLK_TCK")
    late = (time.time() - lived) - noted
    # It notes the time a while after its start, which on a busy machine may be long.
    return late if late > 0 else min(0.0, late + _START_SECONDS)


_FILES = (
    "/etc/systemd/logind.conf",
    "/etc/systemd/logind.conf.d/*.conf",
    "/run/systemd/logind.conf.d/*.conf",
)
_LINGER = "/var/lib/systemd/linger"


def logout(context: CheckContext) -> Iterator[CheckResult]:
    """Whether logind ends it (logind.conf(5), KillUserProcesses)."""
    if not os.path.exists("/run/systemd/system"):
        yield ok("logout", "no logind that would stop the pool")
        return
    user = _user()
    if os.geteuid() == 0 or os.path.exists(f"{_LINGER}/{user}"):
        yield ok("logout", "the pool keeps running")
        return
    said = [
        found[1].lower()
        for pattern in _FILES
        for path in sorted(glob.glob(pattern))
        for found in re.finditer(r"^\s*KillUserProcesses\s*=\s*(\w+)", read(path), re.MULTILINE)
    ]
    if said and said[-1] in ("yes", "1", "true", "on"):
        what = "logind stops the pool when its user logs out (KillUserProcesses)"
        yield warning("logout", what, f"loginctl enable-linger {user}, or poolctl export systemd")
    else:
        yield ok("logout", "the pool keeps running")


def _user() -> str:
    try:
        return pwd.getpwuid(os.geteuid()).pw_name
    except KeyError:
        return str(os.geteuid())


CHECKS = (clock, features, proc, logout)
