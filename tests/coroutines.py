"""Tests that are coroutine functions, each on an event loop of its own."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import inspect
from collections.abc import Callable, Coroutine
from typing import Any

import pytest


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> bool | None:
    """Run a test that is a coroutine function with `run`, or with the function of its mark `loop`.

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
    (mark.kwargs["run"] if mark else run)(call())
    return True


def run(work: Coroutine[Any, Any, None]) -> None:
    """Run this on a loop of its own, whose unseen exceptions are a failure."""

    async def watched() -> None:
        unseen: list[Any] = []
        asyncio.get_running_loop().set_exception_handler(lambda _, context: unseen.append(context))
        await asyncio.wait_for(work, 100)  # processes are started, on a machine that may be busy
        assert unseen == [], unseen
        await turns()  # work that the last change has led to begins, so that it can be cancelled

    asyncio.run(watched())


async def turns(count: int = 20) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


Scene = Coroutine[Any, Any, None]


def staged_by(stage: str | Callable[..., object]) -> Callable[[Callable[..., Scene]], Callable[..., None]]:
    """Decorator: `stage` runs the test's coroutine, and passes what it has built as its positional-only arguments.

    `stage` is a function that takes a coroutine function, or the name of a fixture that is one.
    """

    def decorate(test: Callable[..., Scene]) -> Callable[..., None]:
        signature = inspect.signature(test)
        named = [each for each in signature.parameters.values() if each.kind is not each.POSITIONAL_ONLY]

        @functools.wraps(test)
        def play(**fixtures: Any) -> None:
            run = fixtures.pop(stage) if isinstance(stage, str) else stage
            run(lambda *given: test(*given, **fixtures))

        if isinstance(stage, str):
            named.append(inspect.Parameter(stage, inspect.Parameter.POSITIONAL_OR_KEYWORD))
        play.__signature__ = signature.replace(parameters=named)  # type: ignore[attr-defined]
        return play

    return decorate
