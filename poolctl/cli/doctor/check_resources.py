"""Limits of this user and of its control group: open files, processes."""

from __future__ import annotations

import contextlib
import os
import resource
from collections.abc import Iterator

from poolctl.config import RAISE_OPEN_FILES, open_files_needed

from .context import Case, number, read
from .finding import Finding, ok, problem, warning

_FEW_FOR_A_WORKER = 256


def open_files(case: Case) -> Iterator[Finding]:
    """What keeper and supervisor may open (the hard limit), and what the workers may (the soft one)."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if keeper := case.about.get("keeper_pid"):
        with contextlib.suppress(OSError):
            _, hard = resource.prlimit(int(keeper), resource.RLIMIT_NOFILE)
    enabled = [server for server in case.servers if not server.disabled]
    need = open_files_needed((server, server.scale.min) for server in enabled)
    most = open_files_needed((server, server.scale.max) for server in enabled)
    said = f"{hard} may be open, the pool needs {need}"
    if hard != resource.RLIM_INFINITY and need > hard:
        yield problem("open files", said, RAISE_OPEN_FILES)
    elif hard != resource.RLIM_INFINITY and most > hard:
        yield warning(
            "open files", f"{said}, and {most} when all servers have all their workers", RAISE_OPEN_FILES
        )
    elif soft < _FEW_FOR_A_WORKER:
        few = f"a worker may have {soft} open, and each connection is one"
        yield warning("open files", few, "ulimit -n, or limits.open_files of the servers")
    else:
        yield ok("open files", f"{said}; {soft} for each worker")
    for server in case.servers:
        wanted = server.limits.open_files
        if wanted and wanted > hard != resource.RLIM_INFINITY and os.geteuid():
            yield problem(
                "open files", f"{server.name} is configured for {wanted}, more than {hard}", RAISE_OPEN_FILES
            )


def processes(case: Case) -> Iterator[Finding]:
    """How many more processes this user and this control group may have."""
    need = case.processes
    limit, _ = resource.getrlimit(resource.RLIMIT_NPROC)
    if (
        limit != resource.RLIM_INFINITY
        and os.geteuid()
        and not case.items
        and limit - _threads_of_user() < need
    ):
        said = f"this user may have {limit}, has {_threads_of_user()}, and the pool needs about {need} more"
        yield problem("processes", said, "ulimit -u, or nproc in /etc/security/limits.conf")
        return
    for directory in control_groups("pids"):
        most, now = number(f"{directory}/pids.max"), number(f"{directory}/pids.current") or 0
        if most is not None and most - now < need and not case.items:
            said = f"the control group may have {most}, has {now}, and the pool needs about {need} more"
            yield problem("processes", said, f"TasksMax= of its unit, --pids-limit, or {directory}/pids.max")
            return
    yield ok("processes", f"the pool needs about {need}")


def control_groups(controller: str, root: str = "/sys/fs/cgroup") -> Iterator[str]:
    """The directories of this process's control group and of those above it, of either version (cgroups(7))."""
    for line in read("/proc/self/cgroup").splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers and controller not in controllers.split(","):
            continue
        base = f"{root}/{controller}" if controllers else root
        while True:
            if os.path.isdir(f"{base}{path}"):
                yield f"{base}{path}".rstrip("/")
            if path in ("/", ""):
                break
            path = os.path.dirname(path)


def _threads_of_user() -> int:
    """Threads, which are what the limit counts."""
    count = 0
    for name in os.listdir("/proc"):
        try:
            if name.isdecimal() and os.stat(f"/proc/{name}").st_uid == os.getuid():
                count += len(os.listdir(f"/proc/{name}/task"))
        except OSError:
            continue
    return count


CHECKS = (open_files, processes)
