"""Numbers of three digits and a unit, and sparklines. None is shown as "-"."""

from __future__ import annotations

from collections.abc import Sequence

_UNKNOWN = "-"


def count(number: float | None) -> str:
    """A number without a unit: "0", "4.2", "847", "12.3k", "1.2M"."""
    if number is None:
        return _UNKNOWN
    for suffix in ("", "k", "M"):
        if number < 999.5:
            return _digits(number) + suffix
        number /= 1000
    return _digits(number) + "G"


def seconds(number: float | None) -> str:
    """A short time: "850µs", "4.2ms", "320ms", "1.2s", "95s"."""
    if number is None:
        return _UNKNOWN
    if number < 0.0009995:
        return f"{number * 1e6:.0f}µs" if number > 0 else "0"
    if number < 0.9995:
        return f"{_digits(number * 1000)}ms"
    return f"{_digits(number)}s"


def size(number: float | None) -> str:
    """An amount of memory: "640K", "23.4M", "1.2G"."""
    if number is None:
        return _UNKNOWN
    number /= 1024
    for suffix in ("K", "M"):
        if number < 999.5:
            return _digits(number) + suffix
        number /= 1024
    return _digits(number) + "G"


def percent(number: float | None) -> str:
    """A share: "0.4%", "12%"."""
    return _UNKNOWN if number is None else f"{_digits(number, 2)}%"


def _digits(number: float, most: int = 3) -> str:
    if number == int(number) or number >= 99.95 or (most < 3 and number >= 9.95):
        return f"{number:.0f}"
    return f"{number:.1f}" if number >= 0.995 or most < 3 else f"{number:.2f}"


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
