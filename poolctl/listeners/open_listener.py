"""Opens the listening sockets of an address, or takes those inherited from systemd.

Closing a listener removes its socket file only if this process created it.
"""

from __future__ import annotations

import contextlib
import errno
import os
import select
import socket
import stat
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

from poolctl.safe_open import is_trusted, open_directory

from .listen_errors import (
    ListenError,
    address_in_use_error,
    listen_error,
    owner_error,
    port_error,
    unresolved_host_error,
)
from .sock_diag import bound_inode

if TYPE_CHECKING:
    from poolctl.address import Address

__all__ = ["BACKLOG", "ListenError", "SocketAccess", "close_listener", "describe", "open_listener"]

# Processes share a socket, and the last listen() call sets the length of its accept queue, so every caller uses this
# number (the kernel caps it at net.core.somaxconn).
BACKLOG = 2048

_WILDCARD_HOSTS = ("0.0.0.0", "::")
_NO_IPV6 = (errno.EAFNOSUPPORT, errno.EADDRNOTAVAIL, errno.EPROTONOSUPPORT)
FIRST_DESCRIPTOR = 3
Inherited = Mapping[str, "list[int]"]
# sun_path holds 108 bytes including the final NUL (unix(7)).
MAX_PATH_BYTES = 107
# The mode of a new socket file until it has its owner. No other socket has it.
_UNFINISHED_MODE = 0o200

Identity = tuple[int, int]  # st_dev and st_ino of a socket file


class SocketAccess(NamedTuple):
    """Who may connect to a Unix socket: the mode of its file, whatever the umask, and the file's owner (uid, gid).

    Without an owner, the file belongs to this process's user, and to the group that its directory gives new files.
    """

    mode: int
    owner: tuple[int, int] | None = None


PRIVATE = SocketAccess(0o600)


def open_listener(
    address: Address,
    *,
    inherited: Inherited | None = None,
    access: SocketAccess = PRIVATE,
    beside: Sequence[socket.socket] | None = None,
    held: Sequence[socket.socket] = (),
    returned: Sequence[socket.socket] = (),
) -> list[socket.socket]:
    """Open the listening sockets of `address`, non-blocking and close-on-exec; at least one, unless some are `held`.

    `:8080` opens one for each IP version, `localhost` one for each loopback address of the name; `fd:NAME` takes the
    sockets of that name from `inherited` (see inherited_descriptors). A stale Unix socket file is replaced; the new
    file never gives more rights than `access`. Raises ListenError. Resolving a host name may block.

    `beside` are this user's listeners at overlapping addresses. If it is not None, new TCP sockets share the port with
    them and are only bound: the listeners get all connections until the caller calls `listen_alone`. `held` are TCP
    sockets of the address that are already open: only missing ones are opened.

    `returned` are listeners from an earlier run. One that listens at an address is used instead of a new socket. The
    others are closed, or all of them if opening fails.
    """
    try:
        if address.kind == "tcp":
            sockets = _open_ports(address, beside, held, returned)
        elif address.kind == "unix":
            sockets = [_listen_on_path(address, access, returned)]
        elif address.kind == "fd":
            sockets = duplicate_inherited_listeners(address, inherited or {})
        else:
            raise ListenError(f"{address.key} is not an address to listen on", bind=address.key)
    except BaseException:
        refuse_and_close(returned)
        raise
    for sock in sockets:
        sock.setblocking(False)
        if sock.family in (socket.AF_INET, socket.AF_INET6):
            # Accepted sockets inherit this option. Unless the event loop sets it too, a keep-alive request would
            # otherwise wait for a delayed acknowledgement.
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return sockets


def _listen_on_path(
    address: Address, access: SocketAccess, returned: Sequence[socket.socket]
) -> socket.socket:
    """Listen on the path; replaces a socket file on which no process listens. Raises ListenError."""
    name = os.path.basename(address.path)
    with _closing(_open_directory(address)) as directory:
        with contextlib.suppress(OSError), _closing(_open_socket_file(name, directory)) as file:
            for sock in returned:
                if listens(sock) and _is_bound_to(sock, os.fstat(file)):
                    _set_access(address, file, directory, access)
                    refuse_and_close([other for other in returned if other is not sock])
                    return sock
        refuse_and_close(returned)
        _clear_socket_path(address, directory)
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            # The file gets the mode of the socket, less the umask.
            os.fchmod(sock.fileno(), _UNFINISHED_MODE)
            sock.bind(address.path)
            with _closing(_open_new_socket_file(name, directory)) as file:
                _set_access(address, file, directory, access)
            sock.listen(BACKLOG)
        except OSError as error:
            sock.close()
            raise _path_error(address, error) from error
        except ListenError:
            sock.close()
            raise
    return sock


def change_access(address: Address, sockets: Iterable[socket.socket], access: SocketAccess) -> None:
    """Give the file of an open Unix socket this mode and owner; no effect for other addresses.

    Never gives rights beyond the old or the new access, even for a moment. Raises ListenError.
    """
    if address.kind != "unix":
        return
    for sock in sockets:
        with _closing(_open_directory(address)) as directory:
            try:
                with _closing(_open_socket_file(os.path.basename(address.path), directory)) as file:
                    if _has_access(os.fstat(file), os.fstat(directory), access):
                        continue  # even if the kernel does not tell which socket the file belongs to
                    if not (is_trusted(os.fstat(directory)) or _is_bound_to(sock, os.fstat(file))):
                        raise ListenError(
                            f"{address.path} is not the socket of this listener any more",
                            bind=address.key,
                            hint="stop and start the server, which makes it again",
                        )
                    _set_access(address, file, directory, access)
            except OSError as error:
                raise listen_error(address, f"the mode of {address.path} cannot be set", error) from error


def _open_directory(address: Address) -> int:
    """A descriptor of the path's directory, opened without following links of other users. Raises ListenError."""
    try:
        return open_directory(os.path.dirname(address.path))
    except OSError as error:
        raise _path_error(address, error) from error


@contextlib.contextmanager
def _closing(fd: int) -> Iterator[int]:
    try:
        yield fd
    finally:
        os.close(fd)


def _open_socket_file(name: str, directory: int) -> int:
    """A descriptor of the file itself, not of a link or of a later file of that name. Raises OSError."""
    return os.open(name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=directory)


def _open_new_socket_file(name: str, directory: int) -> int:
    """A descriptor of the file that this process has just bound a socket to.

    Raises OSError if another file is there, because another user has redirected its path or moved files.
    """
    with contextlib.suppress(FileNotFoundError):
        fd = _open_socket_file(name, directory)
        if _is_new_socket_file(os.fstat(fd), os.fstat(directory)):
            return fd
        os.close(fd)
    raise OSError(errno.ELOOP, "its directory was replaced meanwhile")


def _is_new_socket_file(file: os.stat_result, directory: os.stat_result) -> bool:
    if not stat.S_ISSOCK(file.st_mode):
        return False
    unused = file.st_nlink == 1 and not stat.S_IMODE(file.st_mode) & ~_UNFINISHED_MODE
    return is_trusted(directory) or (file.st_uid == os.geteuid() and unused)


def _is_bound_to(sock: socket.socket, file: os.stat_result) -> bool:
    """Whether the socket is bound to this file; False if the kernel does not tell."""
    return stat.S_ISSOCK(file.st_mode) and bound_inode(sock) == file.st_ino & 0xFFFFFFFF


def _set_access(address: Address, file: int, directory: int, access: SocketAccess) -> None:
    """Set mode and owner of a socket's file, given as a descriptor. Raises OSError; ListenError for the owner."""
    status, path = os.fstat(file), f"/proc/self/fd/{file}"
    owner = access.owner or _default_owner(os.fstat(directory))
    if (status.st_uid, status.st_gid) != owner:
        # First remove the rights that the old or the new owner must not have.
        os.chmod(path, stat.S_IMODE(status.st_mode) & access.mode)
        try:
            os.chown(path, *owner)
        except OSError as error:
            raise owner_error(address, owner, error) from error
    if stat.S_IMODE(os.fstat(file).st_mode) != access.mode:
        os.chmod(path, access.mode)


def _has_access(file: os.stat_result, directory: os.stat_result, access: SocketAccess) -> bool:
    owner = access.owner or _default_owner(directory)
    return (stat.S_IMODE(file.st_mode), file.st_uid, file.st_gid) == (access.mode, *owner)


def _default_owner(directory: os.stat_result) -> tuple[int, int]:
    inherits_group = bool(directory.st_mode & stat.S_ISGID)
    return os.geteuid(), directory.st_gid if inherits_group else os.getegid()


def socket_file_identity(key: str) -> Identity | None:
    """A value that identifies the socket file of a canonical address; it differs for a later file at the same path.

    None if the address is not a path, or no socket file is there.
    """
    if not key.startswith("unix:"):
        return None
    try:
        status = os.lstat(key.removeprefix("unix:"))
    except OSError:
        return None
    return (status.st_dev, status.st_ino) if stat.S_ISSOCK(status.st_mode) else None


def remove_socket_file(path: str, only: Identity | None) -> None:
    """Remove the socket file if its identity is `only`. Does nothing if `only` is None. Never raises OSError."""
    name = os.path.basename(path)
    flags = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
    # Checked and removed in the same directory, even if the path is redirected meanwhile.
    with contextlib.suppress(OSError), _closing(os.open(os.path.dirname(path), flags)) as directory:
        status = os.stat(name, dir_fd=directory, follow_symlinks=False)
        if (status.st_dev, status.st_ino) == only and stat.S_ISSOCK(status.st_mode):
            os.unlink(name, dir_fd=directory)


def is_live(path: str) -> bool:
    """Whether a process listens on the socket at `path`: True unless the file is missing or a connection is refused."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.setblocking(False)  # with a full backlog, connect gives EAGAIN instead of blocking
        try:
            probe.connect(path)
        except OSError as error:
            return error.errno not in (errno.ECONNREFUSED, errno.ENOENT)
    return True


def _clear_socket_path(address: Address, directory: int) -> None:
    path = address.path
    size = len(os.fsencode(path))
    if size > MAX_PATH_BYTES:
        raise ListenError(
            f"the path of the Unix socket is {size} bytes long, and {MAX_PATH_BYTES} is the most: {path}",
            bind=address.key,
            hint="put it into a directory with a shorter path, such as /run",
        )
    name = os.path.basename(path)
    try:
        mode = os.stat(name, dir_fd=directory, follow_symlinks=False).st_mode
    except OSError:
        return
    if not stat.S_ISSOCK(mode):
        raise ListenError(
            f"{path} exists and is not a socket", bind=address.key, hint="remove it, or choose another path"
        )
    if is_live(path):
        raise address_in_use_error(address, path)
    try:
        os.unlink(name, dir_fd=directory)
    except FileNotFoundError:
        return
    except OSError as error:
        raise listen_error(address, f"the stale socket {path} cannot be removed", error) from error


def _path_error(address: Address, error: OSError) -> ListenError:
    directory = os.path.dirname(address.path)
    if error.errno == errno.ELOOP:
        return ListenError(
            f"refusing to make a socket in {directory}: {error.strerror}",
            bind=address.key,
            hint="choose a directory that no other user can replace",
        )
    if error.errno == errno.ENOENT:
        return ListenError(
            f"the directory {directory} does not exist",
            bind=address.key,
            hint=f"make it: mkdir -p {directory}",
        )
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        reason = os.strerror(error.errno)
        return ListenError(
            f"no socket can be made in {directory}: {reason}",
            bind=address.key,
            hint=f"make {directory} writable for this user, or choose another directory",
        )
    return listen_error(address, f"the Unix socket {address.path} cannot be opened", error)


def refuse_new_connections(sockets: Iterable[socket.socket]) -> None:
    """Refuse new connections, even if other processes still hold duplicates of these listeners."""
    for sock in sockets:
        with contextlib.suppress(OSError):
            sock.shutdown(socket.SHUT_RD)


def listens(sock: socket.socket) -> bool:
    """Whether this is a stream socket that accepts connections."""
    if sock.type != socket.SOCK_STREAM or not sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
        return False
    # A Unix socket keeps that option when it was shut down.
    shut_down = select.poll()
    shut_down.register(sock, select.POLLRDHUP)
    return not shut_down.poll(0)


def refuse_and_close(sockets: Iterable[socket.socket]) -> None:
    """Close listeners that other processes may hold too, so that another listener can bind the address at once."""
    refuse_new_connections(sockets)
    close_listener(sockets)


def close_listener(sockets: Iterable[socket.socket], identity: Identity | None = None) -> None:
    """Close the sockets; remove a Unix socket's file if it still has this `identity` (see socket_file_identity)."""
    for sock in sockets:
        path = "" if identity is None or sock.family != socket.AF_UNIX else sock.getsockname()
        sock.close()
        if path:
            remove_socket_file(path, identity)


def describe(sock: socket.socket) -> str:
    """The address to which a socket is bound, as users write it: `[::1]:8080`, `unix:/run/a.sock`."""
    name = sock.getsockname()
    if sock.family == socket.AF_UNIX:
        text = name.decode("utf-8", "replace").replace("\0", "@", 1) if isinstance(name, bytes) else name
        return f"unix:{text}"
    host, port = name[0], name[1]
    return f"[{host}]:{port}" if sock.family == socket.AF_INET6 else f"{host}:{port}"


def listen_alone(sockets: Iterable[socket.socket]) -> None:
    """Listen on sockets that `open_listener` has only bound; called before the listeners `beside` them close."""
    for sock in sockets:
        sock.listen(BACKLOG)


def needed_listeners(address: Address, sockets: Sequence[socket.socket]) -> list[socket.socket]:
    """The sockets that the address needs. `0.0.0.0:80` has the key of `:80`, but does not need a socket for IPv6."""
    if address.key.startswith("0.0.0.0:") and not address.dual:
        return [sock for sock in sockets if sock.family == socket.AF_INET]
    return [*sockets]


def _open_ports(
    address: Address,
    beside: Sequence[socket.socket] | None,
    held: Sequence[socket.socket],
    returned: Sequence[socket.socket],
) -> list[socket.socket]:
    opened: list[socket.socket] = []
    skipped: ListenError | None = None
    if address.port is None:
        raise ListenError(f"no port was chosen for {address.key}", bind=address.key)
    open_hosts = {(sock.family, sock.getsockname()[0]) for sock in held}
    targets = [
        target for target in resolve_bind_targets(address) if (target.family, target.host) not in open_hosts
    ]
    reused = {
        target: sock
        for target in targets
        for sock in returned
        if _listens_at(sock, target, address.port, dual=address.dual)
    }
    refuse_and_close([sock for sock in returned if sock not in reused.values()])
    for sock in beside or ():
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    try:
        for target in targets:
            try:
                opened.append(
                    reused.get(target) or _open_port(target, address.port, dual=address.dual, beside=beside)
                )
            except OSError as error:
                problem = port_error(address, target.host, error)
                alone = len(targets) + len(held) == 1
                if alone or target.family != socket.AF_INET6 or error.errno not in _NO_IPV6:
                    raise problem from error
                skipped = problem
    except BaseException:
        close_listener(opened)
        raise
    if not (opened or held) and skipped is not None:
        raise skipped
    return opened


def _listens_at(sock: socket.socket, target: BindHost, port: int, *, dual: bool) -> bool:
    """Whether this is the listener that `_open_port` would open for the target."""
    if sock.family != target.family or not listens(sock) or sock.getsockname() != target.sockaddr(port):
        return False
    return sock.family != socket.AF_INET6 or (
        bool(sock.getsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY)) is _is_v6_only(target, dual=dual)
    )


def _is_v6_only(target: BindHost, *, dual: bool) -> bool:
    return dual or target.host != "::"


def _open_port(
    target: BindHost, port: int, *, dual: bool, beside: Sequence[socket.socket] | None
) -> socket.socket:
    sock = socket.socket(target.family, socket.SOCK_STREAM)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, bool(beside))
        if target.family == socket.AF_INET6:
            # Always set, so that `[::]` does not depend on the system's default (net.ipv6.bindv6only).
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, _is_v6_only(target, dual=dual))
        sock.bind(target.sockaddr(port))
        if beside is None:
            sock.listen(BACKLOG)  # with SO_REUSEADDR a conflict may be detected here instead of in bind()
    except OSError:
        sock.close()
        raise
    return sock


class BindHost(NamedTuple):
    """The family and address of a socket to open, without the port."""

    family: int
    host: str
    rest: tuple[object, ...]  # flow info and scope id of an IPv6 address

    def sockaddr(self, port: int) -> tuple[object, ...]:
        """The argument of bind()."""
        return (self.host, port, *self.rest)


def resolve_bind_targets(address: Address) -> list[BindHost]:
    """Descriptions of the sockets to open for a TCP address, IPv4 first, without duplicates; at least one.

    `:8080` means both IP versions, `localhost` only the loopback addresses of the name. Raises ListenError; blocks
    while a host name is resolved.
    """
    targets: dict[str, BindHost] = {}
    for host in ["0.0.0.0", "::"] if address.dual else [address.host]:
        for family, _, _, _, sockaddr in _resolve_host(address, host):
            text = str(sockaddr[0])
            if address.host != "localhost" or text == "::1" or text.startswith("127."):
                targets.setdefault(text, BindHost(family, text, sockaddr[2:]))
    if not targets:
        raise ListenError(
            f"{address.host} has no loopback address on this machine",
            bind=address.key,
            hint="write 127.0.0.1 instead, or fix /etc/hosts",
        )
    return sorted(targets.values(), key=lambda target: target.family != socket.AF_INET)


def _resolve_host(address: Address, host: str) -> list[tuple[int, int, int, str, tuple[object, ...]]]:
    try:
        # As bytes: a str would be encoded as an internationalised name, with tables that are slow to import.
        return [*socket.getaddrinfo(host.encode(), 1, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)]
    except socket.gaierror as error:
        raise unresolved_host_error(address, str(error.strerror)) from error


def inherited_descriptors(env: Mapping[str, str]) -> dict[str, list[int]]:
    """The descriptors passed by systemd, by number and by name: `{"3": [3], "web": [3, 4], "4": [4]}`.

    Empty if none were passed to this process. They are made close-on-exec, as by sd_listen_fds(3); their numbers are
    valid in this process only.
    """
    try:
        count = int(env.get("LISTEN_FDS", "0"))
        addressee = int(env.get("LISTEN_PID", "-1"))
    except ValueError:
        return {}
    if addressee != os.getpid():
        return {}
    names = env.get("LISTEN_FDNAMES", "").split(":")
    descriptors: dict[str, list[int]] = {}
    for at, fd in enumerate(range(FIRST_DESCRIPTOR, FIRST_DESCRIPTOR + count)):
        try:
            os.set_inheritable(fd, False)
        except OSError:
            continue
        descriptors[str(fd)] = [fd]
        if at < len(names) and names[at]:
            descriptors.setdefault(names[at], []).append(fd)
    return descriptors


def duplicate_inherited_listeners(address: Address, inherited: Inherited) -> list[socket.socket]:
    """Duplicates of the inherited listeners that `fd:3` or `fd:NAME` names, at least one. Raises ListenError."""
    descriptors = inherited.get(address.name)
    if not descriptors:
        have = ", ".join(f"fd:{name}" for name in inherited) or "none"
        raise ListenError(
            f"no socket fd:{address.name} was inherited (inherited: {have})",
            bind=address.key,
            hint="start it from a systemd .socket unit with that FileDescriptorName=, or bind an address",
        )
    listeners: list[socket.socket] = []
    try:
        for fd in descriptors:
            listeners.append(_inherited_listener(address, fd))
    except BaseException:
        for sock in listeners:
            sock.close()
        raise
    return listeners


def _inherited_listener(address: Address, fd: int) -> socket.socket:
    hint = "pass a stream socket: ListenStream= in the .socket unit, with Accept=no"
    duplicate = os.dup(fd)
    try:
        sock = socket.socket(fileno=duplicate)  # asks the kernel for family, type and protocol
    except OSError as error:
        os.close(duplicate)
        raise ListenError(f"descriptor {fd} is not a socket", bind=address.key, hint=hint) from error
    if sock.type != socket.SOCK_STREAM or _is_connected(sock):
        sock.close()
        raise ListenError(f"descriptor {fd} is a socket that cannot listen", bind=address.key, hint=hint)
    sock.listen(BACKLOG)
    return sock


def _is_connected(sock: socket.socket) -> bool:
    try:
        sock.getpeername()
    except OSError:
        return False
    return True


def listener_and_connection_descriptors(listeners: Sequence[socket.socket]) -> list[int]:
    """All descriptors of this process, duplicates included, for the listeners and for connections accepted from them.

    Connections are found by their local address, not by the event loop's registrations: the loop registers a connection
    only some iterations after the accept.
    """
    addresses = {_local_name(listener) for listener in listeners}
    descriptors = []
    for name in os.listdir("/dev/fd"):
        with contextlib.suppress(OSError):  # not a socket, or the descriptor of this listing
            sock = socket.socket(fileno=int(name))
            try:
                if _local_name(sock) in addresses or _local_name(sock, wildcard=True) in addresses:
                    descriptors.append(sock.fileno())
            finally:
                sock.detach()
    return descriptors


def _local_name(sock: socket.socket, *, wildcard: bool = False) -> tuple[int, object, object]:
    name = sock.getsockname()
    if sock.family not in (socket.AF_INET, socket.AF_INET6):
        return sock.family, name, None
    host = _WILDCARD_HOSTS[sock.family == socket.AF_INET6] if wildcard else name[0]
    return sock.family, host, name[1]
