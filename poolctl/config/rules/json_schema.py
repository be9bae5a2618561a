"""The JSON Schema of a configuration file, for editors and other tools."""

from __future__ import annotations

from collections.abc import Callable

from pydantic.json_schema import GenerateJsonSchema
from pydantic_core import core_schema, to_jsonable_python

from poolctl.config.model.pool_tables import MODELS, PoolSettings, rules_of, table_names
from poolctl.config.model.section import EnvFile, Section, model_of
from poolctl.config.model.server_keys import ServerKeys
from poolctl.config.values.plain import MOST_WORKERS
from poolctl.config.values.problems import Tree
from poolctl.feature import features
from poolctl.units import format_duration, format_size

Schema = dict[str, Tree]


class _Generator(GenerateJsonSchema):
    """Generates nested tables as separate definitions, and their default values in the form used in files."""

    def function_plain_schema(self, schema: core_schema.PlainValidatorFunctionSchema) -> Schema:
        kind: type[Section] = schema["function"]["function"].__self__  # type: ignore[union-attr]
        return self.generate_inner({**model_of(kind).__pydantic_core_schema__, "ref": kind.__name__})

    def encode_default(self, dft: Tree) -> Tree:
        return to_jsonable_python(dft, fallback=Section.to_dict)


DIALECT = "https://json-schema.org/draft/2020-12/schema"
INTERPOLATED = {
    "type": "string",
    "pattern": r"\$\{",
    "description": "A variable of the environment, expanded when the file is read.",
}
APP_PATTERN = r"^[^\s:]+:[^\s:]+$|\$\{"
FORMATS: dict[str, Callable[..., str]] = {"seconds": format_duration, "bytes": format_size}
SHORT_FORMS: Schema = {
    "tls": {"type": "boolean"},
    "health": {"type": "string", "pattern": "^/"},
    "restart": {"enum": ["no", "on-failure", "always"]},
    "recovery": {"enum": ["restart", "replace", "disable", "notify", "none"]},
}


def json_schema() -> Schema:
    """The schema of pool.toml: title, description, unit, default and range of every key."""
    definitions: dict[str, Schema] = {}
    server = _section_schema(ServerKeys, definitions)
    definitions["EnvFile"] = _section_schema(EnvFile, definitions)
    _add_short_forms(server["properties"])
    definitions["Server"] = {**server, "title": "Server", "required": ["name"]}
    definitions["Defaults"] = {
        "title": "Defaults",
        "description": "Every key of a server except its name. A server's own key takes precedence; tables are merged.",
        "type": "object",
        "properties": {key: value for key, value in server["properties"].items() if key != "name"},
        "additionalProperties": False,
    }
    definitions["Pool"] = {**_section_schema(PoolSettings, definitions), "title": "Pool"}
    servers = {
        "type": "array",
        "items": {"$ref": "#/$defs/Server"},
        "description": "The servers of the pool.",
    }
    tables: Schema = {
        "pool": {"$ref": "#/$defs/Pool", "description": "Settings of the pool as a whole."},
        "defaults": {"$ref": "#/$defs/Defaults", "description": "Defaults of every server."},
        "server": servers,
    }
    for key, model in (
        MODELS | {name: each.load(part) for each in features() for name, part in each.tables.items()}
    ).items():
        table = definitions[model.__name__] = _section_schema(model, definitions)
        tables[key] = {"$ref": f"#/$defs/{model.__name__}", "description": table["description"]}
        if model.listed:
            tables[key] = {"type": "array", "items": tables[key], "description": table["description"]}
    for rules in rules_of(table_names()):
        rules.complete_schema(definitions)
    return {
        "$schema": DIALECT,
        "title": "poolctl configuration",
        "description": "A pool of HTTP servers. A list of servers alone is allowed as well.",
        "anyOf": [{"type": "object", "properties": tables, "additionalProperties": False}, servers],
        # Editors complete these keys, but no keys inside of `anyOf`.
        "properties": tables,
        "$defs": definitions,
    }


def _section_schema(model: type[Section], definitions: dict[str, Schema]) -> Schema:
    schema = model_of(model).model_json_schema(schema_generator=_Generator)
    inner: dict[str, Schema] = schema.pop("$defs", {})
    inner.pop("Address", None)
    for table in (schema, *inner.values()):
        for name, key in table.get("properties", {}).items():
            key.setdefault("title", name.replace("_", " ").capitalize())
            if "$ref" in key:
                key["title"] = name.replace("_", " ").capitalize()
                key.setdefault("description", inner[key["$ref"].rpartition("/")[2]]["description"])
            for part in key.get("anyOf", ()):
                if "unit" in part:  # the unit is the key's, also where it may be left out
                    key["unit"] = part.pop("unit")
            _make_default_readable(key)
            _allow_interpolation(key)
    definitions |= inner
    return schema


def _make_default_readable(key: Schema) -> None:
    """Write the default of a key as in a file, with units; remove a default that means "not given"."""
    default = key.pop("default", None)
    if isinstance(default, dict):
        default = {}  # a table that is left out is a table without keys
    elif key.get("unit") in FORMATS and default is not None:
        default = FORMATS[key["unit"]](default)
    elif isinstance(default, list) and len(default) == 2 and "pattern" in key:
        default = "-".join(map(str, default))
    if default is not None:
        key["default"] = default


def _allow_interpolation(key: Schema) -> None:
    """Let the schema of a key accept `${VAR}` in place of a number, a truth value or one of several words."""
    if key.get("type") in ("integer", "number", "boolean") or "enum" in key:
        kept = {name: key.pop(name) for name in ("type", "minimum", "maximum", "enum") if name in key}
        key["anyOf"] = [kept, INTERPOLATED]
    elif any(
        part.get("type") in ("integer", "number", "boolean") and "unit" not in key
        for part in key.get("anyOf", ())
    ):
        key["anyOf"].append(INTERPOLATED)


def _add_short_forms(keys: Schema) -> None:
    keys["app"] |= {"type": "string", "pattern": APP_PATTERN}
    keys["bind"]["examples"] = [
        *("127.0.0.1:8080", ":8080", "[::1]:8080", "127.0.0.1:auto", "unix:/run/a.sock", "fd:3"),
    ]
    keys["listen"] = {
        **keys["bind"],
        "title": "Listen",
        "description": "Another name of bind.",
        "deprecated": True,
    }
    keys["workers"] = {
        "title": "Workers",
        "description": "The number of workers; short for scale.min = scale.max.",
        "default": 1,
        "anyOf": [{"type": "integer", "minimum": 1, "maximum": MOST_WORKERS}, INTERPOLATED],
    }
    for name, short in SHORT_FORMS.items():
        reference = keys[name].pop("$ref", None) or keys[name].pop("allOf", [{}])[0].get("$ref")
        keys[name]["anyOf"] = [short, {"$ref": reference}]
    kept = {name: value for name, value in keys["env_file"].items() if name not in ("type", "items")}
    file = {"anyOf": [{"type": "string"}, {"$ref": "#/$defs/EnvFile"}]}
    keys["env_file"] = {**kept, "anyOf": [*file["anyOf"], {"type": "array", "items": file}]}
    keys["depends_on"]["items"] = {"anyOf": [{"type": "string"}, {"$ref": "#/$defs/Dependency"}]}
    keys["labels"]["additionalProperties"] = {"anyOf": [{"type": "string"}, {"type": "object"}]}
    keys["env"]["additionalProperties"] = {"anyOf": [{"type": "string"}, {"type": "integer"}]}
