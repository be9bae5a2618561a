"""The code in docs/routes.md runs against a pool."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

from poolctl.gateway import routes
from tests.ports import claim_port
from tests.real_pool import RealPool

TEXT = (Path(__file__).parents[2] / "docs" / "routes.md").read_text()
POOL = """
[pool]
name = "shop"
[gateway]
bind = "127.0.0.1:%d"
[[route]]
alias = "users"
host = "users.example.com"
to = "http://127.0.0.1:1"
"""


def blocks() -> list[str]:
    return re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)


def test_registry_of_a_pool_prints_its_routes(
    real_pool: RealPool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    real_pool.write("pool.toml", POOL % claim_port())
    real_pool.ok("start")
    monkeypatch.setenv("POOLCTL_RUNTIME_DIR", os.fspath(real_pool.runtime))
    found: dict[str, object] = {}
    exec(compile(blocks()[0], "routes.md", "exec"), found)
    generation = found["registry"].generation  # type: ignore[attr-defined]
    lines = ["users ['http://127.0.0.1:1']", f"1 1 {generation}", "{'file': 1}"]
    assert capsys.readouterr().out.splitlines() == lines


def test_code_of_applications_uses_what_there_is() -> None:
    for code in blocks()[1:]:
        compile(code, "routes.md", "exec")
        for names in re.findall(r"from poolctl\.gateway\.routes import (.+)", code):
            assert not [name for name in names.split(", ") if not hasattr(routes, name)]
