"""A real pool whose supervisor, zygotes and logger must have nothing to complain about at the end."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.real_pool import RealPool


@pytest.fixture
def real_pool(real_pool: RealPool) -> RealPool:
    """Whose commands to a running pool are forked: these tests are of its processes, not of the command's."""
    real_pool.warm = True
    return real_pool


@pytest.fixture
def pool(real_pool: RealPool) -> Iterator[RealPool]:
    """As `real_pool`; fails when one of the pool's own processes wrote a traceback or an asyncio complaint."""
    yield real_pool
    for path in sorted(real_pool.runtime.glob("*/*.log")):
        text = path.read_text(errors="replace")
        for word in ("Traceback", "was never retrieved", "was never awaited", "Task was destroyed"):
            assert word not in text, f"{path.name}:\n{text}"
