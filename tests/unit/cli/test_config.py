"""`poolctl config`: the effective configuration, which can be loaded again."""

from __future__ import annotations

import tomllib
from pathlib import Path

from .conftest import Command


def test_configuration_is_printed_so_that_it_can_be_loaded_again(poolctl: Command, directory: Path) -> None:
    text = poolctl("config").out
    parsed = tomllib.loads(text)
    assert parsed["pool"]["name"] == "shop"
    assert [server["name"] for server in parsed["server"]] == ["users", "orders"]
    (directory / "again.toml").write_text(text)
    again = poolctl("-c", "again.toml", "config", "-o", "json").json
    first = poolctl("config", "-o", "json").json
    assert [each["config"] for each in again["items"]] == [each["config"] for each in first["items"]]
    assert first["pool"]["name"] == "shop"
    assert poolctl("config", "orders", "-o", "name").out == "orders\n"
    assert "********" not in text
