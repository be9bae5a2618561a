"""Pools whose processes may have few open files."""

from __future__ import annotations

import contextlib
import os
import resource
import signal
import socket
from collections.abc import Callable
from typing import Any

import pytest

from poolctl import PoolConfig
from poolctl.config import OPEN_FILES_OF_POOL, OPEN_FILES_RESERVE, open_files_per_pool_process
from tests.http_get import get
from tests.integration.processes.test_keeper_killed import whole_again
from tests.ports import claim_port
from tests.processes import descriptors, is_alive
from tests.real_pool import Done, RealPool

Until = Callable[..., Any]


def limited(pool: RealPool, limit: int, *args: str) -> Done:
    """What the command did with that limit, which is that of the keeper it starts as well."""
    real = pool.command()
    pool.warm, warm = False, pool.warm
    try:
        pool.command = lambda: ["bash", "-c", f'ulimit -n {limit}; exec "$@"', "-", *real]  # type: ignore[method-assign]
        return pool.run(*args)
    finally:
        del pool.command
        pool.warm = warm


def need(pool: RealPool) -> int:
    servers = PoolConfig.load(str(pool.directory / "pool.toml"))
    return open_files_per_pool_process((server, server.scale.min) for server in servers)  # type: ignore[misc]


@pytest.mark.heavy
def test_start_with_too_few_open_files_for_any_pool_says_how_many_this_one_needs(pool: RealPool) -> None:
    pool.write_hello("a", "b")
    for command in ("start", "run"):
        done = limited(pool, 32, command)
        assert done.code == 7
        assert done.stderr.startswith(
            f"error: the pool needs {need(pool)} open files, but may have only 32 here\n"
        )
        assert "ulimit -Hn" in done.stderr
    assert limited(pool, 32, "validate").code == 0
    assert limited(pool, need(pool), "start").stdout.startswith("2 servers ready\n")
    pool.ok("stop")
    pool.directory.joinpath("pool.toml").write_text("[[server]\n")
    done = limited(pool, 32, "start")
    assert f"the pool needs at least {OPEN_FILES_OF_POOL} open files" in done.stderr


def test_start_of_more_servers_than_the_limit_allows_is_refused_with_the_number(pool: RealPool) -> None:
    pool.write_hello(*(f"s{number}" for number in range(10)))
    done = limited(pool, 120, "start")
    assert done.code == 1
    assert f"10 servers need {need(pool)} open files, but this pool may have only 120" in done.stderr
    assert "ulimit -Hn" in done.stderr
    assert {item["state"] for item in pool.items().values()} == {"stopped"}
    # The limit ended with the keeper that had it.
    assert pool.ok("start").stdout.startswith("10 servers ready\n")


@pytest.mark.heavy
def test_more_workers_than_the_limit_allows_are_refused_and_change_nothing(pool: RealPool) -> None:
    pool.write_hello("a", "b")
    assert limited(pool, need(pool) + 8, "start").code == 0
    before = pool.items()
    for change in (
        ("scale", "a", "9"),
        ("add", "c", "--bind", f"127.0.0.1:{claim_port()}", "--app", "hello:app"),
    ):
        done = pool.run(*change)
        assert done.code == 1, done
        assert "open files" in done.stderr
        assert pool.items().keys() == before.keys()
        assert pool.items()["a"]["pids"] == before["a"]["pids"]


def test_pool_with_no_more_open_files_than_it_needs_does_everything(pool: RealPool, until: Until) -> None:
    names = [f"s{number}" for number in range(20)]
    pool.write_hello(*names)
    assert limited(pool, need(pool), "start").stdout.startswith("20 servers ready\n")
    assert pool.ok("restart").stdout.startswith("20 servers")
    keeper = pool.info()["keeper_pid"]
    os.kill(keeper, signal.SIGKILL)
    whole_again(pool, until, keeper)
    assert pool.ok("restart").stdout.startswith("20 servers")
    assert get(pool.ports["s19"]).status == 200
    supervisor = pool.info()["supervisor_pid"]
    pool.ok("stop")
    assert not is_alive(supervisor)


@pytest.mark.slow  # its clients alone need more descriptors than an ordinary user's 256
def test_half_requests_to_sleeping_servers_take_no_descriptors_from_others(pool: RealPool) -> None:
    pool.write_hello("web", "one", "two")
    path = pool.directory / "pool.toml"
    head, *sleepers = path.read_text().split("[[server]]\n")[1:]
    path.write_text(
        "".join(
            f"[[server]]\n{each}"
            for each in [
                head,
                *(f'{each}scale = {{ min = 0 }}\nhttp.head_timeout = "2s"\n' for each in sleepers),
            ]
        )
    )
    assert limited(pool, 160, "start").code == 0
    with contextlib.ExitStack() as clients:
        for number in range(300):
            client = clients.enter_context(
                socket.create_connection(("127.0.0.1", pool.ports["one"]), timeout=60)
            )
            client.sendall(b"GET / HT" if number % 2 else b"")
        assert pool.items()["web"]["ready"]
        assert get(pool.ports["two"]).status == 200
        assert get(pool.ports["one"]).status == 200
        pool.ok("restart", "web")
        pool.ok("stop")
    log = "".join(
        each.read_text() for each in pool.runtime.glob("*/supervisor.log")
    )  # an empty one is removed
    assert "open files" not in log


def test_commands_are_answered_by_a_supervisor_without_a_descriptor_left(pool: RealPool) -> None:
    pool.write_hello("a", "b")
    pool.ok("start")
    supervisor = pool.info()["supervisor_pid"]
    used = len(descriptors(supervisor))
    resource.prlimit(supervisor, resource.RLIMIT_NOFILE, (used, used + OPEN_FILES_RESERVE))
    assert pool.ok("list", "-o", "name").stdout == "a\nb\n"
    assert pool.ok("status").code == 0
    pool.ok("stop", "a")
    assert pool.items()["a"]["state"] == "stopped"
    pool.ok("stop")
    assert not is_alive(supervisor)
