"""Contract §2 and §5: a reload of some servers, and the signal by which programs read their own files again."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

from tests.configuration import sleeper
from tests.real_pool import RealPool

PROGRAM = """
import os, signal, subprocess, sys

def note(what):
    with open("noted", "a") as file:
        file.write(what + chr(10))

if sys.argv[1] == "leader":
    subprocess.Popen([sys.executable, "conf.py", "child"])
signal.signal(signal.SIGHUP, lambda *_: note(f"hangup {sys.argv[1]}"))
note(f"begun {sys.argv[1]}")
while True:
    signal.pause()
"""


@pytest.fixture
def pool(real_pool: RealPool) -> RealPool:
    real_pool.write("conf.py", PROGRAM)
    real_pool.write("value.txt", "1")
    write(real_pool)
    return real_pool


def write(pool: RealPool, conf: str = "1", other: str = "1", more: str = "") -> None:
    pool.write(
        "pool.toml",
        f"""
        [[server]]
        name = "conf"
        command = ["{sys.executable}", "conf.py", "leader"]
        reload_signal = "SIGHUP"
        ready_after = "10ms"
        env = {{ LEVEL = "{conf}" }}
        watch = {{ include = ["value.txt"] }}
        [[server]]
        name = "other"
        command = ["sleep", "600"]
        ready_after = "10ms"
        env = {{ LEVEL = "{other}" }}
        """
        + more,
    )


def noted(pool: RealPool) -> list[str]:
    return (pool.directory / "noted").read_text().splitlines()


def pids(pool: RealPool) -> dict[str, list[int]]:
    return {name: each["pids"] for name, each in pool.items().items()}


def begun(pool: RealPool, until: Any) -> None:
    until(lambda: Path(pool.directory / "noted").exists() and len(noted(pool)) >= 2)


def test_reload_of_an_unchanged_server_sends_its_signal_to_the_leader(pool: RealPool, until: Any) -> None:
    pool.ok("start")
    begun(pool, until)
    before = pids(pool)
    assert pool.ok("reload").stdout.startswith("nothing has changed")
    dry = pool.run("reload", "conf", "--dry-run")
    assert (dry.code, dry.stdout.splitlines()[0]) == (3, "^ conf: SIGHUP")
    assert pool.ok("reload", "other").stdout.startswith("nothing has changed")
    assert pool.ok("reload", "conf").stdout.splitlines() == ["^ conf: SIGHUP", "1 signalled"]
    until(lambda: "hangup leader" in noted(pool))
    assert [each for each in noted(pool) if each.startswith("hangup")] == ["hangup leader"]
    assert pids(pool) == before
    pool.ok("restart", "conf")
    assert pids(pool)["conf"] != before["conf"]


@pytest.mark.slow
def test_reload_is_limited_to_the_servers_that_are_named(pool: RealPool, until: Any) -> None:
    pool.ok("start")
    begun(pool, until)
    before = pids(pool)
    write(pool, "2", "2", sleeper("new"))
    assert pool.run("reload", "nobody").code == 4
    pool.ok("scale", "other", "2")
    pool.ok("reload", "conf")
    now = pids(pool)
    assert now["conf"] != before["conf"]
    assert before["other"][0] in now["other"], "neither replaced nor scaled back"
    assert (len(now["other"]), "new" in now) == (2, False)
    assert "hangup leader" not in noted(pool), "its key has changed: it was replaced"
    assert "has changed since" in pool.ok("list").stderr, "the rest of the file is still to be applied"
    pool.ok("reload", "new")
    assert "new" in pids(pool)
    pool.ok("reload", "other")
    assert "has changed since" not in pool.ok("list").stderr


def test_reload_signal_that_is_not_handled_is_a_failure_of_that_server(real_pool: RealPool) -> None:
    real_pool.write(
        "pool.toml",
        sleeper("a", reload_signal="SIGHUP") + sleeper("off", reload_signal="SIGHUP", on_demand=True),
    )
    real_pool.ok("start")
    before = pids(real_pool)
    done = real_pool.run("reload", "a", "off")
    assert (done.code, "a: does not handle SIGHUP" in done.stderr) == (1, True), done
    assert pids(real_pool) == before


def test_watch_sends_the_signal_instead_of_a_restart(pool: RealPool, until: Any) -> None:
    running = pool.spawn("run", "--watch")
    begun(pool, until)
    until(pool.is_ready)
    before = pids(pool)

    def saved_and_heard() -> bool:
        (pool.directory / "value.txt").write_text("2")
        return "hangup leader" in noted(pool)

    until(saved_and_heard)
    assert pids(pool) == before
    running.terminate()
    _, stderr = running.communicate(timeout=50)
    assert "conf: value.txt changed, reloading" in stderr
