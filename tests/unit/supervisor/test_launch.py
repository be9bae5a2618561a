"""The start of a pool's keeper and supervisor, and the files that a killed pool has left."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import socket
from pathlib import Path
from typing import Any

import pytest

from poolctl.control.client import Client
from poolctl.control.pool_lock import user_locks
from poolctl.control.pool_paths import listens, pool_key
from poolctl.errors import ControlError
from poolctl.keeper import pool_files
from poolctl.supervisor.launch import (
    LaunchedKeeper,
    forget_servers_to_run,
    launch,
    listen,
    remove_stale_files,
)
from tests.deadline import wait_until
from tests.descriptors import no_descriptor_left
from tests.processes import is_alive
from tests.sandbox import CLONE, run_in_namespace, run_without

SERVER = '[[server]]\nname = "web"\nbind = "127.0.0.1:8080"\ncommand = ["sleep", "1"]\ntls = false\n'


class Pool:
    """A pool's file and directory, and the environment in which it is started."""

    def __init__(self, directory: Path) -> None:
        self.file = directory / "pool.toml"
        self.file.write_text(SERVER)
        self.env = {
            "PATH": os.environ["PATH"],
            "POOLCTL_RUNTIME_DIR": str(directory / "run"),
            "POOLCTL_STATE_DIR": str(directory / "state"),
        }
        self.directory = directory / "run" / pool_key(str(self.file))
        self.socket = self.directory / "control.sock"

    def launch(self, **options: bool) -> LaunchedKeeper:
        return launch([str(self.file)], self.env, **options)

    def make(self) -> Path:
        self.directory.mkdir(parents=True, mode=0o700)
        (self.directory / "lock").touch()
        return self.directory


@pytest.fixture
def pool(tmp_path_factory: pytest.TempPathFactory) -> Pool:
    return Pool(tmp_path_factory.mktemp("p"))


def is_locked(directory: Path) -> bool:
    with (directory / "lock").open() as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


def test_keeper_that_cannot_be_started_leaves_nothing_open(pool: Pool) -> None:
    with no_descriptor_left(), pytest.raises(ControlError) as caught:
        run_without({CLONE: errno.EAGAIN}, lambda: pool.launch(lifeline=True))
    assert (caught.value.exit_code, caught.value.message) == (
        7, f"cannot use {pool.directory}: Resource temporarily unavailable",
    )  # fmt: skip
    assert caught.value.hint == "free some space there, or set POOLCTL_RUNTIME_DIR to another directory"
    assert not is_locked(pool.directory)
    assert not user_locks().is_held(str(pool.directory))


@pytest.mark.parametrize("has_socket", [True, False])
def test_supervisor_that_runs_already_is_enough_unless_a_lifeline_is_wanted(
    pool: Pool, has_socket: bool
) -> None:
    pool.make()
    with listen(str(pool.socket)):
        lock = user_locks().acquire(str(pool.directory))
        if has_socket:
            os.close(lock)
        else:
            pool.socket.unlink()
        assert pool.launch() == LaunchedKeeper(0, -1)
        with pytest.raises(ControlError) as caught:
            pool.launch(lifeline=True)
    assert caught.value.exit_code == 8
    assert caught.value.hint == "poolctl stop ends it; poolctl run --isolated runs another one beside it"
    assert not is_locked(pool.directory)
    if not has_socket:
        os.close(lock)


def end(pool: Pool, keeper_pid: int) -> None:
    """Stop the pool, which has just been started."""
    Client(str(pool.socket)).call("stop")
    wait_until(lambda: not is_alive(keeper_pid))


@pytest.mark.slow
def test_pool_whose_lock_can_be_kept_nowhere_is_started(pool: Pool) -> None:
    root = pool.file.parent
    read_only = f"mount -t tmpfs -o ro none /var/lib; mount --bind /tmp /tmp; mount --bind {root} {root}"
    launched = run_in_namespace(f"{read_only}; mount -o remount,ro,bind /tmp", pool.launch)
    assert not user_locks().is_held(str(pool.directory))
    end(pool, launched.keeper_pid)


@pytest.mark.slow
def test_sockets_of_systemd_do_not_stay_open_in_the_process_that_goes_on(pool: Pool) -> None:
    child = os.fork()
    if child == 0:
        try:
            os.dup2(os.open(os.devnull, os.O_RDONLY), 3)
            pool.env |= {"LISTEN_PID": str(os.getpid()), "LISTEN_FDS": "1"}
            launched = pool.launch(lifeline=True)
            with pytest.raises(OSError, match="Bad file descriptor"):
                os.fstat(3)
            os.close(launched.lifeline)
            wait_until(lambda: not is_alive(launched.keeper_pid))
            os._exit(0)
        finally:
            os._exit(1)
    assert os.waitpid(child, 0)[1] == 0


def test_files_of_a_pool_that_runs_without_its_socket_are_kept(pool: Pool) -> None:
    pool.make()
    pool_files.write_left_state(str(pool.directory), b'{"servers": {}}')
    lock = user_locks().acquire(str(pool.directory))
    forget_servers_to_run(str(pool.directory))
    assert (pool.directory / pool_files.DESIRED).exists()
    os.close(lock)
    forget_servers_to_run(str(pool.directory))
    assert not (pool.directory / pool_files.DESIRED).exists()


def test_control_socket_is_this_users_and_replaces_a_dead_one(tmp_path: Path) -> None:
    path = tmp_path / "s.sock"
    path.touch()
    with listen(str(path)) as listener:
        assert path.stat().st_mode & 0o777 == 0o600
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(str(path))
        assert listens(str(path))
        assert listener.getsockname() == str(path)
    assert not listens(str(path))
    assert not listens(str(tmp_path / "gone.sock"))
    with pytest.raises(OSError, match="No such file"):
        listen(str(tmp_path / "none" / "s.sock"))


def left_behind(pool: Pool) -> dict[str, Any]:
    state: dict[str, Any] = {"servers": {"a": {"desired": "running"}, "b": {"desired": "running"}}}
    pool_files.write_left_state(str(pool.make()), json.dumps(state).encode())
    return state


def test_stopped_servers_of_a_killed_pool_are_recorded_as_stopped(pool: Pool) -> None:
    forget_servers_to_run(str(pool.directory), {"a"})
    left_behind(pool)
    forget_servers_to_run(str(pool.directory), {"a", "other"})
    assert pool_files.read_left_state(str(pool.directory)) == {
        "servers": {"a": {"desired": "stopped"}, "b": {"desired": "running"}}
    }
    forget_servers_to_run(str(pool.directory))
    assert pool_files.read_left_state(str(pool.directory)) == {}


def test_desired_state_of_a_pool_that_runs_is_left_alone(pool: Pool) -> None:
    state = left_behind(pool)
    with listen(str(pool.socket)):
        forget_servers_to_run(str(pool.directory), {"a"})
        forget_servers_to_run(str(pool.directory))
        assert pool_files.read_left_state(str(pool.directory)) == state


def test_dead_socket_and_name_are_removed_unless_the_pool_runs(pool: Pool) -> None:
    remove_stale_files(str(pool.directory))
    place = pool.make()
    root = place.parent
    (root / "@shop").symlink_to(place.name)
    (root / "@other").symlink_to("another")
    (place / "info.json").write_text("{}")
    remove_stale_files(str(place))
    assert (place / "info.json").exists(), "there is no dead socket"
    with listen(str(pool.socket)):
        remove_stale_files(str(place))
        assert pool.socket.exists()
    dead = place / "g.1"
    with socket.socket(socket.AF_UNIX) as haproxy:
        haproxy.bind(str(dead))
    remove_stale_files(str(place))
    assert sorted(path.name for path in place.iterdir()) == ["lock"]
    assert sorted(path.name for path in root.iterdir() if path.is_symlink()) == ["@other"]
