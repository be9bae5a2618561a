"""Tables of a configuration: immutable values, their defaults, and the problems of bad ones."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from poolctl.config import (
    Backoff,
    Dependency,
    Health,
    Patience,
    Probe,
    Recovery,
    Restart,
    Section,
    ServerConfig,
    Tables,
    TLSConfig,
)
from poolctl.config.model.pool_tables import MetricsTable, PoolSettings
from poolctl.errors import PoolValidateError


def test_tables_made_in_python_are_validated_too() -> None:
    with pytest.raises(PoolValidateError) as caught:
        TLSConfig(crt="x", min_version="1.0")
    assert len(caught.value.exceptions) == 3
    with pytest.raises(AttributeError):
        TLSConfig(cert="x").cert = "y"


@pytest.mark.parametrize(
    "kind", [Backoff, Health, Patience, Recovery, Restart], ids=lambda kind: kind.__name__
)
def test_usual_table_equals_one_that_was_validated(kind: type[Section]) -> None:
    assert kind.usual() == kind()
    assert kind.usual().to_dict() == kind().to_dict()
    assert kind.usual().given == kind().given


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


@pytest.mark.parametrize(
    ("before", "seconds"), [(0, 0.5), (1, 0.5), (2, 1.0), (3, 2.0), (6, 16.0), (7, 30.0), (10**6, 30.0)]
)
def test_delay_of_a_restart_grows_by_its_factor_up_to_the_maximum(before: int, seconds: float) -> None:
    backoff = Backoff(initial=0.5, max=30, factor=2, jitter=0.1)
    assert backoff.delay_seconds(before, 0.0) == seconds
    assert backoff.delay_seconds(before, 1.0) == pytest.approx(seconds * 1.1)
    assert backoff.delay_seconds(before, -1.0) == pytest.approx(seconds * 0.9)
