"""The tests of the command line start the installed command, as users do."""

from __future__ import annotations

import pytest

from tests.real_pool import RealPool


@pytest.fixture
def real_pool(real_pool: RealPool) -> RealPool:
    real_pool.warm = False
    return real_pool
