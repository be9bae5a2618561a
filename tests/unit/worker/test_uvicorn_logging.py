"""What applications log with uvicorn's logger appears as under uvicorn; what uvicorn says at INFO, poolctl says."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import Any

import pytest
import uvicorn
from websockets.asyncio.client import connect

from poolctl.worker.serving import uvicorn_parts
from tests.serving import App, Client, Engine, served

LOGGER = logging.getLogger("uvicorn.error")


@pytest.fixture
def lines() -> Iterator[list[str]]:
    """What reaches a worker's log; logging is restored afterwards."""
    loggers = [logging.getLogger(name) for name in ("uvicorn.error", "uvicorn.access", "uvicorn.asgi")]
    before = [(each, each.level, each.filters[:]) for each in loggers]
    logged: list[str] = []

    def keep(record: logging.LogRecord) -> bool:
        logged.append(f"{record.levelname} {record.getMessage()}")
        return True

    LOGGER.setLevel(logging.INFO)
    uvicorn_parts.omit_uvicorns_lines()
    LOGGER.addFilter(keep)
    yield logged
    for each, level, filters in before:
        each.setLevel(level)
        each.filters[:] = filters


class Logging(App):
    """Logs each request."""

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        LOGGER.info("application: %s", scope["type"])
        if scope.get("path") == "/fails":
            raise RuntimeError("on purpose")
        await super().__call__(scope, receive, send)


def test_log_has_what_the_application_logs_and_not_uvicorns_start_and_stop(lines: list[str]) -> None:
    engine = Engine("asyncio", "httptools")

    async def scenario() -> None:
        async with served(engine, Logging()) as (_, _app, port, _running):
            client = await Client.connect(port)
            await client.get()
            await client.get("/fails")
            async with connect(f"ws://127.0.0.1:{port}/"):
                pass

    engine.run(scenario())
    assert lines == [
        "INFO application: lifespan",
        "INFO application: http",
        "INFO application: http",
        "ERROR Exception in ASGI application\n",
        "INFO application: websocket",
    ]


def test_level_that_the_application_sets_at_its_import_wins(lines: list[str]) -> None:
    settings = uvicorn_parts.set_log_level({"loop": "auto", "log_level": "warning"})
    assert settings == {"loop": "auto"}
    LOGGER.info("left out")
    LOGGER.setLevel(logging.DEBUG)
    uvicorn.Config(App(), log_config=None, **settings)
    LOGGER.debug("kept")
    assert lines == ["DEBUG kept"]


def test_trace_shows_what_uvicorn_does(lines: list[str]) -> None:
    uvicorn_parts.set_log_level({"log_level": "trace"})
    LOGGER.log(5, "a trace")
    assert [line.partition(" ")[2] for line in lines] == ["a trace"]
