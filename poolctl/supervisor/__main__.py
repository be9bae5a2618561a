"""The supervisor: `supervisor DIRECTORY FILE…`, started by the keeper, whose link is descriptor 3."""

from __future__ import annotations

import gc
import os
import sys

from poolctl.config import leave_out_plugins
from poolctl.config.__main__ import READS, fork_reader
from poolctl.control.answers import CHECK, TRY
from poolctl.control.pool_paths import ACCESS_LOG_VARIABLE
from poolctl.keeper.keeper_clients import CALM
from poolctl.platform import make_room_for_descriptors, name_process

_GARBAGE = (20_000, 20, 20)


def main() -> None:
    """Run the supervisor until its pool is stopped."""
    leave_out_plugins()
    if sys.argv[1] in (CHECK, TRY):
        from .takeover_trial import check, try_takeover_by

        sys.exit(check(sys.argv[2:]) if sys.argv[1] == CHECK else try_takeover_by(*sys.argv[2:]))
    # Imports make no garbage: collections take a tenth of their time.
    gc.disable()
    directory, *files = (argument for argument in sys.argv[1:] if argument not in (CALM, READS))
    begun = fork_reader(files, access_log=ACCESS_LOG_VARIABLE in os.environ) if READS in sys.argv else None
    make_room_for_descriptors()
    # The reader needs none of this.
    import asyncio
    import logging

    from poolctl.logs.internal_log import InternalLog

    from .supervisor import Supervisor

    # A full collection blocks the loop for 10 ms, and there is hardly any garbage: rarely.
    gc.set_threshold(*_GARBAGE)
    gc.enable()
    gc.freeze()
    name_process("poolctl-superv.")
    logging.basicConfig(handlers=[InternalLog(os.path.join(directory, "supervisor.log"))], level=logging.INFO)
    supervisor = Supervisor(directory, files, calm=CALM in sys.argv, begun=begun)
    sys.exit(asyncio.run(supervisor.run()))
