"""Where a pool keeps its socket, its lock and its state, and how a client finds it.

A pool's key is a hash of its first file's absolute, unresolved path. Each pool has a directory of its own. Standard
library only.
"""

from __future__ import annotations

import contextlib
import json
import os
import stat
from hashlib import sha256
from typing import TYPE_CHECKING

from poolctl.config import default_file, directory_of
from poolctl.errors import ControlError
from poolctl.exit_codes import CONFLICT, NOT_PERMITTED
from poolctl.private_directory import (
    UnsafeDirectory,
    check_private_directory,
    create_private_directory,
    ensure_private_directory,
    recreate_pool_directory,
)

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from poolctl.json_form import Table

RUNTIME_VARIABLE = "POOLCTL_RUNTIME_DIR"
STATE_VARIABLE = "POOLCTL_STATE_DIR"
# Set by `run` on a terminal: servers log requests unless their file says otherwise. Not passed to their programs.
ACCESS_LOG_VARIABLE = "POOLCTL_ACCESS_LOG"
SOCKET_NAME = "control.sock"
GATEWAY_LOG = "gateway.log"  # in the same directory: the log of the gateway's process
GATEWAY_ACCESS_LOG = "gateway-access.log"  # in the state directory; in logs it could be a server's file
# sun_path has 108 bytes, the last of them the terminating NUL (unix(7))
SOCKET_PATH_BYTES = 107
# The listen(2) backlog of the control socket, large enough for the time while a supervisor is replaced.
BACKLOG = 512


def pool_key(first_file: str) -> str:
    """Return the key of the pool with this absolute path of its first file: 12 hexadecimal digits.

    A directory has the key of its default file, if it has one. Reads the directory.
    """
    if os.path.isdir(first_file):
        first_file = default_file(first_file) or first_file
    return _key_of_path(first_file)


def _key_of_path(path: str) -> str:
    return sha256(os.fsencode(path)).hexdigest()[:12]


def runtime_root_candidates(env: Mapping[str, str]) -> list[str]:
    """Return the runtime directories that may hold this user's pools, the preferred one first."""
    explicit = env.get(RUNTIME_VARIABLE)
    if explicit:
        return [os.path.abspath(explicit)]
    uid = os.geteuid()
    # /run/poolctl-UID is made by a unit with `User=` (RuntimeDirectory=): /run/user/UID goes when the user logs out.
    preferred = ["/run/poolctl"] if uid == 0 else [f"/run/poolctl-{uid}", f"/run/user/{uid}/poolctl"]
    return [*preferred, f"/tmp/poolctl-{uid}"]


def ensure_runtime_root(env: Mapping[str, str]) -> str:
    """Return the first writable runtime directory, created if missing. Raises ControlError (exit code 7) if none is."""
    problem = ""
    for path in runtime_root_candidates(env):
        try:
            create_private_directory(path)
        except UnsafeDirectory as unsafe:
            raise _refused(unsafe, RUNTIME_VARIABLE) from unsafe
        except OSError as error:
            problem = problem or f"{path}: {error.strerror}"
            continue
        _refuse_unsafe_root(path, explicit=bool(env.get(RUNTIME_VARIABLE)))
        if os.access(path, os.W_OK | os.X_OK):
            return path
        problem = problem or f"{path}: not writable"
    raise _not_permitted(
        f"no runtime directory: {problem}", f"set {RUNTIME_VARIABLE} to a directory that you may write to"
    )


def pool_dir(env: Mapping[str, str], key: str) -> str:
    """Return the directory of the pool with this key, even if it does not exist yet. Creates nothing."""
    roots = runtime_root_candidates(env)
    for root in roots:
        path = f"{root}/{key}"
        if os.path.exists(f"{path}/{SOCKET_NAME}"):
            _refuse_unsafe_root(root, explicit=bool(env.get(RUNTIME_VARIABLE)))
            check_private(path)
            return path
    for root in roots:
        parent = root if os.path.isdir(root) else os.path.dirname(root)
        if os.access(parent, os.W_OK | os.X_OK):
            return f"{root}/{key}"
    return f"{roots[0]}/{key}"


def pool_dir_of_file(env: Mapping[str, str], first_file: str) -> str:
    """Return the directory of the pool with this absolute path of its first file, even if it does not exist yet.

    A running pool of a directory keeps its key, even if a default file is added to the directory.
    """
    path = pool_dir(env, pool_key(first_file))
    directory = directory_of(first_file)
    if os.path.exists(f"{path}/{SOCKET_NAME}") or first_file not in (directory, default_file(directory)):
        return path
    directory_pool = pool_dir(env, _key_of_path(directory))
    return directory_pool if os.path.exists(f"{directory_pool}/{SOCKET_NAME}") else path


def ensure_pool_dir(env: Mapping[str, str], key: str) -> str:
    """Return the pool's private directory, created if missing. Raises ControlError (exit code 7) on failure."""
    existing = pool_dir(env, key)
    if os.path.isdir(existing):
        check_private(existing)
        return existing
    path = f"{ensure_runtime_root(env)}/{key}"
    try:
        ensure_private_directory(path)
    except UnsafeDirectory as unsafe:
        raise _refused(unsafe, RUNTIME_VARIABLE) from unsafe
    except OSError as error:
        raise _not_permitted(
            f"cannot make {path}: {error.strerror}",
            f"free some space there, or set {RUNTIME_VARIABLE} to another directory",
        ) from error
    check_private(path)
    return path


def named_pool_dir(env: Mapping[str, str], name: str) -> str | None:
    """Return the directory of the pool with this name or key; None if there is no such pool.

    If several pools have the name, only running ones count. Raises ControlError (exit code 8) if several run.
    """
    directories = pool_dirs_named(env, name)
    if len(directories) > 1:
        directories = [path for path in directories if listens(f"{path}/{SOCKET_NAME}")]
    if len(directories) > 1:
        files = [" ".join(map(str, read_info(path).get("files") or [path])) for path in directories]
        raise ControlError(
            f"{len(directories)} running pools are named {name!r}: {', '.join(files)}",
            exit_code=CONFLICT,
            hint=f"name one by its file: -c {files[0]}",
        )
    return directories[0] if directories else None


def pool_dirs_named(env: Mapping[str, str], name: str) -> list[str]:
    """Return the directories of all pools called `name`, running or not; if `name` is a pool's key, only that pool's.

    The name is read from each pool's info.json, because only one of several pools can have the link `@NAME`.
    """
    if not name or "/" in name or name.startswith((".", "@")):
        return []
    directories = []
    for path in existing_pool_directories(env):
        is_key = os.path.basename(path) == name
        if is_key or read_info(path).get("name") == name:
            _refuse_unsafe_root(os.path.dirname(path), explicit=bool(env.get(RUNTIME_VARIABLE)))
            check_private(path)
            if is_key:
                return [path]
            directories.append(path)
    return directories


def existing_pool_directories(env: Mapping[str, str]) -> Iterator[str]:
    """Yield the directory of each of this user's pools, running or not."""
    for root in runtime_root_candidates(env):
        try:
            keys = sorted(os.listdir(root))
        except OSError:
            continue
        for key in keys:
            # @NAME is a link to another directory.
            if not key.startswith("@") and os.path.exists(f"{root}/{key}/{SOCKET_NAME}"):
                yield f"{root}/{key}"


def read_info(path: str) -> Table:
    """Return the info.json of the pool in this directory: name, files, pids; empty without one."""
    return read_json_or_empty(f"{path}/info.json")


def read_json_or_empty(path: str) -> Table:
    """Return the JSON object in this file; an empty one when there is none."""
    try:
        with open(path, "rb") as file:
            document = json.loads(file.read())
    except (OSError, ValueError, RecursionError):
        return {}
    return document if isinstance(document, dict) else {}


def listens(path: str) -> bool:
    """Return whether a process listens on the Unix socket at `path`; also True if this user may not connect to it."""
    from socket import AF_UNIX, SOCK_STREAM, socket

    with socket(AF_UNIX, SOCK_STREAM) as connection:
        connection.setblocking(False)
        try:
            connection.connect(path)
        except (FileNotFoundError, NotADirectoryError, ConnectionRefusedError):
            return False
        except OSError:
            pass  # a full backlog, for example, so a process listens
    return True


def control_socket_path(directory: str) -> str:
    """Return the path of the control socket in a pool's directory. Raises ControlError (exit code 7) if too long."""
    path = f"{directory}/{SOCKET_NAME}"
    if len(os.fsencode(path)) > SOCKET_PATH_BYTES:
        raise _not_permitted(
            f"the path of the control socket has more than {SOCKET_PATH_BYTES} bytes: {path}",
            f"set {RUNTIME_VARIABLE} to a shorter path",
        )
    return path


def state_dir(env: Mapping[str, str], key: str, *, create: bool = False) -> str:
    """Return the directory for files that outlive a pool's processes (logs, chosen ports), created on request.

    It is `$POOLCTL_STATE_DIR/KEY`; else in the pool's runtime directory if `$POOLCTL_RUNTIME_DIR` is set; else in
    /var/lib for root, in the user's state directory for others. If it is not writable, the runtime directory is
    used, except that a directory named by the variable has no fallback: then ControlError (exit code 7) is raised. So
    it is if another user can change or replace the directory.
    """
    preferred, runtime = preferred_state_dir(env, key), pool_dir(env, key)
    fallback, is_explicit = f"{runtime}/state", bool(env.get(STATE_VARIABLE))
    if preferred is not None:
        try:
            _check_state_dir(preferred, create=create, chosen=is_explicit)
            if os.access(preferred, os.W_OK | os.X_OK):
                return preferred
            problem = "this user may not write there"
        except OSError as error:
            if is_explicit and not create and isinstance(error, FileNotFoundError):
                return preferred  # a start makes it
            problem = str(error.strerror)
        if is_explicit:
            fix = f"make a directory of this user there, or set {STATE_VARIABLE} to another one"
            raise _not_permitted(f"cannot keep state in {preferred}: {problem}", fix)
    try:
        for path in (runtime, fallback):
            _check_state_dir(path, create=create)
    except OSError:
        if create:
            raise
        return preferred or fallback
    return fallback


def _check_state_dir(path: str, *, create: bool, chosen: bool = True) -> None:
    try:
        if create:
            ensure_private_directory(path)
        else:
            check_private_directory(path)
    except UnsafeDirectory as unsafe:
        if not _would_be_used(path, chosen=chosen):
            raise  # an OSError like any other: another directory is used
        raise _refused(unsafe, STATE_VARIABLE) from unsafe


def _would_be_used(path: str, *, chosen: bool) -> bool:
    """Whether this user can write or create the directory, so that state is kept there if it is safe.

    False in the home of another user, as with sudo -E, unless the directory exists and a variable has `chosen` it.
    """
    if chosen and os.path.lexists(path):
        return True
    while not os.path.exists(path):
        path = os.path.dirname(path)
    return os.access(path, os.W_OK | os.X_OK, effective_ids=True)


def preferred_state_dir(env: Mapping[str, str], key: str) -> str | None:
    """The pool's state directory; None if it is in its runtime directory."""
    explicit = env.get(STATE_VARIABLE)
    if explicit:
        return f"{os.path.abspath(explicit)}/{key}"
    if env.get(RUNTIME_VARIABLE):
        return None
    if os.geteuid() == 0:
        return f"/var/lib/poolctl/{key}"
    home = env.get("XDG_STATE_HOME") or os.path.expanduser("~/.local/state")
    return f"{home}/poolctl/{key}" if home.startswith("/") else None


def restore_private_directory(path: str) -> None:
    """Create the pool's directory, or make it private (0700) if it belongs to this user. Raises OSError."""
    with contextlib.suppress(FileNotFoundError):
        status = os.lstat(path)
        if stat.S_ISDIR(status.st_mode) and status.st_uid == os.geteuid() and status.st_mode & 0o077:
            # The directory was removed, then recreated too open for an event file in it (see state_dir).
            os.chmod(path, 0o700)
    recreate_pool_directory(path)
    ensure_private_directory(path)


def check_private(path: str, *, missing_ok: bool = False) -> None:
    """Raise ControlError (exit code 7) unless `path` is this user's own directory, not a link, and private.

    With `missing_ok`, a missing directory passes if those above it do.
    """
    try:
        check_private_directory(path, closed=True)
    except UnsafeDirectory as unsafe:
        raise _refused(unsafe, RUNTIME_VARIABLE) from unsafe
    except OSError as error:
        if missing_ok and isinstance(error, (FileNotFoundError, NotADirectoryError)):
            return
        raise _not_permitted(
            f"cannot use {path}: {error.strerror}", "it is part of poolctl's runtime directory"
        ) from error


def _refused(unsafe: UnsafeDirectory, variable: str) -> ControlError:
    fix = f"run poolctl as that user, or set {variable} to a directory of your own"
    return _not_permitted(f"{unsafe.filename} {unsafe.strerror}", unsafe.fix or fix)


def _not_permitted(message: str, hint: str) -> ControlError:
    return ControlError(message, exit_code=NOT_PERMITTED, hint=hint)


def _refuse_unsafe_root(path: str, *, explicit: bool) -> None:
    # A directory named by the user may be shared, like /tmp; only the pool's own directory in it is checked.
    if not explicit:
        check_private(path)
    elif not os.path.isdir(path):
        raise _not_permitted(f"{path} is not a directory", f"set {RUNTIME_VARIABLE} to a directory")
