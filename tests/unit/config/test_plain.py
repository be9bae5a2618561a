"""Validated tables are plain values: a process that only uses them does without what validates."""

from __future__ import annotations

import pickle
import subprocess
import sys
from pathlib import Path

import pytest

from poolctl.config import Dependency, Probe, ServerConfig, Tables, TLSConfig, load
from poolctl.config.model.pool_tables import MetricsTable, PoolSettings
from poolctl.errors import PoolValidateError

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


def test_changed_copy_differs_in_that_value_and_counts_it_as_given() -> None:
    server = ServerConfig(name="web", bind="127.0.0.1:1", app="a:b")
    other = server.but(preload=True)
    assert (server.preload, other.preload) == (False, True)
    assert other.given - server.given == {"preload"}
    assert server != other == server.but(preload=True)


def test_table_does_not_change_and_refuses_what_it_does_not_know() -> None:
    probe = Probe(http="/ready")
    with pytest.raises(AttributeError, match="Probe does not change"):
        probe.http = "/other"  # type: ignore[misc]
    with pytest.raises(AttributeError, match="Probe does not change"):
        del probe.http
    with pytest.raises(PoolValidateError) as refused:
        Probe(htp="/ready")
    assert "unknown key 'htp'; did you mean 'http'?" in str(refused.value)
    assert hash(probe) == hash(Probe(http="/ready"))
    assert probe.as_given() == {"http": "/ready"}
    assert repr(TLSConfig(cert="/a")).startswith("TLSConfig(cert='/a', key=None")


def test_table_within_another_may_be_a_value_already() -> None:
    certificate = TLSConfig(cert="/a.pem")
    server = ServerConfig(name="web", bind="127.0.0.1:1", app="a:b", tls=certificate)
    assert server.tls is certificate
    assert Tables().get(MetricsTable) is None


PLAIN = """
import sys
from poolctl.config import leave_out_plugins, load
from poolctl.config.model import section
leave_out_plugins()
assert not load(sys.argv[1]).problems
assert [kind.__name__ for kind in section._models] == ["ServerKeys"]
assert "importlib.metadata" not in sys.modules, "the search for pydantic's plugins"
"""


def test_plain_servers_are_read_with_a_single_model(tmp_path: Path) -> None:
    (tmp_path / "pool.toml").write_text('[[server]]\nname = "web"\nbind = ":8080"\napp = "shop:app"\n')
    done = subprocess.run(
        [sys.executable, "-c", PLAIN, str(tmp_path / "pool.toml")], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


def test_table_without_keys_is_the_usual_one_unless_a_key_is_required() -> None:
    assert (PoolSettings(), PoolSettings().given) == (PoolSettings.usual(), set())
    with pytest.raises(PoolValidateError, match="Dependency has 1 problem"):
        Dependency()  # type: ignore[call-arg]


def test_command_that_reads_files_does_not_search_for_plugins(tmp_path: Path) -> None:
    (tmp_path / "pool.toml").write_text('[[server]]\nname = "web"\nbind = ":8080"\napp = "shop:app"\n')
    command = [sys.executable, "-X", "importtime", "-m", "poolctl", "validate"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    imported = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
    assert "pydantic_core" in imported
    assert "importlib.metadata" not in imported
