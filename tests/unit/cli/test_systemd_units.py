"""The time that systemd waits for a pool to stop."""

from __future__ import annotations

from poolctl import ServerConfig
from poolctl.cli.commands.export import stop_seconds


def server(name: str, port: int, drain: float, stop: float, *needs: str) -> ServerConfig:
    return ServerConfig(
        name=name, bind=f"127.0.0.1:{port}", app="a:b", drain_timeout=drain, stop_timeout=stop, depends_on=list(needs)
    )  # fmt: skip


def test_stop_times_add_up_along_dependencies_only() -> None:
    web, db, other = server("web", 81, 30, 10, "db"), server("db", 82, 20, 5), server("other", 83, 50, 1)
    margin = stop_seconds([])
    assert margin >= 10
    assert stop_seconds([web, db, other]) == 65 + margin
    assert stop_seconds([db, other]) == 51 + margin
    # The gateway stops after them.
    assert stop_seconds([db, other], 20.0) == 71 + margin
