from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

from poolctl.cli.commands.walk import ParallelWalk, placeholder_values
from poolctl.keeper.left_children import shell_status
from tests.deadline import wait_until
from tests.stand_in import server

from .conftest import Command


@pytest.mark.parametrize(
    ("bind", "host", "port"),
    [
        ("127.0.0.1:8081", "127.0.0.1", "8081"),
        ("[::1]:80", "::1", "80"),
        ("unix:/run/a.sock", "", ""),
        ("job:migrate", "", ""),
        ("127.0.0.1:auto", "127.0.0.1", ""),
        ("nonsense", "", ""),
    ],
)
def test_walk_passes_host_and_port(bind: str, host: str, port: str) -> None:
    passed = placeholder_values(server("web", bind=bind))
    assert (passed["host"], passed["port"]) == (host, port)


@pytest.mark.slow
def test_processes_that_a_command_leaves_behind_are_asked_to_end_and_waited_for(tmp_path: Path) -> None:
    # Two at once: the first to end must not take along what the other one has started.
    child = "trap 'sleep 0.2; touch {name}.ended; exit' TERM; touch {name}.up; while :; do sleep 0.02; done"
    script = (
        f'sh -c "{child}" & while ! test -e {{name}}.up; do sleep 0.02; done; '
        "test {name} = a || while ! test -e a.ended; do sleep 0.02; done; test ! -e b.ended && echo {name}"
    )
    command = ["sh", "-c", f"cd {tmp_path}; {script}"]
    walk = ParallelWalk(command, jobs=2, fail_fast=False, keep=True)
    runs = list(walk.run_concurrently([server("a"), server("b")]))
    assert [(run.name, run.exit_code, run.stdout) for run in runs] == [("a", 0, "a\n"), ("b", 0, "b\n")]
    assert sorted(path.name for path in tmp_path.glob("*.ended")) == ["a.ended", "b.ended"]


def test_without_a_command_each_server_is_a_line(poolctl: Command) -> None:
    assert poolctl("walk").out == "users\t127.0.0.1:8081\tstopped\norders\t127.0.0.1:8082\tdisabled\n"
    assert poolctl("walk", "--").out == poolctl("walk").out
    assert [i["name"] for i in poolctl("walk", "-o", "json").json["items"]] == ["users", "orders"]


def test_all_are_visited_and_failures_listed_at_the_end(poolctl: Command) -> None:
    said = poolctl("walk", "--jobs", "4", "--", "sh", "-c", "echo to-$POOLCTL_NAME; echo no >&2; exit 3")
    assert said.code == 1
    assert sorted(said.out.splitlines()) == ["orders | to-orders", "users  | to-users"]
    assert sorted(said.err.splitlines()[:2]) == ["orders | no", "users  | no"]
    assert said.err.splitlines()[2:] == [
        "error: users: the command exited with 3: no",
        "error: orders: the command exited with 3: no",
    ]


def test_json_of_walk_holds_each_output(poolctl: Command) -> None:
    said = poolctl("walk", "users", "-o", "json", "--", "sh", "-c", r"printf 'a\377'; echo b >&2")
    (visit,) = said.json["items"]
    assert (visit["exit_code"], visit["stdout"], visit["stderr"]) == (0, "a\\xff", "b\n")
    lines = poolctl("walk", "-o", "jsonl", "--", "echo", "{name}").out.splitlines()
    assert [json.loads(line)["stdout"] for line in lines] == ["users\n", "orders\n"]


@pytest.mark.slow
@pytest.mark.parametrize("form", ["table", "json"])
def test_interrupt_of_walk_ends_running_commands(directory: Path, form: str) -> None:
    script = "trap '' INT; echo $$ > pid; exec sleep 60"
    walking = subprocess.Popen(
        [sys.executable, "-m", "poolctl", "walk", "-o", form, "--", "sh", "-c", script],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    pid: Any = wait_until(lambda: (directory / "pid").exists() and (directory / "pid").read_text().strip())
    walking.send_signal(signal.SIGINT)
    out, err = walking.communicate(timeout=60)
    assert walking.returncode == 130
    assert err == "" if form == "table" else "Traceback" not in err
    if form == "json":
        assert json.loads(out)["errors"][0]["error"] == "ErrorInterrupted"
    with pytest.raises(ProcessLookupError):
        os.kill(int(pid), 0)


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_walk_that_is_terminated_ends_running_commands_first(directory: Path, number: signal.Signals) -> None:
    script = "trap 'echo asked > asked; exit 0' TERM; echo $$ > pid; while :; do sleep 0.1; done"
    argv = [sys.executable, "-m", "poolctl", "walk", "--", "sh", "-c", script]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as walking:
        pid: Any = wait_until(
            lambda: (directory / "pid").exists() and (directory / "pid").read_text().strip()
        )
        walking.send_signal(number)
        assert walking.communicate(timeout=60)[1] == ""
    assert walking.returncode == -number
    assert (directory / "asked").exists()
    with pytest.raises(ProcessLookupError):
        os.kill(int(pid), 0)


@pytest.mark.parametrize(
    ("command", "code", "message"),
    [("no-such-command", 127, "No such file or directory"),
     ("./plain", 126, "it is not executable; chmod +x {directory}/plain"), ("a\0b", 127, "embedded null byte")],
)  # fmt: skip
def test_reason_why_a_command_cannot_run_is_its_output(
    poolctl: Command, directory: Path, command: str, code: int, message: str
) -> None:
    (directory / "plain").touch()
    message = message.format(directory=directory)
    said = poolctl("walk", "users", "-o", "json", "--", command)
    (run,) = said.json["items"]
    assert (run["exit_code"], run["stdout"], run["stderr"]) == (code, "", f"{command}: {message}\n")
    (failed,) = said.json["errors"]
    assert (failed["name"], failed["bind"], failed["code"]) == ("users", "127.0.0.1:8081", 1)
    assert failed["message"] == f"the command exited with {code}: {command}: {message}"


def test_output_without_a_final_newline_gets_one_and_none_stays_none(poolctl: Command) -> None:
    assert poolctl("walk", "users", "--", "printf", "a").out == "users | a\n"
    assert poolctl("walk", "users", "--", "printf", "a\n").out == "users | a\n"
    assert poolctl("walk", "users", "--", "true") == (0, "", "")
    assert poolctl("walk", "users", "--", "false").err == "error: users: the command exited with 1\n"


def test_as_many_commands_as_jobs_run_at_a_time(poolctl: Command, directory: Path) -> None:
    meet = "touch $POOLCTL_NAME; for i in $(seq 500); do [ -e users -a -e orders ] && exit 0; sleep 0.02; done; exit 1"
    assert poolctl("walk", "-q", "--jobs", "2", "--", "sh", "-c", meet).code == 0
    alone = "[ $(ls *.run 2>/dev/null | wc -l) = 0 ] || exit 1; touch $POOLCTL_NAME.run; rm $POOLCTL_NAME.run"
    assert poolctl("walk", "-q", "--jobs", "1", "--", "sh", "-c", alone).code == 0


@pytest.mark.parametrize(
    ("jobs", "code"), [("1", 0), ("1000", 0), *((jobs, 2) for jobs in ("1001", "0", "-1", "many", "²"))]
)
def test_jobs_are_from_1_to_1000(poolctl: Command, jobs: str, code: int) -> None:
    said = poolctl("walk", "users", "-q", "--jobs", jobs, "--", "true")
    assert said.code == code
    assert code == 0 or said.err.startswith("error: --jobs: ")


def test_several_targets_without_a_match_may_have_been_the_command(poolctl: Command) -> None:
    hint = "; the command goes after --: poolctl walk [SELECTOR] -- CMD…"
    assert hint in poolctl("walk", "echo", "hello").err
    assert hint not in poolctl("walk", "hello").err
    assert hint not in poolctl("walk", "echo", "hello", "--", "true").err


@pytest.mark.parametrize(("ignores", "code"), [(False, 143), pytest.param(True, 137, marks=pytest.mark.slow)])
def test_commands_that_run_are_terminated_and_killed_if_they_go_on(
    directory: Path, ignores: bool, code: int
) -> None:
    script = f"{'trap : TERM;' if ignores else ''} touch up; while :; do sleep 0.02; done"
    command = ["sh", "-c", script]
    walk = ParallelWalk(command, jobs=1, fail_fast=False, keep=False)
    children: list[subprocess.Popen[bytes]] = []

    def end() -> None:
        wait_until(lambda: walk.children and (directory / "up").exists())
        children.extend(walk.children)
        os.kill(os.getpid(), signal.SIGUSR1)

    def interrupt(number: int, frame: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGUSR1, interrupt)
    thread = threading.Thread(target=end)
    thread.start()
    with pytest.raises(KeyboardInterrupt):
        list(walk.run_concurrently([server("web")]))
    thread.join(60)
    signal.signal(signal.SIGUSR1, before)
    assert [shell_status(child.returncode) for child in children] == [code]
