"""What docs/dashboard.md says is what the configuration has."""

from __future__ import annotations

import re
from pathlib import Path

from poolctl.features.dashboard.table import Dashboard
from tests.real_pool import RealPool

TEXT = (Path(__file__).parents[3] / "docs" / "dashboard.md").read_text()


def test_example_is_valid(real_pool: RealPool) -> None:
    (example,) = re.findall(r"```toml\n(.*?)```", TEXT, re.DOTALL)
    real_pool.write_hello("web")
    path = real_pool.directory / "pool.toml"
    path.write_text(example + path.read_text())
    assert real_pool.ok("validate").stdout == "1 server, ok (applications not imported: --import)\n"


def test_table_has_every_key_with_its_default() -> None:
    rows = dict(re.findall(r"^\| `(\w+)` \| (.*?) \|", TEXT, re.MULTILINE))
    assert set(rows) == set(Dashboard.model_fields)
    default = Dashboard()
    assert rows["bind"] == f'`"{default.bind}"`'
    assert rows["hosts"] == f"`{list(default.hosts)}`"
    for key in ("tls", "insecure"):
        assert rows[key] == f"`{str(getattr(default, key)).lower()}`"
