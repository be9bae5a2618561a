"""Contract §5: the pool in the foreground, alone and around a command."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from itertools import takewhile
from typing import Any

import pytest

from tests.http_get import refused
from tests.ports import claim_port
from tests.programs import program
from tests.real_pool import RealPool

GET = "import urllib.request as r; print(r.urlopen('http://127.0.0.1:{port}/').status)"


@pytest.fixture
def pool(real_pool: RealPool) -> RealPool:
    real_pool.write_hello("a", "b")
    return real_pool


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGINT, 130), pytest.param(signal.SIGTERM, 0, marks=pytest.mark.slow)]
)
def test_run_serves_until_a_signal_and_leaves_nothing(
    pool: RealPool, until: Any, number: int, code: int
) -> None:
    running = pool.spawn("run")
    until(pool.is_ready)
    running.send_signal(number)
    running.communicate(timeout=50)
    assert running.returncode == code
    assert refused(pool.ports["a"])
    assert pool.processes() == {}


@pytest.mark.slow
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 0)])
def test_a_signal_while_the_pool_comes_up_leaves_nothing(
    pool: RealPool, until: Any, number: int, code: int
) -> None:
    running = pool.spawn("run")
    until(lambda: [*pool.runtime.glob("*/control.sock")])  # the pool is being launched
    running.send_signal(number)
    running.communicate(timeout=50)
    assert running.returncode == code
    assert pool.processes() == {}


def test_an_application_runs_without_a_file_and_is_a_target_with_one(real_pool: RealPool) -> None:
    real_pool.env["CI"] = ""  # the directories above are looked at, as this is no repository
    port = real_pool.write_hello("hello")["hello"]
    assert "no server matches" in real_pool.run("run", "other:app").stderr
    refused_port = real_pool.run("run", "hello", "-p", "1")
    assert (refused_port.code, "--port is for an application" in refused_port.stderr) == (2, True)
    beside_a_file = real_pool.run("-c", "pool.toml", "run", "hello:app")
    assert (beside_a_file.code, "leave out -c" in beside_a_file.stderr) == (2, True)
    (real_pool.directory / "pool.toml").unlink()
    ask = [sys.executable, "-c", GET.format(port=port)]
    done = real_pool.run("run", "hello:app", "-p", str(port), "--", *ask)
    assert (done.code, done.stdout) == (0, "200\n"), done
    assert "`poolctl init` writes one" in done.stderr
    assert [*real_pool.runtime.rglob("pool.toml")] == [], "its file is gone"
    none = real_pool.run("run", "--", "true")
    assert (none.code, "poolctl import -- true" in none.stderr) == (5, True)
    assert real_pool.run("run", "hello:app", "hello:app").code == 5


UNTIL_GO = "while ! test -e go; do sleep 0.05; done"


@pytest.mark.parametrize(
    ("servers", "code"),
    [
        ([("migrate", "exit 0", "job = true")], 0),
        ([("once", f"{UNTIL_GO}; exit 3", 'restart = "no"'), ("job", "true", "job = true")], 3),
        ([("killed", f"{UNTIL_GO}; kill -9 $$", 'restart = "no"')], 137),
        ([("done", UNTIL_GO, 'restart = "on-failure"'), ("out", "sleep 600", "disabled = true")], 0),
    ],
)
def test_run_ends_when_nothing_is_left_to_run(
    real_pool: RealPool, servers: list[tuple[str, str, str]], code: int
) -> None:
    table = '[[server]]\nname = "{}"\ncommand = ["sh", "-c", "{}"]\n{}\n'
    real_pool.write("pool.toml", "".join(table.format(*each) for each in servers))
    running = real_pool.spawn("run")
    assert running.stderr is not None
    said = [*takewhile(lambda line: "Ctrl-C to stop" not in line, running.stderr)]
    (real_pool.directory / "go").touch()
    said += running.stderr
    assert running.wait(60) == code, said
    assert "every server has ended" in "".join(said)
    assert real_pool.processes() == {}


@pytest.mark.slow
@pytest.mark.parametrize(
    "more",
    [
        '[[server]]\nname = "nightly"\njob = true\nevery = "0 3 * * *"\ncommand = ["true"]\n',
        '[[server]]\nname = "later"\ncommand = ["sleep", "600"]\non_demand = true\n',
        '[dashboard]\nbind = "127.0.0.1:{}"\n',
    ],
)
def test_run_goes_on_while_something_may_start(real_pool: RealPool, until: Any, more: str) -> None:
    job = '[[server]]\nname = "migrate"\njob = true\ncommand = ["true"]\n'
    real_pool.write("pool.toml", job + more.format(claim_port()))
    running = real_pool.spawn("run")
    until(lambda: real_pool.run("list", "migrate", "-o", "state").stdout == "completed\n")
    with pytest.raises(subprocess.TimeoutExpired):
        running.wait(1.5)
    running.send_signal(signal.SIGTERM)
    assert running.wait(60) == 0


@pytest.mark.parametrize("number", [signal.SIGKILL, pytest.param(signal.SIGHUP, marks=pytest.mark.slow)])
def test_run_that_is_killed_or_loses_its_terminal_takes_its_pool_with_it(
    pool: RealPool, until: Any, number: signal.Signals
) -> None:
    running = pool.spawn("run")
    until(pool.is_ready)
    running.send_signal(number)
    running.communicate(timeout=50)
    until(lambda: pool.processes() == {})
    assert refused(pool.ports["a"])


def test_the_command_runs_when_all_is_ready_with_its_own_streams(pool: RealPool) -> None:
    port = pool.ports["b"]
    url = f"http://127.0.0.1:{port}"
    script = f"import sys, urllib.request as u; print(u.urlopen('{url}').read(), sys.stdin.read())"
    done = pool.run("run", "--", sys.executable, "-c", script, stdin="typed")
    assert done.code == 0, str(done)
    assert done.stdout == f"b'hello from {port}' typed\n"


def test_a_missing_command_exits_127_and_a_non_executable_one_126(pool: RealPool) -> None:
    assert pool.run("run", "--", "no-such-command-here").code == 127
    pool.write("plain.txt", "text")
    assert pool.run("run", "--", "./plain.txt").code == 126
    assert pool.processes() == {}


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGTERM, 143), pytest.param(signal.SIGINT, 130, marks=pytest.mark.slow)]
)
def test_a_signal_is_passed_on_to_the_command(pool: RealPool, until: Any, number: int, code: int) -> None:
    running = pool.spawn("run", "--", "sh", "-c", "echo $$ >pid; exec sleep 600")
    pid_file = pool.directory / "pid"
    until(lambda: pid_file.exists() and pid_file.read_text())
    running.send_signal(number)
    running.communicate(timeout=50)
    assert running.returncode == code
    with pytest.raises(ProcessLookupError):
        os.kill(int(pid_file.read_text()), 0)
    assert pool.processes() == {}


@pytest.mark.slow
def test_run_does_not_run_the_command_when_a_server_fails(pool: RealPool) -> None:
    pool.write("hello.py", "raise RuntimeError('broken')\n")
    done = pool.run("run", "--", "touch", "ran")
    assert done.code == 1, str(done)
    assert "broken" in done.stderr
    assert not (pool.directory / "ran").exists()
    assert pool.processes() == {}


@pytest.mark.slow
def test_run_takes_a_selector(pool: RealPool) -> None:
    curl = f"{program('curl')} -s http://127.0.0.1"
    script = f"! {curl}:{pool.ports['b']} && {curl}:{pool.ports['a']}"
    assert pool.ok("run", "a", "--", "bash", "-c", script).stdout == f"hello from {pool.ports['a']}"


ENDING = """
[[server]]
name = "prepare"
job = true
command = ["true"]

[[server]]
name = "long"
command = ["{python}", "-c", "import signal; signal.pause()"]
ready_after = "10ms"
depends_on = [{{ name = "prepare", condition = "completed" }}]

[[server]]
name = "short"
command = ["sh", "-c", "echo start; {script}"]
restart = "always"
ready_after = "10ms"
depends_on = [{{ name = "long", condition = "ready" }}]
"""


@pytest.mark.parametrize(
    ("script", "command", "code"),
    [
        ("sleep 0.5; exit 17", [], 17),
        pytest.param("sleep 0.5; kill -KILL $$", [], 128 + signal.SIGKILL, marks=pytest.mark.slow),
        pytest.param("exit 0", [], 0, marks=pytest.mark.slow),
        pytest.param("sleep 0.5", ["sleep", "600"], 1, marks=pytest.mark.slow),
        pytest.param("exit 5", ["sleep", "600"], 5, marks=pytest.mark.slow),
    ],
)
def test_abort_on_exit_ends_with_the_first_server_that_ends(
    real_pool: RealPool, script: str, command: list[str], code: int
) -> None:
    real_pool.write("pool.toml", ENDING.format(python=sys.executable, script=script))
    done = real_pool.run("run", "--abort-on-exit", *(["--", *command] if command else []))
    assert done.code == code, done
    (line,) = [each for each in done.stderr.splitlines() if "this ends the run" in each]
    assert line.startswith("short: ")
    assert "restarting" not in done.stderr
    (log,) = real_pool.runtime.glob("*/state/logs/short.log")
    assert log.read_text().count("start") == 1, "it is not started again"
    assert real_pool.processes() == {}


@pytest.mark.slow
def test_abort_on_exit_is_not_about_what_was_ordered(real_pool: RealPool, until: Any) -> None:
    real_pool.write("pool.toml", ENDING.format(python=sys.executable, script="sleep 600"))
    running = real_pool.spawn("run", "--abort-on-exit")
    until(real_pool.is_ready)
    real_pool.ok("restart", "long")
    real_pool.ok("stop", "short")
    assert running.poll() is None
    running.send_signal(signal.SIGTERM)
    running.communicate(timeout=50)
    assert running.returncode == 0


def test_isolated_run_is_a_pool_beside_that_of_the_file(real_pool: RealPool) -> None:
    real_pool.write(
        "pool.toml",
        f'[[server]]\nname = "a"\nbind = "127.0.0.1:auto"\nsocket = "program"\n'
        f'command = ["{sys.executable}", "-m", "http.server", "{{port}}"]\n',
    )
    real_pool.ok("start")
    refused = real_pool.run("run", "--", "true")
    assert (refused.code, "--isolated" in refused.stderr) == (8, True)
    before = real_pool.items()["a"]
    poolctl = " ".join(real_pool.command())
    script = f"{poolctl} list -o pids,bind; echo $POOLCTL_RUNTIME_DIR; echo $POOLCTL_STATE_DIR"
    pids, bind, runtime, state = real_pool.ok("run", "--isolated", "--", "sh", "-c", script).stdout.split()
    assert (pids, bind) != (str(before["pids"][0]), before["bind"])
    assert bind != before["bind"]
    assert not os.path.exists(runtime)
    assert not os.path.exists(state)
    assert real_pool.items()["a"]["pids"] == before["pids"]
    real_pool.replace("127.0.0.1:auto", before["bind"])
    taken = real_pool.run("run", "--isolated", "--", "true")
    assert (taken.code, "in use" in taken.stderr) == (1, True), taken
    real_pool.write(
        "pool.toml", '[[server]]\nname = "a"\njob = true\ncommand = ["sh", "-c", "echo cause; exit 3"]\n'
    )
    failed = real_pool.run("run", "--isolated", "--", "true")
    assert (failed.code, "cause" in failed.stderr, "hint" in failed.stderr) == (1, True, False), failed


def test_run_begins_lines_with_their_time_if_asked(real_pool: RealPool) -> None:
    real_pool.write("pool.toml", '[[server]]\nname = "a"\njob = true\ncommand = ["echo", "hello"]\n')
    stamp = r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\S* "
    for options, time in (((), ""), (("-t",), stamp)):
        assert re.search(rf"^a \| {time}hello$", real_pool.ok("run", *options).stdout, re.MULTILINE)
