"""The entry point of the forwarder's process, which the supervisor starts."""

from __future__ import annotations

import asyncio

from poolctl.platform import name_process, raise_descriptor_limit

from .forwarder import Forwarder


def main() -> None:
    """Serve until the supervisor orders this process to end."""
    name_process("poolctl-forward")
    raise_descriptor_limit()
    asyncio.run(Forwarder().serve_supervisor())


if __name__ == "__main__":
    main()
