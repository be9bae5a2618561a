"""`poolctl validate`: the number of servers, or every problem."""

from __future__ import annotations

from pathlib import Path

from .conftest import Command


def test_validate_prints_the_number_of_servers_or_the_problems(poolctl: Command, directory: Path) -> None:
    assert poolctl("validate").out == "2 servers, ok\n"
    (directory / "pool.toml").write_text('[[server]]\nname = "a"\nbinf = "x"\n')
    said = poolctl("validate")
    assert said.code == 5
    assert "pool.toml:3:1: " in said.out
    (directory / "pool.toml").write_text("broken [")
    unreadable = poolctl("validate")
    assert (unreadable.code, unreadable.err) == (5, "")
    assert unreadable.out.startswith("pool.toml:1:")
