"""Listeners on a path. A stale file is removed, a live one never; on close only our own file is removed."""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import stat
from collections.abc import Iterator
from typing import TYPE_CHECKING

from poolctl.safe_open import is_trusted, open_directory

from .listen_errors import ListenError, explain, taken

if TYPE_CHECKING:
    from poolctl.address import Address

# sun_path holds 108 bytes with its final NUL (unix(7)).
MAX_PATH_BYTES = 107
_READ_AND_WRITE = 0o666

Identity = tuple[int, int]


def listen(address: Address, backlog: int, mode: int | None = None) -> socket.socket:
    """A listener on the path; its file gets `mode`, by default as the umask allows. Raises ListenError."""
    path = address.path
    with _directory(address) as directory:
        _check_path(address, directory)
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            # The file gets the socket's own mode (less the umask). A later chmod of the path could follow a link
            # that another user has put there meanwhile.
            os.fchmod(sock.fileno(), _READ_AND_WRITE if mode is None else mode)
            sock.bind(path)
            if os.geteuid() == 0 and not _is_there(os.path.basename(path), directory):
                raise OSError(errno.ELOOP, "its directory was replaced meanwhile")
            if mode is not None:
                _set_mode(os.path.basename(path), directory, mode)
            sock.listen(backlog)
        except OSError as error:
            sock.close()
            raise _explain_path(address, error) from error
    return sock


@contextlib.contextmanager
def _directory(address: Address) -> Iterator[int]:
    """A descriptor of the directory of the path, reached without following another user's link. Raises ListenError."""
    try:
        fd = open_directory(os.path.dirname(address.path))
    except OSError as error:
        raise _explain_path(address, error) from error
    try:
        yield fd
    finally:
        os.close(fd)


def _is_there(name: str, directory: int) -> bool:
    """Whether the socket was created in this directory, and not at the target of another user's link."""
    try:
        status = os.stat(name, dir_fd=directory, follow_symlinks=False)
    except OSError:
        return False
    ours = is_trusted(os.fstat(directory)) or status.st_uid == os.geteuid()
    return stat.S_ISSOCK(status.st_mode) and ours


def _set_mode(name: str, directory: int, mode: int) -> None:
    """Set the socket's mode regardless of the umask, without following links."""
    fd = os.open(name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=directory)
    try:
        if stat.S_ISSOCK(os.fstat(fd).st_mode):
            os.chmod(f"/proc/self/fd/{fd}", mode)
    finally:
        os.close(fd)


def identity(path: str) -> Identity | None:
    """A value that distinguishes this socket file from a later one with the same path; None if there is no file."""
    try:
        status = os.lstat(path)
    except OSError:
        return None
    return (status.st_dev, status.st_ino) if stat.S_ISSOCK(status.st_mode) else None


def identity_of(key: str) -> Identity | None:
    """The identity of the socket file of a canonical address; None for an address that is not a path."""
    return identity(key.removeprefix("unix:")) if key.startswith("unix:") else None


def remove(path: str, only: Identity | None) -> bool:
    """Remove the socket file if its identity is still `only`; returns whether it was removed."""
    if only is None:
        return False
    name = os.path.basename(path)
    try:
        # Checked and removed in the same directory, even if the path is redirected meanwhile.
        directory = os.open(os.path.dirname(path), os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        status = os.stat(name, dir_fd=directory, follow_symlinks=False)
        if (status.st_dev, status.st_ino) != only or not stat.S_ISSOCK(status.st_mode):
            return False
        os.unlink(name, dir_fd=directory)
    except OSError:
        return False
    finally:
        os.close(directory)
    return True


def is_live(path: str) -> bool:
    """Whether a process listens on the socket at `path`; it is stale only if a connection is refused."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.setblocking(False)  # with a full backlog, connect gives EAGAIN instead of blocking
        try:
            probe.connect(path)
        except OSError as error:
            return error.errno not in (errno.ECONNREFUSED, errno.ENOENT)
    return True


def _check_path(address: Address, directory: int) -> None:
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
        raise taken(address, path)
    try:
        os.unlink(name, dir_fd=directory)
    except FileNotFoundError:
        return
    except OSError as error:
        raise explain(address, f"the stale socket {path} cannot be removed", error) from error


def _explain_path(address: Address, error: OSError) -> ListenError:
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
    return explain(address, f"the Unix socket {address.path} cannot be opened", error)
