"""A row of bars for the values of the last minutes."""

from __future__ import annotations

from collections.abc import Sequence

BARS = "▁▂▃▄▅▆▇"  # without the full one, so that rows do not grow together
# Of a value that hardly changes (memory) the change is shown, but a ripple is not to look like a wave.
_LEAST_SPAN = 0.2


def sparkline(values: Sequence[float | None], width: int, *, from_zero: bool = True) -> str:
    """The newest values, right-aligned, one a column; a space where none is known.

    With `from_zero` the lowest bar is 0; otherwise they move around the middle.
    """
    shown = list(values)[-width:] if width > 0 else []
    known = [value for value in shown if value is not None]
    top = max(known, default=0.0)
    least = 0.0 if from_zero else min(known, default=0.0)
    span = top if from_zero else max(top - least, top * _LEAST_SPAN)
    base = (top + least - span) / 2
    bars = "".join(" " if value is None else _bar(value - base, span) for value in shown)
    return bars.rjust(width)


def _bar(value: float, span: float) -> str:
    if span <= 0 or value <= 0:
        return BARS[0]
    return BARS[min(len(BARS) - 1, int(value / span * (len(BARS) - 1) + 0.5))]
