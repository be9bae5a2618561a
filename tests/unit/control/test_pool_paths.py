from __future__ import annotations

import json
import os
import socket
from contextlib import closing
from pathlib import Path

import pytest

from poolctl.control import pool_paths
from poolctl.control.pool_paths import make_private
from poolctl.errors import ControlError


@pytest.fixture
def env(tmp_path: Path) -> dict[str, str]:
    return {"POOLCTL_RUNTIME_DIR": str(tmp_path / "run")}


def listening(env: dict[str, str], key: str) -> str:
    made = pool_paths.make_pool_dir(env, key)
    Path(made, pool_paths.SOCKET_NAME).touch()
    return made


def test_a_key_tells_paths_apart_and_stays_the_same() -> None:
    assert pool_paths.pool_key("/a/pool.toml") == pool_paths.pool_key("/a/pool.toml")
    assert pool_paths.pool_key("/a/pool.toml") != pool_paths.pool_key("/b/pool.toml")
    assert len(pool_paths.pool_key("/a/\udcff.toml")) == 12


def test_a_pools_directory_is_made_for_its_owner_alone(env: dict[str, str]) -> None:
    made = pool_paths.make_pool_dir(env, "abc")
    assert made.endswith("/run/abc")
    assert os.stat(made).st_mode & 0o777 == 0o700
    assert pool_paths.make_pool_dir(env, "abc") == made == pool_paths.pool_dir(env, "abc")


def test_asking_for_a_directory_makes_none(env: dict[str, str], tmp_path: Path) -> None:
    pool_paths.pool_dir(env, "abc")
    pool_paths.state_dir(env, "abc")
    assert pool_paths.named_pool_dir(env, "shop") is None
    assert not (tmp_path / "run").exists()


def test_directory_that_others_can_enter_is_refused_with_the_fix(env: dict[str, str]) -> None:
    made = pool_paths.make_pool_dir(env, "abc")
    os.chmod(made, 0o755)
    with pytest.raises(ControlError, match="0755") as caught:
        pool_paths.make_pool_dir(env, "abc")
    assert caught.value.exit_code == 7
    assert caught.value.hint == f"chmod 700 {made}"


def test_link_or_file_instead_of_a_directory_is_refused(env: dict[str, str], tmp_path: Path) -> None:
    root = tmp_path / "run"
    root.mkdir()
    (root / "abc").symlink_to(tmp_path)
    (root / "def").touch()
    for key in ("abc", "def"):
        with pytest.raises(ControlError, match="not a directory"):
            pool_paths.check_private(str(root / key))
    with pytest.raises(ControlError, match="No such file"):
        pool_paths.check_private(str(root / "ghi"))


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a directory away")
def test_directory_of_another_user_is_refused(env: dict[str, str]) -> None:
    made = pool_paths.make_pool_dir(env, "abc")
    os.chown(made, 65534, 65534)
    with pytest.raises(ControlError, match="belongs to uid 65534"):
        pool_paths.check_private(made)


def test_runtime_directory_that_cannot_be_made_is_reported(tmp_path: Path) -> None:
    blocked = tmp_path / "file"
    blocked.touch()
    for path in (blocked, blocked / "below"):
        with pytest.raises(ControlError) as caught:
            pool_paths.make_pool_dir({"POOLCTL_RUNTIME_DIR": str(path)}, "abc")
        assert caught.value.exit_code == 7
        assert "POOLCTL_RUNTIME_DIR" in caught.value.hint


def test_users_own_directories_are_searched_without_a_variable() -> None:
    uid = os.geteuid()
    found = pool_paths.candidates({})
    assert found[-1] == f"/tmp/poolctl-{uid}"
    assert found[0] == ("/run/poolctl" if uid == 0 else f"/run/user/{uid}/poolctl")
    assert pool_paths.pool_dir({}, "abc").endswith("/abc")


def test_a_named_pool_is_found_by_its_name_and_by_its_key(env: dict[str, str], tmp_path: Path) -> None:
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
    assert pool_paths.control_socket("/run/poolctl/abc") == "/run/poolctl/abc/control.sock"
    with pytest.raises(ControlError, match="107 bytes"):
        pool_paths.control_socket("/run/" + "x" * 100)


def test_state_lives_in_the_named_directory_or_next_to_the_sockets(
    env: dict[str, str], tmp_path: Path
) -> None:
    assert pool_paths.state_dir(env, "abc", create=True) == f"{tmp_path}/run/abc/state"
    env["POOLCTL_STATE_DIR"] = str(tmp_path / "state")
    assert pool_paths.state_dir(env, "abc", create=True) == f"{tmp_path}/state/abc"
    assert os.stat(tmp_path / "state" / "abc").st_mode & 0o777 == 0o700
    (tmp_path / "file").touch()
    env["POOLCTL_STATE_DIR"] = str(tmp_path / "file")
    assert pool_paths.state_dir(env, "abc", create=True) == f"{tmp_path}/run/abc/state"


def test_state_directory_is_the_systems_without_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    if os.geteuid() == 0:
        assert pool_paths._preferred_state_dir({}, "abc") == "/var/lib/poolctl/abc"
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    monkeypatch.setenv("HOME", "/home/ann")
    assert pool_paths._preferred_state_dir({}, "abc") == "/home/ann/.local/state/poolctl/abc"
    assert pool_paths._preferred_state_dir({"XDG_STATE_HOME": "/x"}, "abc") == "/x/poolctl/abc"


def test_directory_of_a_pool_becomes_private_again(tmp_path: Path) -> None:
    made = tmp_path / "a" / "pool"
    make_private(str(made))
    assert made.stat().st_mode & 0o777 == 0o700
    made.chmod(0o755)
    make_private(str(made))
    assert made.stat().st_mode & 0o777 == 0o700
    made.chmod(0o500)
    make_private(str(made))
    assert made.stat().st_mode & 0o777 == 0o500, "others cannot enter it"


def test_directory_that_is_a_link_or_another_users_is_left_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = tmp_path / "pool"
    made.mkdir(mode=0o755)
    (tmp_path / "link").symlink_to("pool")
    make_private(str(tmp_path / "link"))
    monkeypatch.setattr(os, "geteuid", lambda: made.stat().st_uid + 1)
    make_private(str(made))
    assert made.stat().st_mode & 0o777 == 0o755
