"""A file that was named and does not exist: exit 5, unless the pool that was started from it still runs."""

from __future__ import annotations

import json
import shutil
import socket
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from poolctl.cli.outcome import Failure, UsageError
from poolctl.cli.place import Place
from poolctl.cli.pool_ref import PoolRef, find_pool, same_name_warning
from poolctl.config import ConfigNotFound
from poolctl.control.client import NoSupervisor
from poolctl.control.pool_paths import pool_key
from tests.commands import names
from tests.stand_in import always, item

from .conftest import Command, Leave, Supervised

READ_NO_POOL = {"", "doctor", "help", "pools", "init", "import"}
# What a command needs beside its name, with every option that takes another way through it.
WORDS = {
    "filter": [["name", "x"]],
    "walk": [[], ["--", "true"]],
    "run": [[], ["--debug", "web"], ["--", "true"]],
    "wait": [["--timeout", "0.1"], ["--for", "stopped"]],
    "logs": [[], ["-f"]],
    "events": [[], ["-f"], ["web"]],
    "top": [["--once"]],
    "reload": [[], ["--dry-run"], ["--watch"]],
    "scale": [["web", "2"], ["--all", "2", "--save"]],
    "drain": [["web"]],
    "undrain": [["web"]],
    "enable": [["--all"], ["--all", "--save"]],
    "disable": [["web"], ["web", "--save"]],
    "remove": [["web"], ["web", "--save"], []],
    "add": [["x", "--bind", ":1", "--app", "a:b"], ["x", "--bind", ":1", "--app", "a:b", "--save"]],
    "register": [["x", "--to", "http://127.0.0.1:1"]],
    "unregister": [["x"]],
    "export": [["systemd"]],
    "exec": [["web", "--", "true"]],
    "signal": [["web", "USR1"]],
}
LINES = [[verb, *words] for verb in names() if verb not in READ_NO_POOL for words in WORDS.get(verb, [[]])]


@pytest.mark.parametrize("line", LINES, ids=" ".join)
def test_a_named_file_that_does_not_exist_is_5_for_every_command_that_reads_a_pool(
    poolctl: Command, monkeypatch: pytest.MonkeyPatch, line: list[str]
) -> None:
    for args in (["-c", "gone.toml", *line], ["-c", "pool.toml", "-c", "gone.toml", *line]):
        said = poolctl(*args)
        assert said.code == 5, said
        assert "gone.toml: there is no such file" in said.err + said.out
    monkeypatch.setenv("POOLCTL_CONFIG", "gone.toml")
    assert poolctl(*line).code == 5


def test_each_of_several_missing_files_is_named(poolctl: Command) -> None:
    document = poolctl("-c", "gone.toml", "-c", "lost.toml", "stop", "-o", "json").json
    assert [Path(error["file"]).name for error in document["errors"]] == ["gone.toml", "lost.toml"]


@pytest.mark.parametrize("line", [["config", "--schema"], ["pools"], ["help"]])
def test_commands_that_need_no_pool_ignore_a_missing_file(poolctl: Command, line: list[str]) -> None:
    assert poolctl("-c", "gone.toml", *line).code == 0


def test_init_writes_the_file_that_c_names(poolctl: Command, directory: Path) -> None:
    said = poolctl("-c", "conf/shop.toml", "init", "--app")
    assert said.code == 0
    assert said.out == "wrote conf/shop.toml and conf/hello.py; next: poolctl -c conf/shop.toml start\n"
    assert (
        poolctl("-c", "conf/shop.toml", "validate").out
        == "1 server, ok (applications not imported: --import)\n"
    )
    assert (directory / "pool.toml").read_text().startswith("[pool]"), "the default file is as it was"
    for wrong in (["-c", "a.toml", "-c", "b.toml", "init"], ["-c", "a.yaml", "init"],
                  ["-c", "pyproject.toml", "init"], ["-c", "a.toml", "init", "conf"]):  # fmt: skip
        assert poolctl(*wrong).code == 2, wrong
    assert not (directory / "a.toml").exists()


@pytest.mark.parametrize("named", [True, False])
@pytest.mark.parametrize("line", [["list"], ["status"], ["stop"], ["drain", "web"]])
def test_a_running_pool_whose_file_has_vanished_is_found_by_its_path_and_it_is_said(
    poolctl: Command, supervised: Supervised, directory: Path, line: list[str], named: bool
) -> None:
    line = ["-c", "pool.toml", *line] if named else line
    with supervised(always(item("web"))):
        (directory / "pool.toml").unlink()
        said = poolctl(*line)
        quiet = poolctl("-q", *line)
    assert said.code == quiet.code == 0
    assert "pool.toml no longer exists, but" in said.err
    assert quiet.err == ""
    assert poolctl(*line).code == 5, "the socket of a supervisor that is gone is no pool"
    shutil.rmtree(directory / "run")
    assert poolctl(*line).code == 5


def test_a_missing_file_and_none_at_all_are_5(poolctl: Command, directory: Path) -> None:
    (directory / "pool.toml").unlink()
    none = poolctl("list", "-o", "json")
    assert none.code == 5
    assert "poolctl init" in none.json["errors"][0]["hint"]
    missing = poolctl("-c", "gone.toml", "list")
    assert missing.code == 5
    assert "gone.toml" in missing.err


RUNNING = [item("users", 8081), item("orders", 8082, pids=[4243])]


def test_commands_reach_a_running_pool_whose_file_is_missing(
    poolctl: Command, supervised: Supervised, directory: Path
) -> None:
    (directory / "pool.toml").unlink()
    with supervised(always(*RUNNING)):
        assert poolctl("list", "-o", "name").out == "users\norders\n"
        assert poolctl("-c", "pool.toml", "list", "-o", "name").out == "users\norders\n"


def test_a_pool_is_not_named_twice(poolctl: Command) -> None:
    assert poolctl("list", "--pool", "shop", "-c", "pool.toml").code == 2


def test_pool_has_the_key_and_the_socket_of_its_directory(directory: Path) -> None:
    pool = find_pool(Place())
    assert pool.files == [str(directory / "pool.toml")]
    assert pool.key == pool_key(pool.files[0])
    assert (pool.directory, pool.socket) == (
        f"{directory}/run/{pool.key}",
        f"{directory}/run/{pool.key}/control.sock",
    )
    assert repr(pool) == f"<PoolRef {pool.directory} of {directory}/pool.toml>"
    assert repr(PoolRef(["/a", "/b"], "/run/x")) == "<PoolRef /run/x of /a, /b>"


Named = Callable[..., Path]


@pytest.fixture
def named(directory: Path) -> Iterator[Named]:
    """`named(key, name, files)`: the directory of a pool of this name that has a supervisor."""
    listeners = []

    def make(key: str, name: str, files: object, *, is_link: bool = True) -> Path:
        place = directory / "run" / key
        place.mkdir(parents=True, mode=0o700)
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(str(place / "control.sock"))
        listener.listen()
        listeners.append(listener)
        (place / "info.json").write_text(json.dumps({"name": name, "files": files}))
        if is_link:
            (directory / "run" / f"@{name}").symlink_to(key)
        return place

    yield make
    for listener in listeners:
        listener.close()


def test_running_pool_is_found_by_its_name_with_its_files(directory: Path, named: Named) -> None:
    place = named("k1", "blog", ["/srv/blog.toml", "/srv/more.toml"])
    pool = find_pool(Place(pool="blog"))
    assert (pool.files, pool.directory) == (["/srv/blog.toml", "/srv/more.toml"], str(place))
    (place / "info.json").write_text('{"name": "blog", "files": "/srv/blog.toml"}')
    assert find_pool(Place(pool="blog")).files == []
    with pytest.raises(NoSupervisor) as caught:
        find_pool(Place(pool="shop"))
    assert caught.value.message == "no running pool is named 'shop'"
    assert caught.value.hint == "start it from its file: poolctl -c FILE start"
    with pytest.raises(UsageError) as refused:
        find_pool(Place(pool="blog", config=[Path("a.toml")]))
    assert (refused.value.message, refused.value.hint) == (
        "--pool and -c cannot be combined", "--pool names a running pool, -c a file",
    )  # fmt: skip


def test_other_pools_of_the_same_name_are_a_warning(directory: Path, named: Named) -> None:
    one = named("k1", "blog", ["/srv/one.toml"])
    assert same_name_warning(PoolRef([], str(one))) == ""
    named("k2", "blog", ["/srv/two.toml"], is_link=False)
    other = named("k3", "blog", None, is_link=False)
    named("k4", "shop", ["/srv/shop.toml"])
    assert same_name_warning(PoolRef([], str(one))) == (
        f"another pool is also named 'blog': /srv/two.toml, {other}; --pool blog is ambiguous, use -c FILE"
    )


def test_missing_files_are_not_checked_where_that_is_allowed(directory: Path) -> None:
    assert find_pool(Place(config=[Path("gone.toml")]), missing_ok=True).files == [
        str(directory / "gone.toml")
    ]
    with pytest.raises(Failure) as caught:
        find_pool(Place(config=[Path("gone.toml")]))
    assert caught.value.outcome.exit_code == 5
    with pytest.raises(Failure):
        find_pool(Place(config=[Path("pool.toml/below")]))


def test_processes_that_are_left_behind_are_a_running_pool(
    directory: Path, capsys: pytest.CaptureFixture[str], leave: Leave
) -> None:
    place = Path(find_pool(Place()).directory)
    (directory / "pool.toml").unlink()
    with pytest.raises(ConfigNotFound):
        find_pool(Place())
    place.mkdir(parents=True, mode=0o700)
    with pytest.raises(ConfigNotFound):
        find_pool(Place())
    leave("users")
    assert find_pool(Place()).directory == str(place)
    assert capsys.readouterr().err == "warning: pool.toml no longer exists, but its pool is running\n"
    assert find_pool(Place(), missing_ok=True).directory == str(place)
    assert find_pool(Place(quiet=True)).directory == str(place)
    assert capsys.readouterr().err == ""


def test_supervisor_that_does_not_answer_exists(directory: Path) -> None:
    pool = find_pool(Place())
    Path(pool.directory).mkdir(parents=True, mode=0o700)
    (directory / "pool.toml").unlink()
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(pool.socket)
        listener.listen()
        assert find_pool(Place(quiet=True)).directory == pool.directory


def test_pool_is_found_from_a_directory_that_was_removed(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gone = directory / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    monkeypatch.setenv("PWD", str(directory))
    assert find_pool(Place()).files == [str(directory / "pool.toml")]
