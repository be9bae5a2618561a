"""The contract tests check the output of hundreds of commands, most of which run in this process."""

from __future__ import annotations

import pytest

from tests.real_pool import RealPool


@pytest.fixture
def real_pool(real_pool: RealPool) -> RealPool:
    real_pool.warm = True
    return real_pool
