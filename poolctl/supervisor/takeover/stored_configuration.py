"""The configuration in force as a supervisor leaves it to its successor; `configuration_json` has its form."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from poolctl.config import Marks, ServerConfig, Surroundings, Tables


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
