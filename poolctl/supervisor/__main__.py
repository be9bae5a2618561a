"""The supervisor: `supervisor DIRECTORY FILE…`, started by the keeper, whose link is descriptor 3."""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import sys
from types import ModuleType

from poolctl.control.answers import CHECK, TRY
from poolctl.keeper.keeper_clients import CALM
from poolctl.logs.internal_log import InternalLog
from poolctl.platform import make_room_for_descriptors, name_process

_GARBAGE = (20_000, 20, 20)
_PLUGIN_LOADER = "pydantic.plugin._loader"


def main() -> None:
    """Run the supervisor until its pool is stopped."""
    _leave_out_plugins()
    if sys.argv[1] in (CHECK, TRY):
        from .takeover_trial import check, try_takeover_by

        sys.exit(check(sys.argv[2:]) if sys.argv[1] == CHECK else try_takeover_by(*sys.argv[2:]))
    make_room_for_descriptors()
    # Imports make no garbage: collections take a tenth of their time.
    gc.disable()
    from .supervisor import Supervisor

    # A full collection blocks the loop for 10 ms, and there is hardly any garbage: rarely.
    gc.set_threshold(*_GARBAGE)
    gc.enable()
    gc.freeze()
    name_process("poolctl-superv.")
    directory, *files = (argument for argument in sys.argv[1:] if argument != CALM)
    logging.basicConfig(handlers=[InternalLog(os.path.join(directory, "supervisor.log"))], level=logging.INFO)
    sys.exit(asyncio.run(Supervisor(directory, files, calm=CALM in sys.argv).run()))


def _leave_out_plugins() -> None:
    """Have pydantic find no plugins in this process.

    Its loader imports the search in all installed distributions even where PYDANTIC_DISABLE_PLUGINS forbids it: 32
    modules, a tenth of what a supervisor has to import before it answers.
    """
    loader = ModuleType(_PLUGIN_LOADER)
    vars(loader)["get_plugins"] = tuple
    sys.modules.setdefault(_PLUGIN_LOADER, loader)
