"""The process of a dashboard: descriptor 3 leads to the supervisor, which says what to serve, and where."""

from __future__ import annotations

import asyncio
import signal

from poolctl.keeper import wire

from .serve import Server

LINK_FD = 3


def main() -> None:
    """Serve until told to end."""
    # Ctrl-C in a terminal is the pool's to answer.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    asyncio.run(Server(wire.over(LINK_FD)).run())


if __name__ == "__main__":
    main()
