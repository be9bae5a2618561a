"""The directories of a pool's own files: created with explicit modes, and refused if another user can change them.

A directory is only as safe as its parents: their owners can put another directory in its place. So all parents are
checked, as sshd(8) does for StrictModes. Everything in a directory that has passed the check belongs to this user.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

_MODE, _PARENT_MODE = 0o700, 0o755
_OTHERS, _WRITABLE_BY_OTHERS = 0o077, 0o022
_MAX_LINKS = 40  # the limit of path_resolution(7)


class UnsafeDirectory(OSError):
    """Another user can change what is in the directory `filename`, or replace it; `strerror` says why.

    `fix` is a command that fixes it, or "" if the files have to be kept elsewhere.
    """

    def __init__(self, path: str, problem: str, fix: str = "") -> None:
        super().__init__(errno.EPERM, problem, path)
        self.fix = fix


def ensure_private_directory(path: str) -> None:
    """Create the directory (0700) and those above it (0755, less the umask) if missing, and check it.

    Raises OSError, and UnsafeDirectory like `check_private_directory`.
    """
    _check_parents(path, make_mode=_PARENT_MODE)
    if not os.path.lexists(path):
        with contextlib.suppress(FileExistsError):
            os.mkdir(path, _MODE)
    _check_own(path)


def create_private_directory(path: str) -> None:
    """Create the directory if it is missing, like `ensure_private_directory`; one that exists is not checked again.

    For directories of a running pool, which were checked when it was started. Raises OSError.
    """
    if not os.path.isdir(path):
        ensure_private_directory(path)


def recreate_pool_directory(path: str) -> None:
    """Create the directory of a running pool, and the runtime directory that holds it, if they were removed.

    Raises OSError.
    """
    create_private_directory(os.path.dirname(path))
    create_private_directory(path)


def check_private_directory(path: str, *, closed: bool = False) -> None:
    """Raise UnsafeDirectory unless the directory belongs to this user, and only this user and root can change it.

    Parents, and links to them, may also belong to root. World-writable parents need the sticky bit, which protects
    their entries from other users. With `closed`, others may not read the directory either.
    Raises OSError if there is no such directory.
    """
    _check_parents(path)
    _check_own(path, closed=closed)


def path_components(path: str, *, make_mode: int | None = None) -> Iterator[tuple[str, os.stat_result]]:
    """Yield each component of the absolute `path`, from the top down, with its status (lstat(2)).

    A link is followed by the components of its target (path_resolution(7)). With a `make_mode`, missing directories are
    created with it. Raises OSError, for example if a component is missing.
    """
    here, left, links = "/", _parts(path), 0
    while left:
        name = left.pop(0)
        here = os.path.dirname(here) if name == ".." else os.path.join(here, name)
        try:
            status = os.lstat(here)
        except FileNotFoundError:
            if make_mode is None:
                raise
            with contextlib.suppress(FileExistsError):
                os.mkdir(here, make_mode)
            status = os.lstat(here)
        yield here, status
        if stat.S_ISLNK(status.st_mode):
            links += 1
            if links > _MAX_LINKS:
                raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), path)
            target = os.readlink(here)
            left = _parts(target) + left
            here = "/" if target.startswith("/") else os.path.dirname(here)


def _parts(path: str) -> list[str]:
    return [part for part in path.split("/") if part not in ("", ".")]


def _check_parents(path: str, *, make_mode: int | None = None) -> None:
    _check_parent("/", os.lstat("/"), path)
    for above, status in path_components(os.path.dirname(path.rstrip("/")), make_mode=make_mode):
        if not stat.S_ISLNK(status.st_mode):
            _check_parent(above, status, path)
        elif not _is_trusted(status.st_uid):
            raise UnsafeDirectory(
                above, f"is a link of uid {status.st_uid}, who can change where it leads to"
            )


def _check_parent(path: str, status: os.stat_result, wanted: str) -> None:
    if _is_alone_in_pod():
        return
    if not _is_trusted(status.st_uid):
        raise UnsafeDirectory(path, f"belongs to uid {status.st_uid}, who could replace {wanted}")
    if status.st_mode & stat.S_ISVTX or not _others_may_write(status):
        return
    # If root lets others write to a directory, that is intended: for temporary files, or for a team.
    fix = f"chmod {'go-w' if status.st_uid else '+t'} {_quoted(path)}"
    if status.st_uid != os.geteuid():
        fix = "" if status.st_uid else f"as root: {fix}"
    raise UnsafeDirectory(
        path, f"can be changed by others ({_mode(status)}), who could replace {wanted}", fix
    )


def _check_own(path: str, *, closed: bool = False) -> None:
    status = os.lstat(path)
    if status.st_uid != os.geteuid():
        # A closed directory may be in use: the sockets of that user's pool are in it.
        can_be_moved = not closed and os.geteuid() in (0, os.stat(os.path.dirname(path)).st_uid)
        raise UnsafeDirectory(
            path,
            f"belongs to uid {status.st_uid}, not to you (uid {os.geteuid()})",
            f"mv {_quoted(path)} {_quoted(f'{path}.uid{status.st_uid}')}" if can_be_moved else "",
        )
    if not stat.S_ISDIR(status.st_mode):
        raise UnsafeDirectory(path, "is not a directory", f"mv {_quoted(path)} {_quoted(f'{path}.old')}")
    problem = ""
    if _others_may_write(status) and not _is_alone_in_pod():
        problem = "changed"
    elif closed and status.st_mode & _OTHERS:
        problem = "entered"
    if problem:
        why = f"can be {problem} by others ({_mode(status)})"
        raise UnsafeDirectory(path, why, f"chmod 700 {_quoted(path)}")


def _others_may_write(status: os.stat_result) -> bool:
    mode = status.st_mode & _WRITABLE_BY_OTHERS
    return bool(mode) and not (mode == stat.S_IWGRP and _is_private_group(status.st_gid))


def _is_trusted(uid: int) -> bool:
    return uid in (0, os.geteuid()) or _is_outside_namespace(uid)


def _is_outside_namespace(uid: int) -> bool:
    """Whether this uid stands for all users outside this process's user namespace, a sandbox's for example.

    The machine's root, who owns "/", is one of them. No process in the namespace has that uid (user_namespaces(7)).
    """
    with open("/proc/sys/kernel/overflowuid", "rb") as shown, open("/proc/self/uid_map", "rb") as mapped:
        if uid != int(shown.read()):
            return False
        ranges = [[int(number) for number in line.split()] for line in mapped]
    return not any(first <= uid < first + count for first, _, count in ranges)


def _is_private_group(gid: int) -> bool:
    """Whether only root and this user are in the group: root's, or a user private group, where a umask of 002 is usual.

    A shared group seems to have no other users if a directory service does not list them, so a private group must also
    have its user's name. (In a container neither the user nor the group may have a name.)
    """
    import grp  # imported late: few directories are writable for a group
    import pwd

    from poolctl.platform import user_name

    if gid == 0:
        return True
    username = user_name(os.geteuid())
    users = pwd.getpwall()
    members = {user.pw_name for user in users if user.pw_gid == gid}
    try:
        group = grp.getgrgid(gid)
    except KeyError:
        is_private = gid == os.getegid()
    else:
        members |= set(group.gr_mem)
        is_private = group.gr_name == username
    trusted_names = {user.pw_name for user in users if user.pw_uid in (0, os.geteuid())}
    return is_private and members <= {username, *trusted_names}


def _is_alone_in_pod() -> bool:
    """Whether this is a pod of Kubernetes in which poolctl does not run as root, and has no servers of other users.

    Its volumes can be written by everyone or by a group, without a sticky bit (emptyDir, fsGroup).
    """
    return "KUBERNETES_SERVICE_HOST" in os.environ and os.geteuid() != 0


def _mode(status: os.stat_result) -> str:
    return f"mode {stat.S_IMODE(status.st_mode):04o}"


def _quoted(path: str) -> str:
    import shlex  # imported late: only for errors

    return shlex.quote(path)


class Trusted:
    """Who may change a path: root, the current user, and these users and groups."""

    def __init__(self, users: Iterable[int] = (), groups: Iterable[int] = ()) -> None:
        self._users = {0, os.geteuid(), *users}
        self._groups = {0, *groups}

    def others_may_write(self, status: os.stat_result, *, sticky_is_safe: bool = False) -> bool:
        """Whether anyone else may write to the file or directory.

        With `sticky_is_safe`, a directory with the sticky bit does not count: others cannot replace its entries.
        """
        if status.st_uid not in self._users:
            return True
        if stat.S_ISLNK(status.st_mode) or (sticky_is_safe and status.st_mode & stat.S_ISVTX):
            return False
        by_group = status.st_mode & stat.S_IWGRP and status.st_gid not in self._groups
        return bool(by_group or status.st_mode & stat.S_IWOTH)

    def replaceable_component(self, path: str) -> str:
        """The first component of a path that anyone else may replace; "" if none, or if the path does not exist.

        If a component is a symbolic link, the components of the link's target are checked too.
        """
        with contextlib.suppress(OSError):
            for component, status in path_components(os.path.abspath(path)):
                if self.others_may_write(status, sticky_is_safe=True):
                    return component
        return ""
