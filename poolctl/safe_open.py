"""Opens files in directories that other users can write, without following links they may have created.

A log may be in a directory of the less privileged user whose output it stores, and so may a server's environment
file and certificates. A more privileged process must not follow links from there, so each component of the path is
opened separately (openat(2), O_NOFOLLOW).
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
import sys
from collections.abc import Iterator

_DIRECTORY_MODE = 0o750
# The mode of a new directory until its owner is set. No other directory has this mode.
_UNFINISHED_MODE = 0o200

Owner = tuple[int, int]  # uid and gid
_MAX_LINKS = 40  # the limit of path_resolution(7)
_TO_DIRECTORY = getattr(os, "O_PATH", os.O_RDONLY) | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_WRITABLE_BY_OTHERS = 0o022


class UnsafePath(OSError):
    """The path is refused, because another user may have created a part of it; `strerror` says which.

    If the reason is another user's symbolic link, `owner` is that user's uid, otherwise -1.
    """

    def __init__(self, message: str, owner: int = -1) -> None:
        super().__init__(errno.ELOOP, message)
        self.owner = owner


@contextlib.contextmanager
def open_parent_directory(path: str, *, follow_last: bool = False) -> Iterator[tuple[int, str]]:
    """Context manager: a descriptor of the directory of a file, closed at the end, and the file's name in it.

    With `follow_last` a link at the end of the path is followed. Raises OSError; UnsafePath for a link that another
    user may have created.
    """
    fd, name = _open_parent(path, follow_last=follow_last)
    try:
        yield fd, name
    finally:
        os.close(fd)


def open_file(
    path: str,
    flags: int,
    mode: int = 0o640,
    *,
    suffix: str = "",
    owner: Owner | None = None,
    below: str | None = None,
) -> int:
    """Open the file at `path`, and return its descriptor; with O_CREAT in `flags`, also create missing directories.

    New directories belong to `owner`, by default to this process's user. With `below`, a directory on the path, only
    directories inside it are created. With a `suffix`, open the file with this suffix beside the file to which the path
    leads. Raises OSError; UnsafePath if another user may have planted the file, or a link on its path.
    """
    return _open(path, flags, mode, any_owner=False, suffix=suffix, owner=owner, below=below)


def _open(
    path: str,
    flags: int,
    mode: int,
    *,
    any_owner: bool,
    suffix: str = "",
    owner: Owner | None = None,
    below: str | None = None,
) -> int:
    max_new = 0
    if flags & os.O_CREAT:
        max_new = sys.maxsize if below is None else len(_parts(path)) - len(_parts(below)) - 1
    directory, name = _open_parent(path, max_new=max_new, follow_last=True, suffix=suffix, owner=owner)
    try:
        fd = os.open(name, flags | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, mode, dir_fd=directory)
        try:
            _check(os.fstat(fd), os.fstat(directory), path, any_owner=any_owner)
        except BaseException:
            os.close(fd)
            raise
        return fd
    finally:
        os.close(directory)


def check_appendable(path: str) -> None:
    """Raise the OSError that `open_file` would raise when opening this file to append; changes nothing."""
    try:
        with open_parent_directory(path, follow_last=True) as (directory, name):
            _check_appendable(directory, name, path)
    except FileNotFoundError:
        # A directory is missing, and would be created below the last one that exists.
        above = os.path.dirname(path)
        while not os.path.exists(above):
            above = os.path.dirname(above)
        with open_parent_directory(f"{above}/.new") as (directory, _):
            _require_access(".", directory, os.W_OK | os.X_OK)


def _check_appendable(directory: int, name: str, path: str) -> None:
    try:
        status = os.stat(name, dir_fd=directory, follow_symlinks=False)
    except FileNotFoundError:
        _require_access(".", directory, os.W_OK | os.X_OK)
        return
    if stat.S_ISDIR(status.st_mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
    _check(status, os.fstat(directory), path, any_owner=False)
    _require_access(name, directory, os.W_OK)


def _require_access(name: str, directory: int, wanted_access: int) -> None:
    if not os.access(name, wanted_access, dir_fd=directory, effective_ids=True):
        read_only = os.fstatvfs(directory).f_flag & os.ST_RDONLY
        number = errno.EROFS if read_only else errno.EACCES
        raise OSError(number, os.strerror(number))


def open_to_read(path: str) -> int:
    """Return a descriptor for reading a file on behalf of another user's server.

    A symbolic link owned by another user is followed only to a file of the link's owner. Raises OSError, UnsafePath.
    """
    flags = os.O_RDONLY | os.O_NOCTTY | os.O_NONBLOCK | os.O_CLOEXEC
    try:
        return _open(path, flags, 0, any_owner=True)
    except UnsafePath as refused:
        return _open_if_link_owner_matches(path, flags, refused)


def open_directory(path: str) -> int:
    """A descriptor of a directory; root follows another user's link only to a directory of that user.

    Raises OSError, UnsafePath.
    """
    flags = _TO_DIRECTORY & ~os.O_NOFOLLOW
    if os.geteuid() != 0:
        return os.open(path, flags)
    try:
        return _open_parent(f"{path}/.d", follow_last=False)[0]
    except UnsafePath as refused:
        return _open_if_link_owner_matches(path, flags, refused)


def _open_if_link_owner_matches(path: str, flags: int, refused: UnsafePath) -> int:
    """Open a refused path if the reason was another user's link and the link's owner also owns the file.

    Return the descriptor; otherwise raise `refused`, the given error. Raises OSError if `path` cannot be opened.
    """
    if refused.owner < 0:
        raise refused
    fd = os.open(path, flags)
    if os.fstat(fd).st_uid == refused.owner:
        return fd
    os.close(fd)
    raise refused


def _open_parent(
    path: str, *, follow_last: bool, max_new: int = 0, suffix: str = "", owner: Owner | None = None
) -> tuple[int, str]:
    """A descriptor of a file's directory, and the file's name in it; makes the last `max_new` directories."""
    fd = os.open("/", _TO_DIRECTORY)
    left = _parts(path if path.startswith("/") else os.path.join(os.getcwd(), path))
    links = 0
    try:
        while len(left) > 1 or follow_last:
            target = _symlink_target(fd, left[0])
            if target is not None:
                links += 1
                if links > _MAX_LINKS:
                    raise OSError(errno.ELOOP, os.strerror(errno.ELOOP))
                left = _parts(target) + left[1:]
                if target.startswith("/"):
                    fd = _exchange_for_subdirectory(fd, "/", make=False)
            elif len(left) == 1:
                if not suffix:
                    break
                left, suffix = [left[0] + suffix], ""
            else:
                make = len(left) - 1 <= max_new
                fd = _exchange_for_subdirectory(fd, left.pop(0), make=make, owner=owner)
    except BaseException:
        os.close(fd)
        raise
    return fd, left[0]


def _parts(path: str) -> list[str]:
    return [part for part in path.split("/") if part and part != "."] or ["."]


def _exchange_for_subdirectory(fd: int, name: str, *, make: bool, owner: Owner | None = None) -> int:
    """A descriptor of the subdirectory `name` of `fd`; closes `fd` if it succeeds."""
    try:
        below = os.open(name, _TO_DIRECTORY, dir_fd=fd)
    except FileNotFoundError:
        if not make:
            raise
        try:
            os.mkdir(name, _DIRECTORY_MODE if owner is None else _UNFINISHED_MODE, dir_fd=fd)
        except FileExistsError:
            owner = None
        below = os.open(name, _TO_DIRECTORY, dir_fd=fd)
        if owner is not None:
            _give_new_directory(below, owner)
    os.close(fd)
    return below


def _give_new_directory(fd: int, owner: Owner) -> None:
    """Give a directory that this process has just made to its owner.

    Another user with write access to its parent may have swapped it for another directory, which stays unchanged.
    """
    status, path = os.fstat(fd), f"/proc/self/fd/{fd}"
    inherited = status.st_mode & stat.S_ISGID  # with its group, from the directory above it
    if status.st_uid == os.geteuid() and stat.S_IMODE(status.st_mode) & ~_UNFINISHED_MODE == inherited:
        uid, gid = owner
        with contextlib.suppress(PermissionError):  # without CAP_CHOWN it stays this process's
            os.chown(path, uid, -1 if inherited else gid)
        os.chmod(path, _DIRECTORY_MODE | inherited)


def _symlink_target(directory: int, name: str) -> str | None:
    """The target of a symbolic link; None if `name` is no link. Raises UnsafePath if another user may have made it."""
    try:
        status = os.stat(name, dir_fd=directory, follow_symlinks=False)
    except FileNotFoundError:
        return None
    if not stat.S_ISLNK(status.st_mode):
        return None
    trusted = (0, os.geteuid())
    if status.st_uid not in trusted or (os.geteuid() == 0 and not is_trusted(os.fstat(directory))):
        raise UnsafePath(
            f"{name} on its path is a link that another user can make; write the path that it leads to",
            status.st_uid if status.st_uid not in trusted else -1,
        )
    return os.readlink(name, dir_fd=directory)


def is_trusted(directory: os.stat_result) -> bool:
    """Whether only root and this user can change the directory's entries."""
    return directory.st_uid in (0, os.geteuid()) and not directory.st_mode & _WRITABLE_BY_OTHERS


def _check(file: os.stat_result, directory: os.stat_result, path: str, *, any_owner: bool) -> None:
    if os.geteuid() != 0 or is_trusted(directory):
        return
    if not stat.S_ISREG(file.st_mode):
        raise UnsafePath(f"{path} is not a regular file, in a directory that another user can write")
    if file.st_nlink > 1:
        raise UnsafePath(f"{path} has a second hard link, in a directory that another user can write")
    if not any_owner and file.st_uid not in (0, os.geteuid(), directory.st_uid):
        raise UnsafePath(f"{path} belongs to a third user, in a directory that another user can write")
