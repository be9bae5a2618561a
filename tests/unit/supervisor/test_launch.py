"""The start of a pool's keeper and supervisor, and the files that a killed pool has left."""

from __future__ import annotations

import fcntl
import json
import os
import socket
from pathlib import Path
from typing import Any

import pytest

from poolctl.control import pool_paths
from poolctl.control.pool_lock import user_locks
from poolctl.control.pool_paths import listens, pool_key
from poolctl.errors import ControlError
from poolctl.keeper import pool_files
from poolctl.keeper.spawn import CompanionSpec
from poolctl.runners.local.output_pipes import LOGGER
from poolctl.supervisor import launch as launching
from poolctl.supervisor.launch import (
    LaunchedKeeper,
    forget_servers_to_run,
    launch,
    listen,
    remove_stale_files,
)
from tests.descriptors import no_descriptor_left
from tests.sandbox import run_in_namespace

SERVER = '[[server]]\nname = "web"\nbind = "127.0.0.1:8080"\ncommand = ["sleep", "1"]\ntls = false\n'
ME = str(os.getpid())


class Keeper:
    """What a keeper would have been started with."""

    def __init__(self) -> None:
        self.argv: list[str] = []
        self.env: dict[str, str] = {}
        self.fds: list[int] = []
        self.kinds: list[str] = []
        self.companions: list[CompanionSpec] = []
        self.fails: OSError | None = None

    def __call__(
        self, argv: list[str], env: dict[str, str], fds: list[int], companions: list[CompanionSpec]
    ) -> int:
        if self.fails is not None:
            raise self.fails
        self.argv, self.env, self.fds, self.companions = argv, env, fds, companions
        self.kinds = [os.readlink(f"/proc/self/fd/{fd}").partition(":")[0] for fd in fds]
        return 4711

    @property
    def plan(self) -> dict[str, Any]:
        plan: dict[str, Any] = json.loads(self.argv[-1])
        return plan


class Pool:
    """A pool's file and directory, and the environment in which it is started."""

    def __init__(self, directory: Path) -> None:
        self.file = directory / "pool.toml"
        self.file.write_text(SERVER)
        self.env = {"PATH": os.environ["PATH"], "POOLCTL_RUNTIME_DIR": str(directory / "run")}
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


@pytest.fixture
def keeper(monkeypatch: pytest.MonkeyPatch) -> Keeper:
    launched = Keeper()
    monkeypatch.setattr(launching, "start_with_companions", launched)
    return launched


def is_locked(directory: Path) -> bool:
    with (directory / "lock").open() as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


def test_keeper_gets_the_control_socket_and_links_to_its_companions(pool: Pool, keeper: Keeper) -> None:
    with no_descriptor_left():
        assert pool.launch() == LaunchedKeeper(4711, -1)
    plan = keeper.plan
    assert keeper.argv[-2] == str(pool.directory)
    assert (plan["control"], plan["lifeline"], plan["inherited"], plan["without"]) == (3, -1, [], [])
    assert (plan["lock"], os.path.basename(keeper.kinds.pop(1))) == (4, "lock")
    assert plan["supervisor"][-2:] == [str(pool.directory), str(pool.file)]
    assert plan["begun"][0] == "supervisor"
    supervisor = keeper.companions[0]
    assert supervisor.argv == plan["supervisor"]
    assert len(keeper.companions) == len(plan["begun"])
    assert all(len(companion.fds) == 1 for companion in keeper.companions)
    assert keeper.kinds == ["socket"] * (1 + len(plan["begun"]))
    assert not is_locked(pool.directory)
    assert not user_locks().is_held(str(pool.directory))
    assert pool.socket.stat().st_mode & 0o777 == 0o600


def test_helpers_that_the_keeper_starts_run_like_those_that_replace_them(pool: Pool, keeper: Keeper) -> None:
    pool.env[pool_paths.ACCESS_LOG_VARIABLE] = "1"
    pool.launch()
    started = dict(zip(keeper.plan["begun"], keeper.companions, strict=True))
    companion = started[LOGGER.entry]
    assert companion.argv == [*LOGGER.argv, str(pool.directory)]
    assert companion.output == f"{pool.directory}/{LOGGER.name}.log"
    assert companion.session
    assert [*companion.without] == [pool_paths.ACCESS_LOG_VARIABLE]


def test_lifeline_is_open_here_and_ends_with_the_caller(pool: Pool, keeper: Keeper) -> None:
    launched = pool.launch(lifeline=True)
    assert (keeper.plan["control"], keeper.plan["lifeline"], keeper.plan["lock"]) == (3, 4, 5)
    assert keeper.kinds[1] == "socket"
    assert launched.lifeline >= 0
    os.close(launched.lifeline)


def test_keeper_that_cannot_be_started_leaves_nothing_open(pool: Pool, keeper: Keeper) -> None:
    keeper.fails = OSError(28, "No space left on device")
    with no_descriptor_left(), pytest.raises(ControlError) as caught:
        pool.launch(lifeline=True)
    assert (caught.value.exit_code, caught.value.message) == (
        7, f"cannot use {pool.directory}: No space left on device",
    )  # fmt: skip
    assert caught.value.hint == "free some space there, or set POOLCTL_RUNTIME_DIR to another directory"
    assert not is_locked(pool.directory)


def test_supervisor_that_runs_already_is_enough_unless_a_lifeline_is_wanted(
    pool: Pool, keeper: Keeper
) -> None:
    pool.make()
    with listen(str(pool.socket)):
        assert pool.launch() == LaunchedKeeper(0, -1)
        with pytest.raises(ControlError) as caught:
            pool.launch(lifeline=True)
    assert (caught.value.exit_code, keeper.argv) == (8, [])
    assert caught.value.hint == "poolctl stop ends it; poolctl run --isolated runs another one beside it"
    assert not is_locked(pool.directory)


def test_pool_that_runs_without_its_socket_is_not_started_again(pool: Pool, keeper: Keeper) -> None:
    lock = user_locks().acquire(str(pool.directory))
    assert pool.launch() == LaunchedKeeper(0, -1)
    with pytest.raises(ControlError) as caught:
        pool.launch(lifeline=True)
    assert (caught.value.exit_code, keeper.argv) == (8, [])
    assert not pool.directory.exists()
    os.close(lock)
    assert pool.launch().keeper_pid == 4711


def test_pool_whose_lock_can_be_kept_nowhere_is_started(pool: Pool, keeper: Keeper) -> None:
    root = pool.file.parent
    pool.env["POOLCTL_STATE_DIR"] = str(root / "state")
    read_only = f"mount -t tmpfs -o ro none /var/lib; mount --bind /tmp /tmp; mount --bind {root} {root}"
    launched = run_in_namespace(f"{read_only}; mount -o remount,ro,bind /tmp", pool.launch)
    assert launched == LaunchedKeeper(4711, -1)
    assert keeper.plan["lock"] == -1
    assert keeper.kinds == ["socket"] * (1 + len(keeper.plan["begun"]))


def test_files_of_a_pool_that_runs_without_its_socket_are_kept(pool: Pool) -> None:
    pool.make()
    pool_files.write_left_state(str(pool.directory), b'{"servers": {}}')
    lock = user_locks().acquire(str(pool.directory))
    forget_servers_to_run(str(pool.directory))
    assert (pool.directory / pool_files.DESIRED).exists()
    os.close(lock)
    forget_servers_to_run(str(pool.directory))
    assert not (pool.directory / pool_files.DESIRED).exists()


@pytest.mark.parametrize(
    ("env", "names"),
    [
        ({"LISTEN_PID": ME, "LISTEN_FDS": "3", "LISTEN_FDNAMES": "a:b"}, ["a", "b", ""]),
        ({"LISTEN_PID": ME, "LISTEN_FDS": "1", "LISTEN_FDNAMES": "a:b"}, ["a"]),
        ({"LISTEN_PID": "1", "LISTEN_FDS": "1"}, []),
        ({"LISTEN_PID": ME, "LISTEN_FDS": "x"}, []),
        ({"LISTEN_FDS": "1"}, []),
    ],
)
def test_sockets_of_systemd_are_passed_on_with_their_names_and_its_variables_are_not(
    pool: Pool, keeper: Keeper, env: dict[str, str], names: list[str]
) -> None:
    pool.env |= env | {"WATCHDOG_PID": ME, "WATCHDOG_USEC": "9"}
    pool.launch()
    count = len(names)
    assert (keeper.plan["inherited"], keeper.fds[2 : 2 + count]) == (names, [*range(3, 3 + count)])
    assert not {"LISTEN_FDS", "LISTEN_PID", "LISTEN_FDNAMES", "WATCHDOG_PID"} & keeper.env.keys()
    assert keeper.env["WATCHDOG_USEC"] == "9"
    pool.env["WATCHDOG_PID"] = "1"
    pool.launch()
    assert "WATCHDOG_USEC" not in keeper.env, "the watchdog is another process's"


def test_sockets_of_systemd_do_not_stay_open_in_the_process_that_goes_on(pool: Pool, keeper: Keeper) -> None:
    child = os.fork()
    if child == 0:
        try:
            os.dup2(os.open(os.devnull, os.O_RDONLY), 3)
            pool.env |= {"LISTEN_PID": str(os.getpid()), "LISTEN_FDS": "1"}
            pool.launch(lifeline=True)
            with pytest.raises(OSError, match="Bad file descriptor"):
                os.fstat(3)
            os._exit(0)
        finally:
            os._exit(1)
    assert os.waitpid(child, 0)[1] == 0


def test_variables_of_secrets_are_withheld_from_companions(pool: Pool, keeper: Keeper) -> None:
    pool.file.write_text(
        SERVER.replace("tls = false", 'tls = { cert = "c", password_env = "KEY" }').replace("command", "#")
    )
    pool.env |= {"KEY": "secret", "OTHER": "x", pool_paths.ACCESS_LOG_VARIABLE: "1"}
    pool.launch()
    assert keeper.plan["without"] == sorted(["KEY", pool_paths.ACCESS_LOG_VARIABLE])


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
