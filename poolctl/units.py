"""Durations and sizes as people write them."""

from __future__ import annotations

import re
from functools import lru_cache
from typing import TYPE_CHECKING

from poolctl.errors import PoolParamError

if TYPE_CHECKING:
    from datetime import timedelta

DURATION_ALLOWED = 'a number of seconds, or a string such as "500ms", "5s", "1m30s", "2h"'
SIZE_ALLOWED = 'a number of bytes, or a string such as "64KiB", "10MB"'

SECONDS = {"us": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0, "w": 604800.0}
BYTES = {"": 1, "b": 1}
for _power, _prefix in enumerate("kmgt", 1):
    BYTES |= {_prefix: 1000**_power, f"{_prefix}b": 1000**_power}
    BYTES |= {f"{_prefix}i": 1024**_power, f"{_prefix}ib": 1024**_power}
NUMBER = r"[0-9]{1,20}(?:\.[0-9]{1,9})?"
DURATION_PATTERN = rf"({NUMBER}\s*(us|ms|s|m|h|d|w)\s*)+|{NUMBER}"
SIZE_PATTERN = rf"{NUMBER}\s*([kKmMgGtT][iI]?)?[bB]?"

# Compiled on first use, because a supervisor receives numbers.
_DURATION_PART = rf"({NUMBER})\s*(us|ms|s|m|h|d|w)\s*"
_SIZE = rf"({NUMBER})\s*([A-Za-z]*)"


def parse_duration(value: float | str | timedelta) -> float:
    """The duration in seconds. Raises ValueError, whose message lists the allowed forms."""
    if isinstance(value, str):
        return _duration_from_text(value)
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return _checked_seconds(float(value) if abs(value) < 1e15 else float("inf"), value)
    total_seconds = getattr(value, "total_seconds", None)
    if total_seconds is None:
        shown = str(value).lower() if isinstance(value, bool) else repr(value)
        raise ValueError(f"{shown} is not a duration; write {DURATION_ALLOWED}")
    return _checked_seconds(total_seconds(), value)


def timeout_seconds(argument: str, value: float | str | timedelta | None) -> float | None:
    """The value of this argument in seconds, None for None. Raises PoolParamError if it is not a duration."""
    try:
        return None if value is None else parse_duration(value)
    except ValueError as error:
        raise PoolParamError(f"{argument}: {error}") from None


def _checked_seconds(seconds: float, written: object) -> float:
    if seconds != seconds or seconds in (float("inf"), float("-inf")):
        raise ValueError(f"{written!r} is not a finite duration; write {DURATION_ALLOWED}")
    if seconds < 0:
        raise ValueError(f"a duration cannot be negative, but this is {written!r}")
    return seconds


@lru_cache(maxsize=256)
def _duration_from_text(text: str) -> float:
    text = text.strip()
    if len(text) > 100 or not re.fullmatch(DURATION_PATTERN, text):
        raise ValueError(f"{text[:100]!r} is not a duration; write {DURATION_ALLOWED}")
    parts = re.findall(_DURATION_PART, text)
    if not parts:
        return float(text)
    units = [unit for _, unit in parts]
    if units != [unit for unit in reversed(SECONDS) if unit in units]:
        raise ValueError(f"{text!r} is not a duration: each unit once, the largest first")
    return round(sum(float(number) * SECONDS[unit] for number, unit in parts), 9)


def parse_size(value: int | str) -> int:
    """The size in bytes. KB, MB, GB are powers of 1000, KiB, MiB, GiB of 1024. Raises ValueError."""
    if isinstance(value, str):
        match = re.fullmatch(_SIZE, value.strip()) if len(value) <= 100 else None
        factor = BYTES.get(match[2].lower()) if match else None
        if match is None or factor is None:
            raise ValueError(f"{value[:100]!r} is not a size; write {SIZE_ALLOWED}")
        # Whole numbers stay exact beyond 2**53.
        return int(match[1]) * factor if match[1].isdigit() else int(float(match[1]) * factor)
    if not isinstance(value, int) or isinstance(value, bool):
        raise ValueError(f"{value!r} is not a size; write {SIZE_ALLOWED}")
    if value < 0:
        raise ValueError(f"a size cannot be negative, but this is {value!r}")
    return value


def format_duration(seconds: float) -> str:
    """The duration in the form parsed by parse_duration: `1m30s`, `500ms`, `2h`; rounded to a microsecond."""
    microseconds = round(seconds * 1_000_000)
    rest, text = abs(microseconds), "-" if microseconds < 0 else ""
    for unit in ("d", "h", "m", "s", "ms", "us"):
        count, rest = divmod(rest, round(SECONDS[unit] * 1_000_000))
        text += f"{count}{unit}" if count else ""
    return text or "0s"


def format_size(size_bytes: int) -> str:
    """The size in the largest unit of which there is at least one, to one decimal place: `10MiB`, `1.5KiB`, `999B`."""
    size = float(size_bytes)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if abs(size) < 1024:
            return f"{size:.1f}".removesuffix(".0") + unit
        size /= 1024
    return f"{size:.1f}".removesuffix(".0") + "TiB"
