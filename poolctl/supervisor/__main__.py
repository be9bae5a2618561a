"""The supervisor: `supervisor DIRECTORY FILE…`, started by the keeper, whose link is descriptor 3."""

from __future__ import annotations

import asyncio
import logging
import sys

from poolctl.platform import name_process


def main() -> None:
    """Run the supervisor until its pool is stopped."""
    # Imports that take their time come after the zygote has been asked for: see Supervisor.run.
    from .supervisor import Supervisor

    name_process("poolctl-superv.")
    logging.basicConfig(format="%(asctime)s %(levelname)s %(message)s", level=logging.INFO)
    directory, *files = sys.argv[1:]
    sys.exit(asyncio.run(Supervisor(directory, files).run()))
