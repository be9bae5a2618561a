"""An environment with the frameworks, made by `make applications`; without it these tests are skipped."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.applications.frameworks import Project
from tests.configuration import server
from tests.ports import claim_port
from tests.real_pool import RealPool

ENVIRONMENT = Path(__file__).parents[2] / ".venv-applications"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    here = str(Path(__file__).parent) + os.sep
    for item in items:
        if str(item.path).startswith(here):
            item.add_marker(pytest.mark.heavy)
            item.add_marker(pytest.mark.timeout(180))
            if not (ENVIRONMENT / ".has-applications").exists():
                item.add_marker(pytest.mark.skip("make applications has not made its environment"))


@pytest.fixture
def serve(real_pool: RealPool) -> Callable[..., int]:
    """`serve(project, **keys)` starts a pool with the project, and returns its port."""

    def start(project: Project, **keys: object) -> int:
        for each in project.programs:
            if shutil.which(each) is None:
                pytest.skip(f"{each} is not installed")
        for name, text in project.files.items():
            real_pool.write(name, text)
        port = claim_port()
        table = dict(project.server) | keys
        if "command" in table:
            table["command"] = [word.format(bin=ENVIRONMENT / "bin") for word in table["command"]]
        else:
            table["python"] = str(ENVIRONMENT)
        real_pool.write("pool.toml", server("web", bind=f"127.0.0.1:{port}", **table))
        real_pool.ok("start", "--timeout", "60s")
        return port

    return start
