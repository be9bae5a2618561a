"""What applications log with uvicorn's logger appears as under uvicorn; what uvicorn says at INFO, poolctl says."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterator
from typing import Any

import pytest
import uvicorn
from websockets.asyncio.client import connect

from poolctl.worker.serving import uvicorn_logging
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
    uvicorn_logging.omit_uvicorns_lines()
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
    settings = uvicorn_logging.set_log_level({"loop": "auto", "log_level": "warning"})
    assert settings == {"loop": "auto"}
    LOGGER.info("left out")
    LOGGER.setLevel(logging.DEBUG)
    uvicorn.Config(App(), log_config=None, **settings)
    LOGGER.debug("kept")
    assert lines == ["DEBUG kept"]


def test_trace_shows_what_uvicorn_does(lines: list[str]) -> None:
    uvicorn_logging.set_log_level({"log_level": "trace"})
    LOGGER.log(5, "a trace")
    assert [line.partition(" ")[2] for line in lines] == ["a trace"]


@pytest.fixture
def records() -> Iterator[list[str]]:
    """The messages of all records that are made, also of those that a filter drops."""
    made: list[str] = []
    before = logging.getLogRecordFactory()

    def make(*args: Any, **kwargs: Any) -> logging.LogRecord:
        record = before(*args, **kwargs)
        made.append(record.getMessage())
        return record

    logging.setLogRecordFactory(make)
    yield made
    logging.setLogRecordFactory(before)


def lifespan_lines(app: Any, records: list[str]) -> list[str]:
    config = uvicorn.Config(app, log_config=None, lifespan="on")
    config.load()
    uvicorn_logging.omit_lifespan_lines(config)

    async def scenario() -> None:
        lifespan = config.lifespan_class(config)
        await lifespan.startup()
        if not lifespan.should_exit:
            await lifespan.shutdown()

    asyncio.run(scenario())
    return [each for each in records if "pplication" in each]


def test_lifespan_of_a_worker_makes_no_records_of_its_course(lines: list[str], records: list[str]) -> None:
    assert lifespan_lines(App(), records) == []


def test_lifespan_of_a_worker_reports_its_failure(lines: list[str], records: list[str]) -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        await send({"type": "lifespan.startup.failed", "message": "no application database"})

    assert lifespan_lines(app, records) == [
        "no application database",
        "Application startup failed. Exiting.",
    ]
