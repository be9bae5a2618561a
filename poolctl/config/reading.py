"""Results of reading a pool's files: values that pass from the process that reads them to the supervisor."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from poolctl.config.configuration import ServerConfig
from poolctl.config.files.file_marks import Marks
from poolctl.config.model.pool_tables import Tables
from poolctl.config.values.problems import Tree


@dataclass(frozen=True)
class Surroundings:
    """The defaults for every server: [defaults], as read, and the handlers of [pool]."""

    defaults: dict[str, Tree] = field(default_factory=dict)
    base_dir: str = ""
    handlers: str | None = None


@dataclass
class Reading:
    """The content of a pool's files: servers and tables, or `problems` as in JSON documents.

    `name` and `port_range` come from [pool]; with several files, `files` names each server's file.
    """

    marks: Marks
    problems: list[dict[str, Tree]] = field(default_factory=list)
    name: str | None = None
    servers: list[ServerConfig] = field(default_factory=list)
    surroundings: Surroundings = field(default_factory=Surroundings)
    port_range: tuple[int, int] = (0, 0)
    tables: Tables = field(default_factory=Tables)
    files: Mapping[str, str] = field(default_factory=dict)
    # Problems of env files, with which a pool does not begin; a running one goes on.
    unreadable: list[dict[str, Tree]] = field(default_factory=list)
