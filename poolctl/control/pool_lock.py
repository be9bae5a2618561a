"""The lock that keeper and supervisor hold while a pool runs, so that no second supervisor is started for it.

The control socket cannot serve as the lock, because cleaners remove it with the runtime directory, and the supervisor
restores it only a moment later. So the lock lies elsewhere: in the file `lock` of the user's state directory, whatever
the environment says, or of /tmp/poolctl-UID.lock if that directory is not usable.

- Not an abstract socket: these belong to a network namespace, and any user can take any name. Only this user can open
  the file (0600, in a directory that passes `check_private_directory`).
- The file is empty and shared by all pools of the user. Each pool locks one byte, at a position derived from the
  machine's boot, the PID namespace, the runtime directory and the pool's key: a home directory may be shared by
  machines and containers, which have no processes in common. No pool removes the file: others hold locks in it.
- An open file description lock (fcntl_locking(2), F_OFD_SETLK) belongs to the open file, not to a process: keeper and
  supervisor pass the descriptor on (see fd_store), and the kernel releases the lock when the last of them has exited.
  So no lock can be stale. The descriptor is close-on-exec.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import struct
from hashlib import sha256
from typing import TYPE_CHECKING

from poolctl.control.pool_paths import runtime_root_candidates
from poolctl.platform import boot_identity, parent_and_start, processes
from poolctl.private_directory import check_private_directory, ensure_private_directory

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

_FILE_NAME = "lock"
_FLOCK_FORMAT = "hhqqi0q"  # struct flock: type, whence, start, length, pid


class PoolLocks:
    """The locks of a user's pools, in a file in the first of these directories that is usable."""

    def __init__(self, directories: Sequence[str]) -> None:
        self.directories = directories

    def acquire(self, pool_directory: str) -> int:
        """Lock the pool of this runtime directory, which need not exist; returns the lock's descriptor.

        Raises BlockingIOError if the pool runs or is being started, and OSError if no directory is usable.
        """
        if self.is_held(pool_directory):  # also in a later directory, used while the first one was not usable
            raise BlockingIOError
        position = _position(pool_directory)
        problem = None
        for directory in self.directories:
            try:
                return _acquire_in(directory, position)
            except BlockingIOError:
                raise
            except OSError as error:
                problem = problem or error
        raise problem or FileNotFoundError

    def is_held(self, pool_directory: str) -> bool:
        """Whether the pool of this runtime directory, which need not exist, runs or is being started."""
        with contextlib.suppress(OSError):
            position = _position(pool_directory)
            return any(_is_locked(directory, position) for directory in self.directories)
        return False

    def is_in_place(self, descriptor: int) -> bool:
        """Whether the lock's file is still at its path. Once it is removed, others can acquire the lock."""
        return any(_is_same_file(descriptor, _path_in(directory)) for directory in self.directories)


def user_locks() -> PoolLocks:
    """The locks of this user's pools.

    Their directories depend on the user alone: commands of one pool may be called with different environments.
    """
    fallback = f"/tmp/poolctl-{os.geteuid()}.lock"
    if os.geteuid() == 0:
        return PoolLocks(["/var/lib/poolctl", fallback])
    import pwd

    try:
        return PoolLocks([f"{pwd.getpwuid(os.geteuid()).pw_dir}/.local/state/poolctl", fallback])
    except KeyError:
        return PoolLocks([fallback])


def _acquire_in(directory: str, position: int) -> int:
    while True:
        ensure_private_directory(directory)
        descriptor = os.open(
            _path_in(directory), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600
        )
        try:
            fcntl.fcntl(descriptor, fcntl.F_OFD_SETLK, _flock_of_byte(fcntl.F_WRLCK, position))
            if _is_same_file(descriptor, _path_in(directory)):
                return descriptor
        except BaseException:
            os.close(descriptor)
            raise
        # The file has been removed meanwhile.
        os.close(descriptor)


def _is_locked(directory: str, position: int) -> bool:
    try:
        check_private_directory(directory)
        descriptor = os.open(_path_in(directory), os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    except OSError:
        return False
    try:
        lock_type, *_ = struct.unpack(
            _FLOCK_FORMAT, fcntl.fcntl(descriptor, fcntl.F_OFD_GETLK, _flock_of_byte(fcntl.F_WRLCK, position))
        )
        return bool(lock_type != fcntl.F_UNLCK)
    except OSError:
        return False
    finally:
        os.close(descriptor)


def _is_same_file(descriptor: int, path: str) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), os.stat(path))
    except OSError:
        return False


def holder(pool_directory: str) -> int:
    """The pid of the process that holds the pool's lock, which is the keeper while it runs; 0 if it is not known.

    Slow: the kernel does not report the owner of such a lock, so the descriptors of this user's processes are searched.
    """
    position = _position(pool_directory)
    parents = {pid: parent_and_start(pid) for pid in processes() if any(_locks_of(pid, position))}
    # The supervisor is the keeper's child.
    return min((pid for pid, parent in parents.items() if parent and parent[0] not in parents), default=0)


def _locks_of(pid: int, position: int) -> Iterator[bytes]:
    """The lines about locks at this position in proc(5), fdinfo; none if the process belongs to another user."""
    end = b" %d %d\n" % (position, position)
    with contextlib.suppress(OSError):
        for descriptor in os.listdir(f"/proc/{pid}/fdinfo"):
            with contextlib.suppress(OSError), open(f"/proc/{pid}/fdinfo/{descriptor}", "rb") as lines:
                yield from (line for line in lines if line.startswith(b"lock:") and line.endswith(end))


def _path_in(directory: str) -> str:
    return f"{directory}/{_FILE_NAME}"


def _position(pool_directory: str) -> int:
    """The position of the pool's byte in the file, below 2**62. Raises OSError if /proc shows no namespaces."""
    root, key = os.path.split(pool_directory)
    root = os.path.realpath(root)
    if root in map(os.path.realpath, runtime_root_candidates({})):
        root = ""  # the default: which one is usable changes, with a logout for example
    namespace = os.stat("/proc/self/ns/pid").st_ino
    identity = "\0".join(map(str, (boot_identity()[0], namespace, root, key)))
    return int.from_bytes(sha256(os.fsencode(identity)).digest()[:8]) >> 2


def _flock_of_byte(kind: int, position: int) -> bytes:
    return struct.pack(_FLOCK_FORMAT, kind, os.SEEK_SET, position, 1, 0)
