"""Contract §5: signals to the workers of servers."""

from __future__ import annotations

import json
import sys
from typing import Any

import pytest

from tests.real_pool import RealPool

WORK = """
import os, signal, subprocess, sys, time

def note(what):
    with open("noted", "a") as file:
        file.write(f"{what} {os.getpid()}\\n")

def end(number, frame):
    note("end")
    sys.exit(int(sys.argv[2]))

role = sys.argv[1]
signal.signal(signal.SIGUSR1, lambda *_: note(role))
if len(sys.argv) > 2:
    for number in (signal.SIGTERM, signal.SIGWINCH):
        signal.signal(number, end)
if role == "leader":
    subprocess.Popen([sys.executable, "work.py", "child"])
note("begun")
while True:
    time.sleep(1)
"""


@pytest.fixture
def pool(real_pool: RealPool) -> RealPool:
    real_pool.write("work.py", WORK)
    return real_pool


def write(pool: RealPool, words: str, more: str = "") -> None:
    command = json.dumps([sys.executable, "work.py", *words.split()])
    ready = "" if "job" in more else 'ready_after = "10ms"'
    pool.write("pool.toml", f'[[server]]\nname = "a"\ncommand = {command}\n{ready}\n{more}\n')


def noted(pool: RealPool, what: str) -> list[int]:
    file = pool.directory / "noted"
    lines = file.read_text().splitlines() if file.exists() else []
    return sorted(int(line.split()[1]) for line in lines if line.startswith(what))


def test_signal_reaches_each_leader_once_and_no_child(pool: RealPool, until: Any) -> None:
    write(pool, "leader", "workers = 2")
    pool.ok("start")
    until(lambda: len(noted(pool, "begun")) == 4)
    before = pool.items()["a"]
    for times, name in enumerate(("USR1", "sigusr1", "10"), 1):
        assert pool.ok("signal", "a", name).stdout == "signal sent to 1 server\n"
        until(lambda times=times: len(noted(pool, "leader")) == 2 * times)
    assert noted(pool, "leader") == sorted(before["pids"] * 3)
    assert noted(pool, "child") == []
    after = pool.items()["a"]
    assert (after["pids"], after["restarts"]) == (before["pids"], 0)


@pytest.mark.parametrize(
    ("words", "number"),
    [
        ("leader", "TERM"),
        pytest.param("leader", "KILL", marks=pytest.mark.slow),
        pytest.param("leader", "USR2", marks=pytest.mark.slow),
        pytest.param("leader 3", "TERM", marks=pytest.mark.slow),
    ],
)
@pytest.mark.parametrize("policy", ["always", pytest.param("no", marks=pytest.mark.slow)])
def test_end_by_an_ordered_signal_is_no_failure(
    pool: RealPool, until: Any, words: str, number: str, policy: str
) -> None:
    write(pool, words, f'restart = "{policy}"')
    pool.ok("start")
    before = pool.items()["a"]["pids"]
    until(lambda: noted(pool, "begun"))
    pool.ok("signal", "a", number)
    until(lambda: pool.items()["a"]["pids"] not in ([], before))
    pool.ok("wait", "a")
    after = pool.items()["a"]
    assert (after["restarts"], after["state"], after.get("flapping")) == (0, "running", None)
    assert "exited" not in pool.ok("status").stderr


def test_end_with_0_after_another_signal_is_what_it_is_without_one(pool: RealPool, until: Any) -> None:
    write(pool, "leader 0", 'restart = "on-failure"')
    pool.ok("start")
    until(lambda: noted(pool, "begun"))
    pool.ok("signal", "a", "WINCH")
    until(lambda: pool.items()["a"]["state"] == "stopped")
    assert pool.items()["a"]["ended"]["status"] == 0


@pytest.mark.parametrize(
    ("words", "number", "state"), [("leader", "INT", "failed"), ("leader 0", "TERM", "completed")]
)
def test_job_is_not_run_again(pool: RealPool, until: Any, words: str, number: str, state: str) -> None:
    write(pool, words, 'job = true\nrestart = "always"')
    program = (pool.directory / "work.py").read_text()
    pool.write("work.py", "import signal\nsignal.signal(signal.SIGINT, signal.SIG_DFL)\n" + program)
    pool.ok("start", "--no-wait")
    until(lambda: noted(pool, "begun"))
    pool.ok("signal", "a", number)
    until(lambda: pool.items()["a"]["state"] == state)
    failure = pool.ok("show", "a", "-o", "json").json["items"][0]["failure"]
    assert (failure and failure["message"].startswith("ended by SIGINT, as ordered")) == (
        True if state == "failed" else None
    )


def test_application_gets_only_what_it_handles(real_pool: RealPool, until: Any) -> None:
    real_pool.write_hello("a")
    hello = real_pool.directory / "hello.py"
    hello.write_text(
        "import signal\nsignal.signal(signal.SIGUSR1, lambda *_: open('heard', 'w'))\n" + hello.read_text()
    )
    real_pool.ok("start")
    before = real_pool.items()["a"]["pids"]
    for name in ("USR2", "HUP", "ALRM"):
        done = real_pool.run("signal", "a", name)
        assert (done.code, f"SIG{name}" in done.stderr) == (2, True), done
        assert {"SIGUSR1", "SIGTERM", "SIGINT", "SIGKILL"} <= {*done.stderr.replace(",", " ").split()}
    real_pool.ok("signal", "a", "USR1")
    until((real_pool.directory / "heard").exists)
    assert real_pool.items()["a"]["pids"] == before
    for name in ("TERM", "INT", "KILL"):
        before = real_pool.items()["a"]["pids"]
        real_pool.ok("signal", "a", name)
        until(lambda before=before: real_pool.items()["a"]["pids"] not in ([], before))
        real_pool.ok("wait", "a")
    assert real_pool.items()["a"]["restarts"] == 0


def test_signal_says_what_is_wrong(pool: RealPool) -> None:
    write(pool, "leader", '[[server]]\nname = "off"\ncommand = ["sleep", "9"]\non_demand = true')
    assert pool.run("signal", "a", "USR1").code == 6
    pool.ok("start")
    for words, code, text in (
        ((), 2, "the signal is missing"),
        (("USR1",), 2, "2 servers"),
        (("a",), 2, "'a' is not a signal"),
        (("a", "SIGTREM"), 2, "did you mean SIGTERM?"),
        (("a", "0"), 2, "'0' is not a signal"),
        (("nobody", "USR1"), 4, "nobody"),
        (("off", "USR1"), 1, "off: has no process"),
    ):
        done = pool.run("signal", *words)
        assert (done.code, text in done.stderr) == (code, True), done
