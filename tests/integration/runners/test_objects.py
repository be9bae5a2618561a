"""What can be given to a server in another process: names and values, no objects."""

from __future__ import annotations

from typing import Any

import pytest

from poolctl import Pool, PoolContext, PoolStartError, ServerConfig
from poolctl.runners.embedded_runner import ProcessRunner
from tests.asgi_apps import hello
from tests.http_get import get
from tests.integration.runners.test_runners import config
from tests.ports import claim_port


def failure(pool: Pool) -> str:
    with pytest.raises(PoolStartError) as caught:
        pool.start_sync()
    return caught.value.exceptions[0].message


def test_values_of_the_context_reach_the_app(process_runner: ProcessRunner) -> None:
    context = PoolContext({"colour": "blue", "depth": [1, {"a": None}]})
    pool = Pool([config("web")], runner=process_runner, context=context)
    pool.start_sync()
    text = get(next(iter(pool)), "/state").text
    pool.stop_sync()
    assert text == repr(context.values)


def test_an_object_in_the_context_is_refused_by_name(process_runner: ProcessRunner) -> None:
    values: dict[str, Any] = {"db": object()}
    pool = Pool([config("web")], runner=process_runner, context=PoolContext(values))
    assert "a value of its context cannot go to another process: Object of type object" in failure(pool)


def test_an_app_that_is_an_object_is_refused(process_runner: ProcessRunner) -> None:
    made = ServerConfig(name="web", bind=f"127.0.0.1:{claim_port()}", app=hello)
    assert (
        failure(Pool([made], runner=process_runner))
        == "its app is an object, and cannot go to another process"
    )
    by_handler = ServerConfig(name="web", bind=f"127.0.0.1:{claim_port()}")
    pool = Pool([by_handler], runner=process_runner, handler=lambda: {"": hello})
    assert failure(pool) == "its app is an object, and cannot go to another process"
