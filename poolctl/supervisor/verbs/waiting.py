"""Waiting for servers: one callback a command, however many servers it waits for."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable

from poolctl.core.core import Core
from poolctl.core.state import Entry

Test = Callable[[Entry], bool]


async def until(
    core: Core,
    entries: Iterable[Entry],
    finished: Test,
    timeout_seconds: float | None,
    told: Callable[[Entry], None],
) -> list[Entry]:
    """Return when `finished` has been true of each entry, or the time is over: then those still missing.

    `told` gets each entry on the way whenever something about it changed.
    """
    waiting = {entry.name: entry for entry in entries}
    everything = asyncio.get_running_loop().create_future()

    def look(changed: Entry) -> None:
        ahead = [changed]
        while ahead:
            entry = ahead.pop()
            if entry.name not in waiting:
                continue
            told(entry)
            if finished(entry):
                del waiting[entry.name]
                # What became of it may be the end of those who wait for it, though nothing about them changed.
                ahead += core.graph.dependents(entry)
        if not waiting and not everything.done():
            everything.set_result(None)

    for entry in list(waiting.values()):
        look(entry)
    if waiting:
        core.listeners.add(look)
        try:
            async with asyncio.timeout(timeout_seconds):
                await everything
        except TimeoutError:
            pass
        finally:
            core.listeners.discard(look)
    return list(waiting.values())
