"""The fixture of a pool of real processes that must not complain, and a server with three scripted workers."""

from __future__ import annotations

import pytest

from tests.features.rollout.rollout_desk import RolloutDesk, Split
from tests.integration.processes.conftest import pool

__all__ = ["pool"]


@pytest.fixture
def desk(monkeypatch: pytest.MonkeyPatch) -> RolloutDesk:
    return RolloutDesk(monkeypatch)


@pytest.fixture
def routed(desk: RolloutDesk) -> RolloutDesk:
    """Its server "web" is reached through a gateway."""
    desk.core.split_obstacle = Split().split_obstacle
    return desk
