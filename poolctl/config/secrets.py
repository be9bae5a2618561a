"""What is secret in a configuration: the variables that the pool keeps to itself."""

from __future__ import annotations

import contextlib
import os
import re

TYPE_CHECKING = False  # typing itself would take the fast lane two milliseconds
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping
    from typing import Any

    from poolctl.config.model import ServerConfig
    from poolctl.config.tables import Tables

_SUFFIX = "_env"
_NAMED = re.compile(rb"""_env["']?\s*[=:]\s*["']?([A-Za-z_][A-Za-z0-9_]*)""")


def pool_variables(
    servers: Iterable[ServerConfig], tables: Tables, defaults: Mapping[str, Any] | None = None
) -> frozenset[str]:
    """The variables that a `*_env` key names: they hold secrets of the pool, and no server is given them unasked."""
    found = set(_named(defaults or {}))
    for table in (tables.metrics, tables.dashboard, tables.events, *tables.notify):
        if table is not None:
            found.update(_named(table.model_dump(warnings=False)))
    # Of a server only its certificate has such a key; `env` is a table of names that are its own.
    for server in servers:
        if server.tls and server.tls is not True and server.tls.password_env:
            found.add(server.tls.password_env)
    return frozenset(found)


def _named(table: Mapping[str, Any]) -> Iterator[str]:
    for key, value in table.items():
        if key == "env":
            continue
        if isinstance(value, dict):
            yield from _named(value)
        elif key.endswith(_SUFFIX) and isinstance(value, str):
            yield value


def variables_named_in(files: Iterable[str]) -> set[str]:
    """What `*_env` keys seem to name in these files, without parsing them: for what starts before that is done."""
    found: set[str] = set()
    for path in files:
        for name in _files(path):
            with contextlib.suppress(OSError), open(name, "rb") as file:
                found.update(match.decode() for match in _NAMED.findall(file.read()))
    return found


def _files(path: str) -> list[str]:
    if not os.path.isdir(path):
        return [path]
    with contextlib.suppress(OSError):
        return [entry.path for entry in os.scandir(path) if entry.is_file()]
    return []
