"""The dashboard's process as its supervisor sees it."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from poolctl.errors import ServerError
from poolctl.features.dashboard.page import DashboardProcess, settings_of
from poolctl.features.dashboard.table import Dashboard
from poolctl.keeper import wire


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


def test_supervisor_of_an_earlier_version_starts_the_process_by_its_former_name() -> None:
    look = """
import sys
from poolctl import bootstrap
from poolctl.features.dashboard import __main__ as process
process.main = lambda: print("started with", sys.argv[1:])
sys.argv = ["bootstrap.py", "web"]
bootstrap.main()
"""
    done = subprocess.run([sys.executable, "-c", look], capture_output=True, text=True, check=True)
    assert done.stdout == "started with []\n"
