"""What docs/recovery.md says is what the configuration has."""

from __future__ import annotations

import re
from pathlib import Path

from poolctl.config import Recovery
from poolctl.units import format_duration
from tests.real_pool import RealPool

TEXT = (Path(__file__).parents[2] / "docs" / "recovery.md").read_text()


def test_example_is_valid(real_pool: RealPool) -> None:
    (example,) = re.findall(r"```toml\n(.*?)```", TEXT, re.DOTALL)
    real_pool.write("pool.toml", example)
    assert real_pool.ok("validate").stdout == "1 server, ok (applications not imported: --import)\n"


def test_defaults_are_those_of_the_model() -> None:
    rows = dict(re.findall(r"^\| `(\w+)` \| `([^`]+)` \|", TEXT, re.MULTILINE))
    default = Recovery()
    assert rows["strategy"] == f'"{default.strategy}"'
    for key in ("heartbeat", "stuck_after", "window"):
        assert rows[key] == f'"{format_duration(getattr(default, key))}"', key
    assert rows["limit"] == str(default.limit)
    for key in ("initial", "max"):
        assert f'{key} = "{format_duration(getattr(default.backoff, key))}"' in rows["backoff"]
    assert set(rows) == set(Recovery.model_fields)
