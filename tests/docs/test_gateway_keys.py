"""The page of the gateway's keys names each of them, and its example is loaded."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from poolctl.config import json_schema, load
from poolctl.features.gateway.routes import routes_of

TEXT = (Path(__file__).parents[2] / "docs" / "gateway-keys.md").read_text()


def test_example_has_the_routes_that_it_shows(tmp_path: Path) -> None:
    (example,) = re.findall(r"```toml\n(.*?)```", TEXT, re.DOTALL)
    path = tmp_path / "pool.toml"
    path.write_text(example)
    config = load(path, {})
    assert config.problems == []
    assert [each.alias for each in routes_of(config, config.tables)] == [
        "users", "files", "downloads", "10.0.0.5:5432",
    ]  # fmt: skip


@pytest.mark.parametrize("table", ["GatewayConfig", "RouteConfig", "StreamConfig"])
def test_every_key_is_named(table: str) -> None:
    prose = re.sub(r"```.*?```", "", TEXT, flags=re.DOTALL)
    named = set(re.findall(r"\w+", " ".join(re.findall(r"`([^`]+)`", prose))))
    assert json_schema()["$defs"][table]["properties"].keys() - named == set(), "docs/gateway-keys.md"
