"""Leftovers of dead pools: sockets without a listener, dangling links, workers without a supervisor."""

from __future__ import annotations

import fcntl
import os
import socket
from collections.abc import Iterator

from poolctl.control import directory
from poolctl.runners.survivors import are_there

from .check import CheckContext, CheckResult, ok, problem, warning


def leftovers(context: CheckContext) -> Iterator[CheckResult]:
    """Everything in the runtime directories that is no running pool's."""
    count = 0
    for root in directory.candidates(context.env):
        for name in sorted(_names(root)):
            path = f"{root}/{name}"
            if name.startswith("@"):
                if not os.path.exists(f"{path}/{directory.SOCKET_NAME}"):
                    count += 1
                    yield warning("leftovers", f"{path} is a dangling link", f"rm {path}")
                continue
            if not os.path.isdir(path):
                continue
            served = are_there(path)
            if os.path.lexists(f"{path}/{directory.SOCKET_NAME}") and not answers(
                f"{path}/{directory.SOCKET_NAME}"
            ):
                count += 1
                fix = (
                    "poolctl start adopts them, poolctl stop stops them"
                    if served
                    else " ".join(["rm -r", path, *_links(root, name)])
                )
                yield (problem if served else warning)("leftovers", _said(path, served), fix)
            elif served and not os.path.lexists(f"{path}/{directory.SOCKET_NAME}"):
                count += 1
                yield problem(
                    "leftovers", _said(path, served), "poolctl start adopts them, poolctl stop stops them"
                )
    if not count:
        yield ok("leftovers", "none")


def _links(root: str, key: str) -> list[str]:
    """The names under which the pool is found as well."""
    links = (f"{root}/{name}" for name in _names(root) if name.startswith("@"))
    return [link for link in links if os.path.islink(link) and os.readlink(link) == key]


def _said(path: str, served: bool) -> str:
    return f"{path}: its supervisor is gone, " + (
        "servers still run" if served else "its socket is left over"
    )


def lock(context: CheckContext) -> Iterator[CheckResult]:
    """Whether another process holds the lock under which a pool is started."""
    path = f"{context.pool.directory}/lock" if context.pool is not None else ""
    if not os.path.exists(path):
        return
    try:
        fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    except OSError:
        return  # the directory's own check says so
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield ok("lock", "free")
    except OSError:
        yield warning(
            "lock", f"{path} is held: another start is in progress", f"fuser {path} shows its process"
        )
    finally:
        os.close(fd)


def sockets(context: CheckContext) -> Iterator[CheckResult]:
    """Files of Unix sockets at the addresses of servers that do not run."""
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
    import stat

    return stat.S_ISSOCK(os.stat(path).st_mode)


def answers(path: str) -> bool:
    """Whether a process listens on that Unix socket."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK) as probe:
        try:
            probe.connect(path)
        except BlockingIOError:
            return True
        except OSError:
            return False
    return True


def _names(root: str) -> list[str]:
    try:
        return os.listdir(root)
    except OSError:
        return []


CHECKS = (leftovers, lock, sockets)
