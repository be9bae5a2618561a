"""The tables of the gateway's keys are compared with the model, and its example is loaded."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from poolctl.config import json_schema, load
from poolctl.features.gateway.routes import routes_of
from poolctl.routing.route import POLICIES
from poolctl.units import DURATION_PATTERN, parse_duration

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


@pytest.mark.parametrize(
    ("heading", "table"),
    [("`[gateway]`", "GatewayConfig"), ("a `[[route]]`", "RouteConfig"), ("a `[[stream]]`", "StreamConfig")],
)
def test_every_key_is_in_the_table_and_every_default_is_right(heading: str, table: str) -> None:
    part = TEXT.split(f"| key of {heading} |")[1].split("\n\n")[0]
    rows = re.findall(r"^\| (`\w+`(?:, `\w+`)*) \|(.*?)\| (.*) \|$", part, re.MULTILINE)
    keys = json_schema()["$defs"][table]["properties"]
    described = [name for names, _, _ in rows for name in re.findall(r"\w+", names)]
    assert sorted(described) == sorted(keys), "docs/gateway-keys.md"
    for names, default, meaning in rows:
        key = names.strip("`")
        if (default := default.strip()).startswith("`"):
            assert plain(json.loads(default.strip("`"))) == plain(keys[key]["default"]), key
        inner = re.findall(r"(\w+) = (\"\w+\"|[\d.]+)", meaning) if "`" not in key else []
        for name, text in inner:
            assert plain(default_within(keys[key], name)) == plain(json.loads(text)), name


def test_every_policy_is_named() -> None:
    default, others = re.findall(r"^\| `policy` \| `\"(.*?)\"` \| (.*) \|$", TEXT, re.MULTILINE)[0]
    assert {default, *re.findall(r"`(\S+)`", others)} == set(POLICIES), "docs/gateway-keys.md"


def default_within(key: dict[str, Any], name: str) -> Any:
    """The default of a key in the table that is the value of another key."""
    (table,) = set(re.findall(r"#/\$defs/(\w+)", json.dumps(key)))
    return json_schema()["$defs"][table]["properties"][name]["default"]


def plain(value: Any) -> Any:
    """Durations in seconds, however they are written."""
    return parse_duration(value) if re.fullmatch(DURATION_PATTERN, str(value)) else value
