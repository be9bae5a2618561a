"""Workers of a pool that was killed which could not be found at once: they imported their application, or were busy."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

from poolctl.core.core import Core
from poolctl.runners.local.runner import LocalRunner
from poolctl.runners.survivors import are_there

from .orphans import take_in

logger = logging.getLogger("poolctl.supervisor")

_PAUSES_SECONDS = (0.5, 0.5, 1.0, 2.0, 4.0, 8.0, 15.0, 30.0, 60.0)


async def adopt_late_orphans(
    core: Core, runner: LocalRunner, directory: str, give_way: Callable[[], None]
) -> None:
    """Look for them now and then. What is found goes to the keeper, and `give_way` lets a successor adopt it.

    A server that serves again without them needs them no more: then they are told to end.
    """
    for pause in _PAUSES_SECONDS:
        await asyncio.sleep(pause)
        if not are_there(directory):
            continue
        waiting = {
            name: entry.config
            for name, entry in core.entries.items()
            if not entry.workers and not runner.endpoints(entry.config.key)
        }
        names = await take_in(runner, directory, waiting, late=True)
        for name in names:
            entry = core.entries[name]
            # What it may have failed at is that they had its address.
            core.expect_running(entry)
        if names:
            logger.info("found what was not to be found before: %s", ", ".join(sorted(names)))
            give_way()
            return
