"""A runner with a real keeper, zygotes and workers, for one test."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

from poolctl import ServerConfig
from poolctl.runners.embedded_runner import ProcessRunner
from poolctl.runners.runner_protocol import Placement
from tests.http_get import get
from tests.ports import claim_port

TREE = Path(__file__).parents[3]
APPS = "tests.asgi_apps"


def served(handler: str = "hello", *, name: str = "web", **keys: Any) -> ServerConfig:
    """A server of this application on a port of its own; `command` replaces the application."""
    bind = f"127.0.0.1:{claim_port()}"
    if "command" not in keys:
        keys = {"app": f"{APPS}:{handler}", "app_dir": str(TREE)} | keys
    return ServerConfig(name=name, bind=bind, **keys)


async def placed(
    runner: ProcessRunner, server: ServerConfig, generation: int = 1, index: int = 0
) -> Placement:
    """A ready worker of the server, which accepts connections."""
    await runner.open(server)
    placement = await runner.place(server, generation, index)
    await runner.wait_until_ready(placement)
    return placement


async def fetch(server: ServerConfig, path: str = "/") -> str:
    """The answer to one request."""
    return (await asyncio.to_thread(get, server.bind, path)).text


async def kept(runner: ProcessRunner) -> dict[str, Any]:
    """The entries in the keeper's store, by name."""
    reply, _ = await runner.keeper.call({"op": "list", "after": ""})
    return dict(reply["entries"])
