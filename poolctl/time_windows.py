"""Time windows in cron's notation: whether a time is within one, when that changes, and the next minute in one.

A window has five fields: minute, hour, day of the month, month, day of the week. A minute that matches all fields is in
the window. If both day fields are restricted, a match of either is enough, as in crontab(5). Times are local: an hour
repeated when clocks are set back matches twice, and a skipped hour does not match.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from datetime import date, datetime, time, timedelta, tzinfo
from functools import lru_cache
from typing import NamedTuple

WINDOW_ALLOWED = 'minute, hour, day, month and weekday as in crontab(5), such as "* 8-17 * * mon-fri"'


class BadWindow(ValueError):
    """An invalid time window. The message names the invalid field, and `allowed` tells the field's valid values."""

    def __init__(self, problem: str, allowed: str) -> None:
        super().__init__(f"{problem}; allowed is {allowed}")
        self.allowed = allowed


_MONTHS = ("jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec")
_DAYS = ("sun", "mon", "tue", "wed", "thu", "fri", "sat")
_FIELDS = (
    ("minute", 0, 59, ()),
    ("hour", 0, 23, ()),
    ("day", 1, 31, ()),
    ("month", 1, 12, _MONTHS),
    ("weekday", 0, 7, _DAYS),  # 0 and 7 are Sunday
)
_PART = r"(?:\*|([0-9]{1,2}|[a-z]{3})(?:-([0-9]{1,2}|[a-z]{3}))?)(?:/([0-9]{1,2}))?"
_WHOLE_DAY = (1 << 24 * 60) - 1
_WHOLE_HOUR = (1 << 60) - 1
# Two 29ths of February may be eight years apart (1896 and 1904).
_HORIZON_DAYS = 8 * 366 + 1


class Window(NamedTuple):
    """One window: `minutes` has a bit for each minute of the day; the other fields select the days.

    If `either_day`, a day must be in `days` or in `weekdays` or in both; otherwise it must be in both.
    """

    minutes: int
    days: frozenset[int]
    months: frozenset[int]
    weekdays: frozenset[int]  # 0 is Sunday
    either_day: bool

    def minute_mask_on(self, day: date) -> int:
        """The minutes of this day that are in the window, one bit each; 0 on a day outside the window."""
        if day.month not in self.months:
            return 0
        in_month, in_week = day.day in self.days, day.isoweekday() % 7 in self.weekdays
        return self.minutes if (in_month or in_week if self.either_day else in_month and in_week) else 0


@lru_cache(maxsize=1024)
def parse_window(text: str) -> Window:
    """Parse the text of a window. Raises BadWindow."""
    words = text.lower().split()
    if len(words) != len(_FIELDS) or len(text) > 200:
        count = f"{len(words)} field{'s' * (len(words) != 1)}"
        raise BadWindow(f"{text[:60]!r} has {count} instead of 5", WINDOW_ALLOWED)
    values = [_parse_field(word, *field) for word, field in zip(words, _FIELDS, strict=True)]
    minutes, hours, days, months, weekdays = values
    bits = sum(1 << (60 * hour + minute) for hour in hours for minute in minutes)
    # As in crontab(5), a field that begins with * is no restriction here, even */2.
    either_day = not (words[2].startswith("*") or words[4].startswith("*"))
    return Window(bits, days, months, frozenset(weekday % 7 for weekday in weekdays), either_day)


def _parse_field(word: str, name: str, minimum: int, maximum: int, names: tuple[str, ...]) -> frozenset[int]:
    values: set[int] = set()
    for part in word.split(","):
        match = re.fullmatch(_PART, part)
        if match is None:
            raise BadWindow(f"{part[:20]!r} is no {name}", "such as *, 5, 5-10, */2 or 1,5")
        first, last, step = match.groups()
        begin = minimum if first is None else _parse_number(first, name, minimum, maximum, names)
        end = maximum if first is None else begin
        if last is not None:
            end = _parse_number(last, name, minimum, maximum, names)
            end = 7 if name == "weekday" and end == 0 < begin else end  # fri-sun
        elif first is not None and step is not None:
            raise BadWindow(f"{part!r} is no {name}", f"a step after * or a range: {first}-{maximum}/{step}")
        if step is not None and int(step) == 0:
            raise BadWindow(f"{part!r} is no {name}", "a step of at least 1")
        if begin > end:
            edges = (names[-1], names[0]) if names else (maximum, minimum)
            raise BadWindow(f"{part!r} ends before it begins", f"{first}-{edges[0]},{edges[1]}-{last}")
        values.update(range(begin, end + 1, int(step or 1)))
    return frozenset(values)


def _parse_number(text: str, name: str, minimum: int, maximum: int, names: tuple[str, ...]) -> int:
    if text in names:
        return names.index(text) + (minimum if name == "month" else 0)
    if not text.isdigit() or not minimum <= int(text) <= maximum:
        words = f" or {names[0]} to {names[-1]}" if names else ""
        raise BadWindow(f"{text!r} is no {name}", f"{minimum} to {maximum}{words}")
    return int(text)


class WindowState(NamedTuple):
    """The state set by time windows ("" outside all), and the time of its end in seconds since 1970 (None: never)."""

    state: str = ""
    until: float | None = None


NO_PERIOD = WindowState()


def parse_time_zone(name_or_empty: str) -> tzinfo | None:
    """The time zone with this name (such as Europe/Berlin), None for "". Raises ValueError."""
    if not name_or_empty:
        return None
    from zoneinfo import ZoneInfo

    try:
        return ZoneInfo(name_or_empty)
    except (OSError, ValueError, LookupError):
        raise ValueError(f"{name_or_empty[:60]!r} is no time zone of this machine") from None


def is_frequent(text: str) -> bool:
    """Whether a task in this window runs again in the hour that is repeated when clocks are set back (cron(8)).

    True for every hour, or with a `*` as minute or hour. A task at certain times runs once a day.
    """
    minutes = parse_window(text).minutes
    is_hourly = all(minutes >> 60 * hour & _WHOLE_HOUR for hour in range(24))
    return is_hourly or any(field.startswith("*") for field in text.split()[:2])


def next_time(text: str, now: float, zone: tzinfo | None = None) -> float | None:
    """Return when the first minute of the window `text` after `now` begins; None if that is over eight years away.

    Both times are in seconds since 1970. Without `zone` the window is in the machine's local time (TZ). When clocks are
    set back, an hour occurs twice. The second occurrence counts only for a frequent task.
    """
    window, repeated = parse_window(text), is_frequent(text)
    since = now - now % 60 + 60
    day = datetime.fromtimestamp(since, zone).date()
    for _ in range(_HORIZON_DAYS):
        minute = _first_minute(window.minute_mask_on(day), day, since, zone, repeated=repeated)
        if minute is not None:
            return minute
        day += timedelta(days=1)
    return None


def _first_minute(
    bits: int, day: date, since: float, zone: tzinfo | None, *, repeated: bool = True
) -> float | None:
    """Return the first minute of the day, at or after `since`, whose bit in `bits` is set; None if there is none.

    Unless `repeated`, minutes that occur a second time because clocks were set back are skipped.
    """
    if not bits:
        return None
    minute, ends = max(_start_of_day(day, zone), since), _start_of_day(day + timedelta(days=1), zone)
    while minute < ends:
        moment = datetime.fromtimestamp(minute, zone)
        if bits & _minute_bit(moment) and (repeated or not moment.fold):
            return minute
        minute += 60
    return None


def _minute_bit(moment: datetime) -> int:
    return 1 << (60 * moment.hour + moment.minute)


def until_text(until: float | None, now: float, zone: tzinfo | None = None) -> str:
    """A text such as `until 18:00`, with the weekday or date if it is not today; "" for None."""
    if until is None:
        return ""
    end, moment = datetime.fromtimestamp(until, zone), datetime.fromtimestamp(now, zone)
    days = (end.date() - moment.date()).days
    form = "%H:%M" if days == 0 else "%a %H:%M" if 0 < days < 7 else "%Y-%m-%d %H:%M"
    return f"until {end.strftime(form)}"


def period_at(
    windows: Iterable[tuple[str, Iterable[str]]], now: float, zone: tzinfo | None = None
) -> WindowState:
    """The state at the time `now` (seconds since 1970), and when that state ends.

    `windows` pairs states with the texts of their windows. The state is the first one with a window that contains the
    time, or "". Without `zone` the windows are in the machine's local time (TZ).
    """
    parsed = [(state, [parse_window(text) for text in texts]) for state, texts in windows]
    moment = datetime.fromtimestamp(now, zone)
    day, this_minute = moment.date(), now - now % 60
    state = next(
        state for state, bits in _minute_masks_by_state(parsed, day).items() if bits & _minute_bit(moment)
    )
    for _ in range(_HORIZON_DAYS):
        until = _first_minute(
            _WHOLE_DAY & ~_minute_masks_by_state(parsed, day)[state], day, this_minute, zone
        )
        if until is not None:
            return WindowState(state, until)
        day += timedelta(days=1)
    return WindowState(state)


def _start_of_day(day: date, zone: tzinfo | None) -> float:
    return datetime.combine(day, time(), zone).timestamp()


def _minute_masks_by_state(parsed: list[tuple[str, list[Window]]], day: date) -> dict[str, int]:
    """The minutes of `day` in each state, as bit masks.

    `parsed` pairs states with their windows. A minute has the first state with a window that contains it, else "".
    """
    rest, masks = _WHOLE_DAY, {}
    for state, windows in parsed:
        bits = 0
        for window in windows:
            bits |= window.minute_mask_on(day)
        masks[state] = bits & rest
        rest &= ~bits
    masks[""] = rest
    return masks
