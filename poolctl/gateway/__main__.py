"""The process of a gateway."""

from __future__ import annotations

import asyncio
import gc

import uvloop

from poolctl.platform import name_process, raise_descriptor_limit

from .gateway_server import GatewayServer


def main() -> None:
    """Serve until the order to end."""
    name_process("poolctl-gateway")
    raise_descriptor_limit()
    gc.collect()
    gc.freeze()
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(GatewayServer().run())


if __name__ == "__main__":
    main()
