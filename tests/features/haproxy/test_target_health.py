"""The probe of a target outside the pool decides about it with HAProxy too: by the same test."""

from __future__ import annotations

import pytest

from tests.features.gateway.conftest import gateway
from tests.features.gateway.test_target_health import (
    service,
    test_probe_decides_about_a_target_outside_the_pool_without_any_request,
)
from tests.programs import program

__all__ = [
    "gateway",
    "service",
    "test_probe_decides_about_a_target_outside_the_pool_without_any_request",
]

pytestmark = pytest.mark.integration


@pytest.fixture
def engine() -> str:
    program("haproxy")
    return "haproxy"
