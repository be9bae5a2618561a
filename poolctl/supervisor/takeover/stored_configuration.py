"""The configuration in force as a supervisor leaves it to its successor; `configuration_json` has its form."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TypeVar

from poolctl.config import Finding, Marks, Section, ServerConfig, Surroundings, Tables
from poolctl.config.model.section import validated
from poolctl.config.values.problems import Tree

Kind = TypeVar("Kind", bound=Section)


class NotUnderstood(Exception):
    """The configuration has parts that this version does not have."""


@dataclass
class StoredConfiguration:
    """The configuration in force, even if its files have changed; `servers` includes servers that were added live."""

    name: str
    servers: list[ServerConfig]
    # The configuration that older workers were started with, by the ids of the workers.
    placed: dict[str, ServerConfig] = field(default_factory=dict)
    # The names of servers of the files that were removed live.
    missing: list[str] = field(default_factory=list)
    surroundings: Surroundings = field(default_factory=Surroundings)
    port_range: tuple[int, int] = (0, 0)
    # The environments given by `reload --env` and `restart --env`: the pool's, and by server.
    environment: Mapping[str, str] | None = None
    environments: dict[str, Mapping[str, str]] = field(default_factory=dict)
    # The tables other than [[server]].
    tables: Tables = field(default_factory=Tables)
    # The files as they were read.
    marks: Marks | None = None


def table_of(kind: type[Kind], values: Mapping[str, Tree], *, validate: bool) -> Kind:
    """The table with these values of another version.

    `validate` also checks each value, which needs pydantic. Raises NotUnderstood.
    """
    for name in values.keys() - kind.keys_of.keys():
        raise NotUnderstood(f"there is no {name!r} in {kind.__name__} any more")
    made = kind.unchecked(values)
    for name in kind.keys_of.keys() - vars(made).keys():
        raise NotUnderstood(f"{kind.__name__} needs {name!r} now")
    findings: list[Finding] = []
    if validate and validated(kind, dict(values), findings, forget=True) is None:
        found = (f"{'.'.join(map(str, each.path))!r} in {kind.__name__}: {each.message}" for each in findings)
        raise NotUnderstood("; ".join(found))
    return made
