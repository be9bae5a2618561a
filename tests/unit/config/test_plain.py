"""Validated tables are plain values: a process that only uses them does without what validates."""

from __future__ import annotations

import pickle
import subprocess
import sys
from pathlib import Path

from poolctl.config import load

FILE = """
[pool]
name = "shop"
[metrics]
[events]
keep = 2
[[server]]
name = "web"
bind = "127.0.0.1:8081"
app = "shop:app"
tls = { cert = "a.pem", password_env = "KEY" }
health = "/ready"
restart = "always"
scale = { min = 1, max = 3 }
env = { A = 1 }
tags = ["api"]
"""
USES = """
import pickle, sys
servers, tables = pickle.load(open(sys.argv[1], "rb"))
server = servers[0]
assert server.health.readiness.http == "/ready"
assert server.but(name="other").name == "other"
assert server.at(server.address.with_port(9)).bind == "127.0.0.1:9"
assert pickle.loads(pickle.dumps(server)) == server
assert server.to_dict()["restart"]["policy"] == "always"
assert tables.to_dict()["events"] == tables.by_name()["events"].to_dict()
from poolctl.config import conflicts, dependency_findings, named_addresses, pool_variables
conflicts([(name, address) for name, address in named_addresses(tables)])
assert pool_variables(servers, tables) == {"KEY"}
assert not list(dependency_findings(servers))
found = [name for name in sys.modules if name.partition(".")[0] in ("pydantic", "pydantic_core")]
assert not found, found
"""


def test_process_that_uses_validated_tables_imports_nothing_that_validates(tmp_path: Path) -> None:
    (tmp_path / "pool.toml").write_text(FILE)
    config = load(tmp_path / "pool.toml", {})
    assert not config.problems
    (tmp_path / "values").write_bytes(pickle.dumps(([*config], config.tables)))
    command = [sys.executable, "-c", USES, str(tmp_path / "values")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_command_that_reads_files_does_not_search_for_plugins(tmp_path: Path) -> None:
    (tmp_path / "pool.toml").write_text('[[server]]\nname = "web"\nbind = ":8080"\napp = "shop:app"\n')
    command = [sys.executable, "-X", "importtime", "-m", "poolctl", "validate"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    imported = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
    assert "pydantic_core" in imported
    assert "importlib.metadata" not in imported
