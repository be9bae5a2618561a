"""The tests of the contract look at what hundreds of commands print: few of them start a process for it."""

from __future__ import annotations

import pytest

from tests.real_pool import RealPool


@pytest.fixture
def real_pool(real_pool: RealPool) -> RealPool:
    real_pool.warm = True
    return real_pool
