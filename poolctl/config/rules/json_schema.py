"""The JSON Schema of a configuration file, for editors and other tools."""

from __future__ import annotations

import ast
import inspect
import itertools
import textwrap
from typing import Any

from pydantic.json_schema import GenerateJsonSchema, models_json_schema
from pydantic_core.core_schema import ModelSchema

from poolctl.config.model.pool_tables import MODELS, PoolSettings, rules_of, table_names
from poolctl.config.model.section import Section, Table
from poolctl.config.model.server_keys import ServerConfig
from poolctl.config.values.plain import ANCHOR_TABLES, MAX_WORKERS
from poolctl.config.values.problems import Tree
from poolctl.feature import features

Schema = dict[str, Tree]


class _Generator(GenerateJsonSchema):
    """Describes keys by the docstrings below them. Read only here: `use_attribute_docstrings` reads them at import."""

    def model_schema(self, schema: ModelSchema) -> dict[str, Any]:
        generated = super().model_schema(schema)
        texts = texts_below_keys(schema["cls"])
        for name, key in generated.get("properties", {}).items():
            if name in texts:
                key.setdefault("description", texts[name])
        return generated

    def encode_default(self, dft: Tree) -> Tree:
        # A table that is left out is a table without keys.
        return {} if isinstance(dft, Section) else super().encode_default(dft)


def texts_below_keys(model: type) -> dict[str, str]:
    """What a model says of each of its keys: the string below it."""
    texts: dict[str, str] = {}
    for base in reversed(model.__mro__):
        if issubclass(base, Section):
            (tree,) = ast.parse(textwrap.dedent(inspect.getsource(base))).body
            assert isinstance(tree, ast.ClassDef)
            for key, text in itertools.pairwise(tree.body):
                match key, text:
                    case ast.AnnAssign(target=ast.Name(id=name)), ast.Expr(
                        value=ast.Constant(value=str(words))
                    ):
                        texts[name] = inspect.cleandoc(words)
    return texts


DIALECT = "https://json-schema.org/draft/2020-12/schema"
INTERPOLATED = {
    "type": "string",
    "pattern": r"\$\{",
    "description": "A variable of the environment, expanded when the file is read.",
}


def json_schema() -> Schema:
    """The schema of pool.toml: title, description, unit, default and range of every key."""
    tables: dict[str, type[Table]] = MODELS | {
        name: feature.load(part) for feature in features() for name, part in feature.tables.items()
    }
    models: list[type[Section]] = [ServerConfig, PoolSettings, *tables.values()]
    _, schema = models_json_schema([(model, "validation") for model in models], schema_generator=_Generator)
    definitions: dict[str, Schema] = schema["$defs"]
    for table in definitions.values():
        for name, key in table.get("properties", {}).items():
            _complete(name, key, definitions)
    server = definitions.pop(ServerConfig.__name__)
    _add_other_names(server["properties"])
    definitions["Server"] = {**server, "title": "Server"}
    definitions["Defaults"] = {
        "title": "Defaults",
        "description": "Every key of a server except its name. A server's own key takes precedence; tables are merged.",
        "type": "object",
        "properties": {key: value for key, value in server["properties"].items() if key != "name"},
        "additionalProperties": False,
    }
    definitions["Pool"] = {**definitions.pop(PoolSettings.__name__), "title": "Pool"}
    servers = {
        "type": "array",
        "items": {"$ref": "#/$defs/Server"},
        "description": "The servers of the pool.",
    }
    properties: Schema = {
        "pool": {"$ref": "#/$defs/Pool", "description": "Settings of the pool as a whole."},
        "defaults": {"$ref": "#/$defs/Defaults", "description": "Defaults of every server."},
        "server": servers,
    }
    for key, model in tables.items():
        description = definitions[model.__name__]["description"]
        properties[key] = {"$ref": f"#/$defs/{model.__name__}", "description": description}
        if model.listed:
            properties[key] = {"type": "array", "items": properties[key], "description": description}
    for rules in rules_of(table_names()):
        rules.complete_schema(definitions)
    return {
        "$schema": DIALECT,
        "title": "poolctl configuration",
        "description": "A pool of HTTP servers. A list of servers alone is allowed as well.",
        "anyOf": [
            {
                "type": "object",
                "properties": properties,
                # In YAML, for anchors.
                "patternProperties": {f"^{ANCHOR_TABLES}": True},
                "additionalProperties": False,
            },
            servers,
        ],
        # Editors complete these keys, but no keys inside of `anyOf`.
        "properties": properties,
        "$defs": definitions,
    }


def _complete(name: str, key: Schema, definitions: dict[str, Schema]) -> None:
    """Complete what pydantic says of a key: its title and description, its unit and default, and `${VAR}`."""
    key.setdefault("title", name.replace("_", " ").capitalize())
    if "$ref" in key:
        key.setdefault("description", definitions[key["$ref"].rpartition("/")[2]]["description"])
    key["description"] = " ".join(key["description"].split())
    _merge_alternatives(key)
    for part in key.get("anyOf", ()):
        if "unit" in part:  # the unit is the key's, also where it may be left out
            key["unit"] = part.pop("unit")
    if key.get("default") is None:
        key.pop("default", None)
    _allow_interpolation(key)


def _merge_alternatives(key: Schema) -> None:
    """Write alternatives in one list, `anyOf`, however deep pydantic has them."""
    if isinstance(items := key.get("items"), dict):
        _merge_alternatives(items)
    alternatives: list[Schema] = []
    for part in [*key.pop("anyOf", ()), *key.pop("oneOf", ())]:
        _merge_alternatives(part)
        parts = part["anyOf"] if part.keys() == {"anyOf"} else [part]
        alternatives += [part for part in parts if part not in alternatives]
    if alternatives:
        key["anyOf"] = alternatives


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


def _add_other_names(keys: Schema) -> None:
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
        "anyOf": [{"type": "integer", "minimum": 1, "maximum": MAX_WORKERS}, INTERPOLATED],
    }
