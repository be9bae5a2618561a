"""What docs/dashboard.md says is what the configuration has."""

from __future__ import annotations

import re
from pathlib import Path

from tests.real_pool import RealPool

TEXT = (Path(__file__).parents[3] / "docs" / "dashboard.md").read_text()


def test_example_is_valid(real_pool: RealPool) -> None:
    (example,) = re.findall(r"```toml\n(.*?)```", TEXT, re.DOTALL)
    real_pool.write_hello("web")
    path = real_pool.directory / "pool.toml"
    path.write_text(example + path.read_text())
    assert real_pool.ok("validate").stdout == "1 server, ok (applications not imported: --import)\n"
