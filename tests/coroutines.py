"""Tests that are coroutine functions: each runs on an event loop of its own, whose unseen exceptions fail it."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Coroutine
from typing import Any

import pytest


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> bool | None:
    """Run a test that is a coroutine function."""
    if not inspect.iscoroutinefunction(pyfuncitem.obj):
        return None
    names = inspect.signature(pyfuncitem.obj).parameters
    run(pyfuncitem.obj(**{name: pyfuncitem.funcargs[name] for name in names}))
    return True


def run(work: Coroutine[Any, Any, None]) -> None:
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
