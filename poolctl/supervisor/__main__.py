"""The supervisor: `supervisor DIRECTORY FILE…`, started by the keeper, whose link is descriptor 3."""

from __future__ import annotations

import asyncio
import gc
import logging
import sys

from poolctl.platform import name_process


def main() -> None:
    """Run the supervisor until its pool is stopped."""
    # Nothing that an import makes is garbage: looking for it is a tenth of the time.
    gc.disable()
    from .supervisor import Supervisor

    gc.enable()
    gc.freeze()
    name_process("poolctl-superv.")
    logging.basicConfig(format="%(asctime)s %(levelname)s %(message)s", level=logging.INFO)
    directory, *files = sys.argv[1:]
    sys.exit(asyncio.run(Supervisor(directory, files).run()))
