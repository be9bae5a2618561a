"""What docs/logs.md says about the view is what it shows."""

from __future__ import annotations

from pathlib import Path

from poolctl.features.top._frames import ALWAYS, HINTS, format_seconds

TEXT = (Path(__file__).parents[3] / "docs" / "logs.md").read_text()


def test_last_line_has_the_keys_of_the_view() -> None:
    (line,) = (line for line in TEXT.splitlines() if line.startswith(" / filter"))
    hints = [" ".join(hint) for hint in (*HINTS[:6], *ALWAYS)]
    assert line.strip() == "  ".join(hints)
    assert format_seconds(0.000674) in TEXT
