"""Checks the pool's directories and files: owners, permissions, file systems, free space, leftovers of dead pools."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator

from poolctl.control import pool_paths
from poolctl.errors import ControlError
from poolctl.exit_codes import NOT_PERMITTED
from poolctl.runners.runner_registry import serves_on

from ._check import CheckContext, CheckResult, ok, problem, read, warning
from ._check_machine import answers

_ON_THE_NETWORK = {
    "nfs", "nfs4", "cifs", "smb3", "smbfs", "9p", "afs", "ceph", "glusterfs", "lustre", "fuse.sshfs", "fuse.glusterfs",
}  # fmt: skip
_SCARCE_BYTES, _LOW_BYTES = 16 << 20, 256 << 20
_SCARCE_FILES = 256


def runtime(context: CheckContext) -> Iterator[CheckResult]:
    """Whether the directory of the control socket is usable, private, and not on a network file system."""
    try:
        if context.pool is not None:
            pool_paths.control_socket(context.pool.directory)
            if os.path.isdir(context.pool.directory):
                pool_paths.check_private(context.pool.directory)
        root = _root(context)
    except ControlError as error:
        yield problem("runtime directory", error.message, error.hint)
        return
    elsewhere = f"set {pool_paths.RUNTIME_VARIABLE} to a directory on this machine"
    if kind := _network(root):
        yield problem(
            "runtime directory",
            f"{root} is on a network file system ({kind}), where Unix sockets do not work",
            elsewhere,
        )
        return
    yield from _room("runtime directory", root)


def _root(context: CheckContext) -> str:
    """The directory itself, or its nearest existing ancestor. Raises ControlError if it cannot be used."""
    explicit = bool(context.env.get(pool_paths.RUNTIME_VARIABLE))
    refused = ""
    for path in pool_paths.candidates(context.env):
        if os.path.lexists(path) and not explicit:
            pool_paths.check_private(path)
        there = _nearest(path)
        if os.path.isdir(there) and os.access(there, os.W_OK | os.X_OK):
            return there
        refused = refused or f"{there} {_permission_problem(there)}"
    raise ControlError(
        f"no runtime directory: {refused}",
        exit_code=NOT_PERMITTED,
        hint=f"set {pool_paths.RUNTIME_VARIABLE} to a writable directory",
    )


def _permission_problem(path: str) -> str:
    read_only = os.statvfs(path).f_flag & os.ST_RDONLY
    return "is on a read-only file system" if read_only else "is not writable"


def state(context: CheckContext) -> Iterator[CheckResult]:
    """The directories of logs and event journal."""
    if context.pool is None:
        return
    path = pool_paths.state_dir(context.env, context.pool.key)
    there = _nearest(path)
    if not os.access(there, os.W_OK | os.X_OK):
        fix = f"make this user its owner, or set {pool_paths.STATE_VARIABLE}"
        yield problem("state directory", f"{there} is not writable", fix)
        return
    if kind := _network(there):
        said = f"{there} is on a network file system ({kind}): no logs are written while it is unavailable"
        yield warning(
            "state directory", said, f"set {pool_paths.STATE_VARIABLE} to a directory on this machine"
        )
    yield from _room("state directory", there)
    for server in context.servers:
        if server.log.path and not os.access(_nearest(server.log.path), os.W_OK):
            said = f"{server.name}: its log {server.log.path} is not writable"
            yield problem("state directory", said, "make this user its owner, or change log.path")


def disks(context: CheckContext) -> Iterator[CheckResult]:
    """The configured directories of logs and events, one per disk, except the state directory's disk."""
    if context.pool is None or context.config is None:
        return
    events = context.config.tables.events
    paths = [server.log.path for server in context.servers] + [events.path if events is not None else None]
    seen = {os.stat(_nearest(pool_paths.state_dir(context.env, context.pool.key))).st_dev}
    for path in filter(None, paths):
        there = _nearest(os.path.dirname(path))
        if (device := os.stat(there).st_dev) not in seen and os.access(there, os.W_OK):
            seen.add(device)
            yield from _room("logs", there)


def files(context: CheckContext) -> Iterator[CheckResult]:
    """Whether other users may change the pool's files, whose commands are run."""
    if context.pool is not None:
        found = [each for file in context.pool.files for each in _file(file)]
        yield from found or [ok("files", ", ".join(context.pool.files))]


def _file(path: str) -> Iterator[CheckResult]:
    try:
        status = os.stat(path)
    except OSError as error:
        fix = "write one with poolctl init, or name another with -c"
        yield problem("files", f"{path}: {error.strerror}", fix)
        return
    if status.st_mode & stat.S_IWOTH:
        yield warning(
            "files", f"any user can change {path}, and poolctl runs its commands", f"chmod o-w {path}"
        )
    elif status.st_uid not in (0, os.geteuid()):
        said = f"{path} belongs to uid {status.st_uid}, who can make this user run commands"
        yield warning("files", said, f"chown {os.geteuid()} {path}")


def _nearest(path: str) -> str:
    while not os.path.lexists(path) and path != "/":
        path = os.path.dirname(path)
    return path


def _room(check: str, path: str) -> Iterator[CheckResult]:
    found = os.statvfs(path)
    left = found.f_bavail * found.f_frsize
    fix = "free space there, or use another directory"
    if found.f_flag & os.ST_RDONLY:
        yield problem(
            check, f"{path} is on a read-only file system", "mount -o remount,rw, or use another directory"
        )
    elif left < _SCARCE_BYTES:
        yield problem(check, f"{path} has {left >> 10} KiB left", fix)
    elif found.f_files and found.f_favail < _SCARCE_FILES:
        yield problem(check, f"{path} has room for {found.f_favail} more files (inodes)", fix)
    elif left < _LOW_BYTES:
        yield warning(check, f"{path} has {left >> 20} MiB left", fix)
    else:
        yield ok(check, f"{path}, {left >> 20} MiB left")


def _network(path: str) -> str:
    """The type of the network file system of the path, "" for a local one."""
    path = os.path.realpath(path)
    mounts = [line.partition(" - ") for line in read("/proc/self/mountinfo").splitlines()]
    found = ""
    longest = 0
    for mount, _, source in mounts:
        point = mount.split()[4].encode().decode("unicode_escape")
        inside = path == point or path.startswith(point.rstrip("/") + "/")
        if inside and len(point) >= longest:
            longest, found = len(point), source.split()[0]
    return found if found in _ON_THE_NETWORK else ""


def leftovers(context: CheckContext) -> Iterator[CheckResult]:
    """Everything in the runtime directories that belongs to no running pool."""
    found = [each for root in pool_paths.candidates(context.env) for each in _leftovers(root, context)]
    yield from found or [ok("leftovers", "none")]


def _leftovers(root: str, context: CheckContext) -> Iterator[CheckResult]:
    for name in sorted(_names(root)):
        path, socket = f"{root}/{name}", f"{root}/{name}/{pool_paths.SOCKET_NAME}"
        if name.startswith("@"):
            if not os.path.exists(socket):
                yield warning("leftovers", f"{path} is a dangling link", f"rm {path}")
        elif os.path.isdir(path) and not answers(socket):
            if serves_on(context.env, path):
                said = f"{path}: its supervisor is gone, its processes still serve"
                yield problem("leftovers", said, "poolctl start adopts them, poolctl stop stops them")
            elif os.path.lexists(socket):
                said = f"{path}: its supervisor is gone, its socket is left over"
                yield warning("leftovers", said, " ".join(["rm -r", path, *_links(root, name)]))


def _links(root: str, key: str) -> list[str]:
    """The aliases of the pool."""
    links = (f"{root}/{name}" for name in _names(root) if name.startswith("@"))
    return [link for link in links if os.path.islink(link) and os.readlink(link) == key]


def _names(root: str) -> list[str]:
    try:
        return os.listdir(root)
    except OSError:
        return []


CHECKS = (runtime, state, disks, files, leftovers)
