"""Settings and fixtures for every unit test."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

import tests.examples  # noqa: F401 # the examples of properties
from tests.descriptors import no_descriptor_left
from tests.virtual_loop import run_in_virtual_time


@pytest.fixture
def virtual_time(request: pytest.FixtureRequest) -> None:
    """Let time pass at once on the loop of the test."""
    request.applymarker(pytest.mark.loop(run=run_in_virtual_time))


@pytest.fixture
def descriptors_closed() -> Iterator[None]:
    """Fail the test if it leaves a descriptor open, or closes one that was open before."""
    with no_descriptor_left():
        yield
