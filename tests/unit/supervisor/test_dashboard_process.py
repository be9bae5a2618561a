"""The dashboard's process as its supervisor sees it."""

from __future__ import annotations

import asyncio
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from poolctl.config import Dashboard
from poolctl.errors import ServerError
from poolctl.keeper import wire
from poolctl.supervisor.observers.dashboard_process import DashboardProcess, settings_of


def test_certificate_that_cannot_be_used_is_named_with_its_key(tmp_path: Path) -> None:
    table = Dashboard(bind="127.0.0.1:8443", token_env="TOKEN", tls={"cert": "/nowhere/cert.pem"})
    pool = SimpleNamespace(environment={"TOKEN": "x" * 40}, name="shop")
    environment: Any = SimpleNamespace(configuration=pool, directory="/run", state_directory=str(tmp_path))
    with pytest.raises(ServerError) as caught:
        settings_of(table, environment)
    assert caught.value.message == "tls.cert: /nowhere/cert.pem: there is no such file"


def test_adopting_a_dead_dashboard_reports_its_exit() -> None:
    async def scenario() -> None:
        ours, theirs = wire.pair()
        theirs.close()
        adopted = DashboardProcess(ours, {"pid": 1, "start": 1}, "mark")
        assert not adopted.exited.done(), "the caller does not have it yet"
        await asyncio.wait_for(adopted.exited, 60)
        assert adopted.up.is_set()

    asyncio.run(scenario())
