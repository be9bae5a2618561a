"""A real pool whose supervisor, zygotes and logger must have nothing to complain about at the end."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.real_pool import RealPool, pool_in


@pytest.fixture
def pool(real_pool: RealPool) -> Iterator[RealPool]:
    """As `real_pool`; fails when one of the pool's own processes wrote a traceback or an asyncio complaint."""
    yield real_pool
    look_for_complaints(real_pool)


@pytest.fixture(scope="module")
def pool_of_module(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RealPool]:
    with pool_in(tmp_path_factory.mktemp("pool")) as pool:
        yield pool
        look_for_complaints(pool)


@pytest.fixture
def shared_pool(pool_of_module: RealPool) -> RealPool:
    """As `pool`, and one for all tests of a file that look at a server of their own only, which is new in it.

    Each writes its file, with a name that no other test uses, and calls `start_or_reload()`.
    """
    for path in pool_of_module.directory.iterdir():
        if path.is_file():
            path.unlink()
    return pool_of_module


def look_for_complaints(pool: RealPool) -> None:
    for path in sorted(pool.runtime.glob("*/*.log")):
        text = path.read_text(errors="replace")
        for word in ("Traceback", "was never retrieved", "was never awaited", "Task was destroyed"):
            assert word not in text, f"{path.name}:\n{text}"
