"""The machine: the kernel, /proc, logind, limits of this user and its control group, and the servers' addresses."""

from __future__ import annotations

import contextlib
import ctypes
import glob
import os
import pwd
import re
import resource
import signal
import socket
import stat
from collections.abc import Callable, Iterator

from poolctl.config import RAISE_OPEN_FILES, open_files_needed
from poolctl.listeners.listen_errors import explained
from poolctl.listeners.open_listener import BACKLOG, ListenError, close_listener, open_listener
from poolctl.platform import LINUX, copy_descriptor, proc_problem

from ._check import CheckContext, CheckResult, number, ok, problem, read, warning

_PR_GET_CHILD_SUBREAPER = 37
_FILES = (
    "/etc/systemd/logind.conf",
    "/etc/systemd/logind.conf.d/*.conf",
    "/run/systemd/logind.conf.d/*.conf",
)
_NET = "/proc/sys/net"
_LINGER = "/var/lib/systemd/linger"
_FEW_FOR_A_WORKER = 256
# A forked worker with a small application; the memory of the real application is unknown.
_WORKER_BYTES = 8 << 20
_OWN_BYTES = 96 << 20


def features(context: CheckContext) -> Iterator[CheckResult]:
    """Each system call, with the consequence if it is missing."""
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
    with open(os.devnull) as null:
        os.close(copy_descriptor(os.getpid(), null.fileno()))


def _subreaper() -> None:
    found = ctypes.c_int()
    if ctypes.CDLL(None, use_errno=True).prctl(_PR_GET_CHILD_SUBREAPER, ctypes.byref(found), 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl")


def _memfd() -> None:
    os.close(os.memfd_create("poolctl-doctor"))


_ADOPTION = "a command's socket is not adopted after keeper and supervisor were killed"
_FEATURES = (
    ("PR_SET_CHILD_SUBREAPER", "the keeper does not learn how servers exited", True, _subreaper),
    ("memfd_create", "TLS keys cannot be passed on, and upgrades are impossible", True, _memfd),
    ("pidfd_open", "workers are not adopted after their keeper was killed", False, _pidfd),
    ("pidfd_getfd", _ADOPTION, False, _getfd),
)


def logout(context: CheckContext) -> Iterator[CheckResult]:
    """Whether logind kills the pool on logout (logind.conf(5), KillUserProcesses)."""
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


def open_files(context: CheckContext) -> Iterator[CheckResult]:
    """The limits of keeper and supervisor (the hard limit), and of the workers (the soft one)."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if context.about is not None:
        keeper = context.about.keeper_pid
        with contextlib.suppress(OSError):
            _, hard = resource.prlimit(int(keeper), resource.RLIMIT_NOFILE)
    enabled = [server for server in context.servers if not server.disabled]
    need = open_files_needed((server, server.scale.min) for server in enabled)
    most = open_files_needed((server, server.scale.max) for server in enabled)
    said = f"the limit is {hard}, the pool needs {need}"
    if hard != resource.RLIM_INFINITY and need > hard:
        yield problem("open files", said, RAISE_OPEN_FILES)
    elif hard != resource.RLIM_INFINITY and most > hard:
        yield warning(
            "open files", f"{said}, and {most} with all servers at their largest scale", RAISE_OPEN_FILES
        )
    elif soft < _FEW_FOR_A_WORKER:
        few = f"a worker may open only {soft}, and each connection counts"
        yield warning("open files", few, "ulimit -n, or limits.open_files of the servers")
    else:
        yield ok("open files", f"{said}; {soft} for each worker")
    for server in context.servers:
        wanted = server.limits.open_files
        if wanted and wanted > hard != resource.RLIM_INFINITY and os.geteuid():
            yield problem(
                "open files",
                f"{server.name} is configured for {wanted}, above the limit of {hard}",
                RAISE_OPEN_FILES,
            )


def processes(context: CheckContext) -> Iterator[CheckResult]:
    """The number of further processes allowed for this user and this control group."""
    need = context.processes
    limit, _ = resource.getrlimit(resource.RLIMIT_NPROC)
    if (
        limit != resource.RLIM_INFINITY
        and os.geteuid()
        and not context.items
        and limit - _threads_of_user() < need
    ):
        said = f"this user may have {limit} and has {_threads_of_user()}; the pool needs about {need} more"
        yield problem("processes", said, "ulimit -u, or nproc in /etc/security/limits.conf")
        return
    for directory in control_groups("pids"):
        most, now = number(f"{directory}/pids.max"), number(f"{directory}/pids.current") or 0
        if most is not None and most - now < need and not context.items:
            said = f"the control group may have {most} and has {now}; the pool needs about {need} more"
            yield problem("processes", said, f"TasksMax= of its unit, --pids-limit, or {directory}/pids.max")
            return
    yield ok("processes", f"the pool needs about {need}")


def control_groups(controller: str, root: str = "/sys/fs/cgroup") -> Iterator[str]:
    """The directories of this process's control group and its ancestors, in either version (cgroups(7))."""
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
    """The number of threads, which the limit counts."""
    count = 0
    for name in os.listdir("/proc"):
        try:
            if name.isdecimal() and os.stat(f"/proc/{name}").st_uid == os.getuid():
                count += len(os.listdir(f"/proc/{name}/task"))
        except OSError:
            continue
    return count


def memory(context: CheckContext) -> Iterator[CheckResult]:
    """The memory available to the pool if it is not running."""
    available = re.search(r"^MemAvailable:\s+(\d+) kB", read("/proc/meminfo"), re.MULTILINE)
    left = int(available[1]) * 1024 if available else 0
    where, fix = "are available", "stop other programs, or add memory"
    for directory in control_groups("memory"):
        most = number(f"{directory}/memory.max") or number(f"{directory}/memory.limit_in_bytes")
        now = number(f"{directory}/memory.current") or number(f"{directory}/memory.usage_in_bytes") or 0
        if most is not None and most - now < left:
            left, where = max(0, most - now), "are available to this control group"
            fix = "MemoryMax= of its unit, or --memory of its container"
    need = _OWN_BYTES + context.processes * _WORKER_BYTES
    said = f"{_mib(left)} {where}, the pool needs {_mib(need)} plus the memory of its applications"
    if left and left < need and not context.items:
        yield problem("memory", said, fix)
    elif left and left < _OWN_BYTES:
        yield warning("memory", f"{_mib(left)} {where}", fix)
    else:
        yield ok("memory", said)


def _mib(count: int) -> str:
    return f"{count / (1 << 20):.0f} MiB"


def ports(context: CheckContext) -> Iterator[CheckResult]:
    """Whether each server that has not opened its address could do so now."""
    served = context.served
    failures: dict[str, ListenError] = {}
    free = 0
    for name, address in context.addresses.items():
        if address.kind == "unix":
            yield from _unix(name, address.path)
        if address.kind != "tcp" or name in served:
            continue
        try:
            close_listener(open_listener(address))
            free += 1
        except ListenError as error:
            failures[name] = error
    for name, failure in zip(failures, explained([*failures.values()]), strict=True):
        yield problem("ports", f"{name}: {failure.message}", failure.hint or "choose another address")
    without = {server.name for server in context.servers if not server.listens}
    yield ok("ports", f"{len(served - without)} served, {free} free")


def _unix(name: str, path: str) -> Iterator[CheckResult]:
    directory = os.path.dirname(path)
    if not os.access(directory, os.W_OK | os.X_OK):
        what = "is not writable" if os.path.isdir(directory) else "does not exist"
        yield problem("ports", f"{name}: {directory} {what}", f"mkdir -p {directory}, owned by this user")


def backlog(context: CheckContext) -> Iterator[CheckResult]:
    """The number of connections that may wait while a server restarts or wakes; the kernel's limit caps it."""
    most = read(f"{_NET}/core/somaxconn")
    if most.isdecimal() and int(most) < BACKLOG:
        said = f"only {most} connections may wait while a server restarts, not {BACKLOG}"
        yield warning("backlog", said, f"sysctl -w net.core.somaxconn={BACKLOG}")
    else:
        yield ok("backlog", f"{BACKLOG} connections may wait while a server restarts")


def ephemeral(context: CheckContext) -> Iterator[CheckResult]:
    """Whether this machine's outgoing connections could take a port before its server opens it."""
    first, _, last = read(f"{_NET}/ipv4/ip_local_port_range").partition("\t")
    if not (first.isdecimal() and last.isdecimal()):
        return
    reserved = _ranges(read(f"{_NET}/ipv4/ip_local_reserved_ports"))
    at_risk = sorted(
        {
            address.port
            for address in context.addresses.values()
            if address.port and int(first) <= address.port <= int(last)
            if not any(low <= address.port <= high for low, high in reserved)
        }
    )
    if at_risk:
        listed = ",".join(map(str, at_risk))
        said = f"outgoing connections use ports {first}-{last} and may occupy {listed} when a server starts"
        yield warning("port range", said, f"sysctl -w net.ipv4.ip_local_reserved_ports={listed}")
    else:
        yield ok("port range", f"no server's port is in the range of outgoing connections, {first}-{last}")


def _ranges(text: str) -> list[tuple[int, int]]:
    found = []
    for part in filter(None, text.split(",")):
        low, _, high = part.partition("-")
        found.append((int(low), int(high or low)))
    return found


def sockets(context: CheckContext) -> Iterator[CheckResult]:
    """Socket files at the addresses of servers that are not running."""
    for name, address in context.addresses.items():
        if address.kind != "unix" or name in context.served or not os.path.lexists(address.path):
            continue
        if not os.path.exists(address.path) or not _is_socket(address.path):
            yield problem(
                "sockets", f"{name}: {address.path} exists and is not a socket", f"move {address.path} away"
            )
        elif answers(address.path):
            said = f"{name}: another process listens on {address.path}"
            yield problem("sockets", said, f"fuser {address.path} shows the process")
        else:
            yield ok("sockets", f"{name}: {address.path} is stale and will be replaced")


def _is_socket(path: str) -> bool:
    return stat.S_ISSOCK(os.stat(path).st_mode)


def answers(path: str) -> bool:
    """Whether a process listens on the Unix socket."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK) as probe:
        try:
            probe.connect(path)
        except BlockingIOError:
            return True
        except OSError:
            return False
    return True


CHECKS = (features, proc, logout, open_files, processes, memory, ports, sockets, backlog, ephemeral)
