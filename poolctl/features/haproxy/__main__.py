"""The entry point of the gateway's process that runs HAProxy."""

from __future__ import annotations

import asyncio

from poolctl.platform import name_process, raise_descriptor_limit

from ._gateway import HaproxyGateway
from ._program import PROCESS_NAME


def main() -> None:
    """Serve until the supervisor orders this process to end."""
    name_process(PROCESS_NAME)
    raise_descriptor_limit()
    asyncio.run(HaproxyGateway().serve_supervisor())


if __name__ == "__main__":
    main()
