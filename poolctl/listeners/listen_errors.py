"""Explains why a listener could not be opened, and how to fix it.

For an address in use, finds the process that holds it, if this user may see that process (sock_diag(7), proc(5)).
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import shlex
import socket
import time
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, NamedTuple

from poolctl.errors import ServerError
from poolctl.platform import group_name, parent_and_start, user_name

from .sock_diag import ANY_STATE, LISTEN, tcp_sockets, unix_sockets

if TYPE_CHECKING:
    from poolctl.address import Address

_UNPRIVILEGED_PORT_START = "/proc/sys/net/ipv4/ip_unprivileged_port_start"
_DEFAULT_UNPRIVILEGED_PORT = 1024
# The time limit for a search, regardless of the number of processes, descriptors and connections.
MAX_SECONDS = 1.0
_MAX_CONNECTIONS = 20  # checked per port
_MAX_CHARACTERS = 1 << 20  # read from a table

# Host and port, or the path of a Unix socket.
Place = tuple[str, int] | str


class ListenError(ServerError):
    """A listener could not be opened. The message has the cause, and `hint` the fix.

    If another process uses the address, `taken` is that address (or path); `with_holders` adds the process.
    """

    def __init__(self, message: str, *, bind: str = "", hint: str = "", taken: Place | None = None) -> None:
        super().__init__(message, bind=bind, hint=hint)
        self.taken = taken


def port_error(address: Address, host: str, error: OSError) -> ListenError:
    """Return the ListenError for a failed bind to `host` and the port of `address`."""
    port = address.port or 0
    if error.errno == errno.EADDRINUSE:
        return address_in_use_error(address, (host, port))
    if error.errno in (errno.EACCES, errno.EPERM) and port < _first_unprivileged_port():
        message = f"port {port} is privileged: only root may open ports below {_first_unprivileged_port()}"
        hint = (
            f"take a port from {_first_unprivileged_port()} up, or allow it: "
            f"sysctl net.ipv4.ip_unprivileged_port_start={port}"
        )
    elif error.errno == errno.EADDRNOTAVAIL:
        message = f"{host} is not an address of this machine"
        hint = f"use one that it has: {', '.join(local_addresses()) or '127.0.0.1'}"
    elif error.errno == errno.EAFNOSUPPORT:
        message, hint = f"this machine has no support for the address {host}", "use an IPv4 address"
    else:
        return listen_error(address, f"{host}:{port} cannot be opened", error)
    return ListenError(message, bind=address.key, hint=hint)


def listen_error(address: Address, what: str, error: OSError) -> ListenError:
    """The ListenError for any OSError, with a fix if one is known. `what` says what failed, for the message."""
    hints = {
        errno.EMFILE: "raise the limit of open files: ulimit -n",
        errno.ENFILE: "raise the system's limit of open files: sysctl fs.file-max",
        errno.EPERM: "check whether a security policy forbids it (seccomp, SELinux, AppArmor)",
    }
    reason = os.strerror(error.errno) if error.errno else str(error)
    return ListenError(f"{what}: {reason}", bind=address.key, hint=hints.get(error.errno or 0, ""))


def owner_error(address: Address, owner: tuple[int, int], error: OSError) -> ListenError:
    """The ListenError for a Unix socket that cannot be given to `owner` (uid, gid)."""
    message = f"{address.path} cannot be given to {user_name(owner[0])}:{group_name(owner[1])}"
    if error.errno != errno.EPERM:
        return listen_error(address, message, error)
    fix = "start poolctl as root, or name its own user and one of its groups"
    if os.geteuid() == 0:
        fix = "give poolctl the capability CAP_CHOWN, or let the socket belong to root:root"
    return ListenError(f"{message}: {os.strerror(errno.EPERM)}", bind=address.key, hint=fix)


def unresolved_host_error(address: Address, reason: str) -> ListenError:
    """The ListenError for a host name that does not resolve to an address."""
    return ListenError(
        f"host name {address.host!r} cannot be resolved: {reason}",
        bind=address.key,
        hint="check its spelling, add it to /etc/hosts, or write the address itself",
    )


def address_in_use_error(address: Address, place: Place) -> ListenError:
    """The ListenError for an address or path in use; does not name the process that uses it (see `with_holders`)."""
    what, command, another = _describe_place(place)
    hint = f"find the process (as root): {command}, or choose another {another}"
    return ListenError(f"{what} is in use", bind=address.key, hint=hint, taken=place)


def with_holders(error: ListenError, holders: Sequence[Holder]) -> ListenError:
    """The error with the names of the processes that use its address, and a fix; unchanged without holders."""
    if error.taken is None or not holders:
        return error
    what, command, another = _describe_place(error.taken)
    first = holders[0]
    others = f" and {len(holders) - 1} more" if len(holders) > 1 else ""
    by = f"{first}{others}"
    if first.pool is not None:
        # Killing the keeper would not help: its supervisor would start a new one.
        by, hint = _describe_pool_and_fix(first, first.pool)
    elif not first.name:
        by, hint = "a connection that has ended", f"wait until the kernel forgets it, a minute: {command}"
    elif not first.listens:
        by, hint = f"a connection of {by}", f"wait until it ends: {command}"
    elif first.pid is None:
        hint = f"see which (as root): {command}"
    else:
        hint = f"stop it (kill {first.pid})"
    hint = f"{hint}, or choose another {another}"
    return ListenError(f"{what} is in use by {by}", bind=error.bind, hint=hint, taken=error.taken)


def _describe_pool_and_fix(holder: Holder, files: Sequence[str]) -> tuple[str, str]:
    if not files:
        return f"a pool inside another program, {holder}", "stop that program"
    user = "" if holder.uid in (-1, os.geteuid()) else f" as {user_name(holder.uid)}"
    named = " ".join(f"-c {shlex.quote(file)}" for file in files)
    # Without this variable the command would stop a different pool of the same files, or find no pool.
    where = f"POOLCTL_RUNTIME_DIR={shlex.quote(holder.runtime)} " if holder.runtime else ""
    return f"the pool of {', '.join(files)}", f"stop it{user}: {where}poolctl {named} stop"


def name_holders(errors: Sequence[ListenError], max_seconds: float = MAX_SECONDS) -> list[ListenError]:
    """The errors, each with the processes that use its address, if found. Blocks for `max_seconds` at most."""
    holders = find_holders((error.taken for error in errors if error.taken is not None), max_seconds)
    return [
        error if error.taken is None else with_holders(error, holders.get(error.taken, ()))
        for error in errors
    ]


def _describe_place(place: Place) -> tuple[str, str, str]:
    """Return three texts: the place's name, a command that finds its process, and "path" (Unix) or "port" (TCP)."""
    if isinstance(place, str):
        return f"the Unix socket {place}", f"ss -lxp 'src {place}'", "path"
    return f"port {place[1]}", f"ss -tanp 'sport = :{place[1]}'", "port"


def _first_unprivileged_port() -> int:
    try:
        with open(_UNPRIVILEGED_PORT_START, encoding="ascii") as file:
            return int(file.read())
    except (OSError, ValueError):
        return _DEFAULT_UNPRIVILEGED_PORT


class Holder(NamedTuple):
    """A process that uses an address, by listening on it or by a connection.

    `name` is "" for a connection without a process: it has ended, but the kernel remembers it. `pid` is None if only
    the user is known. `listens` is False for a mere connection. `pool` has the configuration files of the process's
    pool: none if the pool is embedded in another program; None without a pool. `runtime` is that pool's runtime
    directory, or "" if this process's pool has the same.
    """

    name: str
    pid: int | None
    uid: int
    listens: bool = True
    pool: tuple[str, ...] | None = None
    runtime: str = ""

    def __repr__(self) -> str:
        # Untrusted: any user can choose the name of a process.
        name = "".join(character if character.isprintable() else "?" for character in self.name)
        return name if self.pid is None else f"{name} (pid {self.pid})"


def find_holders(places: Iterable[Place], max_seconds: float = MAX_SECONDS) -> dict[Place, list[Holder]]:
    """For each address or path, the processes that listen on it; if none, the processes with connections there.

    Never raises. Blocks for about `max_seconds` at most; processes not found by then are omitted.
    """
    until = time.monotonic() + max_seconds
    sockets = _sockets(list(places), until)
    owners = _owners({inode: user for users in sockets.values() for inode, user in users.items()}, until)
    return {
        place: list(dict.fromkeys(owners[inode] for inode in inodes)) for place, inodes in sockets.items()
    }


def local_addresses() -> list[str]:
    """The addresses of this machine, IPv4 first, without link-local ones; empty if /proc does not list them."""
    addresses = []
    previous = ""
    # fib_trie has an address on one line, and its kind ("/32 host LOCAL") on the next.
    for fields in _proc_table_rows("/proc/net/fib_trie"):
        if fields[:1] == ["/32"] and fields[-1] == "LOCAL" and previous not in addresses:
            addresses.append(previous)
        previous = fields[-1]
    for fields in _proc_table_rows("/proc/net/if_inet6"):
        text = socket.inet_ntop(socket.AF_INET6, bytes.fromhex(fields[0]))
        if not text.startswith("fe80:"):
            addresses.append(text)
    return addresses


def _sockets(places: list[Place], until: float) -> dict[Place, dict[int, Holder]]:
    """Return for each place the sockets that use it: by inode, a Holder that names the user, not yet the process."""
    users: dict[Place, dict[int, Holder]] = {place: {} for place in places}
    by_port: dict[int, list[tuple[Place, bytes]]] = {}
    for place in places:
        if not isinstance(place, str):
            by_port.setdefault(place[1], []).append((place, _packed_or_any(place[0])))
    if by_port:
        for sock in tcp_sockets(LISTEN, until):
            for place, address in by_port.get(sock.port, ()):
                if _overlap(address, sock.address):
                    users[place][sock.inode] = _process_of_user(sock.uid)
    for port, addresses in by_port.items():
        for place, address in addresses:
            if not users[place]:
                users[place] = _connection_users(port, address, until)
    paths = {place for place in places if isinstance(place, str)}
    for path, inode, _ in unix_sockets(LISTEN, until) if paths else ():
        if (absolute := os.path.abspath(path)) in paths:
            users[absolute][inode] = _process_of_user(-1)
    return users


def _connection_users(port: int, address: bytes, until: float) -> dict[int, Holder]:
    users: dict[int, Holder] = {}
    for sock in tcp_sockets(ANY_STATE & ~LISTEN, until, port=port):
        if _overlap(address, sock.address) and len(users) < _MAX_CONNECTIONS:
            ended = Holder("", None, sock.uid, listens=False)
            users[sock.inode] = _process_of_user(sock.uid, listens=False) if sock.inode else ended
    # Inode 0 stands for all connections without a process: of interest only if no process has one.
    if len(users) > 1:
        users.pop(0, None)
    return users


def _overlap(one: bytes, other: bytes) -> bool:
    """Whether two packed addresses overlap; all zeros is the wildcard."""
    return one == other or not any(one) or not any(other)


def _packed_or_any(host: str) -> bytes:
    """The packed address (four bytes for IPv4). A host name gives the wildcard, which overlaps with every address."""
    for family in (socket.AF_INET, socket.AF_INET6):
        try:
            return socket.inet_pton(family, host.partition("%")[0])
        except OSError:
            continue
    return bytes(4)


def _proc_table_rows(path: str) -> Iterator[list[str]]:
    try:
        with open(path) as file:
            rows = file.read(_MAX_CHARACTERS).splitlines()
    except OSError:
        return
    yield from filter(None, map(str.split, rows))


def _process_of_user(uid: int, *, listens: bool = True) -> Holder:
    user = f"user {user_name(uid)}" if uid >= 0 else "another user"
    return Holder(f"a process of {user}", None, uid, listens=listens)


def _owners(users: dict[int, Holder], until: float) -> dict[int, Holder]:
    """Return by inode a Holder for the first process that has the socket open; `users[inode]` if none is found."""
    missing = {f"socket:[{inode}]": inode for inode in users if inode}
    owners = dict(users)
    for pid in sorted(int(entry) for entry in os.listdir("/proc") if entry.isdigit()) if missing else ():
        for inode in _pop_sockets(pid, missing, until):
            user = users[inode]
            pool, runtime = _pool_files_and_runtime(pid)
            name = _process_name(pid)
            owners[inode] = Holder(name, pid, user.uid, listens=user.listens, pool=pool, runtime=runtime)
        if not missing or time.monotonic() >= until:
            break
    return owners


def _pop_sockets(pid: int, missing: dict[str, int], until: float) -> set[int]:
    """Remove the sockets that the process has open from `missing`; returns their inodes."""
    inodes: set[int] = set()
    with contextlib.suppress(OSError), os.scandir(f"/proc/{pid}/fd") as entries:
        for entry in entries:
            with contextlib.suppress(OSError):
                target = os.readlink(entry.path)
                if target in missing:
                    inodes.add(missing.pop(target))
            if not missing or time.monotonic() >= until:
                break
    return inodes


def _pool_files_and_runtime(pid: int) -> tuple[tuple[str, ...] | None, str]:
    """Return the configuration files and runtime directory of a process's pool, as in Holder; (None, "") if none."""
    parent, _ = parent_and_start(pid) or (0, 0)
    # Of this pool's workers (children of our parent, the keeper) only the process itself is looked at, not its parent.
    for manager in (pid,) if parent == os.getppid() else (pid, parent):
        arguments = _pool_process_arguments(manager)
        if arguments is None:
            continue
        root = os.path.dirname(arguments[2])
        current = _pool_process_arguments(os.getpid())
        runtime = "" if current is not None and os.path.dirname(current[2]) == root else root
        if arguments[1] == "supervisor":
            return _files(arguments[3:]), runtime
        try:
            return _files(json.loads(arguments[3])["supervisor"][5:]), runtime
        except (IndexError, KeyError, TypeError, ValueError):
            return (), ""
    return None, ""


def _pool_process_arguments(pid: int) -> list[str] | None:
    """The command line of a keeper or supervisor: bootstrap.py, package, directory, …; None for another process."""
    arguments = _arguments(pid)[2:]
    if len(arguments) < 3 or not arguments[0].endswith("/poolctl/bootstrap.py"):
        return None
    return arguments if arguments[1] in ("supervisor", "keeper") else None


def _files(arguments: list[str]) -> tuple[str, ...]:
    return tuple(str(argument) for argument in arguments if not str(argument).startswith("-"))


def _arguments(pid: int) -> list[str]:
    try:
        with open(f"/proc/{pid}/cmdline", "rb") as raw:
            return raw.read().decode(errors="replace").split("\0")[:-1]
    except OSError:
        return []


def _process_name(pid: int) -> str:
    """The name by which an operator knows the process: for an interpreter, the module or script that it runs."""
    try:
        with open(f"/proc/{pid}/comm", encoding="utf-8", errors="replace") as file:
            name = file.read().strip()
    except OSError:
        return "a process"
    arguments = _arguments(pid)
    if not name.startswith("python"):
        return name
    for at, argument in enumerate(arguments[1:], start=1):
        if argument == "-m":
            return " ".join(["python", "-m", *arguments[at + 1 : at + 2]])
        if argument == "-c":
            break
        if not argument.startswith("-"):
            return os.path.basename(argument) or name
    return name
