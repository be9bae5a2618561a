"""Starts a pool's keeper and supervisor in the background, and removes files that a killed pool left behind.

Uses the standard library only, and little of it, to start fast.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import resource
import socket
import sys
from typing import TYPE_CHECKING, NamedTuple

from poolctl import bootstrap
from poolctl.config import OPEN_FILES_OF_POOL, RAISE_OPEN_FILES, variables_named_by_env_keys
from poolctl.config.values.path_variables import with_absolute_paths
from poolctl.control import pool_paths
from poolctl.control.client import clear_exit
from poolctl.control.other_users import BESIDE_ANOTHER
from poolctl.control.pool_lock import user_locks
from poolctl.errors import ControlError, PoolError
from poolctl.exit_codes import CONFLICT, FAILED, NOT_PERMITTED
from poolctl.keeper import fd_store, pool_files, wire
from poolctl.keeper.spawn import CompanionSpec, start_with_companions
from poolctl.platform import close_all, proc_problem
from poolctl.runners.local import companions

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping, Sequence

_LISTEN = ("LISTEN_FDS", "LISTEN_PID", "LISTEN_FDNAMES")


class LaunchedKeeper(NamedTuple):
    """The keeper's pid (0: the pool already ran), and a socket that ends the pool when closed (-1: none).

    The supervisor sends its notifications for the service manager to this socket (see supervisor.systemd).
    """

    keeper_pid: int = 0
    lifeline: int = -1


def launch(files: Sequence[str], env: Mapping[str, str], *, lifeline: bool = False) -> LaunchedKeeper:
    """Start a supervisor for the pool of `files`; on return its control socket is open.

    Does nothing if the pool runs or is being started: then the control socket may be missing for a moment. The
    supervisor's first answer reports whether the files are valid. With `lifeline`, the pool ends when the returned
    descriptor is closed. Raises ControlError with one of these exit codes: 8 if `lifeline` is given and a supervisor is
    already running, 7 for an unusable directory or too few open files, 1 if /proc shows no processes.
    """
    problem, fix = proc_problem()
    if problem:
        raise ControlError(f"the pool cannot be started: {problem}", exit_code=FAILED, hint=fix)
    _check_minimum_open_files(files, env)
    pool_directory = pool_paths.pool_dir_of_file(env, files[0])
    with contextlib.ExitStack() as ours:
        try:
            lock = user_locks().acquire(pool_directory)
            ours.callback(os.close, lock)
        except BlockingIOError:
            return _join(lifeline=lifeline)
        except OSError:
            lock = -1  # the supervisor tries again, and logs the problem
        # Without the pool's lock, the second of two concurrent starts waits here, and then finds a supervisor.
        pool_directory, directory_lock = _lock_pool_directory(env, os.path.basename(pool_directory))
        ours.callback(os.close, directory_lock)
        path = f"{pool_directory}/{pool_paths.SOCKET_NAME}"
        if pool_paths.listens(path):
            return _join(lifeline=lifeline)
        try:
            pool_paths.state_dir(env, os.path.basename(pool_directory), create=True)  # may be refused
            clear_exit(pool_directory)
            return _start_keeper(files, pool_directory, path, env, lifeline=lifeline, lock=lock)
        except OSError as error:
            raise _unusable(pool_directory, error) from error


def _join(*, lifeline: bool) -> LaunchedKeeper:
    """The result for a pool that already runs. Raises ControlError (exit code 8) if the pool was to have a lifeline."""
    if lifeline:
        message = "a supervisor runs for this pool already"
        raise ControlError(message, exit_code=CONFLICT, hint=BESIDE_ANOTHER)
    return LaunchedKeeper()


def _lock_pool_directory(env: Mapping[str, str], key: str) -> tuple[str, int]:
    """Lock the pool's directory (waits); returns its path and the lock's descriptor. Raises ControlError."""
    while True:
        pool_directory = pool_paths.ensure_pool_dir(env, key)
        pool_paths.control_socket_path(pool_directory)
        try:
            return pool_directory, pool_files.lock(pool_directory)
        except FileNotFoundError:
            continue  # removed by the keeper of a pool that has just ended
        except OSError as error:
            raise _unusable(pool_directory, error) from error


def _check_minimum_open_files(files: Sequence[str], env: Mapping[str, str]) -> None:
    """Raise ControlError if the limit of open files is too low even for a pool without servers."""
    _, limit = resource.getrlimit(resource.RLIMIT_NOFILE)
    if 0 <= limit < OPEN_FILES_OF_POOL:
        from poolctl.config import open_files_per_pool_process
        from poolctl.config.loader import load

        try:
            servers = [(server, server.scale.min) for server in load(files, env) if not server.disabled]
            need = str(open_files_per_pool_process(servers))
        except PoolError:
            need = f"at least {OPEN_FILES_OF_POOL}"
        raise ControlError(
            f"the pool needs {need} open files, but may have only {limit} here",
            exit_code=NOT_PERMITTED,
            hint=RAISE_OPEN_FILES,
        )


def _start_keeper(
    files: Sequence[str],
    pool_directory: str,
    path: str,
    env: Mapping[str, str],
    *,
    lifeline: bool,
    lock: int,
) -> LaunchedKeeper:
    # A guess, because only the supervisor parses the files. It replaces the zygote if the guess was wrong.
    without = sorted({*variables_named_by_env_keys(files), pool_paths.ACCESS_LOG_VARIABLE} & env.keys())
    command = bootstrap.command(sys.executable, "supervisor", pool_directory, *files)
    supervisor = CompanionSpec(command, f"{pool_directory}/supervisor.log", session=False)
    programs = {fd_store.SUPERVISOR: supervisor} | companions(files, pool_directory, env, without)
    with contextlib.ExitStack() as ours, contextlib.ExitStack() as if_failed:
        fds = [ours.enter_context(listen(path)).fileno()]
        write = -1
        if lifeline:
            our_end, keeper_end = wire.pair()
            fds.append(ours.enter_context(keeper_end).fileno())
            write = our_end.detach()
            if_failed.callback(os.close, write)
        lock_fd = 3 + len(fds) if lock >= 0 else -1
        fds += [lock] if lock >= 0 else []
        inherited, names = _systemd_sockets(env)
        fds += inherited
        for program in programs.values():
            keeper_end, program_end = (ours.enter_context(end) for end in wire.pair())
            fds.append(keeper_end.fileno())
            program.fds = [program_end.fileno()]
        plan = {
            "supervisor": supervisor.argv,
            "control": 3,
            "lifeline": 4 if lifeline else -1,
            "lock": lock_fd,
            "inherited": names,
            "begun": list(programs),
            "without": without,
        }
        keeper = bootstrap.command(sys.executable, "keeper", pool_directory, json.dumps(plan), isolated=True)
        keeper_pid = start_with_companions(keeper, _keeper_environment(env), fds, [*programs.values()])
        if_failed.pop_all()
        if lifeline:  # the caller continues, and must not hold open what the pool closes
            close_all(inherited)
        return LaunchedKeeper(keeper_pid, write)


def _systemd_sockets(env: Mapping[str, str]) -> tuple[list[int], list[str]]:
    """The descriptors of the sockets that systemd passed to this process, and their names (sd_listen_fds(3))."""
    if env.get("LISTEN_PID") != str(os.getpid()) or not env.get("LISTEN_FDS", "").isdecimal():
        return [], []
    count = int(env["LISTEN_FDS"])
    names = env.get("LISTEN_FDNAMES", "").split(":")[:count]
    return list(range(3, 3 + count)), names + [""] * (count - len(names))


def _keeper_environment(env: Mapping[str, str]) -> dict[str, str]:
    """The environment for the keeper: `env` without systemd's variables that are meant for this process only.

    Paths that are relative to this process's working directory are made absolute (see `with_absolute_paths`).
    """
    is_watched = env.get("WATCHDOG_PID", str(os.getpid())) == str(os.getpid())
    removed = (*_LISTEN, "WATCHDOG_PID", *([] if is_watched else ["WATCHDOG_USEC"]))
    return with_absolute_paths({name: value for name, value in env.items() if name not in removed})


def listen(path: str) -> socket.socket:
    """Open the control socket at this path, replacing an existing file. Only this user can connect to it."""
    if os.path.lexists(path):
        os.unlink(path)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        listener.bind(path)
        os.chmod(path, 0o600)
        listener.listen(pool_paths.BACKLOG)
    except BaseException:
        listener.close()
        raise
    return listener


def _unusable(pool_directory: str, error: OSError) -> ControlError:
    return ControlError(
        f"cannot use {pool_directory}: {error.strerror or error}",
        exit_code=NOT_PERMITTED,
        hint=f"free some space there, or set {pool_paths.RUNTIME_VARIABLE} to another directory",
    )


def remove_stale_files(pool_directory: str) -> None:
    """Remove the control socket, `info.json` and the link with the pool's name that a killed pool left behind.

    Has no effect if the pool runs; waits while it is starting. Never raises.
    """
    if os.path.lexists(f"{pool_directory}/{pool_paths.SOCKET_NAME}"):
        _if_not_running(pool_directory, remove_control_files)


def forget_servers_to_run(pool_directory: str, server_names: Collection[str] | None = None) -> None:
    """Record that the servers `server_names` (None: all) should not run again; they ran when the pool was killed.

    Has no effect if the pool runs. Never raises.
    """
    state = pool_files.read_left_state(pool_directory)
    if not state:
        return
    if server_names is None:
        _if_not_running(pool_directory, pool_files.remove_left_states)
        return
    from poolctl.core.server_state import Desired

    for name, record in state.get("servers", {}).items():
        if name in server_names:
            record["desired"] = Desired.STOPPED.value
    content = json.dumps(state).encode()
    _if_not_running(pool_directory, lambda directory: pool_files.write_left_state(directory, content))


def _if_not_running(pool_directory: str, act: Callable[[str], None]) -> None:
    with contextlib.suppress(OSError):
        lock = os.open(f"{pool_directory}/lock", os.O_RDWR | os.O_CLOEXEC)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX)
            listens = pool_paths.listens(f"{pool_directory}/{pool_paths.SOCKET_NAME}")
            if not (listens or user_locks().is_held(pool_directory)):
                act(pool_directory)
        finally:
            os.close(lock)


def remove_control_files(pool_directory: str) -> None:
    """Remove the control socket, `info.json` and the link with the pool's name. Never raises OSError."""
    root, key = os.path.split(pool_directory)
    paths = [f"{pool_directory}/{pool_paths.SOCKET_NAME}", f"{pool_directory}/info.json"]
    with contextlib.suppress(OSError), os.scandir(root) as entries:
        paths += [entry.path for entry in entries if entry.is_symlink() and os.readlink(entry.path) == key]
    for path in paths:
        pool_files.unlink_quietly(path)
    pool_files.remove_stale_sockets(pool_directory)
