"""pool.toml for tests, a table for each server."""

from __future__ import annotations

import json
from typing import Any


def server(name: str, **keys: Any) -> str:
    """A `[[server]]` table; values as in Python, nested tables as dictionaries."""
    lines = ["[[server]]", f"name = {json.dumps(name)}"]
    lines += [f"{key} = {_frozen_value(value)}" for key, value in keys.items()]
    return "\n".join(lines) + "\n"


def sleeper(name: str, **keys: Any) -> str:
    """A `[[server]]` table of a program without an address, which counts as ready at once."""
    return server(name, **{"command": ["sleep", "600"], "ready_after": "10ms"} | keys)


def app_table(name: str, bind: int | str, extra: str = "", app: str = "hello:app") -> str:
    """A `[[server]]` table of an application, at a port of 127.0.0.1 or an address; `extra` are further lines."""
    bind = f"127.0.0.1:{bind}" if isinstance(bind, int) else bind
    return f'[[server]]\nname = "{name}"\nbind = "{bind}"\napp = "{app}"\n{extra}\n'


def _frozen_value(value: Any) -> str:
    if isinstance(value, dict):
        return (
            "{ "
            + ", ".join(f"{json.dumps(key)} = {_frozen_value(each)}" for key, each in value.items())
            + " }"
        )
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(map(_frozen_value, value)) + "]"
    return json.dumps(value)
