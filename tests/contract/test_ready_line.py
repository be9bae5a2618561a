"""Contract §2: a program is ready when it has printed its `ready_line`."""

from __future__ import annotations

import os
import signal
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from poolctl import Pool, ServerConfig
from poolctl.runners.embedded_runner import ProcessRunner
from tests.deadline import wait_until
from tests.real_pool import RealPool
from tests.slow_expression import HOSTILE_TEXT, SLOW_EXPRESSION

# Prints what the test writes into a file of its worker, on the standard output or error.
PROGRAM = """
import os, sys
text = os.open("text-" + os.environ["POOLCTL_INDEX"], os.O_RDWR)
while True:
    os.write(int(sys.argv[1]), os.read(text, 65536))
"""


class Talker:
    """The programs of a directory: what is written to `say` is printed by the worker of that index."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        (directory / "talk.py").write_text(PROGRAM)
        self._files: dict[int, int] = {}

    def command(self, stream: int = 1) -> list[str]:
        return [sys.executable, "talk.py", str(stream)]

    def say(self, text: str, index: int = 0) -> None:
        os.write(self._files[index], text.encode())

    def listen(self, workers: int = 1) -> None:
        for index in range(workers):
            path = self._directory / f"text-{index}"
            os.mkfifo(path)
            self._files[index] = os.open(path, os.O_RDWR)

    def close(self) -> None:
        for file in self._files.values():
            os.close(file)


@pytest.fixture
def talker(tmp_path: Path, real_pool: RealPool) -> Any:
    talker = Talker(real_pool.directory)
    yield talker
    talker.close()


def write(pool: RealPool, command: list[str], keys: str, *, ready_line: str = "^ready to [a-z]+$") -> None:
    words = ", ".join(f"'{word}'" for word in command)
    pool.write(
        "pool.toml", f"[[server]]\nname = \"web\"\ncommand = [{words}]\nready_line = '{ready_line}'\n{keys}"
    )


def pids_of(pool: RealPool) -> list[int]:
    pids: list[int] = pool.items()["web"]["pids"]
    return pids


def runs(pool: RealPool) -> bool:
    """Whether a supervisor answers, and the program has a process."""
    return any(item["pids"] for item in pool.listed() or ())


def logged(pool: RealPool) -> str:
    return pool.run("logs", "web").stdout


def phases(pool: RealPool) -> list[str]:
    """Of the workers, in the order of their indexes."""
    workers = pool.ok("show", "web", "-o", "json").json["items"][0]["worker_list"]
    return [each["phase"] for each in sorted(workers, key=lambda each: str(each["id"]))]


def logger(pool: RealPool) -> int:
    (pid,) = [pid for pid, line in pool.processes().items() if " logs /" in line]
    return pid


@pytest.mark.capability
def test_program_is_ready_with_its_line_whoever_is_replaced_before_it_comes(
    real_pool: RealPool, talker: Talker, until: Any
) -> None:
    talker.listen()
    write(real_pool, talker.command(stream=2), 'start_timeout = "10m"\n')
    starting = real_pool.spawn("start")
    until(lambda: runs(real_pool))
    talker.say("loading\n")
    until(lambda: "loading" in logged(real_pool))
    os.kill(logger(real_pool), signal.SIGKILL)
    supervisor = real_pool.info()["supervisor_pid"]
    os.kill(supervisor, signal.SIGKILL)
    until(lambda: runs(real_pool) and real_pool.info()["supervisor_pid"] != supervisor)
    assert real_pool.items()["web"]["state"] == "starting"
    talker.say("ready to serve\n")
    until(lambda: real_pool.items()["web"]["ready"])
    starting.communicate(timeout=60)

    (before,) = pids_of(real_pool)
    restarting = real_pool.spawn("restart", "web")
    until(lambda: before not in pids_of(real_pool) and pids_of(real_pool))
    talker.say("loading again\n")
    until(lambda: "loading again" in logged(real_pool))
    assert real_pool.items()["web"]["state"] == "starting", "the line of the former process does not count"
    assert restarting.poll() is None
    talker.say("ready to serve\n")
    restarting.communicate(timeout=60)
    assert restarting.returncode == 0
    assert real_pool.items()["web"]["ready"]


def test_each_worker_prints_its_line_and_passes_its_probe(
    real_pool: RealPool, talker: Talker, until: Any
) -> None:
    talker.listen(workers=2)
    (real_pool.directory / "run").mkdir()
    keys = """
        bind = "unix:run/nobody.sock"
        workers = 2
        log = { path = "own.log", format = "json" }
        health.readiness = { exec = ["test", "-e", "well"], interval = "50ms" }
        """
    write(real_pool, talker.command(), keys)
    real_pool.ok("start", "--no-wait")
    until(lambda: len(pids_of(real_pool)) == 2)
    talker.say("ready to serve\n", 1)
    until(lambda: "ready to serve" in logged(real_pool))
    (real_pool.directory / "well").touch()
    until(lambda: phases(real_pool) == ["starting", "ready"])
    (real_pool.directory / "well").unlink()
    talker.say("\x1b[32mready to work\x1b[0m\r\n", 0)
    until(lambda: "ready to work" in logged(real_pool))
    assert phases(real_pool)[0] == "starting", "its probe does not pass"
    (real_pool.directory / "well").touch()
    real_pool.ok("start")
    assert phases(real_pool) == ["ready", "ready"]


def test_slow_expression_fails_the_start_with_its_reason(real_pool: RealPool) -> None:
    write(real_pool, ["sh", "-c", f"echo {HOSTILE_TEXT}; exec sleep 600"], "", ready_line=SLOW_EXPRESSION)
    done = real_pool.run("start")
    assert done.code == 1
    assert "ready_line: the regular expression takes more than 0.25 s" in done.stderr
    assert "avoid repeats within repeats" in done.stderr


def test_program_that_ends_before_its_line_has_failed_with_its_status(real_pool: RealPool) -> None:
    write(real_pool, ["sh", "-c", "echo not ready to serve; exit 3"], 'restart = "no"\n')
    done = real_pool.run("start")
    assert done.code == 1
    assert "exited with status 3 before it was ready" in done.stderr


def test_reload_tries_a_changed_expression_and_goes_back_from_a_wrong_one(real_pool: RealPool) -> None:
    command = ["sh", "-c", "echo ready to serve; exec sleep 600"]
    keys = 'start_timeout = "200ms"\nrestart = "no"\n'
    write(real_pool, command, keys, ready_line="^redy")
    done = real_pool.run("start")
    assert done.code == 1
    assert "no line that matches its ready_line: ^redy" in done.stderr
    assert 'PYTHONUNBUFFERED = "1"' in done.stderr
    write(real_pool, command, 'start_timeout = "60s"\nrestart = "no"\n')
    real_pool.ok("reload")
    assert real_pool.items()["web"]["ready"]
    write(real_pool, command, keys, ready_line="^steady")
    done = real_pool.run("reload")
    assert done.code == 1
    assert "ready_line: ^steady" in done.stderr
    assert real_pool.items()["web"]["ready"], "with its previous configuration"


def test_run_is_ready_with_the_line_that_it_prints(real_pool: RealPool, talker: Talker, until: Any) -> None:
    talker.listen()
    write(real_pool, talker.command(), "")
    running = real_pool.spawn("run")
    until(lambda: runs(real_pool))
    talker.say("ready to serve\n")
    until(lambda: real_pool.items()["web"]["ready"])
    running.send_signal(signal.SIGTERM)
    assert "ready to serve" in running.communicate(timeout=60)[0]
    assert running.returncode == 0


@pytest.mark.capability
def test_pool_of_a_program_waits_for_the_line_of_its_process(tmp_path: Path) -> None:
    talker = Talker(tmp_path)
    talker.listen()
    config = ServerConfig(name="web", command=talker.command(), cwd=str(tmp_path), ready_line="^ready")
    pool = Pool([config], runner=ProcessRunner(str(tmp_path / "logs")))
    log = tmp_path / "logs" / "web.log"
    with ThreadPoolExecutor() as executor:
        starting = executor.submit(pool.start_sync)
        talker.say("loading\n")
        wait_until(lambda: log.exists() and "loading" in log.read_text())
        assert not starting.done()
        talker.say("ready\n")
        starting.result(timeout=60)
    pool.stop_sync()
    talker.close()
