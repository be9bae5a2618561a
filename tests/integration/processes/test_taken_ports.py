"""Ports that others have: who they are is said, and neither start nor stop waits for it."""

from __future__ import annotations

import contextlib
import os
import re
import shlex
import socket
import subprocess
import time
from typing import Any

from tests.configuration import server
from tests.real_pool import RealPool


def test_many_taken_ports_are_explained_and_stopped_as_quickly_as_one(pool: RealPool) -> None:
    pool.write_hello()
    with contextlib.ExitStack() as stack:
        listeners = [stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(60)]
        ports = [each.getsockname()[1] for each in listeners]
        pool.write(
            "pool.toml",
            "".join(server(f"s{port}", bind=f"127.0.0.1:{port}", app="hello:app") for port in ports),
        )
        done = pool.run("start", "-o", "json")
        assert done.code == 1
        said = {each["message"] for each in done.json["errors"]}
        assert {each.split(" is in use by ")[0] for each in said} == {f"port {port}" for port in ports}
        assert all(each.endswith(f"(pid {os.getpid()})") for each in said)
        began = time.monotonic()
        pool.ok("stop", f"s{ports[0]}")
        pool.ok("stop")
        assert time.monotonic() - began < 60


def test_metrics_dashboard_and_operator_on_taken_ports_are_reported_by_start_reload_and_doctor(
    pool: RealPool,
) -> None:
    pool.write_hello()
    text = (pool.directory / "pool.toml").read_text()
    with contextlib.ExitStack() as stack:
        listeners = [stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(3)]
        metrics, page, operator = (each.getsockname()[1] for each in listeners)
        beside = f'[metrics]\nbind = "127.0.0.1:{metrics}"\n[dashboard]\nbind = "127.0.0.1:{page}"\n'
        beside += f'[operator]\nbind = "127.0.0.1:{operator}"\ntrusted = ["127.0.0.1"]\n'
        pool.write("pool.toml", text + beside)
        started, doctor = pool.ok("start"), pool.run("doctor")
        assert doctor.code == 1
        for table, port in (("[metrics]", metrics), ("[dashboard]", page), ("[operator]", operator)):
            assert f"warning: {table}: " in started.stderr
            for done in (started, doctor):
                assert table in done.stdout + done.stderr
                assert f"port {port} is in use by" in done.stdout + done.stderr, str(done)
        for content in (text, text + beside):
            pool.write("pool.toml", content)
            reloaded = pool.ok("reload")
        for table, port in (("metrics", metrics), ("dashboard", page), ("operator", operator)):
            assert re.search(
                rf"^warning: \[{table}\]: .*port {port} is in use", reloaded.stderr, re.MULTILINE
            ), reloaded
    pool.write("pool.toml", text)
    assert pool.ok("reload").stderr == ""
    assert pool.ok("start").stderr == ""


def test_a_port_of_another_pool_is_given_back_by_stopping_that_pool(pool: RealPool) -> None:
    pool.write_hello("web")
    text = (pool.directory / "pool.toml").read_text()
    other = pool.write("other.toml", text.replace('name = "web"', 'name = "copy"'))
    pool.ok("start")
    for command in ("doctor", "start"):
        done = pool.run("-c", str(other), command)
        said = done.stdout + done.stderr
        assert done.code == 1, str(done)
        assert f"port {pool.ports['web']} is in use by the pool of {pool.directory}/pool.toml" in said
        assert f"poolctl -c {pool.directory}/pool.toml stop" in said
        assert "kill" not in said
    pool.ok("-c", str(other), "stop")


def test_pool_of_the_same_file_in_another_runtime_directory_is_stopped_by_the_command_of_the_hint(
    pool: RealPool,
) -> None:
    pool.write_hello("web")
    elsewhere = pool.runtime / "elsewhere"
    pool.ok("start", env={"POOLCTL_RUNTIME_DIR": str(elsewhere)})
    assert any(str(elsewhere) in line for line in pool.processes().values())
    done = pool.run("start")
    assert done.code == 1, done
    (hint,) = re.findall(r"stop it: (.*), or choose", done.stderr)
    assert hint.startswith(f"POOLCTL_RUNTIME_DIR={elsewhere} poolctl ")
    hint = hint.replace("poolctl -c", f"{shlex.join(pool.command())} -c", 1)
    subprocess.run(hint, shell=True, check=True, env=pool.env, capture_output=True, timeout=60)
    assert not any(str(elsewhere) in line for line in pool.processes().values())
    pool.ok("restart")


def test_a_port_that_another_server_of_the_pool_has_opened_by_itself_is_said_to_be_its(
    pool: RealPool, free_port: Any
) -> None:
    port = free_port()
    pool.write_hello("web")
    opens = f"import socket\nsock = socket.create_server(('127.0.0.1', {port}))\nfrom hello import app\n"
    pool.write("opens.py", opens)
    pool.replace("hello:app", "opens:app")
    pool.append(server("late", bind=f"127.0.0.1:{port}", app="hello:app", depends_on=["web"]))
    done = pool.run("start")
    assert done.code == 1, str(done)
    (pid,) = pool.items()["web"]["pids"]
    assert f"port {port} is in use by web (pid {pid})" in done.stderr
