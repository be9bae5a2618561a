"""What docs/health.md says is what the configuration has."""

from __future__ import annotations

import re
from pathlib import Path

from poolctl.config import Health, Probe
from poolctl.units import format_duration

TEXT = (Path(__file__).parents[2] / "docs" / "health.md").read_text()


def test_probes_and_thresholds_are_those_of_the_model() -> None:
    kinds = set(re.findall(r"^\| `(\w+)` \| [^|]*\|$", TEXT.split("## Kinds")[0], re.MULTILINE))
    assert kinds == set(Health.model_fields)
    default = Probe(tcp=True)
    counts = default.fall_count_warn, default.fall_count_ko, default.rise_count_ko, default.rise_count_warn
    assert counts == (1, 3, 1, 1), "`warn` after one failure in a row and `ko` after three more"
    for key in ("interval", "timeout"):
        assert re.search(rf"{format_duration(getattr(default, key))[:-1]} s\s+\(`{key}`", TEXT), key
