"""An core over a scripted runner, asked as the control socket asks it."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Collection, Iterable, Mapping
from typing import Any

from poolctl import ServerConfig
from poolctl.config import Tables
from poolctl.control.answers import ErrorEntry, Result, SupervisorIdentity
from poolctl.core.core import Core
from poolctl.json_form import from_json, to_json
from poolctl.monitor.event_queue import EventBus
from poolctl.selection.selector import Selector
from poolctl.supervisor.active_configuration import ActiveConfiguration
from poolctl.supervisor.configuration_reader import Reading
from poolctl.supervisor.feature_parts import PartContext
from poolctl.supervisor.takeover.state_store import StateStore
from poolctl.supervisor.verbs.verb import Call, VerbContext
from poolctl.supervisor.verbs.verbs import Verbs
from tests.manual_clock import ManualClock
from tests.unit.runners.scripted_runner import SlowRunner


class Files(ActiveConfiguration):
    """A configuration whose files are a list: `written`, or `wrong` with what is wrong in it."""

    def __init__(self, servers: Iterable[ServerConfig]) -> None:
        keeper: Any = None
        super().__init__(["/nowhere/pool.toml"], "/nowhere", StateStore(keeper, ""), {})
        self.written = list(servers)
        self.wrong: list[ErrorEntry] = []
        self.tables_of_files = Tables()
        self.reads: list[Mapping[str, str] | None] = []

    async def read(
        self, environment: Mapping[str, str] | None = None, *, keep: Collection[str] = ()
    ) -> Reading:
        self.reads.append(environment)
        await asyncio.sleep(0)
        return Reading(
            self.name, [] if self.wrong else list(self.written), list(self.wrong), tables=self.tables_of_files
        )


def part_context(core: Core, events: EventBus, environment: Any = None) -> PartContext:
    """The objects that a feature's part is made with; those that are not given are not there."""
    absent: Any = None
    runner: Any = getattr(core, "runner", None)
    return PartContext(
        environment, core, runner, events, lambda take: None, absent, absent, absent, absent, asyncio.Event()
    )


class Desk:
    """Everything that a supervisor decides, without its processes."""

    def __init__(
        self,
        *servers: ServerConfig,
        runner: SlowRunner | None = None,
        clock: Any = None,
        **script: str,
    ) -> None:
        self.runner: Any = runner or SlowRunner(**script)
        self.clock = clock or ManualClock()
        self.events = EventBus(self.clock)
        self.core = Core(servers, self.runner, self.clock, self.events)
        self.over = False
        self.supervisor_over = asyncio.Event()
        self.use(Files(servers))

    def use(self, files: Any, **more: Any) -> None:
        """Ask from now on about this configuration."""
        self.files = files
        context = VerbContext(self.core, self.runner, self.events, self, files, self.supervisor_over, **more)
        self.verbs = Verbs(context)

    def identity(self) -> SupervisorIdentity:
        return from_json(SupervisorIdentity, {"keeper_pid": 1})

    def own_processes(self) -> Mapping[str, int]:
        return {"keeper": os.getpid()}

    async def wait_for_effects(self, verb: str, call: Call, result: Result) -> Result:
        return result

    async def finish(self) -> None:
        pass

    def shut_down_soon(self) -> int:
        self.over = True
        return 1

    def hand_over(self, keeper: list[str], supervisor: list[str]) -> None:
        raise AssertionError("no test upgrades it")

    async def ask(self, verb: str, *targets: str, **options: Any) -> dict[str, Any]:
        selector = Selector.from_dict({"targets": list(targets)})
        answer = await self.verbs.perform(verb, Call(selector, options, lambda line: None))
        return to_json(answer)

    def begin(self, verb: str, *targets: str, **options: Any) -> asyncio.Task[dict[str, Any]]:
        return asyncio.ensure_future(self.ask(verb, *targets, **options))

    def states(self) -> dict[str, str]:
        return {name: entry.state for name, entry in self.core.entries.items()}
