"""What the pool needs of the kernel, tried out: a container's filter of system calls may forbid it."""

from __future__ import annotations

import ctypes
import os
import signal
from collections.abc import Callable, Iterator

from poolctl.platform import LINUX, copy_descriptor, proc_problem

from .context import Case
from .finding import Finding, ok, problem, warning

_PR_GET_CHILD_SUBREAPER = 37


def features(case: Case) -> Iterator[Finding]:
    """Each call with what is lost without it."""
    if not LINUX:
        yield problem(
            "kernel", "this is not Linux", "only run, the library and commands that read files work"
        )
        return
    missing = [(name, loss, needed) for name, loss, needed, attempt in _FEATURES if not _works(attempt)]
    for name, loss, needed in missing:
        mend = "allow it in the sandbox (--security-opt seccomp=…), or use a newer kernel"
        yield (problem if needed else warning)("kernel", f"{name} does not work: {loss}", mend)
    if not missing:
        yield ok("kernel", f"Linux {os.uname().release} has what the pool needs")


def proc(case: Case) -> Iterator[Finding]:
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
    ("PR_SET_CHILD_SUBREAPER", "the keeper is not told how servers ended", True, _subreaper),
    ("memfd_create", "TLS keys cannot be handed over, and no upgrade is possible", True, _memfd),
    ("pidfd_open", "servers whose keeper was killed are not taken over", False, _pidfd),
    (
        "pidfd_getfd",
        "a command's socket is not taken over when keeper and supervisor are killed",
        False,
        _getfd,
    ),
)

CHECKS = (features, proc)
