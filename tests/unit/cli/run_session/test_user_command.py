"""The command around which `run` runs a pool: its environment, its signals, its end."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest

from poolctl.cli.outcome import Failure
from poolctl.cli.pool_ref import PoolRef
from poolctl.cli.run_session._user_command import command_environment, run_to_end
from poolctl.control.answers import Item
from tests.deadline import wait_until
from tests.other_user import AS_OTHER_USER, python_for_others
from tests.programs import program


def item(name: str, bind: str, expose: str, **more: Any) -> Item:
    plain: dict[str, Any] = {
        "state": "running", "ready": True, "health": "ok", "pids": (1,), "workers": 1, "uptime_seconds": 1.0,
        "restarts": 0, "tags": (),
    }  # fmt: skip
    return Item(name=name, bind=bind, expose=expose, **(plain | more))


def test_environment_has_the_pool_and_the_addresses_of_its_servers() -> None:
    items = [
        item("users-v1.a", "0.0.0.0:8081", "http://localhost:8081"),
        item("sock", "unix:/run/a.sock", "unix:/run/a.sock"),
        item("queue", "process:queue", ""),
        item("given", "fd:3", "fd:3", address="127.0.0.1:90"),
        item("off", "127.0.0.1:1", "http://127.0.0.1:1", state="disabled"),
    ]
    found = command_environment(PoolRef(["/a/pool.toml", "/a/dev.toml"], "/run/a"), items)
    assert found == {
        **os.environ,
        "POOLCTL_CONFIG": "/a/pool.toml",
        "POOLCTL_URL_USERS_V1_A": "http://localhost:8081",
        "POOLCTL_PORT_USERS_V1_A": "8081",
        "POOLCTL_URL_SOCK": "unix:/run/a.sock",
        "POOLCTL_URL_GIVEN": "http://127.0.0.1:90",
        "POOLCTL_PORT_GIVEN": "90",
    }


def test_two_names_of_one_variable_are_a_problem_with_its_place(tmp_path: Path) -> None:
    file = tmp_path / "pool.toml"
    file.write_text(
        '[[server]]\nname = "a-b"\nbind = ":1"\napp = "a:b"\n[[server]]\nname = "a_B"\nbind = ":2"\napp = "a:b"\n'
    )
    items = [item("a-b", "0.0.0.0:1", "http://localhost:1"), item("a_B", "0.0.0.0:2", "http://localhost:2")]
    with pytest.raises(Failure) as failed:
        command_environment(PoolRef([str(file)], str(tmp_path)), items)
    (problem,) = failed.value.outcome.errors
    assert (problem.file, problem.line, failed.value.outcome.exit_code) == (str(file), 6, 5)
    assert problem.message == "POOLCTL_URL_A_B of the command would be the address of 'a-b' and of 'a_B'"
    assert problem.hint == "rename one of them"


RUN = (
    "import asyncio, os, shutil, sys; from poolctl.cli.run_session._user_command import run_to_end;"
    "path = shutil.which(sys.argv[1]);"
    "sys.exit(asyncio.run(run_to_end(path, sys.argv[1:], os.environ, stdout={}, {})))"
)


def run(*command: str, stdout: int | None = None, more: str = "") -> int:
    """In a process of its own: a thread of the test runner would be given the signals."""
    fds = () if stdout is None else (stdout,)
    return subprocess.run([sys.executable, "-c", RUN.format(stdout, more), *command], pass_fds=fds).returncode


@pytest.mark.parametrize(
    ("script", "code"), [("exit 0", 0), ("exit 3", 3), ("kill -TERM $$", 143), ("kill -9 $$", 137)]
)
def test_the_exit_is_the_commands(script: str, code: int) -> None:
    assert run("sh", "-c", script) == code


@pytest.mark.slow
def test_processes_that_the_command_leaves_behind_are_asked_to_end_and_waited_for(tmp_path: Path) -> None:
    child = f"trap 'sleep 0.2; touch {tmp_path}/ended; exit' TERM; touch {tmp_path}/up; while :; do sleep 0.02; done"
    script = f'sh -c "{child}" & while ! test -e {tmp_path}/up; do sleep 0.02; done; exit 3'
    assert run("sh", "-c", script) == 3
    assert (tmp_path / "ended").exists()


@pytest.mark.slow
def test_signals_are_at_their_defaults_in_the_command() -> None:
    assert run("sh", "-c", "grep -q 'SigBlk:.0*$' /proc/self/status") == 0
    assert run("sh", "-c", "grep 'SigIgn:' /proc/self/status | grep -q '0000$'") == 0


@pytest.mark.slow
def test_output_may_go_elsewhere(tmp_path: Path) -> None:
    with open(tmp_path / "out", "w") as out:
        assert run("echo", "hi", stdout=out.fileno()) == 0
    assert (tmp_path / "out").read_text() == "hi\n"


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1])
def test_a_signal_sent_to_us_reaches_the_command(tmp_path: Path, number: signal.Signals) -> None:
    name = number.name.removeprefix("SIG")
    script = f"trap 'exit 9' {name}; touch {tmp_path}/up; while :; do sleep 0.02; done"
    ours = subprocess.Popen([sys.executable, "-c", RUN.format(None, ""), "sh", "-c", script])
    wait_until((tmp_path / "up").exists)
    ours.send_signal(number)
    assert ours.wait(60) == 9


@pytest.mark.slow
def test_command_that_may_not_be_signalled_is_waited_for() -> None:
    """As sudo(8): it runs as root, for another user."""
    python = python_for_others()
    with tempfile.TemporaryDirectory() as place:
        sudo = shutil.copy(program("setpriv"), place)
        os.chmod(place, 0o755)
        os.chmod(sudo, 0o4755)
        command = [sudo, "--reuid=0", "--clear-groups", "sh", "-c", "echo up; cat; exit 3"]
        with subprocess.Popen(
            [*AS_OTHER_USER.split(), python, "-c", RUN.format(None, ""), *command],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd="/",
        ) as ours:  # fmt: skip
            assert ours.stdout is not None
            assert ours.stdout.readline() == "up\n"
            ours.send_signal(signal.SIGTERM)
            assert ours.communicate("more\n", timeout=60) == ("more\n", "")
    assert ours.returncode == 3


@pytest.mark.parametrize(("unwanted", "code"), [(True, 143), (False, 0)])
def test_command_is_ended_with_its_pool_if_it_is_not_wanted_any_longer(
    tmp_path: Path, unwanted: bool, code: int
) -> None:
    script = f"touch {tmp_path}/up; while ! test -e {tmp_path}/go; do sleep 0.02; done"
    reads, writes = os.pipe()
    asked = f"unwanted=lambda: open({str(tmp_path / 'asked')!r}, 'w') and {unwanted}"
    more = f"pool_ended=lambda: asyncio.to_thread(os.read, {reads}, 1), {asked}"
    ours = subprocess.Popen(
        [sys.executable, "-c", RUN.format(None, more), "sh", "-c", script], pass_fds=[reads]
    )
    os.close(reads)
    wait_until((tmp_path / "up").exists)
    os.close(writes)
    wait_until((tmp_path / "asked").exists)
    if not unwanted:
        (tmp_path / "go").touch()
    assert ours.wait(60) == code


def test_a_program_that_the_system_refuses_is_126(tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    broken.write_text("no program")
    broken.chmod(0o755)
    with pytest.raises(Failure) as caught:
        asyncio.run(run_to_end(str(broken), [str(broken)], {}))
    assert caught.value.outcome.exit_code == 126
