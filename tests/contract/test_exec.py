"""Contract §5: a command in the place of a server."""

from __future__ import annotations

import json
import os
import pwd
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.configuration import sleeper
from tests.real_pool import RealPool
from tests.terminal import Terminal

TELL = """
import json, os, resource, sys
mask = os.umask(0)
fds = [int(fd) for fd in os.listdir("/proc/self/fd") if os.path.exists(f"/proc/self/fd/{fd}")]
print(json.dumps({
    "env": dict(os.environ), "cwd": os.getcwd(), "umask": mask, "fds": sorted(fds),
    "files": resource.getrlimit(resource.RLIMIT_NOFILE)[0], "uid": os.getuid(), "groups": os.getgroups(),
}))
"""
POOL = """
[[server]]
name = "web"
command = ["sleep", "600"]
ready_after = "10ms"
env = { LEVEL = "1", HERE = "{name}" }
cwd = "work"
umask = "027"
limits = { open_files = 321 }

[[server]]
name = "other"
command = ["sleep", "600"]
ready_after = "10ms"
on_demand = true
"""
IGNORED_BY_PYTHON = 1 << (signal.SIGXFSZ - 1) | 1 << (signal.SIGPIPE - 1)


@pytest.fixture
def pool(real_pool: RealPool) -> RealPool:
    real_pool.write("pool.toml", POOL)
    real_pool.write("work/tell.py", TELL)
    return real_pool


def told(pool: RealPool, *options: str, **more: Any) -> dict[str, Any]:
    done = pool.ok(*options, "exec", "web", "--", sys.executable, "tell.py", **more)
    found: dict[str, Any] = json.loads(done.stdout)
    return found


@pytest.mark.slow
def test_exec_has_what_the_server_has_from_files_and_from_the_running_pool(pool: RealPool) -> None:
    file = pool.directory / "pool.toml"
    found = told(pool, "-c", str(file), cwd=Path("/"), env={"LEVEL": "caller's", "MINE": "1"})
    assert {key: found["env"].get(key) for key in ("LEVEL", "HERE", "MINE", "POOLCTL_NAME")} == {
        "LEVEL": "1", "HERE": "{name}", "MINE": "1", "POOLCTL_NAME": "web",
    }  # fmt: skip
    assert (found["cwd"], found["umask"], found["files"]) == (f"{pool.directory}/work", 0o027, 321)
    assert found["fds"] == [0, 1, 2]
    ignored = pool.ok("exec", "web", "--", "grep", "SigIgn", "/proc/self/status").stdout.split()[1]
    assert not int(ignored, 16) & IGNORED_BY_PYTHON
    pool.ok("start", "web", env={"OF_START": "1"})
    file.write_text(POOL.replace('LEVEL = "1"', 'LEVEL = "2"'))
    env = told(pool, env={"MINE": "1"})["env"]
    assert (env["LEVEL"], env.get("OF_START"), env.get("MINE")) == ("1", "1", None)
    pool.ok("reload")
    pool.ok("restart", "web", "--env", env={"OF_RESTART": "1"})
    env = told(pool)["env"]
    assert (env["LEVEL"], env.get("OF_RESTART"), env.get("OF_START")) == ("2", "1", None)
    assert pool.ok("exec", "other", "--", "sh", "-c", "pwd").stdout == f"{pool.directory}\n", (
        "it need not run"
    )


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can start processes of other users")
def test_exec_runs_as_the_user_and_in_the_groups_of_the_server(pool: RealPool) -> None:
    nobody = pwd.getpwnam("nobody")
    pool.write("pool.toml", sleeper("web", user="nobody", cwd="/"))
    wanted = [str(nobody.pw_uid), str(nobody.pw_gid), nobody.pw_dir]
    script = "id -u; id -G; echo $HOME"
    assert pool.ok("exec", "web", "--", "sh", "-c", script).stdout.split() == wanted
    pool.ok("start")
    assert pool.ok("exec", "web", "--", "sh", "-c", script).stdout.split() == wanted
    with Terminal(pool, "exec", "web", "--", "sh", "-c", f"{script}; echo again >/dev/tty") as terminal:
        assert terminal.end() == 0
    assert terminal.shown.split() == [*wanted, "again"]


@pytest.mark.parametrize(
    ("command", "code"),
    [
        (["sh", "-c", "exit 3"], 3),
        (["sh", "-c", "kill -TERM $$"], 128 + signal.SIGTERM),
        (["no-such-program"], 127),
        (["./plain"], 126),
        (["./tell.py/there"], 126),
    ],
)
def test_exec_exits_as_its_command_does(pool: RealPool, command: list[str], code: int) -> None:
    pool.write("work/plain", "not a program\n")
    done = pool.run("exec", "web", "--", *command)
    assert done.code in (code, 128 - code)  # ended by the signal, as the command was
    assert done.stdout == ""
    assert ("cannot run" in done.stderr) == (code in (126, 127))
    with Terminal(pool, "exec", "web", "--", *command) as terminal:
        assert terminal.end() == code


def test_exec_gets_its_input_to_the_end_and_its_own_options(pool: RealPool) -> None:
    text = "line\n" * 100_000
    assert pool.ok("exec", "web", "--", "sh", "-c", "sleep 0.2; cat", stdin=text).stdout == text
    words = ["-c", "x", "--help", "--", "-o", "json"]
    assert pool.ok("exec", "web", "--", "printf", "%s|", *words).stdout == "".join(
        f"{each}|" for each in words
    )


def test_exec_runs_one_command_for_one_server(pool: RealPool) -> None:
    pool.ok("start", "web")
    for words, code, text in (
        (["exec"], 2, "poolctl exec NAME -- CMD"),
        (["exec", "web"], 2, "poolctl exec web -- CMD"),
        (["exec", "web", "ls", "a b"], 2, "poolctl exec web -- ls 'a b'"),
        (["exec", "web", "other", "--", "true"], 2, "one server"),
        (["exec", "*", "--", "true"], 2, "2 are selected"),
        (["exec", "wev", "--", "true"], 4, "web"),
    ):
        done = pool.run(*words)
        assert (done.code, text in done.stderr) == (code, True), done


def test_exec_in_a_terminal_has_a_terminal_of_its_own(pool: RealPool) -> None:
    pool.write(
        "work/look.py",
        """
        import os, signal, sys
        def show(*_):
            columns, lines = os.get_terminal_size(0)
            os.write(1, f"SIZE {columns} {lines} {os.environ['TERM']}\\n".encode())  # a handler may not print
        signal.signal(signal.SIGWINCH, show)
        signal.signal(signal.SIGINT, lambda *_: sys.exit(42))
        signal.signal(signal.SIGUSR1, lambda *_: os.write(1, b"USR1\\n"))
        show()
        print("SESSION", os.getsid(0), os.tcgetpgrp(0) == os.getpid(), "\\N{SNOWMAN}", flush=True)
        print("LINE", sys.stdin.readline().strip(), flush=True)
        while True: signal.pause()
        """,
    )
    pool.ok("start")
    before = pool.items()["web"]["pids"]
    command = ("exec", "web", "--", sys.executable, "look.py")
    with Terminal(pool, *command, size=(101, 33), env={"TERM": "vt220"}) as terminal:
        modes = terminal.modes()
        terminal.until(lambda text: "SESSION" in text and "\n" in text.partition("SESSION")[2])
        assert "SIZE 101 33 vt220" in terminal.shown
        session, leads, snowman = re.findall(r"SESSION (\d+) (\S+) (\S+)", terminal.shown)[0]
        assert (session != str(terminal.process.pid), leads, snowman) == (True, "True", "\N{SNOWMAN}")
        terminal.press("typed\r")
        terminal.until(lambda text: "LINE typed" in text)
        terminal.resize(77, 22)
        terminal.until(lambda text: "SIZE 77 22" in text)
        terminal.process.send_signal(signal.SIGUSR1)
        terminal.until(lambda text: "USR1" in text)
        terminal.press("\x03")
        assert terminal.end() == 42
        assert terminal.modes() == modes
    assert pool.items()["web"]["pids"] == before


def test_output_of_a_terminal_s_command_is_whole_and_background_processes_hold_nothing_up(
    pool: RealPool,
) -> None:
    script = "sleep 100 & seq 60000; yes >/dev/tty & echo END"
    with Terminal(pool, "exec", "web", "--", "sh", "-c", script) as terminal:
        assert terminal.end() == 0
    assert "\n60000\r\n" in terminal.shown
    assert "END" in terminal.shown


def test_only_standard_descriptors_of_the_caller_reach_the_command(pool: RealPool) -> None:
    read, write = os.pipe()
    os.set_inheritable(write, True)
    command = [*pool.command(), "exec", "web", "--", sys.executable, "tell.py"]
    done = subprocess.run(
        command, cwd=pool.directory, env=pool.env, pass_fds=[write], stdout=subprocess.PIPE, timeout=60
    )
    os.close(read)
    os.close(write)
    assert json.loads(done.stdout)["fds"] == [0, 1, 2]
