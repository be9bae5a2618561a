"""The configuration in force: from the supervisor before, or from the files; left to the supervisor that follows."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Mapping, Sequence

from poolctl.config.model import ServerConfig
from poolctl.control.messages import Document

from .engine import Engine
from .memory import Kept, Memory
from .naming import default_name
from .settle import Settled, settle


class Configuration:
    """The pool's files and what came of them; `environments` are those that servers were given by command."""

    def __init__(
        self,
        files: Sequence[str],
        state_directory: str,
        memory: Memory,
        environments: dict[str, Mapping[str, str]],
    ) -> None:
        self.files = list(files)
        self.name = default_name(files[0])
        self.missing: set[str] = set()  # names of servers of the files that were removed live
        self.placed: dict[str, ServerConfig] = {}
        self.problems: list[Document] = []
        self._state_directory = state_directory
        self._memory = memory
        self._environment: Mapping[str, str] | None = None
        self._environments = environments
        self._written = -1

    async def begin(self) -> list[ServerConfig]:
        """The servers with which a supervisor begins; none when there are `problems`."""
        kept = await self._memory.configuration()
        if kept is None:
            settled = await self.read()
            self.name, self.problems = settled.name, settled.problems
            self._memory.keep(Kept(self.name, settled.servers))
            self._written = 0
            return settled.servers
        self.name, self.placed, self.missing = kept.name, kept.placed, set(kept.missing)
        self._environment = kept.environment
        self._environments.update(kept.environments)
        return kept.servers

    async def read(self, environment: Mapping[str, str] | None = None) -> Settled:
        """What the files say now; `environment` is what `${VAR}` sees, once it was given also the next time."""
        env = environment or self._environment or os.environ
        return await asyncio.to_thread(
            settle, self.files, self._state_directory, default_name(self.files[0]), env
        )

    def keep(self, engine: Engine) -> None:
        """Leave what is in force to a successor, if it has changed."""
        if self._written == engine.configured:
            return
        self._written = engine.configured
        entries = engine.entries.values()
        self._memory.keep(
            Kept(
                self.name,
                [entry.config for entry in entries],
                {
                    worker.id: worker.config
                    for entry in entries
                    for worker in entry.workers.values()
                    if worker.config is not entry.config
                },
                sorted(self.missing),
                self._environment,
                dict(self._environments),
            )
        )
