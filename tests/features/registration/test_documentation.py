"""What docs/registration.md says is what the configuration, the command and the control socket take."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import pytest

from poolctl import connect
from poolctl.control.pool_client import PoolClient
from poolctl.features.gateway.table import RouteConfig
from poolctl.features.registration._services import registration_of
from poolctl.features.registration.site import read_options
from poolctl.features.registration.table import RegistrationTable
from poolctl.routing import route_report
from tests.certificates import certificate
from tests.commands import parsed
from tests.config_files import load_text

TEXT = (Path(__file__).parents[3] / "docs" / "registration.md").read_text()


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", TEXT, re.DOTALL)


def test_example_of_a_route_is_valid(tmp_path: Path) -> None:
    example, address = blocks("toml")
    config = load_text(tmp_path, example)
    assert (config.problems, config.tables.all(RouteConfig)[0].register) == ([], True)
    cert, key = certificate(tmp_path)
    cert.rename(tmp_path / "registration.pem")
    key.rename(tmp_path / "registration.key")
    config = load_text(tmp_path, example + address)
    assert config.problems == []
    table = config.tables.get(RegistrationTable)
    assert table is not None
    assert table.client[0].allow == ("10.0.0.0/8",)


def test_commands_and_requests_are_understood() -> None:
    commands = [line.partition(" #")[0] for line in TEXT.splitlines() if line.startswith("poolctl ")]
    assert len(commands) == 3
    for command in commands:
        parsed(shlex.split(command)[1:])
    local, register, unregister = re.findall(r"-d '(.*)'", TEXT)
    findings: list[object] = []
    for body in (local, register):
        assert registration_of(json.loads(body)["options"], findings) is not None  # type: ignore[arg-type]
    for verb, body in (("register", register), ("unregister", unregister)):
        assert read_options(body.encode(), verb)["name"] == "users"


def test_python_is_that_of_a_client() -> None:
    code, elsewhere = blocks("python")
    compile(code, "registration.md", "exec")
    compile(elsewhere, "registration.md", "exec")
    assert connect.__annotations__["return"] == "PoolClient"
    assert "poolctl.connect(" in code
    assert hasattr(PoolClient, "register")


@pytest.mark.parametrize("state", ["STARTING", "SERVING", "FAILING", "SILENT"])
def test_states_are_described(state: str) -> None:
    assert f"| `{getattr(route_report, state)}` |" in TEXT
