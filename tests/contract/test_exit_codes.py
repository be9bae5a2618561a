"""Contract §5: each command's exit code, with exactly one JSON document in every case."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable, Sequence

import pytest

from tests.configuration import app_table, sleeper
from tests.other_user import AS_OTHER_USER
from tests.real_pool import HELLO_APP, RealPool

TWO = ("a", "b")
# The members of each server that is listed, by whatever command.
ITEM = {
    "name", "bind", "expose", "state", "ready", "health", "pids", "workers", "uptime_seconds", "restarts", "tags",
}  # fmt: skip
WITHOUT_ITEMS = ("config", "pools", "walk", "reload")  # which list something else, or servers of a plan


def document(pool: RealPool, line: str, code: int) -> dict[str, list[dict[str, object]]]:
    """The single document of a command that exits with this code. Words after `--` are the user's command."""
    words, dashes, command = line.partition(" -- ")
    done = pool.run(*words.split(), "-o", "json", *(["--", *command.split()] if dashes else []))
    assert done.code == code, str(done)
    assert done.json["schema"] == 1
    if code in (2, 4, 5, 6, 7, 8):
        assert done.json["items"] == []
    for error in done.json["errors"]:
        assert error.keys() >= {"code", "error", "name", "bind", "message", "hint"}
        assert error["message"] in done.stderr, "people get to read it as well"
    assert bool(done.json["errors"]) is (code not in (0, 3)), str(done)
    return done.json  # type: ignore[no-any-return]


def check(pool: RealPool, expected: list[tuple[str, int, Sequence[str]]]) -> None:
    """Each command exits with its code, and its document has exactly these servers."""
    for line, code, names in expected:
        items = document(pool, line, code)["items"]
        assert {item["name"] for item in items} == set(names), line
        if line.split()[0] not in WITHOUT_ITEMS:
            assert [item for item in items if not item.keys() >= ITEM] == [], line


def test_without_a_supervisor_some_work_from_the_files(real_pool: RealPool) -> None:
    real_pool.write_hello(*TWO)
    check(real_pool, [
        ("stop", 0, TWO), ("stop nobody", 4, ()), ("status a", 3, "a"), ("walk b -- true", 0, "b"),
        ("config a", 0, "a"), ("wait --timeout 0.1", 124, TWO), ("pools", 0, ()), ("validate", 0, TWO),
        ("list", 0, TWO), ("show b", 0, "b"), ("filter name a", 0, "a"), ("list --name (", 2, ()),
        ("list --state wrong", 2, ()), ("start --timeout soon", 2, ()), ("-c missing.toml list", 5, ()),
    ])  # fmt: skip
    real_pool.write("pool.toml", "broken [")
    check(real_pool, [("stop", 0, ()), ("start", 5, ()), ("stop a", 5, ()), ("-c gone.toml stop", 5, ())])
    assert "nothing is running" in real_pool.ok("stop").stdout
    assert real_pool.processes() == {}


def test_without_a_supervisor_others_are_refused(real_pool: RealPool) -> None:
    real_pool.write_hello(*TWO)
    for line in (
        "scale a 2", "drain a", "undrain --all", "enable a", "disable --all", "remove a", "reload",
        "reload --dry-run", "upgrade", "add c --bind :1 --app c:c", "metrics",
        "--pool nobody list",
    ):  # fmt: skip
        assert [error["code"] for error in document(real_pool, line, 6)["errors"]] == [6]
    assert real_pool.processes() == {}


@pytest.mark.slow
def test_with_a_supervisor_looking_and_ordering(real_pool: RealPool) -> None:
    real_pool.write_hello(*TWO)
    check(real_pool, [
        ("start a", 0, "a"), ("start", 0, TWO), ("start a nobody", 4, ()), ("status b", 0, "b"),
        ("status nobody", 4, ()), ("list --tag x", 4, ()), ("list --name (", 2, ()), ("walk -- false", 1, TWO),
        ("config --state running", 0, TWO), ("wait a --for stopped --timeout 0.1", 124, "a"),
        ("wait --for running", 0, TWO), ("run -- true", 8, ()), ("logs nobody", 4, ()), ("logs -n few", 2, ()),
        ("events nobody", 4, ()), ("stop b", 0, "b"), ("status", 0, TWO), ("stop", 0, TWO),
    ])  # fmt: skip
    assert real_pool.processes() == {}


@pytest.mark.slow
def test_with_a_supervisor_live_changes(real_pool: RealPool, free_port: Callable[[], int]) -> None:
    real_pool.write_hello(*TWO)
    real_pool.ok("start")
    new, taken = free_port(), f"127.0.0.1:{real_pool.ports['b']}"
    check(real_pool, [
        ("scale a 2", 0, "a"), ("scale a 0", 2, ()), ("scale a", 2, ()), ("drain a", 0, "a"), ("status", 3, TWO),
        ("undrain a", 0, "a"), ("disable a", 0, "a"), ("status", 0, TWO), ("start a", 1, "a"), ("restart a", 1, "a"),
        ("enable a", 0, "a"), ("add b --bind :1 --app c:c", 8, ()), (f"add c --bind {taken} --app c:c", 8, ()),
        ("add c --bind nowhere --app c:c", 5, ()), (f"add c --bind 127.0.0.1:{new} --app hello:app", 0, "c"),
        ("reload --dry-run", 3, (*TWO, "c")), ("remove c", 0, "c"), ("remove c", 4, ()), ("remove", 2, ()),
        ("reload", 0, TWO),
    ])  # fmt: skip


def test_failure_among_others_is_1_and_all_are_listed_by_their_own_operation(
    real_pool: RealPool, free_port: Callable[[], int]
) -> None:
    ports = real_pool.write_hello(*TWO)
    bad = [app_table(name, free_port(), 'restart = "no"', "none:app") for name in ("bad", "worse")]
    real_pool.write("pool.toml", app_table("a", ports["a"]) + "".join(bad) + app_table("b", ports["b"]))
    started = document(real_pool, "start", 1)
    assert [(error["name"], error["code"], error["error"]) for error in started["errors"]] == [
        ("bad", 1323, "ErrorPoolStart"), ("worse", 1323, "ErrorPoolStart"),
    ]  # fmt: skip
    assert [item["ready"] for item in started["items"]] == [True, False, False, True]
    assert [error["name"] for error in document_of_status(real_pool)["errors"]] == ["bad", "worse"]
    assert [(e["name"], e["code"]) for e in document(real_pool, "restart bad a", 1)["errors"]] == [
        ("bad", 1325)
    ]
    waited = document(real_pool, "wait --timeout 0.1", 124)
    assert [(error["name"], error["code"]) for error in waited["errors"]] == [("bad", 1326), ("worse", 1326)]
    document(real_pool, "start a b", 0)
    document(real_pool, "stop bad worse", 0)
    document(real_pool, "status", 0)


def document_of_status(pool: RealPool) -> dict[str, list[dict[str, object]]]:
    done = pool.run("status", "-o", "json")
    assert done.code == 3
    return done.json  # type: ignore[no-any-return]


def test_a_state_directory_that_others_could_replace_is_7(real_pool: RealPool) -> None:
    real_pool.write_hello()
    shared = real_pool.runtime / "shared"
    shared.mkdir()
    shared.chmod(0o777)
    real_pool.env["POOLCTL_STATE_DIR"] = str(shared / "state")
    for command in ("start", "logs"):
        done = real_pool.run(command, "-o", "json")
        assert done.code == 7, done
        (told,) = done.json["errors"]
        place = f"{shared} can be changed by others (mode 0777), who could replace {shared}/state"
        assert (place in told["message"], told["hint"].startswith("chmod ")) == (True, True), told
    subprocess.run(told["hint"], shell=True, check=True)
    real_pool.ok("start")


@pytest.mark.slow
def test_a_pool_of_another_user_is_7(real_pool: RealPool) -> None:
    real_pool.open_to_all()
    real_pool.write_hello()
    real_pool.ok("start")
    real_pool.runtime.chmod(0o755)
    for command in ("list", "status", "stop"):
        done = subprocess.run(
            [*AS_OTHER_USER.split(), *real_pool.command(), command, "-o", "json"],
            cwd=real_pool.directory, env=real_pool.env, capture_output=True, text=True, timeout=60,
        )  # fmt: skip
        assert done.returncode == 7, done.stderr
        (told,) = json.loads(done.stdout)["errors"]
        assert told["code"] == 7
        assert "POOLCTL_RUNTIME_DIR" in told["hint"], "it may be that directory which is another user's"
    assert real_pool.items()["web"]["ready"]


@pytest.mark.skipif(os.geteuid() != 0, reason="starts a process of another user")
def test_a_pool_that_another_user_runs_is_named_and_not_run_twice(real_pool: RealPool) -> None:
    file = real_pool.write("pool.toml", sleeper("beat"))
    # What another user's supervisor looks like; its files cannot be seen by others.
    words = [
        "sh",
        "-c",
        "read line; exit",
        "bootstrap.py",
        "supervisor",
        "/run/user/1234/poolctl/0",
        str(file),
    ]
    with subprocess.Popen(words, stdin=subprocess.PIPE, user=1234, cwd="/") as other:
        who = f"user 1234 (pid {other.pid})"
        note = f"{who} runs a pool of {file}, too"
        assert note in real_pool.ok("start").stderr, "anybody can look like that"
        real_pool.ok("stop")
        os.chown(file, 1234, -1)
        started = real_pool.run("start")
        assert started.code == 8
        assert f"{who} runs a pool of {file} already" in started.stderr
        assert real_pool.run("run").code == 8
        status = real_pool.run("status")
        assert status.code == 3
        assert f"{who} runs a pool of this file" in status.stdout
        auto = '[[server]]\nname = "a"\nbind = "127.0.0.1:auto"\napp = "hello:app"\n'
        real_pool.write("hello.py", HELLO_APP)
        real_pool.write("pool.toml", auto)
        assert note in real_pool.ok("start").stderr, "each has its own port"
        real_pool.ok("stop")
