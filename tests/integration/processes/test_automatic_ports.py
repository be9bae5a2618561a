"""`bind = "127.0.0.1:auto"`: checkouts of one file run at the same time, and a port that was lost is replaced."""

from __future__ import annotations

import json
import shutil
import socket
from typing import Any

import pytest

from tests.http_get import get
from tests.real_pool import RealPool

FILE = """
[pool]
port_range = "{first}-{last}"
[[server]]
name = "a"
bind = "127.0.0.1:auto"
app = "hello:app"
[[server]]
name = "b"
bind = "127.0.0.1:auto"
app = "hello:app"
"""


def write(pool: RealPool, first: int, count: int) -> None:
    pool.write_hello()
    pool.write("pool.toml", FILE.format(first=first, last=first + count - 1))


@pytest.mark.heavy
def test_eight_checkouts_that_start_at_once_all_run(pool: RealPool, free_port: Any) -> None:
    write(pool, free_port(30), 30)
    checkouts = [pool.directory / f"checkout-{number}" for number in range(8)]
    for each in checkouts:
        each.mkdir()
        for name in ("pool.toml", "hello.py"):
            shutil.copy(pool.directory / name, each)
    starts = [pool.spawn("start", cwd=each) for each in checkouts]
    for start in starts:
        said = start.communicate(timeout=120)
        assert start.returncode == 0, said
    binds = [bind for each in checkouts for bind in pool.ok("list", "-o", "bind", cwd=each).stdout.split()]
    assert len(set(binds)) == 16
    assert {get(bind).status for bind in binds} == {200}


def test_port_that_another_program_took_is_replaced_when_the_server_starts(
    pool: RealPool, free_port: Any
) -> None:
    first = free_port(10)
    write(pool, first, 10)
    pool.append('env = { A = "${server.a.url}" }\n')
    pool.ok("start")
    before = {name: item["bind"] for name, item in pool.items().items()}
    assert {int(bind.rpartition(":")[2]) for bind in before.values()} <= {*range(first, first + 10)}
    pool.ok("restart")
    assert {name: item["bind"] for name, item in pool.items().items()} == before
    for stopped in ("a", "a", ""):
        pool.ok("stop", *stopped.split())
        port = int(before["a"].rpartition(":")[2])
        with socket.create_server(("127.0.0.1", port)):
            started = pool.ok("start", *stopped.split())
            after = {name: item["bind"] for name, item in pool.items().items()}
            assert after["b"] == before["b"]
            assert after["a"] != before["a"]
            assert get(after["a"]).status == 200
            chosen = after["a"].rpartition(":")[2]
            message = f"another program uses port {port}: {chosen} was chosen"
            assert f"warning: a: {message}" in started.stderr
            *_, changed = pool.ok("events", "a", "--kind", "config", "-o", "json").stdout.splitlines()
            event = json.loads(changed)
            assert (event["event"], event["severity"], event["message"]) == (
                "port changed",
                "warning",
                message,
            )
            assert (event["server"], event["before"], event["after"]) == ("a", port, int(chosen))
            assert pool.ok("exec", "b", "--", "printenv", "A").stdout == f"http://{after['a']}\n"
            assert pool.run("reload", "--dry-run").code == 0
        before = after
    pool.ok("stop")
    pool.ok("start")
    assert {name: item["bind"] for name, item in pool.items().items()} == after


def test_port_of_a_fixed_address_is_never_replaced(pool: RealPool, free_port: Any) -> None:
    write(pool, free_port(10), 10)
    pool.ok("start")
    before = pool.items()["a"]["bind"]
    pool.replace("127.0.0.1:auto", before, 1)
    pool.ok("reload")
    pool.ok("stop", "a")
    with socket.create_server(("127.0.0.1", int(before.rpartition(":")[2]))):
        refused = pool.run("start", "a")
        assert (refused.code, "is in use by" in refused.stderr) == (1, True), refused
    assert pool.items()["a"]["bind"] == before
