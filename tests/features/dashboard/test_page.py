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
from poolctl.features.dashboard.page import DashboardProcess, settings_of, url_of
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


def settings_with(tmp_path: Path, environment: dict[str, str] | None = None, **keys: Any) -> Any:
    pool = SimpleNamespace(environment=environment or {}, name="shop")
    given: Any = SimpleNamespace(configuration=pool, directory="/run/shop", state_directory=str(tmp_path))
    return settings_of(Dashboard(**{"bind": "127.0.0.1:8443"} | keys), given)


def test_settings_have_the_token_from_the_environment_or_the_file(tmp_path: Path) -> None:
    from_environment = settings_with(tmp_path, {"TOKEN": f" {'x' * 40}\n"}, token_env="TOKEN")
    assert from_environment.values["token"] == "x" * 40
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "own").write_text(f"{'y' * 40}\n")
    assert settings_with(tmp_path, token_file=str(tmp_path / "own")).values["token"] == "y" * 40
    assert from_environment.values["tls"] is None
    assert from_environment.values["socket_path"].startswith("/run/shop/")


def test_token_is_made_once_and_only_its_owner_can_read_it(tmp_path: Path) -> None:
    first, again = settings_with(tmp_path), settings_with(tmp_path)
    (made,) = tmp_path.iterdir()
    assert first.values["token"] == again.values["token"] == made.read_text().strip()
    assert len(first.values["token"]) >= 32
    assert made.stat().st_mode & 0o777 == 0o600
    assert first.mark == again.mark
    assert settings_with(tmp_path, hosts=["a.example"]).mark != first.mark


def test_missing_or_empty_token_is_an_error_with_its_fix(tmp_path: Path) -> None:
    for environment in ({}, {"TOKEN": " "}):
        with pytest.raises(
            ServerError, match="it has no token: the environment variable TOKEN is empty"
        ) as caught:
            settings_with(tmp_path, environment, token_env="TOKEN")
        assert caught.value.hint == "export TOKEN=… before poolctl start"
    with pytest.raises(ServerError, match="its token cannot be read"):
        settings_with(tmp_path, token_file=str(tmp_path / "missing"))


def test_hosts_are_the_configured_ones_and_the_address(tmp_path: Path) -> None:
    assert settings_with(tmp_path, hosts=["a.example"]).values["hosts"] == ["a.example", "127.0.0.1"]
    assert settings_with(tmp_path, bind="[::1]:8443").values["hosts"] == ["::1"]
    assert settings_with(tmp_path, bind="unix:/run/page", hosts=["a.example"]).values["hosts"] == [
        "a.example"
    ]


def test_url_is_where_a_browser_on_this_machine_finds_the_page() -> None:
    assert url_of(Dashboard(bind="127.0.0.1:80")) == "http://127.0.0.1:80/"
    assert (
        url_of(Dashboard(bind="0.0.0.0:8443", tls={"cert": "/c", "key": "/k"})) == "https://127.0.0.1:8443/"
    )
    assert url_of(Dashboard(bind="unix:/run/page")) == "unix:/run/page"
