"""What docs/health.md says is what the configuration has."""

from __future__ import annotations

import re
from pathlib import Path

from poolctl.config import Health, Probe
from poolctl.units import format_duration
from tests.real_pool import RealPool

TEXT = (Path(__file__).parents[2] / "docs" / "health.md").read_text()


def test_example_is_valid(real_pool: RealPool) -> None:
    (example,) = re.findall(r"```toml\n(.*?)```", TEXT, re.DOTALL)
    real_pool.write("pool.toml", example)
    assert real_pool.ok("validate").stdout == "1 server, ok (applications not imported: --import)\n"


def test_probes_and_defaults_are_those_of_the_model() -> None:
    rows = dict(re.findall(r"^\| `(\w+)` \| ?`?([^`|]*?)`? ?\|", TEXT, re.MULTILINE))
    kinds = {"startup", "readiness", "liveness"}
    assert kinds == set(Health.model_fields)
    default = Probe(tcp=True)
    for key in ("interval", "timeout"):
        assert rows[key] == f'"{format_duration(getattr(default, key))}"', key
    for key in ("jitter", "fall_count_warn", "fall_count_ko", "rise_count_ko", "rise_count_warn"):
        assert rows[key] == f"{getattr(default, key):g}", key
    assert (rows["status"], rows["method"]) == (f'"{default.status}"', f'"{default.method}"')
    assert set(rows) - kinds == set(Probe.model_fields) - {"http", "tcp", "exec"}
