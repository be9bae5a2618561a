"""Checks of the machine: kernel, /proc, logind, the limits of the user and its control group, and server addresses.

Further checks concern the directories of the pool: owners, permissions, file systems, free space, and files left behind
by dead pools.
"""

from __future__ import annotations

import contextlib
import ctypes
import glob
import os
import re
import resource
import signal
import stat
from collections.abc import Callable, Iterator

from poolctl.config import RAISE_OPEN_FILES, EventsTable, open_files_per_pool_process
from poolctl.control import pool_paths
from poolctl.daemon_threads import THREADS
from poolctl.errors import ControlError
from poolctl.exit_codes import NOT_PERMITTED
from poolctl.listeners.listen_errors import name_holders
from poolctl.listeners.open_listener import BACKLOG, ListenError, close_listener, is_live, open_listener
from poolctl.platform import LINUX, copy_descriptor, proc_problem, user_name
from poolctl.runners.left_overs import left_over_text, left_overs

from ._check import CheckContext, CheckResult, Machine, ok, problem, warning

_PR_GET_CHILD_SUBREAPER = 37
_LOGIND_FILES = (
    "/etc/systemd/logind.conf",
    "/etc/systemd/logind.conf.d/*.conf",
    "/run/systemd/logind.conf.d/*.conf",
)
_SYSCTL_DIRECTORY = "/proc/sys/net"
_LINGER_DIRECTORY = "/var/lib/systemd/linger"
_MIN_WORKER_OPEN_FILES = 256
# The memory of a forked worker with a small application; that of the real application is unknown.
_WORKER_BYTES = 8 << 20
_POOL_BYTES = 96 << 20
_NETWORK_FILE_SYSTEMS = {
    "nfs", "nfs4", "cifs", "smb3", "smbfs", "9p", "afs", "ceph", "glusterfs", "lustre", "fuse.sshfs", "fuse.glusterfs",
}  # fmt: skip
_SCARCE_BYTES, _LOW_BYTES = 16 << 20, 256 << 20
_SCARCE_FILES = 256


def kernel_features(context: CheckContext) -> Iterator[CheckResult]:
    """Test the system calls that a pool needs; for each one that fails, a result says what the pool cannot do."""
    if not LINUX:
        yield problem(
            "kernel", "this is not Linux", "only `run`, the library and commands that read files work"
        )
        return
    missing = [
        (name, loss, needed) for name, loss, needed, attempt in _FEATURES if not _is_supported(attempt)
    ]
    for name, loss, needed in missing:
        fix = "allow it in the sandbox (--security-opt seccomp=…), or use a newer kernel"
        yield (problem if needed else warning)("kernel", f"{name} does not work: {loss}", fix)
    if not missing:
        yield ok("kernel", f"Linux {os.uname().release} has what the pool needs")


def proc(context: CheckContext) -> Iterator[CheckResult]:
    """Whether /proc lists processes: a pool cannot start without it."""
    message, fix = proc_problem()
    yield problem("proc", message, fix) if message else ok("proc", "/proc shows this process")


def _is_supported(attempt: Callable[[], None]) -> bool:
    try:
        attempt()
    except OSError:
        return False
    return True


def _test_pidfd_support() -> None:
    fd = os.pidfd_open(os.getpid())
    try:
        signal.pidfd_send_signal(fd, 0)
    finally:
        os.close(fd)


def _test_pidfd_getfd_support() -> None:
    with open(os.devnull) as null:
        os.close(copy_descriptor(os.getpid(), null.fileno()))


def _test_subreaper_support() -> None:
    flag = ctypes.c_int()
    if ctypes.CDLL(None, use_errno=True).prctl(_PR_GET_CHILD_SUBREAPER, ctypes.byref(flag), 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl")


def _test_memfd_support() -> None:
    os.close(os.memfd_create("poolctl-doctor"))


_ADOPTION = "a command's socket is not adopted after keeper and supervisor were killed"
_FEATURES = (
    ("PR_SET_CHILD_SUBREAPER", "the keeper does not learn how servers exited", True, _test_subreaper_support),
    ("memfd_create", "TLS keys cannot be passed on, and upgrades are impossible", True, _test_memfd_support),
    ("pidfd_open", "workers are not adopted after their keeper was killed", False, _test_pidfd_support),
    ("pidfd_getfd", _ADOPTION, False, _test_pidfd_getfd_support),
)


def logout(context: CheckContext) -> Iterator[CheckResult]:
    """Whether logind kills the pool on logout (logind.conf(5), KillUserProcesses)."""
    machine = context.machine
    if not machine.exists("/run/systemd/system"):
        yield ok("logout", "no logind that would stop the pool")
        return
    user = user_name(machine.uid)
    if machine.uid == 0 or machine.exists(f"{_LINGER_DIRECTORY}/{user}"):
        yield ok("logout", "the pool keeps running")
        return
    settings = [
        match[1].lower()
        for pattern in _LOGIND_FILES
        for path in sorted(glob.glob(pattern.lstrip("/"), root_dir=machine.root or "/"))
        for match in re.finditer(r"^\s*KillUserProcesses\s*=\s*(\w+)", machine.text(f"/{path}"), re.MULTILINE)
    ]
    if settings and settings[-1] in ("yes", "1", "true", "on"):
        message = "logind stops the pool when its user logs out (KillUserProcesses)"
        yield warning("logout", message, f"loginctl enable-linger {user}, or poolctl export systemd")
    else:
        yield ok("logout", "the pool keeps running")


def open_files(context: CheckContext) -> Iterator[CheckResult]:
    """Whether the limits on open files suffice: the hard one for keeper and supervisor, the soft one for workers."""
    soft, hard = context.machine.open_files
    if context.about is not None:
        keeper = context.about.keeper_pid
        with contextlib.suppress(OSError):
            _, hard = resource.prlimit(int(keeper), resource.RLIMIT_NOFILE)
    required = open_files_per_pool_process((server, server.scale.min) for server in context.servers)
    required_at_maximum = open_files_per_pool_process(
        (server, server.scale.max) for server in context.servers
    )
    message = f"the limit is {hard}, the pool needs {required}"
    if hard != resource.RLIM_INFINITY and required > hard:
        yield problem("open files", message, RAISE_OPEN_FILES)
    elif hard != resource.RLIM_INFINITY and required_at_maximum > hard:
        yield warning(
            "open files",
            f"{message}, and {required_at_maximum} with all servers at their largest scale",
            RAISE_OPEN_FILES,
        )
    elif soft < _MIN_WORKER_OPEN_FILES:
        warning_text = f"a worker may open only {soft}, and each connection counts"
        yield warning("open files", warning_text, "ulimit -n, or limits.open_files of the servers")
    else:
        yield ok("open files", f"{message}; {soft} for each worker")
    for server in context.servers:
        limit = server.limits.open_files
        if limit and limit > hard != resource.RLIM_INFINITY and context.machine.uid:
            message = f"{server.name} is configured for {limit}, above the limit of {hard}"
            yield problem("open files", message, RAISE_OPEN_FILES)


def processes(context: CheckContext) -> Iterator[CheckResult]:
    """Whether the limits of this user and this control group leave room for the processes that the pool needs."""
    required = context.processes + THREADS  # a thread counts as a process
    machine, limit = context.machine, context.machine.max_processes
    is_limited = limit != resource.RLIM_INFINITY and machine.uid and not context.items
    if is_limited and limit - (threads := threads_of_user()) < required:
        message = f"this user may have {limit} and has {threads}; the pool needs about {required} more"
        yield problem("processes", message, "ulimit -u, or nproc in /etc/security/limits.conf")
        return
    for directory in machine.control_groups("pids"):
        maximum, current = (
            machine.number(f"{directory}/pids.max"),
            machine.number(f"{directory}/pids.current") or 0,
        )
        if maximum is not None and maximum - current < required and not context.items:
            message = f"the control group may have {maximum} and has {current}; the pool needs about {required} more"
            yield problem(
                "processes", message, f"TasksMax= of its unit, --pids-limit, or {directory}/pids.max"
            )
            return
    yield ok("processes", f"the pool needs about {required}")


def threads_of_user() -> int:
    """The number of threads of this process's user. A thread counts as a process."""
    count = 0
    for name in os.listdir("/proc"):
        try:
            if name.isdecimal() and os.stat(f"/proc/{name}").st_uid == os.getuid():
                count += len(os.listdir(f"/proc/{name}/task"))
        except OSError:
            continue
    return count


def memory(context: CheckContext) -> Iterator[CheckResult]:
    """Whether the available memory suffices for the pool, if it is not running."""
    machine = context.machine
    available = re.search(r"^MemAvailable:\s+(\d+) kB", machine.text("/proc/meminfo"), re.MULTILINE)
    free_bytes = int(available[1]) * 1024 if available else 0
    place_text, fix = "are available", "stop other programs, or add memory"
    for directory in machine.control_groups("memory"):
        maximum = machine.number(f"{directory}/memory.max") or machine.number(
            f"{directory}/memory.limit_in_bytes"
        )
        current = (
            machine.number(f"{directory}/memory.current")
            or machine.number(f"{directory}/memory.usage_in_bytes")
            or 0
        )
        if maximum is not None and maximum - current < free_bytes:
            free_bytes, place_text = max(0, maximum - current), "are available to this control group"
            fix = "MemoryMax= of its unit, or --memory of its container"
    required = _POOL_BYTES + context.processes * _WORKER_BYTES
    message = f"{_mib(free_bytes)} {place_text}, the pool needs {_mib(required)} plus the memory of its applications"
    if free_bytes and free_bytes < required and not context.items:
        yield problem("memory", message, fix)
    elif free_bytes and free_bytes < _POOL_BYTES:
        yield warning("memory", f"{_mib(free_bytes)} {place_text}", fix)
    else:
        yield ok("memory", message)


def _mib(count: int) -> str:
    return f"{count / (1 << 20):.0f} MiB"


def ports(context: CheckContext) -> Iterator[CheckResult]:
    """Check that TCP addresses on which the pool is not listening are free, and Unix sockets' directories writable."""
    served = context.served
    failures: dict[str, ListenError] = {}
    free = 0
    for name, address in context.addresses.items():
        if address.kind == "unix":
            yield from _socket_directory(name, address.path)
        if address.kind != "tcp" or name in served:
            continue
        try:
            close_listener(open_listener(address))
            free += 1
        except ListenError as error:
            failures[name] = error
    for name, failure in zip(failures, name_holders([*failures.values()]), strict=True):
        yield problem("ports", f"{name}: {failure.message}", failure.hint or "choose another address")
    not_listening = {server.name for server in context.servers if not server.listens}
    yield ok("ports", f"{len(served - not_listening)} served, {free} free")


def _socket_directory(name: str, path: str) -> Iterator[CheckResult]:
    directory = os.path.dirname(path)
    if not os.access(directory, os.W_OK | os.X_OK):
        fault = "is not writable" if os.path.isdir(directory) else "does not exist"
        yield problem("ports", f"{name}: {directory} {fault}", f"mkdir -p {directory}, owned by this user")


def backlog(context: CheckContext) -> Iterator[CheckResult]:
    """Whether the kernel lets enough connections queue while a server restarts or wakes."""
    maximum = context.machine.text(f"{_SYSCTL_DIRECTORY}/core/somaxconn")
    if maximum.isdecimal() and int(maximum) < BACKLOG:
        message = f"only {maximum} connections may wait while a server restarts, not {BACKLOG}"
        yield warning("backlog", message, f"sysctl -w net.core.somaxconn={BACKLOG}")
    else:
        yield ok("backlog", f"{BACKLOG} connections may wait while a server restarts")


def ephemeral(context: CheckContext) -> Iterator[CheckResult]:
    """Whether this machine's outgoing connections could take a port before its server opens it."""
    machine = context.machine
    first, _, last = machine.text(f"{_SYSCTL_DIRECTORY}/ipv4/ip_local_port_range").partition("\t")
    if not (first.isdecimal() and last.isdecimal()):
        return
    reserved = _ranges(machine.text(f"{_SYSCTL_DIRECTORY}/ipv4/ip_local_reserved_ports"))
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
        message = (
            f"outgoing connections use ports {first}-{last} and may occupy {listed} when a server starts"
        )
        yield warning("port range", message, f"sysctl -w net.ipv4.ip_local_reserved_ports={listed}")
    else:
        yield ok("port range", f"no server's port is in the range of outgoing connections, {first}-{last}")


def _ranges(text: str) -> list[tuple[int, int]]:
    ranges = []
    for part in filter(None, text.split(",")):
        low, _, high = part.partition("-")
        ranges.append((int(low), int(high or low)))
    return ranges


def leftover_sockets(context: CheckContext) -> Iterator[CheckResult]:
    """Check the Unix addresses of servers that do not run. A stale socket is OK; a listener or another file is not."""
    for name, address in context.addresses.items():
        if address.kind != "unix" or name in context.served or not os.path.lexists(address.path):
            continue
        if not os.path.exists(address.path) or not stat.S_ISSOCK(os.stat(address.path).st_mode):
            yield problem(
                "sockets", f"{name}: {address.path} exists and is not a socket", f"move {address.path} away"
            )
        elif is_live(address.path):
            message = f"{name}: another process listens on {address.path}"
            yield problem("sockets", message, f"fuser {address.path} shows the process")
        else:
            yield ok("sockets", f"{name}: {address.path} is stale and will be replaced")


def runtime_directory_check(context: CheckContext) -> Iterator[CheckResult]:
    """Whether the directory of the control socket is usable, private, and not on a network file system."""
    try:
        if context.pool is not None:
            pool_paths.control_socket_path(context.pool.directory)
            pool_paths.check_private(context.pool.directory, missing_ok=True)
        root = _runtime_root_or_parent(context)
    except ControlError as error:
        yield problem("runtime directory", error.message, error.hint)
        return
    if kind := network_file_system(root, context.machine):
        message = f"{root} is on a network file system ({kind}), where Unix sockets do not work"
        fix = f"set {pool_paths.RUNTIME_VARIABLE} to a directory on this machine"
        yield problem("runtime directory", message, fix)
        return
    yield from free_space("runtime directory", root, os.statvfs(root))


def _runtime_root_or_parent(context: CheckContext) -> str:
    """Return the runtime directory, or if it is missing, the nearest one above it. Raises ControlError if unusable."""
    explicit = bool(context.env.get(pool_paths.RUNTIME_VARIABLE))
    reason = ""
    for path in pool_paths.runtime_root_candidates(context.env):
        if os.path.lexists(path) and not explicit:
            pool_paths.check_private(path)
        existing = _nearest_existing(path)
        if os.path.isdir(existing) and os.access(existing, os.W_OK | os.X_OK):
            return existing
        read_only = os.statvfs(existing).f_flag & os.ST_RDONLY
        fault = "is on a read-only file system" if read_only else "is not writable"
        reason = reason or f"{existing} {fault}"
    raise ControlError(
        f"no runtime directory: {reason}",
        exit_code=NOT_PERMITTED,
        hint=f"set {pool_paths.RUNTIME_VARIABLE} to a writable directory",
    )


def state_directory_check(context: CheckContext) -> Iterator[CheckResult]:
    """Whether the directories of logs and event journal are writable and local, and have free space."""
    if context.pool is None:
        return
    try:
        path = pool_paths.state_dir(context.env, context.pool.key)
    except ControlError as error:
        yield problem("state directory", error.message, error.hint)
        return
    directory = _nearest_existing(path)
    if not os.access(directory, os.W_OK | os.X_OK):
        fix = f"make this user its owner, or set {pool_paths.STATE_VARIABLE}"
        yield problem("state directory", f"{directory} is not writable", fix)
        return
    if kind := network_file_system(directory, context.machine):
        message = f"{directory} is on a network file system ({kind})"
        fix = f"set {pool_paths.STATE_VARIABLE} to a directory on this machine"
        yield warning("state directory", f"{message}: no logs are written while it is unavailable", fix)
    yield from free_space("state directory", directory, os.statvfs(directory))
    for server in context.servers:
        if server.log.path and not os.access(_nearest_existing(server.log.path), os.W_OK):
            message_ = f"{server.name}: its log {server.log.path} is not writable"
            yield problem("state directory", message_, "make this user its owner, or change log.path")


def disks(context: CheckContext) -> Iterator[CheckResult]:
    """The free space on each disk of configured log and event paths, except the disk of the state directory."""
    if context.pool is None or context.config is None:
        return
    try:
        state_directory = pool_paths.state_dir(context.env, context.pool.key)
    except ControlError:
        return  # a finding of state_directory_check
    events = context.config.tables.get(EventsTable)
    paths = [server.log.path for server in context.servers] + [events.path if events is not None else None]
    seen = {os.stat(_nearest_existing(state_directory)).st_dev}
    for path in filter(None, paths):
        directory = _nearest_existing(os.path.dirname(path))
        if (device := os.stat(directory).st_dev) not in seen and os.access(directory, os.W_OK):
            seen.add(device)
            yield from free_space("logs", directory, os.statvfs(directory))


def _nearest_existing(path: str) -> str:
    while not os.path.lexists(path) and path != "/":
        path = os.path.dirname(path)
    return path


def free_space(check: str, path: str, file_system: os.statvfs_result) -> Iterator[CheckResult]:
    """Whether the file system of the directory `path` can be written and has space left."""
    free_bytes = file_system.f_bavail * file_system.f_frsize
    fix = "free space there, or use another directory"
    if file_system.f_flag & os.ST_RDONLY:
        yield problem(
            check, f"{path} is on a read-only file system", "mount -o remount,rw, or use another directory"
        )
    elif free_bytes < _SCARCE_BYTES:
        yield problem(check, f"{path} has {free_bytes >> 10} KiB left", fix)
    elif file_system.f_files and file_system.f_favail < _SCARCE_FILES:
        yield problem(check, f"{path} has room for {file_system.f_favail} more files (inodes)", fix)
    elif free_bytes < _LOW_BYTES:
        yield warning(check, f"{path} has {free_bytes >> 20} MiB left", fix)
    else:
        yield ok(check, f"{path}, {free_bytes >> 20} MiB left")


def network_file_system(path: str, machine: Machine) -> str:
    """The type of the network file system of the path, "" for a local one."""
    path = os.path.realpath(path)
    mounts = [line.partition(" - ") for line in machine.text("/proc/self/mountinfo").splitlines()]
    kind = ""
    longest = 0
    for mount, _, source in mounts:
        point = mount.split()[4].encode().decode("unicode_escape")
        inside = path == point or path.startswith(point.rstrip("/") + "/")
        if inside and len(point) >= longest:
            longest, kind = len(point), source.split()[0]
    return kind if kind in _NETWORK_FILE_SYSTEMS else ""


def leftovers(context: CheckContext) -> Iterator[CheckResult]:
    """Entries of the runtime directories that do not belong to a running pool."""
    results = [
        leftover
        for root in pool_paths.runtime_root_candidates(context.env)
        for leftover in _leftovers(root, context)
    ]
    yield from results or [ok("leftovers", "none")]


def _leftovers(root: str, context: CheckContext) -> Iterator[CheckResult]:
    for name in sorted(_names(root)):
        path, socket = f"{root}/{name}", f"{root}/{name}/{pool_paths.SOCKET_NAME}"
        if name.startswith("@"):
            if not os.path.exists(socket):
                yield warning("leftovers", f"{path} is a dangling link", f"rm {path}")
        elif os.path.isdir(path) and not is_live(socket):
            if processes := left_overs(path):
                message = f"{path}: {left_over_text(leftover.label for leftover in processes)}"
                yield problem("leftovers", message, "poolctl start or poolctl stop ends them")
            elif os.path.lexists(socket):
                message = f"{path}: its supervisor is gone, its socket is left over"
                yield warning("leftovers", message, " ".join(["rm -r", path, *_links(root, name)]))


def _links(root: str, key: str) -> list[str]:
    links = (f"{root}/{name}" for name in _names(root) if name.startswith("@"))
    return [link for link in links if os.path.islink(link) and os.readlink(link) == key]


def _names(root: str) -> list[str]:
    try:
        return os.listdir(root)
    except OSError:
        return []


CHECKS = (
    kernel_features, proc, logout, open_files, processes, memory, ports, leftover_sockets, backlog, ephemeral,
    runtime_directory_check, state_directory_check, disks, leftovers,
)  # fmt: skip
