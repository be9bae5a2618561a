"""Settings and fixtures for every unit test."""

from __future__ import annotations

import asyncio
import contextlib
import inspect
from collections.abc import Iterator

import pytest

import tests.examples  # noqa: F401 # the examples of properties
from tests.descriptors import no_descriptor_left
from tests.virtual_loop import run_in_virtual_time


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> bool | None:
    """Run a test that is a coroutine function with `asyncio.run`, or with the function of its mark `loop`.

    Fixtures that are asynchronous context managers are entered on its loop; the test gets what they yield.
    """
    if not inspect.iscoroutinefunction(pyfuncitem.obj):
        return None

    async def call() -> None:
        async with contextlib.AsyncExitStack() as stack:
            arguments = {}
            for name in inspect.signature(pyfuncitem.obj).parameters:
                value = pyfuncitem.funcargs[name]
                if isinstance(value, contextlib.AbstractAsyncContextManager):
                    value = await stack.enter_async_context(value)
                arguments[name] = value
            await pyfuncitem.obj(**arguments)

    mark = pyfuncitem.get_closest_marker("loop")
    (mark.kwargs["run"] if mark else asyncio.run)(call())
    return True


@pytest.fixture
def virtual_time(request: pytest.FixtureRequest) -> None:
    """Let time pass at once on the loop of the test."""
    request.applymarker(pytest.mark.loop(run=run_in_virtual_time))


@pytest.fixture
def descriptors_closed() -> Iterator[None]:
    """Fail the test if it leaves a descriptor open, or closes one that was open before."""
    with no_descriptor_left():
        yield
