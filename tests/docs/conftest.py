"""The documents' commands are many, and are forked from one that is there; a reader's shell starts them itself."""

from __future__ import annotations

import pytest

from tests.real_pool import RealPool


@pytest.fixture
def real_pool(real_pool: RealPool) -> RealPool:
    real_pool.warm = True
    return real_pool
