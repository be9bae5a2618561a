"""The process of a dashboard: descriptor 3 leads to the supervisor, which sends settings and listeners."""

from __future__ import annotations

import asyncio
import signal

from poolctl.keeper import wire

from .serve import Server

LINK_FD = 3


def main() -> None:
    """Serve until the order to end."""
    # Ctrl-C in a terminal is handled by the pool.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    asyncio.run(Server(wire.over(LINK_FD)).run())


if __name__ == "__main__":
    main()
