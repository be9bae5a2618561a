"""Contract §4 and §5: start, stop, restart, status and wait on real servers."""

from __future__ import annotations

import os
import signal
import socket
import sys
from typing import Any

import pytest

from tests.configuration import app_table
from tests.http_get import refused
from tests.real_pool import RealPool


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
