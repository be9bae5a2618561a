from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
from collections.abc import Callable, Iterator
from contextlib import closing
from errno import ENOSPC
from pathlib import Path

import pytest

from poolctl.control import pool_paths
from poolctl.control.pool_paths import restore_private_directory
from poolctl.errors import ControlError
from tests import moments
from tests.other_user import OTHER, as_user
from tests.sandbox import MKDIR, run_without


@pytest.fixture
def env(short_path: Path) -> dict[str, str]:
    return {"POOLCTL_RUNTIME_DIR": str(short_path / "run")}


def listening(env: dict[str, str], key: str) -> str:
    made = pool_paths.ensure_pool_dir(env, key)
    Path(made, pool_paths.SOCKET_NAME).touch()
    return made


def test_a_key_tells_paths_apart_and_stays_the_same() -> None:
    assert pool_paths.pool_key("/a/pool.toml") == pool_paths.pool_key("/a/pool.toml")
    assert pool_paths.pool_key("/a/pool.toml") != pool_paths.pool_key("/b/pool.toml")
    assert len(pool_paths.pool_key("/a/\udcff.toml")) == 12


def test_a_pools_directory_is_made_for_its_owner_alone(env: dict[str, str]) -> None:
    made = pool_paths.ensure_pool_dir(env, "abc")
    assert made.endswith("/run/abc")
    assert os.stat(made).st_mode & 0o777 == 0o700
    assert pool_paths.ensure_pool_dir(env, "abc") == made == pool_paths.pool_dir(env, "abc")


def test_asking_for_a_directory_makes_none(env: dict[str, str], short_path: Path) -> None:
    pool_paths.pool_dir(env, "abc")
    pool_paths.state_dir(env, "abc")
    assert pool_paths.named_pool_dir(env, "shop") is None
    assert not (short_path / "run").exists()


def test_directory_that_others_can_enter_is_refused_with_the_fix(env: dict[str, str]) -> None:
    made = pool_paths.ensure_pool_dir(env, "abc")
    os.chmod(made, 0o755)
    with pytest.raises(ControlError, match="0755") as caught:
        pool_paths.ensure_pool_dir(env, "abc")
    assert caught.value.exit_code == 7
    assert caught.value.hint == f"chmod 700 {made}"


def test_link_or_file_instead_of_a_directory_is_refused(env: dict[str, str], short_path: Path) -> None:
    root = short_path / "run"
    root.mkdir()
    (root / "abc").symlink_to(short_path)
    (root / "def").touch()
    for key in ("abc", "def"):
        with pytest.raises(ControlError, match="not a directory"):
            pool_paths.check_private(str(root / key))
    with pytest.raises(ControlError, match="No such file"):
        pool_paths.check_private(str(root / "ghi"))


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a directory away")
def test_directory_of_another_user_is_refused(env: dict[str, str]) -> None:
    made = pool_paths.ensure_pool_dir(env, "abc")
    os.chown(made, 65534, 65534)
    with pytest.raises(ControlError, match="belongs to uid 65534"):
        pool_paths.check_private(made)


def test_runtime_directory_that_cannot_be_made_is_reported(short_path: Path) -> None:
    blocked = short_path / "file"
    blocked.touch()
    for path in (blocked, blocked / "below"):
        with pytest.raises(ControlError) as caught:
            pool_paths.ensure_pool_dir({"POOLCTL_RUNTIME_DIR": str(path)}, "abc")
        assert caught.value.exit_code == 7
        assert str(blocked) in caught.value.message


def test_users_own_directories_are_searched_without_a_variable() -> None:
    uid = os.geteuid()
    found = pool_paths.runtime_root_candidates({})
    assert found[-1] == f"/tmp/poolctl-{uid}"
    assert found[:-1] == (
        ["/run/poolctl"] if uid == 0 else [f"/run/poolctl-{uid}", f"/run/user/{uid}/poolctl"]
    )
    assert pool_paths.pool_dir({}, "abc").endswith("/abc")


def test_a_named_pool_is_found_by_its_name_and_by_its_key(env: dict[str, str], short_path: Path) -> None:
    made = listening(env, "abc")
    write_info(made, name="shop")
    assert pool_paths.named_pool_dir(env, "shop") == made
    assert pool_paths.named_pool_dir(env, "abc") == made
    for name in ("nobody", "@shop", "", "../run/abc", ".", "a/b"):
        assert pool_paths.named_pool_dir(env, name) is None


def write_info(made: str, **info: object) -> None:
    (Path(made) / "info.json").write_text(json.dumps(info))


def test_a_name_of_several_running_pools_is_a_conflict_that_lists_their_files(env: dict[str, str]) -> None:
    places = [listening(env, key) for key in ("abc", "def", "123")]
    for place in places:
        write_info(place, name="shop", files=[f"/srv/{os.path.basename(place)}.toml"])
    assert pool_paths.named_pool_dir(env, "shop") is None, "none of them listens"
    with closing(socket.socket(socket.AF_UNIX)) as first, closing(socket.socket(socket.AF_UNIX)) as second:
        for place, server in zip(places, (first, second), strict=False):
            os.unlink(f"{place}/{pool_paths.SOCKET_NAME}")
            server.bind(f"{place}/{pool_paths.SOCKET_NAME}")
        first.listen()
        assert pool_paths.named_pool_dir(env, "shop") == places[0], "one that is dead is no conflict"
        second.listen()
        with pytest.raises(ControlError, match=r"2 running pools .*/srv/abc.toml, /srv/def.toml") as caught:
            pool_paths.named_pool_dir(env, "shop")
        assert caught.value.exit_code == 8
        assert pool_paths.named_pool_dir(env, "def") == places[1], "a key belongs to one of them"


@pytest.mark.parametrize("text", ["", "{", "[]", '{"name": 1}'])
def test_a_pool_without_usable_runtime_files_has_no_name(env: dict[str, str], text: str) -> None:
    (Path(listening(env, "abc")) / "info.json").write_text(text)
    assert pool_paths.named_pool_dir(env, "shop") is None


def test_a_socket_path_that_no_socket_can_have_is_refused() -> None:
    assert pool_paths.control_socket_path("/run/poolctl/abc") == "/run/poolctl/abc/control.sock"
    with pytest.raises(ControlError, match="107 bytes"):
        pool_paths.control_socket_path("/run/" + "x" * 100)


def test_state_lives_in_the_named_directory_or_next_to_the_sockets(
    env: dict[str, str], short_path: Path
) -> None:
    assert pool_paths.state_dir(env, "abc", create=True) == f"{short_path}/run/abc/state"
    env["POOLCTL_STATE_DIR"] = str(short_path / "state")
    assert pool_paths.state_dir(env, "abc", create=True) == f"{short_path}/state/abc"
    assert os.stat(short_path / "state" / "abc").st_mode & 0o777 == 0o700
    (short_path / "file").touch()
    for path, why in (
        (short_path / "file", "Not a directory"),
        (Path("/proc/none"), "No such file or directory"),
    ):
        env["POOLCTL_STATE_DIR"] = str(path)
        assert refusal(lambda: pool_paths.state_dir(env, "abc", create=True)) == (
            f"cannot keep state in {path}/abc: {why}", 7,
            "make a directory of this user there, or set POOLCTL_STATE_DIR to another one",
        )  # fmt: skip


def test_state_directory_is_the_systems_without_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    if os.geteuid() == 0:
        assert pool_paths.preferred_state_dir({}, "abc") == "/var/lib/poolctl/abc"
    monkeypatch.setenv("HOME", "/home/ann")
    with as_user():
        assert pool_paths.preferred_state_dir({}, "abc") == "/home/ann/.local/state/poolctl/abc"
        assert pool_paths.preferred_state_dir({"XDG_STATE_HOME": "/x"}, "abc") == "/x/poolctl/abc"


def test_directory_of_a_pool_becomes_private_again(short_path: Path) -> None:
    made = short_path / "a" / "pool"
    restore_private_directory(str(made))
    assert [each.stat().st_mode & 0o777 for each in (made, made.parent)] == [0o700, 0o700]
    made.chmod(0o755)
    restore_private_directory(str(made))
    assert made.stat().st_mode & 0o777 == 0o700
    made.chmod(0o500)
    restore_private_directory(str(made))
    assert made.stat().st_mode & 0o777 == 0o500, "others cannot enter it"


def test_directory_that_is_a_link_or_another_users_is_left_alone(short_path: Path) -> None:
    made = short_path / "pool"
    made.mkdir(mode=0o755)
    (short_path / "link").symlink_to("pool")
    with pytest.raises(OSError, match="not a directory"):
        restore_private_directory(str(short_path / "link"))
    if os.geteuid() == 0:
        os.chown(made, OTHER, -1)
        with pytest.raises(OSError, match=f"belongs to uid {OTHER}"):
            restore_private_directory(str(made))
        assert made.stat().st_mode & 0o777 == 0o755


def refusal(act: Callable[[], object]) -> tuple[str, int, str]:
    with pytest.raises(ControlError) as caught:
        act()
    return caught.value.message, caught.value.exit_code, caught.value.hint


def test_refused_directories_have_a_message_and_a_fix(env: dict[str, str], short_path: Path) -> None:
    root = short_path / "run"
    root.touch()
    assert refusal(lambda: pool_paths.ensure_runtime_root(env)) == (
        f"{root} is not a directory", 7, f"mv {root} {root}.old",
    )  # fmt: skip
    root.unlink()
    root.mkdir()
    (root / "abc").touch()
    assert refusal(lambda: pool_paths.ensure_pool_dir(env, "abc")) == (
        f"{root}/abc is not a directory", 7, f"mv {root}/abc {root}/abc.old",
    )  # fmt: skip
    assert refusal(lambda: pool_paths.check_private(f"{root}/gone")) == (
        f"cannot use {root}/gone: No such file or directory", 7, "it is part of poolctl's runtime directory",
    )  # fmt: skip
    assert refusal(lambda: pool_paths.control_socket_path("/run/" + "x" * 90)) == (
        f"the path of the control socket has more than 107 bytes: /run/{'x' * 90}/control.sock", 7,
        "set POOLCTL_RUNTIME_DIR to a shorter path",
    )  # fmt: skip
    assert len(pool_paths.control_socket_path("/run/" + "x" * 89)) == 107
    if os.geteuid() == 0:
        short_path.chmod(0o755)
        with as_user():
            assert refusal(lambda: pool_paths.check_private(str(root))) == (
                f"{root} belongs to uid 0, not to you (uid {OTHER})", 7,
                "run poolctl as that user, or set POOLCTL_RUNTIME_DIR to a directory of your own",
            )  # fmt: skip


def test_directory_that_cannot_be_made_is_reported_with_the_reason(
    env: dict[str, str], short_path: Path
) -> None:
    (short_path / "run").mkdir()
    found = run_without({MKDIR: ENOSPC}, lambda: refusal(lambda: pool_paths.ensure_pool_dir(env, "abc")))
    assert found == (
        f"cannot make {short_path}/run/abc: No space left on device", 7,
        "free some space there, or set POOLCTL_RUNTIME_DIR to another directory",
    )  # fmt: skip


def test_directory_that_is_made_at_the_same_time_is_used(env: dict[str, str], short_path: Path) -> None:
    made = short_path / "run" / "abc"
    made.parent.mkdir()

    def make(path: str, *_: object) -> None:
        if path == str(made) and not made.exists():
            subprocess.run(["mkdir", "-m", "700", path], check=True)

    with moments.before("os.mkdir", make):
        assert pool_paths.ensure_pool_dir(env, "abc") == str(made)


@pytest.fixture
def roots() -> Iterator[list[Path]]:
    """The two directories of a user without a variable, which are not there."""
    if os.geteuid() != 0:
        pytest.skip("only root can become a user with a directory in /run")
    uid = 4_000_000 + os.getpid()
    found = [Path(f"/run/user/{uid}/poolctl"), Path(f"/tmp/poolctl-{uid}")]
    found[0].parent.mkdir(parents=True)
    os.chown(found[0].parent, uid, -1)
    with as_user(uid):
        yield found
    for path in (found[0].parent, found[1]):
        shutil.rmtree(path, ignore_errors=True)


def test_second_runtime_directory_is_used_where_the_first_cannot_be_made(roots: list[Path]) -> None:
    system, own = roots
    system.parent.chmod(0o500)
    assert pool_paths.pool_dir({}, "abc") == f"{own}/abc"
    assert pool_paths.ensure_runtime_root({}) == str(own)
    assert own.stat().st_mode & 0o777 == 0o700
    own.rmdir()
    system.parent.chmod(0o700)
    assert pool_paths.pool_dir({}, "abc") == f"{system}/abc"
    assert pool_paths.ensure_runtime_root({}) == str(system)


def test_runtime_directory_that_others_can_enter_is_refused_unless_a_variable_names_it(
    roots: list[Path],
) -> None:
    system = roots[0]
    system.mkdir(mode=0o755, parents=True)
    mode = (f"{system} can be entered by others (mode 0755)", 7, f"chmod 700 {system}")
    assert refusal(lambda: pool_paths.ensure_runtime_root({})) == mode
    named = {"POOLCTL_RUNTIME_DIR": str(system)}
    assert pool_paths.ensure_runtime_root(named) == str(system)
    made = system / "abc"
    made.mkdir(mode=0o700)
    (made / "control.sock").touch()
    assert refusal(lambda: pool_paths.pool_dir({}, "abc")) == mode
    assert refusal(lambda: pool_paths.pool_dirs_named({}, "abc")) == mode
    assert pool_paths.pool_dir(named, "abc") == str(made)
    system.chmod(0o700)
    made.chmod(0o755)
    assert (
        refusal(lambda: pool_paths.pool_dir(named, "abc"))[0]
        == f"{made} can be entered by others (mode 0755)"
    )


def test_pool_is_found_in_the_directory_that_has_its_socket(roots: list[Path]) -> None:
    system, own = roots
    for root in roots:
        root.mkdir(mode=0o700, parents=True)
    assert pool_paths.pool_dir({}, "abc") == f"{system}/abc"
    (own / "abc").mkdir(mode=0o700)
    assert pool_paths.pool_dir({}, "abc") == f"{system}/abc"
    (own / "abc" / "control.sock").touch()
    assert pool_paths.pool_dir({}, "abc") == f"{own}/abc"


def test_pools_of_a_name_are_found_in_all_directories_and_one_of_that_key_is_the_only_one(
    roots: list[Path],
) -> None:
    made = []
    for root, key in zip(roots, ("abc", "def"), strict=True):
        root.mkdir(mode=0o700, parents=True)
        path = root / key
        path.mkdir(mode=0o700)
        (path / "control.sock").touch()
        write_info(str(path), name="shop")
        made.append(str(path))
    assert pool_paths.pool_dirs_named({}, "shop") == made
    assert pool_paths.pool_dirs_named({}, "def") == made[1:]
    write_info(made[1], name="abc")
    assert pool_paths.pool_dirs_named({}, "abc") == made[:1]
    os.unlink(f"{made[0]}/control.sock")
    assert pool_paths.pool_dirs_named({}, "shop") == []


def test_full_backlog_counts_as_a_pool_that_runs(env: dict[str, str]) -> None:
    places = [listening(env, key) for key in ("abc", "def")]
    with closing(socket.socket(socket.AF_UNIX)) as server, closing(socket.socket(socket.AF_UNIX)) as client:
        for place in places:
            write_info(place, name="shop", files=["a.toml", "b.toml"])
        os.unlink(f"{places[0]}/control.sock")
        server.bind(f"{places[0]}/control.sock")
        server.listen(0)
        client.connect(f"{places[0]}/control.sock")
        assert pool_paths.named_pool_dir(env, "shop") == places[0]


def test_state_directory_of_the_variable_is_used_and_no_other_one(
    env: dict[str, str], short_path: Path
) -> None:
    env["POOLCTL_STATE_DIR"] = str(short_path / "state")
    (short_path / "run" / "abc" / "state").mkdir(parents=True)
    assert pool_paths.state_dir(env, "abc") == f"{short_path}/state/abc", "a start makes it"
    (short_path / "state" / "abc").mkdir(parents=True)
    assert pool_paths.state_dir(env, "abc") == f"{short_path}/state/abc"


def test_state_directory_that_others_can_change_is_refused(env: dict[str, str], short_path: Path) -> None:
    shared = short_path / "state"
    shared.mkdir()
    shared.chmod(0o777)
    env["POOLCTL_STATE_DIR"] = str(shared)
    why = f"{shared} can be changed by others (mode 0777), who could replace {shared}/abc"
    for create in (False, True):
        found = refusal(lambda create=create: pool_paths.state_dir(env, "abc", create=create))
        assert found[:2] == (why, 7)
    assert not (shared / "abc").exists()
    shared.chmod(0o1777)
    made = Path(pool_paths.state_dir(env, "abc", create=True))
    made.chmod(0o755)
    assert pool_paths.state_dir(env, "abc", create=True) == str(made), "another program may read the logs"
    made.chmod(0o777)
    assert refusal(lambda: pool_paths.state_dir(env, "abc")) == (
        f"{made} can be changed by others (mode 0777)", 7, f"chmod 700 {made}",
    )  # fmt: skip


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
def test_state_is_not_kept_in_the_home_of_another_user_who_lets_nobody_write_there(
    short_path: Path,
) -> None:
    home, own = short_path / "home", short_path / "own"
    short_path.chmod(0o755)
    for path, uid in ((home, 54322), (own, OTHER)):
        path.mkdir(mode=0o755)
        os.chown(path, uid, uid)
    env = {"POOLCTL_STATE_DIR": str(home / "state"), "POOLCTL_RUNTIME_DIR": str(own)}
    with as_user():
        assert refusal(lambda: pool_paths.state_dir(env, "abc", create=True))[0].startswith(
            "cannot keep state in"
        )
        without = {"POOLCTL_STATE_DIR": "", "POOLCTL_RUNTIME_DIR": str(own)}
        state = f"{own}/abc/state"
        assert pool_paths.state_dir(without, "abc", create=True) == state
        assert os.stat(state).st_mode & 0o777 == 0o700
    home.chmod(0o777)
    with as_user():
        message, _, fix = refusal(lambda: pool_paths.state_dir(env, "abc"))
    assert message == f"{home} belongs to uid 54322, who could replace {home}/state/abc"
    assert fix == "run poolctl as that user, or set POOLCTL_STATE_DIR to a directory of your own"


def test_state_directory_that_this_user_cannot_write_is_not_used(short_path: Path, roots: list[Path]) -> None:
    uid = os.geteuid()
    os.setresuid(0, 0, 0)
    short_path.chmod(0o755)
    for path, owner in ((short_path / "poolctl", 54322), (short_path / "own", uid)):
        (path / "abc").mkdir(mode=0o500, parents=True)
        os.chown(path / "abc", owner, -1)
    os.setresuid(uid, uid, 0)
    env = {"XDG_STATE_HOME": str(short_path)}
    assert pool_paths.state_dir(env, "abc", create=True) == f"{roots[0]}/abc/state"
    env["POOLCTL_STATE_DIR"] = f"{short_path}/own"
    assert refusal(lambda: pool_paths.state_dir(env, "abc"))[0].endswith("this user may not write there")


def test_home_that_is_no_absolute_path_has_no_state() -> None:
    env = {"XDG_STATE_HOME": "state"}
    with as_user():
        assert pool_paths.state_dir(env, "abc") == pool_paths.pool_dir(env, "abc") + "/state"
