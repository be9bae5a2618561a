"""Keeper and supervisor are both killed: what does not end by itself is ended by the next `start` or `stop`."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from typing import Any

import pytest

from tests import downloads
from tests.http_get import get, refused
from tests.integration.processes.test_deaths import helper
from tests.processes import children, command_line, freeze, is_alive
from tests.real_pool import RealPool

pytestmark = pytest.mark.slow


def kill_both(pool: RealPool, until: Any, first: str = "supervisor") -> None:
    """So that none of them can do anything about it: only the kernel continues a supervisor whose keeper ends."""
    info = pool.info()
    supervisor, keeper = info["supervisor_pid"], info["keeper_pid"]
    freeze(supervisor)
    freeze(keeper)
    for pid in (keeper, supervisor) if first == "keeper" else (supervisor, keeper):
        os.kill(pid, signal.SIGKILL)
    until(lambda: not is_alive(keeper) and not is_alive(supervisor))
    # Whatever the keeper may have started by then.
    until(lambda: not any(" supervisor " in line for line in pool.processes().values()))


@pytest.mark.capability
def test_a_worker_finishes_its_requests_and_the_next_start_does_not_wait_for_it(
    pool: RealPool, until: Any
) -> None:
    port = pool.write_hello()["web"]
    pool.write("hello.py", downloads.APP)
    pool.ok("start")
    before = pool.items()["web"]["pids"]
    download = downloads.Download(port)
    kill_both(pool, until)
    until(lambda: refused(port))
    assert pool.run("status").code == 3
    assert "left over: " in pool.run("status").stdout
    said = pool.ok("start").stderr
    assert "of a killed pool were left over: the logger, web; still finishing: the logger, web" in said
    assert pool.items()["web"]["pids"] != before
    assert get(port).status == 200
    assert is_alive(before[0])
    pool.write("may-end", "")
    download.join(60)
    assert download.is_complete, download.received
    until(lambda: not is_alive(before[0]))
    until(lambda: "the end of /download" in pool.ok("logs", "web").stdout)
    done = pool.ok("stop")
    assert "left over" not in done.stdout + done.stderr
    assert pool.processes() == {}


@pytest.mark.parametrize("first", ["keeper", "supervisor"])
def test_idle_workers_and_helpers_end_by_themselves(pool: RealPool, until: Any, first: str) -> None:
    port = pool.write_hello("web", "sleepy", extra='scale = { min = 0 }\ntls = "self-signed"')["web"]
    pool.replace('tls = "self-signed"', "")
    pool.ok("start", "web")
    kill_both(pool, until, first)
    until(lambda: not pool.processes())
    assert refused(port)
    assert pool.ok("stop").stdout == "nothing is running\n"
    assert list(pool.runtime.glob("*/processes")) == []


def test_stop_ends_programs_whatever_became_of_the_file(pool: RealPool, until: Any) -> None:
    pool.write(
        "pool.toml",
        '[[server]]\nname = "queue"\ncommand = ["sleep", "600"]\nworkers = 2\n'
        '[[server]]\nname = "other"\ncommand = ["sleep", "600"]\n',
    )
    pool.ok("start")
    items = pool.items()
    kill_both(pool, until)
    assert all(is_alive(pid) for item in items.values() for pid in item["pids"])
    assert "1 process of a killed pool was left over: other; ended" in pool.ok("stop", "other").stdout
    assert is_alive(items["queue"]["pids"][0])
    pool.write("pool.toml", "[[server]]\nname = ")
    assert "queue" in pool.ok("stop").stdout
    assert pool.processes() == {}
    assert list(pool.runtime.glob("*/control.sock")) == []
    assert list(pool.runtime.glob("@*")) == []


@pytest.mark.parametrize("command", ["start", "stop"])
def test_a_worker_whose_event_loop_is_blocked_is_killed(pool: RealPool, until: Any, command: str) -> None:
    port = pool.write_hello(extra='stop_timeout = "1s"')["web"]
    pool.write("hello.py", downloads.APP)
    pool.ok("start")
    (worker,) = pool.items()["web"]["pids"]
    with socket.create_connection(("127.0.0.1", port)) as client:
        client.sendall(b"GET /block HTTP/1.1\r\nHost: localhost\r\n\r\n")
        until((pool.directory / "blocked").exists)
        kill_both(pool, until)
        done = pool.ok(command)
    assert f"web: pid {worker} had to be killed" in done.stderr
    assert not is_alive(worker)
    if command == "start":
        assert get(port).status == 200
        pool.ok("stop")
    assert pool.processes() == {}


@pytest.mark.heavy
def test_frozen_processes_end_too(pool: RealPool, until: Any) -> None:
    port = pool.write_hello()["web"]
    pool.ok("start")
    (worker,) = pool.items()["web"]["pids"]
    frozen = [worker, *(helper(pool, kind) for kind in ("logs", "zygote"))]
    for pid in frozen:
        freeze(pid)
    kill_both(pool, until)
    pool.ok("start")
    until(lambda: not any(map(is_alive, frozen)))
    assert get(port).status == 200


# Starts two children, one of which has another environment, and says which.
LEADER = """
import subprocess, sys, time
marked = subprocess.Popen(["sleep", "601"])
unmarked = subprocess.Popen(["sleep", "602"], env={})
time.sleep(600)
"""


@pytest.mark.parametrize("command", ["start", "stop"])
def test_what_a_killed_leader_has_left_is_ended_if_it_is_surely_the_pools(
    pool: RealPool, until: Any, command: str
) -> None:
    pool.write("leader.py", LEADER)
    pool.write("pool.toml", f'[[server]]\nname = "group"\ncommand = ["{sys.executable}", "leader.py"]\n')
    pool.ok("start")
    (leader,) = pool.items()["group"]["pids"]

    def sleepers() -> dict[str, int]:
        return {command_line(pid): pid for pid in children(leader)}

    until(lambda: sleepers().keys() == {"sleep 601", "sleep 602"})
    marked, unmarked = sleepers()["sleep 601"], sleepers()["sleep 602"]
    freeze(pool.info()["supervisor_pid"])
    freeze(pool.info()["keeper_pid"])
    os.kill(leader, signal.SIGKILL)
    kill_frozen(pool, until)
    until(lambda: not os.path.exists(f"/proc/{leader}"))
    try:
        done = pool.ok(command)
        until(lambda: not is_alive(marked))
        assert is_alive(unmarked)
        assert f"group: pid {unmarked} may be left over from a killed pool, or another program" in done.stderr
        assert f"kill {unmarked}" in done.stderr
    finally:
        os.kill(unmarked, signal.SIGKILL)


def kill_frozen(pool: RealPool, until: Any) -> None:
    pids = [pid for pid, line in pool.processes().items() if " keeper " in line or " supervisor " in line]
    for pid in pids:
        os.kill(pid, signal.SIGKILL)
    until(lambda: not any(map(is_alive, pids)))


@pytest.mark.parametrize("change", ["boot", "start"])
def test_a_stranger_with_a_noted_pid_is_never_ended(pool: RealPool, until: Any, change: str) -> None:
    pool.write("pool.toml", '[[server]]\nname = "queue"\ncommand = ["sleep", "600"]\n')
    pool.ok("start")
    (program,) = pool.items()["queue"]["pids"]
    kill_both(pool, until)
    until(lambda: len(pool.processes()) == 2, what=lambda: f"the program and the logger: {pool.processes()}")
    # As if the machine had booted since, or the pid had come round.
    (file,) = {path.resolve() for path in pool.runtime.glob("*/processes")}
    life, *notes = map(json.loads, file.read_text().splitlines())
    if change == "boot":
        life[0] = "another boot"
    else:
        notes = [[note[0], note[1] - 1, *note[2:]] for note in notes]
    file.write_text("".join(f"{json.dumps(line)}\n" for line in [life, *notes]))
    assert pool.ok("stop").stdout == "nothing is running\n"
    pool.ok("start")
    pool.ok("stop")
    assert is_alive(program)
    os.kill(program, signal.SIGKILL)


@pytest.mark.parametrize("also_the_keeper", [False, True])
def test_live_changes_are_in_force_under_the_next_supervisor(
    pool: RealPool, until: Any, free_port: Any, also_the_keeper: bool
) -> None:
    ports = pool.write_hello("many", "out", "quiet", "off", "gone", "worn")
    pool.ok("start")
    pool.ok("add", "extra", "--bind", f"127.0.0.1:{free_port()}", "--app", "hello:app")
    pool.ok("scale", "many", "2")
    pool.ok("drain", "out")
    pool.ok("stop", "quiet")
    pool.ok("disable", "off")
    pool.ok("remove", "gone")
    before = pool.items()
    if also_the_keeper:
        kill_both(pool, until)
        pool.ok("start", "many")
    else:
        pool.replace_supervisor()
    keys = ("state", "workers") if also_the_keeper else ("state", "workers", "pids", "restarts")

    def states(items: dict[str, Any]) -> dict[str, Any]:
        return {name: [item[key] for key in keys] for name, item in items.items()}

    until(lambda: states(pool.items()) == states(before), what=lambda: str(states(pool.items())))
    assert get(ports["out"]).headers.get("connection") == "close"
    plan = pool.run("reload", "--dry-run", "-o", "json").json["changes"]
    assert {(change["name"], change["change"]) for change in plan} == {
        (name, "override") for name in ("many", "out", "off", "gone", "extra")
    }
    pool.ok("reload")
    assert "extra" not in pool.items()
    assert pool.items()["quiet"]["state"] == "stopped"
    kill_both(pool, until)
    pool.ok("start", "many")
    assert pool.items()["quiet"]["state"] == "stopped"
    until(lambda: pool.items()["gone"]["ready"])


@pytest.mark.heavy
@pytest.mark.parametrize("order", [["stop"], ["stop", "a"]])
def test_server_stopped_meanwhile_is_not_started_by_a_command_about_another(
    pool: RealPool, until: Any, order: list[str]
) -> None:
    pool.write_hello("a", "b")
    pool.ok("start")
    pool.ok("scale", "a", "2")
    kill_both(pool, until)
    pool.ok(*order)
    pool.ok("start", "b")
    assert pool.items()["a"]["state"] == "stopped"
    assert pool.run("status").code == (3 if order == ["stop"] else 0)


@pytest.mark.heavy
def test_an_ordered_end_leaves_nothing_to_go_on_from(pool: RealPool, until: Any) -> None:
    pool.write_hello("a", "b")
    pool.ok("start")
    pool.ok("scale", "a", "2")
    pool.ok("stop")
    until(lambda: not pool.processes())
    pool.ok("start", "b")
    assert [pool.items()["a"][key] for key in ("state", "workers")] == ["stopped", 1]
    # By its keeper alone, whose supervisor does not answer.
    pool.ok("start", "a")
    pool.ok("scale", "a", "2")
    freeze(pool.info()["supervisor_pid"])
    os.kill(pool.info()["keeper_pid"], signal.SIGTERM)
    until(lambda: not pool.processes())
    pool.ok("start", "b")
    assert [pool.items()["a"][key] for key in ("state", "workers")] == ["stopped", 1]


@pytest.mark.heavy
def test_a_start_with_a_broken_file_forgets_nothing_of_what_was_ordered_live(
    pool: RealPool, until: Any
) -> None:
    pool.write_hello("off", "many")
    pool.ok("start")
    pool.ok("disable", "off")
    pool.ok("scale", "many", "2")
    kill_both(pool, until)
    file = pool.directory / "pool.toml"
    text = file.read_text()
    file.write_text("[[server]]\nname = ")
    assert pool.run("start").code == 5
    until(lambda: not any(" keeper " in line for line in pool.processes().values()))
    file.write_text(text)
    pool.ok("start")
    items = pool.items()
    assert items["off"]["state"] == "disabled"
    assert len(items["many"]["pids"]) == 2


def test_a_full_disk_hinders_no_start(pool: RealPool) -> None:
    pool.write_hello()
    pool.ok("start")
    (directory,) = {path.parent.resolve() for path in pool.runtime.glob("*/info.json")}
    pool.ok("stop")
    # A directory in the place of the file, which cannot be written then.
    (directory / "processes").mkdir(parents=True)
    pool.ok("start")
    assert "processes that outlive the pool will not be found" in (directory / "supervisor.log").read_text()
    pool.ok("restart")
    pool.ok("stop")
    subprocess.run(["rm", "-r", str(directory)], check=True)
