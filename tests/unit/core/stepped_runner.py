"""A runner whose every operation waits until the test says how it ends, and an event loop whose time the test moves."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from poolctl import ServerConfig, ServerError
from poolctl.runners.runner_protocol import Exit, Placement, WorkerFailed
from tests.manual_clock import ManualClock
from tests.unit.runners.scripted_runner import ScriptedRunner


class SteppedLoop(asyncio.SelectorEventLoop):
    """Its time is the clock's: timers fire when the test advances it. Nothing ever waits."""

    def __init__(self, clock: ManualClock) -> None:
        self._clock_of_test = clock
        super().__init__()
        self.unseen: list[dict[str, object]] = []
        self.set_exception_handler(lambda loop, context: self.unseen.append(context))

    def time(self) -> float:
        return self._clock_of_test.monotonic()

    def settle(self, turns: int = 30) -> None:
        """Let everything happen that can."""

        async def pass_turns() -> None:
            for _ in range(turns):
                await asyncio.sleep(0)

        self.run_until_complete(pass_turns())
        assert not self.unseen, self.unseen


@dataclass(eq=False)
class Step:
    """An operation under way: `well` or not, when it is finished."""

    kind: str
    what: str
    future: asyncio.Future[bool]


class SteppedRunner(ScriptedRunner):
    """Checks that it is only asked for what can be done."""

    def __init__(self) -> None:
        super().__init__()
        self.steps: list[Step] = []
        self.hooks: list[asyncio.Task[None]] = []
        self.watched: dict[str, str] = {}  # the names of servers by the keys of their listeners

    async def _exchange_for_subdirectory(self, kind: str, what: str) -> bool:
        step = Step(kind, what, asyncio.get_running_loop().create_future())
        self.steps.append(step)
        try:
            return await step.future
        finally:
            self.steps.remove(step)

    async def open(self, server: ServerConfig, beside: Sequence[str] = ()) -> tuple[str, ...]:
        assert server.key not in self.opened, "it is open already"
        if not await self._exchange_for_subdirectory("open", server.key):
            raise ServerError("port is in use", hint="choose another")
        self.opened.add(server.key)
        return (server.key,)

    async def close(self, key: str) -> None:
        assert key in self.opened, "it is not open"
        await self._exchange_for_subdirectory("close", key)
        self.opened.discard(key)

    async def check_startable(self, server: ServerConfig) -> None:
        if not await self._exchange_for_subdirectory("check", server.name):
            raise WorkerFailed("no worker can be forked")

    async def place(
        self, server: ServerConfig, generation: int, index: int, *, resting: bool = False
    ) -> Placement:
        assert server.key in self.opened, "a worker needs its listener"
        assert server.name not in self.armed, "a worker and what watches its listener are not to compete"
        if not await self._exchange_for_subdirectory("place", f"{server.name}.{generation}.{index}"):
            raise ServerError("no worker can be forked")
        placement = Placement.of(server.name, generation, index, where="nowhere", pid=1000 + generation)
        assert placement.id not in self.running, "an id is not used twice"
        self.running[placement.id] = asyncio.get_running_loop().create_future()
        return placement

    async def wait_until_ready(self, placement: Placement) -> None:
        ended = self.running.get(placement.id)
        if ended is None:
            raise WorkerFailed("has ended")
        step = asyncio.ensure_future(self._exchange_for_subdirectory("ready", placement.id))
        try:
            await asyncio.wait({step, ended}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            step.cancel()
        if ended.done():
            raise WorkerFailed(f"{ended.result().message} before it was ready", exit=ended.result())
        if not step.result():
            self.end(placement.id, Exit.from_returncode(3))
            raise WorkerFailed("exited with status 3 before it was ready", exit=Exit.from_returncode(3))

    async def drain(self, placement: Placement, *, replaced: bool = True) -> None:
        if placement.id in self.running:
            await self._exchange_for_subdirectory("drain", placement.id)

    async def stop(self, placement: Placement, timeout_seconds: float, *, replaced: bool = False) -> Exit:
        ended = self.running.get(placement.id)
        if ended is None:
            return Exit.from_returncode(0)
        if timeout_seconds:
            await self._exchange_for_subdirectory("stop", placement.id)
        if placement.server in self.deaf:
            raise TimeoutError
        self.end(placement.id, Exit.from_returncode(0))
        return ended.result()

    async def begin_hook(self, server: ServerConfig, hook: str) -> Placement:
        name = f"{server.name}.{hook}"
        assert not any(worker.startswith(f"{server.name}.") for worker in self.running), "a hook runs alone"
        assert getattr(server.hooks, hook, None), "it is not in the configuration any more"
        if not await self._exchange_for_subdirectory("hook", name):
            raise ServerError("no process can be made")
        self.running[name] = asyncio.get_running_loop().create_future()
        self.hooks.append(asyncio.ensure_future(self._hook(name, self.running[name])))
        return Placement(name, server.name, 0, 0, "nowhere")

    async def _hook(self, name: str, ended: asyncio.Future[Exit]) -> None:
        step = asyncio.ensure_future(self._exchange_for_subdirectory("run", name))
        await asyncio.wait({step, ended}, return_when=asyncio.FIRST_COMPLETED)
        if not step.done():
            step.cancel()
            return
        self.end(name, Exit.from_returncode(0 if step.result() else 3))

    def arm(self, server: ServerConfig, on_request: Callable[[], None]) -> None:
        assert server.name not in self.armed, "it is watched already"
        self.watched[server.key] = server.name
        super().arm(server, on_request)

    def disarm(self, key: str) -> None:
        self.armed.pop(self.watched[key], None)
