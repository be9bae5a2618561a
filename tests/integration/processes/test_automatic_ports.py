"""`bind = "127.0.0.1:auto"`: checkouts of one file run at the same time, and a port that was lost is replaced."""

from __future__ import annotations

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


def test_stopped_pool_whose_port_another_program_took_starts_on_another_and_records_it(
    pool: RealPool, free_port: Any
) -> None:
    write(pool, free_port(10), 10)
    pool.ok("start")
    before = {name: item["bind"] for name, item in pool.items().items()}
    assert get(before["a"]).status == 200
    pool.ok("stop")
    port = int(before["a"].rpartition(":")[2])
    with socket.create_server(("127.0.0.1", port)):
        pool.ok("start")
        after = {name: item["bind"] for name, item in pool.items().items()}
        assert after["b"] == before["b"]
        assert after["a"] not in before.values()
        assert get(after["a"]).status == 200
        chosen = after["a"].rpartition(":")[2]
        events = pool.ok("events", "a", "--kind", "config").stdout
        assert f"another program uses port {port}: {chosen} was chosen" in events
        pool.ok("stop")
    pool.ok("start")
    assert {name: item["bind"] for name, item in pool.items().items()} == after
