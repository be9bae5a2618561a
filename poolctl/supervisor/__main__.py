"""Runs the supervisor: `supervisor DIRECTORY FILE…`. File descriptor 3 is a socket to the keeper, its parent process.

`supervisor CHECK FILE…` checks whether this version can take over a pool instead.
"""

from __future__ import annotations

import gc
import os
import sys

from poolctl.config import disable_pydantic_plugins
from poolctl.control.protocol import CHECK
from poolctl.keeper.fd_store import CALM
from poolctl.platform import name_process

_KEEPER_FD = 3
_GC_THRESHOLDS = (20_000, 20, 20)


def main() -> None:
    """Run the supervisor until its pool is stopped, or check whether an upgrade is possible; then exit."""
    disable_pydantic_plugins()
    if sys.argv[1] == CHECK:
        from .upgrade_check import print_takeover_check

        sys.exit(print_takeover_check(sys.argv[2:]))
    # Imports create no garbage, and collection would take a tenth of their time.
    gc.disable()
    directory, *files = (argument for argument in sys.argv[1:] if argument != CALM)
    log = os.path.join(directory, "supervisor.log")
    import asyncio
    import logging
    import socket

    from poolctl.daemon_threads import create_pool
    from poolctl.logs.internal_log import InternalLog

    from .supervisor import Supervisor, exit_at_once

    # Rarely, because a full collection blocks the loop for 10 ms and finds hardly any garbage.
    gc.set_threshold(*_GC_THRESHOLDS)
    gc.enable()
    gc.freeze()
    name_process("poolctl-superv.")
    logging.basicConfig(handlers=[InternalLog(log)], level=logging.INFO)
    supervisor = Supervisor(directory, files, socket.socket(fileno=_KEEPER_FD), calm=CALM in sys.argv)
    threads = create_pool()

    async def run_and_exit() -> None:
        asyncio.get_running_loop().set_default_executor(threads)
        exit_at_once(await supervisor.run())

    asyncio.run(run_and_exit())
