"""The scripted runner with workers that end when the test lets them."""

from __future__ import annotations

import asyncio

from poolctl import ServerError
from poolctl.address import overlaps, parse
from poolctl.runners.runner_protocol import Exit, Placement, WorkerFailed
from tests.unit.pool.scripted_runner import NEVER, ScriptedRunner


class SlowRunner(ScriptedRunner):
    """While `may_end` is clear, a stopping worker goes on until it is killed (a limit of 0 seconds)."""

    def __init__(self, **script: str) -> None:
        super().__init__(**script)
        self.may_end = asyncio.Event()
        self.may_end.set()
        self.may_open = asyncio.Event()
        self.may_open.set()
        self.may_close = asyncio.Event()
        self.may_close.set()

    async def open(self, server):  # type: ignore[no-untyped-def]
        await self.may_open.wait()
        others = [key for key in self.opened if key != server.key and parse(key).listens]
        if any(overlaps(parse(key), server.address) for key in others):
            raise ServerError("port is in use by ourselves")
        return await super().open(server)

    async def close(self, key: str) -> None:
        await self.may_close.wait()
        await super().close(key)

    async def ready(self, placement: Placement) -> None:
        script = self.script.get(placement.id, self.script.get(placement.server))
        if script == NEVER and placement.id in self.running:
            exit_ = await asyncio.shield(self.running[placement.id])
            raise WorkerFailed(exit_.message, exit=exit_)
        await super().ready(placement)

    async def stop(self, placement: Placement, timeout_seconds: float, *, replaced: bool = False) -> Exit:
        if timeout_seconds > 0:
            await self.may_end.wait()
        return await super().stop(placement, timeout_seconds, replaced=replaced)
