"""The JSON Schema names every key with what an editor wants to show."""

from __future__ import annotations

import json
import re
from typing import Any, get_args

import pytest

from poolctl.config import ServerConfig, json_schema
from poolctl.config.model.pool_tables import model_of_table
from poolctl.config.model.server_tables import RestartPolicy
from poolctl.config.rules.json_schema import INTERPOLATED


@pytest.fixture(scope="module")
def schema() -> dict[str, Any]:
    return json_schema()


@pytest.fixture(scope="module")
def tables(schema: dict[str, Any]) -> dict[str, Any]:
    definitions: dict[str, Any] = schema["$defs"]
    return definitions


def test_every_key_has_a_title_and_a_description_and_refers_to_tables(tables: dict[str, Any]) -> None:
    for table, definition in tables.items():
        for name, key in definition["properties"].items():
            assert key["title"], (table, name)
            assert key["description"], (table, name)
            assert tables.keys() >= set(re.findall(r'"#/\$defs/(\w+)"', json.dumps(key))), (table, name)


def test_schema_has_the_models_keys_and_no_others(tables: dict[str, Any]) -> None:
    server = set(tables["Server"]["properties"])
    assert server == set(ServerConfig.keys_in_files())
    assert set(tables["Defaults"]["properties"]) == server - {"name"}
    assert tables["Server"]["required"] == ["name"]
    assert set(tables["Pool"]["properties"]) == {"name", "port_range", "handlers"}
    assert all(table["additionalProperties"] is False for table in tables.values())


def test_table_that_may_stand_several_times_is_a_list_and_any_other_is_none(schema: dict[str, Any]) -> None:
    places = schema["properties"]
    models = {key: model for key in places if (model := model_of_table(key))}
    listed = [key for key, model in models.items() if model.listed]
    assert [key for key in places if places[key].get("type") == "array"] == ["server", *listed]
    for key, model in models.items():
        place = places[key]["items"] if model.listed else places[key]
        definition = schema["$defs"][place["$ref"].removeprefix("#/$defs/")]
        assert definition["properties"].keys() == set(model.keys_in_files())
        assert places[key]["description"]


def test_units_defaults_and_ranges_are_shown(tables: dict[str, Any]) -> None:
    server = tables["Server"]["properties"]
    assert (server["start_timeout"]["unit"], server["start_timeout"]["default"]) == ("seconds", "30s")
    assert server["stop_group"]["default"] == "after"
    assert (
        tables["Log"]["properties"]["max_size"]["unit"],
        tables["Log"]["properties"]["max_size"]["default"],
    ) == (
        "bytes",
        "10MiB",
    )
    assert tables["Http"]["properties"]["max_requests"]["anyOf"][0] == {"type": "integer", "minimum": 1}
    assert server["command"]["anyOf"][0]["minItems"] == 1
    assert tables["Pool"]["properties"]["port_range"]["default"] == "20000-29999"
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
    table: str, key: str, plain: dict[str, Any], tables: dict[str, Any]
) -> None:
    found = tables[table]["properties"][key]
    assert found["anyOf"] == [plain, INTERPOLATED]
    assert not found.keys() & plain.keys()
    assert tables["Http"]["properties"]["max_requests"]["anyOf"][-1] == INTERPOLATED
    assert INTERPOLATED not in tables["Server"]["properties"]["command"]["anyOf"]


def test_the_short_forms_are_allowed(tables: dict[str, Any]) -> None:
    server = tables["Server"]["properties"]
    assert {"type": "boolean"} in server["tls"]["anyOf"]
    assert {"type": "string", "enum": [*get_args(RestartPolicy)]} in server["restart"]["anyOf"]
    assert {"type": "string"} in server["depends_on"]["items"]["anyOf"]
    assert {"type": "string", "minLength": 1, "format": "path"} in server["env_file"]["anyOf"]
    assert tables["EnvFile"]["properties"].keys() == {"path", "expand"}


def test_patterns_are_regular_expressions(schema: dict[str, Any], tables: dict[str, Any]) -> None:
    for pattern in re.findall(r'"pattern": ("(?:[^"\\]|\\.)*")', json.dumps(schema)):
        re.compile(json.loads(pattern))
    duration = tables["Server"]["properties"]["start_timeout"]["anyOf"][1]["pattern"]
    for text in ("500ms", "1m30s", "2h", "5", "${TIMEOUT}"):
        assert re.search(duration, text)
    for text in ("soon", "-1s"):
        assert not re.search(duration, text)


def test_schema_names_its_draft(schema: dict[str, Any]) -> None:
    assert schema["$schema"] == "https://json-schema.org/draft/2020-12/schema"
    assert schema["title"]
    assert set(schema["properties"]) >= {"pool", "defaults", "server", "metrics"}
    assert {part["type"] for part in schema["anyOf"]} == {"object", "array"}
