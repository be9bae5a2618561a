"""What several tests of runners share."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator

import pytest

from poolctl.runners.embedded_runner import ProcessRunner


@pytest.fixture
@contextlib.asynccontextmanager
async def runner() -> AsyncIterator[ProcessRunner]:
    """A runner with a real keeper, zygotes and workers."""
    runner = ProcessRunner()
    await runner.start()
    try:
        yield runner
    finally:
        await runner.aclose()
