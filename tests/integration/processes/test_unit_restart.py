"""A restart of the pool's unit: the service manager keeps every socket, and no connection is refused."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import ExitStack
from typing import Any

import pytest

from tests.http_get import asked_all_the_time, get, refused
from tests.needs import needs
from tests.ports import claim_port
from tests.programs import program
from tests.real_pool import COMMAND_TIMEOUT_SECONDS, HELLO_APP, RealPool
from tests.service_manager import ServiceManager, service_manager

Until = Callable[..., object]


@pytest.fixture
def unit(pool: RealPool) -> Iterator[ServiceManager]:
    pool.write("hello.py", HELLO_APP)
    with service_manager([*pool.command(), "run"], pool.directory, pool.env, pool.runtime) as manager:
        yield manager


@needs("gateway")
def test_restart_of_the_unit_refuses_no_connection(
    pool: RealPool, unit: ServiceManager, until: Until
) -> None:
    program("haproxy")
    web, gateway = claim_port(), claim_port()
    pool.write(
        "pool.toml",
        f"""
        [gateway]
        bind = "127.0.0.1:{gateway}"
        [[route]]
        to = "tcp"
        [defaults]
        app = "hello:app"
        [[server]]
        name = "migrate"
        command = ["sleep", "1"]
        job = true
        [[server]]
        name = "tcp"
        bind = "127.0.0.1:{web}"
        hooks = {{ before_start = ["sleep", "1"] }}
        depends_on = [{{ name = "migrate", condition = "completed" }}]
        [[server]]
        name = "unix"
        bind = "unix:./web.sock"
        [[server]]
        name = "auto"
        bind = "127.0.0.1:auto"
        """,
    )
    unit.start()
    auto = int(pool.items()["auto"]["bind"].rpartition(":")[2])
    places: list[int | str] = [web, f"unix:{pool.directory}/web.sock", auto, gateway]
    with ExitStack() as stack:
        answers = [stack.enter_context(asked_all_the_time(place)) for place in places for _ in range(4)]

        def all_go_on() -> None:
            before = [len(each) for each in answers]
            until(lambda: all(len(each) > old + 12 for each, old in zip(answers, before, strict=True)))

        for _ in range(2):
            all_go_on()
            unit.restart()
            all_go_on()
    assert [each for some in answers for each in some if not each.startswith("hello from ")] == []
    assert int(pool.items()["auto"]["bind"].rpartition(":")[2]) == auto
    until(lambda: len(unit.store) == len(set(unit.names)) == 4)


@needs("gateway")
def test_unit_is_ready_once_the_gateway_serves(pool: RealPool, unit: ServiceManager) -> None:
    web, gateway = claim_port(), claim_port()
    may_serve, haproxy = pool.directory / "may-serve", pool.directory / "bin/haproxy"
    os.mkfifo(may_serve)
    haproxy.parent.mkdir()
    haproxy.write_text(
        f'#!/bin/sh\ncase $1 in -D) read x <{may_serve};; esac\nexec {program("haproxy")} "$@"\n'
    )
    haproxy.chmod(0o755)
    unit.env["PATH"] = f"{haproxy.parent}:{os.environ['PATH']}"
    pool.write(
        "pool.toml",
        SERVER.format("web", f"127.0.0.1:{web}")
        + f'[gateway]\nbind = "127.0.0.1:{gateway}"\n[[route]]\nto = "web"\n',
    )
    with ThreadPoolExecutor() as threads:
        started = threads.submit(unit.start)
        unit.await_line("STATUS=1 server ready")
        assert refused(gateway)
        assert "READY=1" not in unit.lines
        may_serve.write_text("yes\n")
        started.result()
    assert get(gateway).status == 200


SERVER = '[[server]]\nname = "{}"\nbind = "{}"\napp = "hello:app"\n'


def test_connection_made_while_the_unit_restarts_waits_for_the_next_run(
    pool: RealPool, unit: ServiceManager, until: Until
) -> None:
    port = claim_port()
    pool.write(
        "pool.toml", SERVER.format("tcp", f"127.0.0.1:{port}") + SERVER.format("unix", "unix:./a.sock")
    )
    unit.start()
    (key,) = pool.runtime.glob("**/listener-names.key")
    assert key.stat().st_mode & 0o777 == 0o600
    until(lambda: len(unit.names) == 2)
    assert all(re.fullmatch("poolctl-[0-9a-f]{32}", name) for name in unit.names)
    names = sorted(unit.names)
    assert unit.stop() == 0
    assert sorted(unit.names) == names
    places: list[int | str] = [port, f"unix:{pool.directory}/a.sock"]
    with ThreadPoolExecutor() as clients:
        answers = [clients.submit(get, place) for place in places]
        assert not wait(answers, timeout=0.2).done
        unit.start()
        assert [each.result().status for each in answers] == [200, 200]
    assert sorted(unit.names) == names
    assert unit.ignored == [], "everything was said by the main process"


def test_listener_leaves_the_store_with_its_server(
    pool: RealPool, unit: ServiceManager, until: Until
) -> None:
    ports = {name: claim_port() for name in ("a", "b", "c", "d", "e")}
    servers = {name: SERVER.format(name, f"127.0.0.1:{port}") for name, port in ports.items()}
    pool.write("pool.toml", "".join(servers.values()))
    unit.start()
    until(lambda: len(unit.names) == 5)
    pool.ok("stop", "a")
    pool.ok("disable", "b")
    pool.ok("remove", "c")
    until(lambda: len(unit.names) == 2)
    for name in "abc":
        assert refused(ports[name])
    pool.ok("start", "a")
    until(lambda: len(unit.names) == 3)
    assert unit.stop() == 0
    # A server that is not in the file any longer, and one that is not started by itself.
    pool.write("pool.toml", servers["a"] + servers["e"] + "on_demand = true\n")
    unit.start()
    until(lambda: len(unit.names) == 1)
    assert get(ports["a"]).status == 200
    for name in "de":
        assert refused(ports[name])
    pool.ok("stop")
    assert unit.wait() == 0
    until(lambda: unit.names == [])


def test_listener_that_comes_back_is_used_only_at_its_own_address(
    pool: RealPool, unit: ServiceManager, until: Until
) -> None:
    port, other = claim_port(), claim_port()
    pool.write(
        "pool.toml", SERVER.format("tcp", f"127.0.0.1:{port}") + SERVER.format("unix", "unix:./a.sock")
    )
    unit.start()
    until(lambda: len(unit.names) == 2)
    assert unit.stop() == 0
    (pool.directory / "a.sock").unlink()
    planted = [socket.create_server(("127.0.0.1", other)).detach(), socket.socket().detach(), *os.pipe()]
    names = [*unit.names, "poolctl-" + "0" * 32, "stored"]
    unit.store += zip(names, planted, strict=True)
    unit.start()
    until(lambda: len(unit.names) == 3)
    assert {name for name in unit.names if name != "stored"} == set(names[:2])
    assert get(port).status == get(f"unix:{pool.directory}/a.sock").status == 200
    until(lambda: refused(other))


def test_store_outlives_the_keeper_and_the_supervisor(
    pool: RealPool, unit: ServiceManager, until: Until
) -> None:
    ports = [claim_port(), claim_port()]
    pool.write("pool.toml", "".join(SERVER.format(f"s{port}", f"127.0.0.1:{port}") for port in ports))
    unit.start()
    for process in ("supervisor_pid", "keeper_pid"):
        before = pool.info()[process]
        os.kill(before, signal.SIGKILL)
        until(lambda process=process, before=before: pool.info()[process] != before)
        pool.ok("restart")
        # Only what changes is said: the line about the restarted servers may have come before.
        for command, line, stored in (("stop", "1 server ready", 1), ("start", "2 servers ready", 2)):
            unit.lines.clear()
            pool.ok(command, f"s{ports[0]}")
            unit.await_line(f"STATUS={line}")
            until(lambda stored=stored: len(unit.names) == stored)
    pool.ok("stop", f"s{ports[0]}")
    until(lambda: len(unit.names) == 1)
    unit.restart()
    assert [get(port).status for port in ports] == [200, 200]
    until(lambda: len(unit.names) == 2)


def test_sockets_of_socket_units_stay_with_them(pool: RealPool, unit: ServiceManager, until: Until) -> None:
    port, own = claim_port(), socket.create_server(("127.0.0.1", 0))
    unit.sockets = [("web", own)]
    pool.write("pool.toml", SERVER.format("given", "fd:3") + SERVER.format("tcp", f"127.0.0.1:{port}"))
    for _ in range(2):
        unit.start()
        until(lambda: len(unit.names) == 1)
        assert get(own.getsockname()[1]).status == get(port).status == 200
        assert unit.stop() == 0


@pytest.mark.slow
@needs("gateway")
def test_gateway_serves_once_it_is_known_which_servers_are_to_run(
    pool: RealPool, until: Callable[..., Any]
) -> None:
    program("haproxy")
    gateway = claim_port()
    pool.write("hello.py", HELLO_APP)
    pool.write(
        "pool.toml",
        f"""
        [gateway]
        bind = "127.0.0.1:{gateway}"
        [[route]]
        to = "web"
        [[server]]
        name = "web"
        bind = "127.0.0.1:{claim_port()}"
        app = "hello:app"
        """,
    )
    connect = [sys.executable, "-c", "import poolctl; poolctl.connect('pool.toml', start=True)"]
    subprocess.run(connect, cwd=pool.directory, env=pool.env, check=True, timeout=COMMAND_TIMEOUT_SECONDS)
    with ThreadPoolExecutor(1) as clients:
        answer = clients.submit(until, lambda: not refused(gateway) and get(gateway))
        wait([answer], timeout=1.5)
        assert not answer.done(), answer
        pool.ok("start")
        assert answer.result(60).status == 200
