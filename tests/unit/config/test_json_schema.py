"""The JSON Schema names every key with what an editor wants to show."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest

from poolctl.config import ServerConfig, json_schema
from poolctl.config.model.pool_tables import model_of_table
from poolctl.config.rules.json_schema import INTERPOLATED

SCHEMA = json_schema()
TABLES: dict[str, Any] = SCHEMA["$defs"]
KEYS = [(table, key) for table in TABLES for key in TABLES[table]["properties"]]


@pytest.mark.parametrize(("table", "key"), KEYS)
def test_every_key_has_a_title_and_a_description(table: str, key: str) -> None:
    found = TABLES[table]["properties"][key]
    assert found["title"]
    assert found["description"]


@pytest.mark.parametrize(("table", "key"), KEYS)
def test_every_reference_leads_somewhere(table: str, key: str) -> None:
    for name in re.findall(r'"#/\$defs/(\w+)"', json.dumps(TABLES[table]["properties"][key])):
        assert name in TABLES


def test_schema_has_the_models_keys_and_no_others() -> None:
    server = set(TABLES["Server"]["properties"])
    assert server == set(ServerConfig.keys_in_files())
    assert set(TABLES["Defaults"]["properties"]) == server - {"name"}
    assert TABLES["Server"]["required"] == ["name"]
    assert set(TABLES["Pool"]["properties"]) == {"name", "port_range", "handlers"}
    assert all(table["additionalProperties"] is False for table in TABLES.values())


def test_table_that_may_stand_several_times_is_a_list_and_any_other_is_none() -> None:
    tables = SCHEMA["properties"]
    listed = [key for key in tables if (model := model_of_table(key)) and model.listed]
    assert [key for key in tables if tables[key].get("type") == "array"] == ["server", *listed]
    assert tables["metrics"]["$ref"] == "#/$defs/MetricsTable"
    for key in listed:
        assert tables[key]["description"]
        assert tables[key]["items"]["$ref"].removeprefix("#/$defs/") in TABLES


def test_units_defaults_and_ranges_are_shown() -> None:
    server = TABLES["Server"]["properties"]
    assert (server["start_timeout"]["unit"], server["start_timeout"]["default"]) == ("seconds", "30s")
    assert server["stop_group"]["default"] == "after"
    assert (
        TABLES["Log"]["properties"]["max_size"]["unit"],
        TABLES["Log"]["properties"]["max_size"]["default"],
    ) == (
        "bytes",
        "10MiB",
    )
    assert TABLES["Http"]["properties"]["max_requests"]["anyOf"][0] == {"type": "integer", "minimum": 1}
    assert server["command"]["anyOf"][0]["minItems"] == 1
    assert TABLES["Pool"]["properties"]["port_range"]["default"] == "20000-29999"
    assert server["workers"]["anyOf"][0]["minimum"] == 1


@pytest.mark.parametrize(
    ("table", "key", "plain"),
    [
        ("Probe", "fall_count_ko", {"type": "integer", "minimum": 1, "maximum": 1000}),
        ("Server", "disabled", {"type": "boolean"}),
        ("Dependency", "condition", {"type": "string", "enum": ["started", "ready", "completed"]}),
        ("Backoff", "factor", {"type": "number", "minimum": 1, "maximum": 100}),
    ],
)
def test_variable_may_stand_for_a_number_a_truth_value_or_a_choice(
    table: str, key: str, plain: dict[str, Any]
) -> None:
    found = TABLES[table]["properties"][key]
    assert found["anyOf"] == [plain, INTERPOLATED]
    assert not found.keys() & plain.keys()
    assert TABLES["Http"]["properties"]["max_requests"]["anyOf"][-1] == INTERPOLATED
    assert INTERPOLATED not in TABLES["Server"]["properties"]["command"]["anyOf"]


def test_the_short_forms_are_allowed() -> None:
    server = TABLES["Server"]["properties"]
    assert {"type": "boolean"} in server["tls"]["anyOf"]
    assert {"type": "string", "enum": ["no", "on-failure", "always"]} in server["restart"]["anyOf"]
    assert {"type": "string"} in server["depends_on"]["items"]["anyOf"]
    assert {"type": "string", "minLength": 1, "format": "path"} in server["env_file"]["anyOf"]
    assert TABLES["EnvFile"]["properties"].keys() == {"path", "expand"}


def test_patterns_are_regular_expressions() -> None:
    for pattern in re.findall(r'"pattern": ("(?:[^"\\]|\\.)*")', json.dumps(SCHEMA)):
        re.compile(json.loads(pattern))
    duration = TABLES["Server"]["properties"]["start_timeout"]["anyOf"][1]["pattern"]
    for text in ("500ms", "1m30s", "2h", "5", "${TIMEOUT}"):
        assert re.search(duration, text)
    for text in ("soon", "-1s"):
        assert not re.search(duration, text)


def test_schema_names_its_draft() -> None:
    assert SCHEMA["$schema"] == "https://json-schema.org/draft/2020-12/schema"
    assert SCHEMA["title"]
    assert set(SCHEMA["properties"]) >= {"pool", "defaults", "server", "metrics"}
    assert {part["type"] for part in SCHEMA["anyOf"]} == {"object", "array"}
