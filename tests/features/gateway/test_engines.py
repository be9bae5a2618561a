"""The engine of a gateway: which are known, and why one cannot run."""

from __future__ import annotations

from pathlib import Path

import pytest

from poolctl.config import Configuration, Tables
from poolctl.features.gateway import engines
from poolctl.features.gateway.table import GatewayConfig
from tests.config_files import load_text
from tests.features.gateway.test_route_checks import WEB, route


@pytest.mark.parametrize("key", ['program = "/bin/x"', "http2 = true"])
def test_key_of_another_engine_is_a_problem_with_poolctls_own(tmp_path: Path, key: str) -> None:
    text = f'[gateway]\n{key}\n[[server]]\nname = "web"\nbind = ":8081"\napp = "a:b"\n'
    (problem,) = load_text(tmp_path, text).problems
    assert str(problem).startswith(f"{tmp_path}/pool.toml:2:1: gateway.{key.split()[0]}: ")
    assert problem.hint.endswith("take it out")


def test_unknown_engine_is_a_problem_that_names_the_known_ones(tmp_path: Path) -> None:
    (problem,) = load_text(tmp_path, '[gateway]\nengine = "nginx"\n').problems
    assert "pool.toml:2:1: gateway.engine: 'nginx' is not allowed here; allowed is \"poolctl\"" in str(
        problem
    )


def test_engine_whose_feature_was_taken_out_cannot_run(tmp_path: Path) -> None:
    config = load_text(tmp_path, "[gateway]\n")
    assert config.tables.get(GatewayConfig) is not None
    tables = Tables(gateway=config.tables.get(GatewayConfig).but(engine="gone"))
    (problem,) = Configuration([], tables).unusable()
    assert str(problem.message) == "there is no engine 'gone'"
    assert problem.hint.startswith("choose one of poolctl")


def test_missing_library_is_named_with_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engines, "GATEWAY_LIBRARIES", ("no_such_library", "uvloop", "nor_this", "h3"))
    problem = (
        "no_such_library, nor_this and h3 are not installed, which the gateway needs; "
        "pip install 'poolctl[gateway]'"
    )

    def outside(text: str) -> list[str]:
        config = load_text(tmp_path, text)
        assert config.problems == [], "the servers can be listed, and started"
        return [str(each).rpartition("/")[2] for each in config.outside()]

    assert f"pool.toml:1:1: gateway: {problem}" in outside("[gateway]\nbind = ':1'\n" + WEB)
    assert f"pool.toml:6:1: route[0]: {problem}" in outside(WEB + route())
    assert not any("no_such_library" in each for each in outside(WEB))
