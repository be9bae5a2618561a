"""The process web as an object of this process, started by a keeper that is one too, and a control socket."""

from __future__ import annotations

import asyncio
import os
import shutil
import tempfile
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

from poolctl.control.control_server import ControlServer, Progress, Request
from poolctl.keeper.store import Store
from poolctl.monitor.event_queue import EventBus
from poolctl.runners.helper_process import Helpers
from poolctl.runners.listener_opener import Opener
from poolctl.selection.selector import Selector
from poolctl.supervisor.active_configuration import SupervisorContext
from poolctl.supervisor.launch import listen
from poolctl.supervisor.verbs.verb import Call, Verb
from poolctl.supervisor.verbs.verbs import peer
from poolctl.supervisor.web_addresses import WebServer
from poolctl.web.site import Site, SupervisorClient
from poolctl.web.web_process import WebServerProcess, site_class
from tests.unit.supervisor.test_state_store import StoreLink


class Spawner(StoreLink):
    """A keeper whose processes `web` are objects in this process; `refuses` is why it starts none."""

    def __init__(self, store: Store, sites: Callable[[str], type[Site]] = site_class) -> None:
        super().__init__(store)
        self.sites = sites
        self.processes: list[WebServerProcess] = []
        self.served: dict[str, Site] = {}  # by table: what the newest process serves
        self.running: list[asyncio.Task[None]] = []
        self.refuses = ""

    async def call(self, message: dict[str, Any], fds: Any = (), **more: Any) -> Any:
        if message["op"] != "spawn":
            return await super().call(message, fds, **more)
        if self.refuses:
            raise OSError(self.refuses)
        process = WebServerProcess(os.dup(fds[0].fileno()), self._recorded)
        self.processes.append(process)
        self.running.append(asyncio.ensure_future(process.serve_supervisor()))
        return {"pid": (1 << 22) + len(self.processes)}, []  # more than any Linux system has

    async def settle(self) -> None:
        """Let everything happen that follows from what has happened."""
        for _ in range(20):
            await asyncio.sleep(0)

    def kill(self) -> None:
        """End the newest process, which nobody has ordered."""
        self.processes[-1].over.set()

    def _recorded(self, table: str) -> Any:
        def make(supervisor: SupervisorClient) -> Site:
            site = self.served[table] = self.sites(table)(supervisor)
            return site

        return make


class Files(NamedTuple):
    environment: Mapping[str, str]
    name: str = "shop"


class WebStage:
    """A supervisor whose verbs are asked by the process web; `recorded` are its events."""

    def __init__(self, events: EventBus, env: Mapping[str, str], keeper: Spawner | None = None) -> None:
        self.directory = tempfile.mkdtemp(prefix="pc-")
        self.keeper = keeper or Spawner(Store())
        files: Any = Files(env)
        helpers = Helpers(self.keeper, self.directory)
        self.environment = SupervisorContext(
            files, self.keeper, self.directory, self.directory, helpers, Opener()
        )
        self.web = WebServer(self.environment, events)
        self.verbs: dict[str, Verb] = {}
        self._control = ControlServer(self._handle)
        self._control.replace_listener(listen(f"{self.directory}/control.sock"))

    async def _handle(self, request: Request, progress: Progress) -> object:
        options = request.body["options"]
        return await self.verbs[request.verb](Call(Selector(), options, progress, partial(peer, request)))

    async def close(self) -> None:
        await self.web.aclose()
        if self.keeper.running:
            await asyncio.wait(self.keeper.running)
        await self._control.close()
        self.keeper.end()
        shutil.rmtree(self.directory)
