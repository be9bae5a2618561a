"""Keeper and supervisor are both killed: servers serve on, and the next command takes them over or ends them."""

from __future__ import annotations

import os
import signal
import socket
from pathlib import Path
from typing import Any

import pytest

from tests.http_get import get
from tests.integration.processes.test_deaths import CHATTY, asked_all_the_time, helper
from tests.processes import is_alive
from tests.real_pool import HELLO_APP, RealPool

pytestmark = pytest.mark.slow


def kill_both(pool: RealPool, until: Any, first: str = "keeper") -> None:
    """So that none of them can do anything about it."""
    info = pool.info()
    supervisor, keeper = info["supervisor_pid"], info["keeper_pid"]
    os.kill(supervisor, signal.SIGSTOP)
    for pid in (keeper, supervisor) if first == "keeper" else (supervisor, keeper):
        os.kill(pid, signal.SIGKILL)
    until(lambda: not is_alive(keeper) and not is_alive(supervisor))
    # Whatever the keeper may have started by then.
    until(lambda: not any(" supervisor " in line for line in pool.processes().values()))


@pytest.mark.capability
def test_the_next_start_takes_over_what_serves(pool: RealPool, until: Any) -> None:
    ports = pool.write_hello("a", "b", "c", extra="workers = 2")
    pool.ok("start", "a", "b")
    pool.ok("restart", "a")
    before = pool.items()
    with asked_all_the_time(ports["a"]) as failures, asked_all_the_time(ports["b"]) as others:
        kill_both(pool, until)
        for name in ("a", "b"):
            until(lambda name=name: set(pool.items()[name]["pids"]) == set(before[name]["pids"]))
        seen = pool.items()
        assert {name: item["state"] for name, item in seen.items()} == {
            "a": "running",
            "b": "running",
            "c": "stopped",
        }
        assert {name: item["restarts"] for name, item in seen.items()} == {"a": 1, "b": 0, "c": 0}
        assert pool.run("status").code == 3
        pool.ok("start")
        after = pool.items()
        assert {name: set(item["pids"]) for name, item in after.items() if name != "c"} == {
            name: set(item["pids"]) for name, item in before.items() if name != "c"
        }
        assert after["a"]["uptime_seconds"] > before["a"]["uptime_seconds"]
        assert after["a"]["restarts"] == 1
        assert after["c"]["ready"]
        pool.ok("restart", "a")
    assert failures == others == []
    os.kill(after["b"]["pids"][0], signal.SIGKILL)
    until(lambda: pool.items()["b"]["restarts"] == 1 and pool.items()["b"]["ready"])
    pool.ok("stop")
    assert pool.processes() == {}


@pytest.mark.parametrize("first", ["keeper", "supervisor"])
def test_stop_ends_what_serves_whatever_became_of_the_file(pool: RealPool, until: Any, first: str) -> None:
    port = pool.write_hello()["web"]
    pool.ok("start")
    kill_both(pool, until, first)
    assert get(port).status == 200
    pool.write("pool.toml", "[[server]]\nname = ")
    done = pool.ok("stop")
    assert "stopped" in done.stdout + done.stderr
    until(lambda: not pool.processes())
    with pytest.raises(ConnectionRefusedError):
        get(port)
    assert list(pool.runtime.glob("*/control.sock")) == []
    assert list(pool.runtime.glob("@*")) == []


BLOCKING = """
import pathlib, time

async def app(scope, receive, send):
    assert scope["type"] == "http"
    pathlib.Path("blocked").touch()
    time.sleep(600)
"""


def test_stop_kills_a_worker_whose_event_loop_is_blocked(pool: RealPool, until: Any) -> None:
    port = pool.write_hello()["web"]
    pool.write("hello.py", BLOCKING)
    pool.ok("start")
    with socket.create_connection(("127.0.0.1", port)) as client:
        client.sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
        until((pool.directory / "blocked").exists)
        (worker,) = pool.items()["web"]["pids"]
        kill_both(pool, until)
        until(lambda: pool.items()["web"]["pids"] == [worker])
        done = pool.ok("stop", "--timeout", "1s")
    assert "1 server stopped" in done.stdout + done.stderr
    assert f"pid {worker} had to be killed" in done.stdout + done.stderr
    assert not is_alive(worker)


def test_live_changes_are_in_force_after_a_takeover(pool: RealPool, until: Any, free_port: Any) -> None:
    pool.write_hello("many", "out", "quiet", "off", "gone", "worn")
    pool.ok("start")
    pool.ok("add", "extra", "--bind", f"127.0.0.1:{free_port()}", "--app", "hello:app")
    pool.ok("scale", "many", "2")
    pool.ok("drain", "out")
    pool.ok("stop", "quiet")
    pool.ok("disable", "off")
    pool.ok("remove", "gone")
    os.kill(pool.items()["worn"]["pids"][0], signal.SIGKILL)
    until(lambda: pool.items()["worn"]["restarts"] == 1 and pool.items()["worn"]["ready"])
    before = pool.items()
    kill_both(pool, until)
    pool.ok("start", "many")
    after = pool.items()
    same = ("state", "pids", "workers", "restarts")
    assert {name: [item[key] for key in same] for name, item in after.items()} == {
        name: [item[key] for key in same] for name, item in before.items()
    }
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
    assert pool.items()["gone"]["ready"]


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
    os.kill(pool.info()["supervisor_pid"], signal.SIGSTOP)
    os.kill(pool.info()["keeper_pid"], signal.SIGTERM)
    until(lambda: not pool.processes())
    pool.ok("start", "b")
    assert [pool.items()["a"][key] for key in ("state", "workers")] == ["stopped", 1]


def test_output_printed_meanwhile_is_kept_and_so_is_later_output(pool: RealPool, until: Any) -> None:
    port = pool.write_hello()["web"]
    pool.write("chatty.py", CHATTY)
    pool.write("pool.toml", (pool.directory / "pool.toml").read_text().replace("hello:app", "chatty:app"))
    pool.ok("start")
    kill_both(pool, until)

    def lines() -> list[str]:
        printed = pool.ok("logs", "web", "-n", "1000").stdout.splitlines()
        return [line.rpartition("/")[2] for line in printed if "/line-" in line]

    for number in range(10):
        assert get(port, f"/line-{number}").status == 200
    until(lambda: len(lines()) == 10)
    get(port, "/begun,")
    pool.ok("start")
    get(port, "/ended")
    for number in range(10, 20):
        assert get(port, f"/line-{number}").status == 200
    until(lambda: len(lines()) >= 20)
    assert lines() == [f"line-{number}" for number in range(20)]
    assert "/begun,/ended\n" in pool.ok("logs", "web", "--raw").stdout


@pytest.mark.heavy
def test_without_its_logger_too_it_serves_and_is_heard_again(pool: RealPool, until: Any) -> None:
    port = pool.write_hello()["web"]
    pool.write("chatty.py", CHATTY)
    pool.write("pool.toml", (pool.directory / "pool.toml").read_text().replace("hello:app", "chatty:app"))
    pool.ok("start")
    before = pool.items()["web"]["pids"]
    logger = helper(pool, "logs")
    os.kill(pool.info()["supervisor_pid"], signal.SIGSTOP)
    os.kill(logger, signal.SIGKILL)
    until(lambda: not is_alive(logger))
    kill_both(pool, until)
    until(lambda: get(port, "/unheard").status == 200)
    assert get(port, "/unheard").status == 200
    pool.ok("start")
    assert pool.items()["web"]["pids"] == before
    assert get(port, "/heard").status == 200
    until(lambda: "/heard" in pool.ok("logs", "web").stdout)


def test_a_logger_that_is_just_starting_has_the_programs_of_the_pool(pool: RealPool, until: Any) -> None:
    pool.write("pool.toml", '[[server]]\nname = "program"\ncommand = ["sleep", "600"]\n')
    pool.ok("start")
    before = [pid for pid, line in pool.processes().items() if line == "sleep 600"]
    os.kill(helper(pool, "logs"), signal.SIGKILL)
    (successor,) = until(
        lambda: [pid for pid, line in pool.processes().items() if " logs" in line and is_alive(pid)]
    )
    os.kill(successor, signal.SIGSTOP)
    kill_both(pool, until)
    os.kill(successor, signal.SIGCONT)
    until(lambda: [*pool.runtime.glob("*/l.*")])
    pool.ok("start")
    assert [pid for pid, line in pool.processes().items() if line == "sleep 600"] == before


def test_programs_are_taken_over_where_the_system_allows_it(
    pool: RealPool, until: Any, free_port: Any
) -> None:
    port = free_port()
    pool.write(
        "program.py",
        """
        import os, socket
        listener = socket.socket(fileno=3)
        while True:
            connection, _ = listener.accept()
            connection.recv(4096)
            body = str(os.getpid()).encode()
            connection.sendall(b"HTTP/1.1 200 OK\\r\\nContent-Length: %d\\r\\n\\r\\n%s" % (len(body), body))
            connection.close()
        """,
    )
    pool.write(
        "pool.toml",
        f'[[server]]\nname = "program"\nbind = "127.0.0.1:{port}"\ncommand = ["python3", "program.py"]\n'
        '[[server]]\nname = "without-port"\ncommand = ["sleep", "600"]\n'
        'health = { startup = { exec = ["true"] } }\n',
    )
    pool.ok("start")
    pool.ok("restart")  # they are not of the first generation
    before = pool.items()["program"]["pids"]
    queue = pool.items()["without-port"]["pids"]
    kill_both(pool, until)
    until(lambda: pool.items()["program"]["pids"] == before)
    assert get(port).text == str(before[0])
    if os.geteuid() != 0 and Path("/proc/sys/kernel/yama/ptrace_scope").exists():
        pytest.skip("this user may not take descriptors of other processes")
    pool.ok("start")
    assert pool.items()["program"]["pids"] == before
    assert pool.items()["without-port"]["pids"] == queue
    assert get(port).text == str(before[0])
    pool.ok("restart", "program")
    assert pool.items()["program"]["pids"] != before
    assert get(port).status == 200


@pytest.mark.heavy
def test_a_server_that_has_left_the_file_is_ended(pool: RealPool, until: Any) -> None:
    pool.write_hello("a", "b")
    pool.ok("start")
    (gone,) = pool.items()["b"]["pids"]
    kill_both(pool, until)
    text = (pool.directory / "pool.toml").read_text()
    pool.write("pool.toml", text[: text.rindex("[[server]]")])
    pool.ok("start")
    until(lambda: not is_alive(gone))
    assert list(pool.items()) == ["a"]


@pytest.mark.heavy
def test_a_server_whose_configuration_has_changed_is_replaced_and_no_other(
    pool: RealPool, until: Any
) -> None:
    ports = pool.write_hello("a", "b", extra='env = { WORD = "one" }')
    pool.write("hello.py", "import os\n" + HELLO_APP.replace('b"hello from "', 'os.environ["WORD"].encode()'))
    pool.ok("start")
    before = pool.items()
    kill_both(pool, until)
    text = (pool.directory / "pool.toml").read_text()
    pool.write("pool.toml", text.replace('"one"', '"two"', 1))
    with asked_all_the_time(ports["a"]) as failures:
        pool.ok("start")
    after = pool.items()
    assert failures == []
    assert (get(ports["a"]).text[:3], get(ports["b"]).text[:3]) == ("two", "one")
    assert after["b"]["pids"] == before["b"]["pids"]
    assert after["a"]["pids"] != before["a"]["pids"]
    assert pool.run("reload", "--dry-run").code == 0


SLOW = """
import time
from hello import app
time.sleep(2.5)
"""


@pytest.mark.heavy
def test_one_that_could_not_be_found_at_first_is_taken_over_later(pool: RealPool, until: Any) -> None:
    port = pool.write_hello()["web"]
    pool.write("slow.py", SLOW)
    pool.write("pool.toml", (pool.directory / "pool.toml").read_text().replace("hello:app", "slow:app"))
    pool.ok("start", "--no-wait")
    (worker,) = until(lambda: pool.items()["web"]["pids"])
    kill_both(pool, until)
    # It imports, and cannot say that it is there; but it has the address.
    pool.run("start", "--no-wait")
    # A supervisor gives way to another meanwhile: a command that is under way then ends with 8.
    until(lambda: pool.run("status").code == 0)
    assert pool.items()["web"]["pids"] == [worker]
    assert get(port).status == 200
    pool.ok("stop")
    until(lambda: not pool.processes())


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
