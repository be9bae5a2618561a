"""Contract §4 and §5: start, stop, restart, status and wait on real servers."""

from __future__ import annotations

import os
import signal
import socket
import sys
from typing import Any

import pytest

from tests.configuration import app_table
from tests.http_get import asked_all_the_time, refused
from tests.real_pool import RealPool

SLOW = """
import asyncio, pathlib
async def app(scope, receive, send):
    if scope["type"] == "lifespan":
        await receive()
        while not pathlib.Path("go").exists():
            await asyncio.sleep(0.02)
        await send({"type": "lifespan.startup.complete"})
        await receive()
        await send({"type": "lifespan.shutdown.complete"})
        return
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b"slow"})
"""


@pytest.mark.slow
def test_start_returns_when_every_server_has_answered(real_pool: RealPool, http_get: Any) -> None:
    ports = real_pool.write_hello("a", "b", "c")
    real_pool.ok("start")
    for port in ports.values():
        assert http_get(port).text == f"hello from {port}"
    for item in real_pool.items().values():
        assert (item["state"], item["ready"], item["workers"]) == ("running", True, 1)
        assert len(item["pids"]) == 1
        assert item["uptime_seconds"] >= 0
        assert item["restarts"] == 0
    assert real_pool.ok("status", "-o", "json").json["summary"]


def test_start_and_stop_are_idempotent_and_what_is_stopped_refuses_and_leaves_no_process(
    real_pool: RealPool,
) -> None:
    ports = real_pool.write_hello("a", "b")
    real_pool.ok("start")
    before = real_pool.items()
    real_pool.ok("start")
    assert {n: i["pids"] for n, i in real_pool.items().items()} == {n: i["pids"] for n, i in before.items()}
    real_pool.ok("stop", "a")
    real_pool.ok("stop", "a")
    assert real_pool.items()["a"]["state"] == "stopped"
    assert refused(ports["a"])
    assert not refused(ports["b"])
    real_pool.ok("stop")
    assert refused(ports["b"])
    assert real_pool.processes() == {}
    done = real_pool.ok("stop")
    assert "nothing is running" in done.stderr + done.stdout


def test_no_server_is_running_before_it_has_answered(real_pool: RealPool, until: Any) -> None:
    port = real_pool.write_hello()["web"]
    real_pool.write("slow.py", SLOW)
    real_pool.write("pool.toml", app_table("web", port, 'start_timeout = "2m"', "slow:app"))
    real_pool.ok("start", "--no-wait")
    until(lambda: real_pool.items()["web"]["state"] == "starting")
    item = real_pool.items()["web"]
    assert not item["ready"]
    assert real_pool.run("status").code == 3
    assert real_pool.run("wait", "--timeout", "0.3").code == 124
    (real_pool.directory / "go").touch()
    real_pool.ok("wait", "--for", "ready", "--timeout", "40")
    assert real_pool.items()["web"]["ready"]
    real_pool.ok("status")


@pytest.mark.slow
def test_the_commands_own_timeout_is_124(real_pool: RealPool) -> None:
    port = real_pool.write_hello()["web"]
    real_pool.write("slow.py", SLOW)
    real_pool.write("pool.toml", app_table("web", port, 'start_timeout = "2m"', "slow:app"))
    for seconds in ("0.5", "5", "20"):  # long enough for the supervisor of a busy machine
        done = real_pool.run("start", "--timeout", seconds)
        assert done.code == 124, str(done)
        if "web" in done.stderr:
            break
    assert "web" in done.stderr


def test_server_whose_second_attempt_succeeds_in_time_has_started(real_pool: RealPool, until: Any) -> None:
    script = "mkdir once && exit 3; echo up; exec sleep 600"
    flaky = f'[[server]]\nname = "flaky"\ncommand = ["sh", "-c", "{script}"]\nready_line = "^up$"\n'
    probe = 'health.readiness = { exec = ["test", "-e", "go"], interval = "50ms" }\n'
    real_pool.write("pool.toml", f'{flaky}[[server]]\nname = "slow"\ncommand = ["sleep", "600"]\n{probe}')
    starting = real_pool.spawn("start")
    until(lambda: real_pool.items()["flaky"]["ready"])
    (real_pool.directory / "go").touch()
    _, stderr = starting.communicate(timeout=60)
    assert starting.returncode == 0, stderr
    assert "warning: flaky: exited with status 3 before it was ready; another attempt succeeded" in stderr
    real_pool.ok("status")


@pytest.mark.slow
def test_every_failure_is_listed_and_the_others_run(
    real_pool: RealPool, free_port: Any, http_get: Any, until: Any
) -> None:
    good, bad, worse, taken = (free_port() for _ in range(4))
    real_pool.write_hello()
    real_pool.write("bad.py", "import sys\nprint('about to give up', flush=True)\nsys.exit(3)\n")
    real_pool.write("worse.py", "raise RuntimeError('no database')\n")
    once = 'restart = "no"'
    real_pool.write(
        "pool.toml",
        app_table("good", good) + app_table("taken", taken, once)
        + app_table("bad", bad, once, "bad:app") + app_table("worse", worse, once, "worse:app"),
    )  # fmt: skip
    with socket.create_server(("127.0.0.1", taken)):
        done = real_pool.run("start", "-o", "json")
    assert done.code == 1, str(done)
    errors = {error["name"]: error for error in done.json["errors"]}
    assert errors.keys() == {"bad", "worse", "taken"}
    assert {error["code"] for error in errors.values()} == {1323}
    assert "status 3" in errors["bad"]["message"]
    assert "about to give up" in str(errors["bad"])
    assert "no database" in str(errors["worse"])
    assert str(taken) in errors["taken"]["message"]
    assert str(os.getpid()) in str(errors["taken"]), "it says which process holds the port"
    assert all(error["hint"] for error in errors.values())
    assert http_get(good).status == 200
    assert {item["name"]: item["state"] for item in done.json["items"]} | {"good": "running"} == {
        "good": "running", "bad": "failed", "worse": "failed", "taken": "failed",
    }  # fmt: skip
    until(lambda: refused(bad) and refused(worse))
    assert real_pool.run("status").code == 3
    assert "about to give up" in real_pool.ok("logs", "bad").stdout


@pytest.mark.slow
def test_taken_port_is_not_explained_by_output_of_earlier_workers(real_pool: RealPool) -> None:
    port = real_pool.write_hello(extra='restart = "no"')["web"]
    real_pool.append("\nprint('printed by the one before', flush=True)\n", file="hello.py")
    real_pool.ok("start")
    real_pool.ok("stop", "web")
    with socket.create_server(("127.0.0.1", port)):
        done = real_pool.run("start", "-o", "json")
    assert done.code == 1
    assert f"port {port} is in use" in done.json["errors"][0]["message"]
    assert "printed by" not in str(done.json["errors"])


@pytest.mark.slow
def test_program_that_binds_the_pools_address_gets_a_hint(real_pool: RealPool, free_port: Any) -> None:
    script = "import os, socket\nsocket.create_server((os.environ['HOST'], int(os.environ['PORT'])))\n"
    real_pool.write("binds.py", script)
    real_pool.write(
        "pool.toml",
        f'[[server]]\nname = "web"\nbind = "127.0.0.1:{free_port()}"\nrestart = "no"\n'
        f'command = ["{sys.executable}", "binds.py"]\nsocket = "pool"\n',
    )
    done = real_pool.run("start")
    assert done.code == 1
    assert 'write socket = "program" to let it open its own' in done.stderr


@pytest.mark.slow
def test_error_is_reported_once(real_pool: RealPool) -> None:
    real_pool.write_hello(extra='restart = "no"')
    real_pool.write("hello.py", "application = None\n")
    done = real_pool.run("start")
    assert done.code == 1
    assert done.stderr.count("has no attribute 'app'") == 1


def test_a_restart_replaces_the_process_and_refuses_nothing(real_pool: RealPool) -> None:
    ports = real_pool.write_hello("a", "b")
    real_pool.ok("start")
    before = real_pool.items()
    with asked_all_the_time(ports["a"]) as answers:
        real_pool.ok("restart", "a")
    assert {*answers} == {f"hello from {ports['a']}"}
    after = real_pool.items()
    assert after["a"]["pids"] != before["a"]["pids"]
    assert after["b"]["pids"] == before["b"]["pids"]
    assert after["a"]["ready"]


@pytest.mark.slow
def test_if_a_replacement_fails_the_old_process_stays(real_pool: RealPool, http_get: Any) -> None:
    port = real_pool.write_hello(extra="workers = 2")["web"]
    real_pool.ok("start")
    pids = real_pool.items()["web"]["pids"]
    app = (real_pool.directory / "hello.py").read_text()
    real_pool.write("hello.py", "raise RuntimeError('broken release')\n")
    for _ in range(2):
        done = real_pool.run("restart", "-o", "json")
        assert done.code == 1, str(done)
        (error,) = done.json["errors"]
        assert (error["code"], error["error"]) == (1325, "ErrorPoolRestart")
        assert "broken release" in str(error)
        assert real_pool.items()["web"]["pids"] == pids
        assert real_pool.items()["web"]["ready"]
        assert http_get(port).status == 200
    real_pool.write("hello.py", f"{app}# mended\n")
    real_pool.ok("restart")
    assert not {*real_pool.items()["web"]["pids"]} & {*pids}


@pytest.mark.slow
def test_restart_starts_stopped_servers_with_and_without_a_supervisor(real_pool: RealPool) -> None:
    real_pool.write_hello("a", "b")
    real_pool.ok("restart")
    assert {item["state"] for item in real_pool.items().values()} == {"running"}
    real_pool.ok("stop", "a")
    real_pool.ok("restart", "a")
    assert real_pool.items()["a"]["ready"]


@pytest.mark.slow
def test_restart_of_a_stopped_server_treats_dependencies_as_start_does(
    real_pool: RealPool, free_port: Any
) -> None:
    db, web, off = free_port(), free_port(), free_port()
    real_pool.write_hello()
    real_pool.write(
        "pool.toml",
        app_table("web", web, extra='depends_on = ["db"]')
        + app_table("db", db)
        + app_table("off", off, extra="disabled = true"),
    )
    real_pool.ok("start")
    assert real_pool.ok("stop", "web", "db", "off").stdout == "2 servers stopped: web, db\n"
    assert real_pool.ok("stop", "web", "off").stdout == "nothing was running\n"
    assert "`poolctl start web` starts it" in real_pool.ok("enable", "web").stdout
    real_pool.ok("restart", "web", "--no-deps")
    assert real_pool.items()["db"]["state"] == "stopped"
    real_pool.ok("stop", "web")
    real_pool.ok("restart", "web")
    assert real_pool.items()["db"]["state"] == "running"
    real_pool.ok("disable", "db")
    waiting = real_pool.run("restart", "web")
    assert (waiting.code, "waits for db, which is disabled" in waiting.stderr) == (1, True), str(waiting)


@pytest.mark.slow
def test_server_stopped_on_purpose_is_no_reason_for_status_3(real_pool: RealPool) -> None:
    assert real_pool.run("status").code == 5, "no file, no pool"
    ports = real_pool.write_hello("a", "b")
    assert real_pool.run("status").code == 3
    real_pool.write(
        "pool.toml", app_table("a", ports["a"]) + app_table("b", ports["b"], extra="disabled = true")
    )
    real_pool.ok("start")
    assert real_pool.items()["b"]["state"] == "disabled"
    assert refused(ports["b"])
    real_pool.ok("status")
    real_pool.ok("stop", "a")
    real_pool.ok("status")


SAVES = """
import pathlib, signal, sys, time
def end(number, frame):
    time.sleep(0.2)
    pathlib.Path("saved").touch()
    sys.exit(0)
signal.signal(signal.SIGTERM, end)
pathlib.Path("up").touch()
while True:
    signal.pause()
"""


@pytest.mark.slow
def test_what_a_command_around_a_pool_leaves_behind_hears_sigterm(real_pool: RealPool) -> None:
    real_pool.write("saves.py", SAVES)
    real_pool.write_hello("web")
    script = "python3 saves.py & while ! test -e up; do sleep 0.05; done"
    real_pool.ok("run", "--", "sh", "-c", script)
    saved = real_pool.directory / "saved"
    assert saved.exists()
    for path in (saved, real_pool.directory / "up"):
        path.unlink()
    real_pool.ok("walk", "--", "sh", "-c", script)
    assert saved.exists()


@pytest.mark.capability
def test_server_on_demand_is_started_by_its_name_or_for_another_one_and_stays_started(
    real_pool: RealPool, until: Any
) -> None:
    demand = "on_demand = true"
    names = ("web", "store", "debug")
    ports = real_pool.write_hello(*names)
    tables = [app_table("web", ports["web"], extra='depends_on = ["store"]')]
    tables += [
        app_table(name, ports[name], extra=f'{demand}\ntags = ["{name}"]') for name in ("store", "debug")
    ]
    real_pool.write("pool.toml", "".join(tables))
    assert "2 servers ready (1 on demand)" in real_pool.ok("start").stdout
    for selection in (["*"], ["--tag", "debug"], ["--name", "debug"], ["--not", "web"]):
        real_pool.ok("start", *selection)
        real_pool.ok("restart", *selection)
    assert refused(ports["debug"])
    items = real_pool.items()
    assert {name: item["state"] for name, item in items.items()} == {
        "web": "running", "store": "running", "debug": "stopped",
    }  # fmt: skip
    assert [items[name].get("on_demand") for name in names] == [None, True, True]
    for command in ("status", "health"):
        real_pool.ok(command)
    assert real_pool.ok("wait").stdout == "2 servers ready\n"
    assert real_pool.run("wait", "debug", "--timeout", "10ms").code == 124

    real_pool.ok("start", "DEBUG")
    before = real_pool.items()
    supervisor = real_pool.info()["supervisor_pid"]
    os.kill(supervisor, signal.SIGKILL)
    until(lambda: real_pool.info()["supervisor_pid"] != supervisor)
    assert real_pool.items()["debug"]["pids"] == before["debug"]["pids"]
    real_pool.ok("stop", "debug")
    real_pool.ok("upgrade", "--allow-same-version")
    real_pool.ok("start")
    assert real_pool.items()["debug"]["state"] == "stopped"
    real_pool.ok("restart", f"127.0.0.1:{ports['debug']}")
    assert not refused(ports["debug"])


def test_pool_of_servers_on_demand_alone_runs_without_any(real_pool: RealPool) -> None:
    ports = real_pool.write_hello("debug", extra="on_demand = true")
    assert real_pool.ok("start").stdout == "0 servers ready (1 on demand)\n"
    real_pool.ok("status")
    real_pool.ok("start", "debug")
    assert not refused(ports["debug"])
    real_pool.ok("stop")
    done = real_pool.ok("run", "--", "sh", "-c", "echo $POOLCTL_PORT_DEBUG")
    assert done.stdout == f"{ports['debug']}\n"
