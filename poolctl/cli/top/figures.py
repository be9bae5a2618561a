"""Numbers as people take them in at a glance: three digits and a unit. None is "-"."""

from __future__ import annotations

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
