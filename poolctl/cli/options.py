"""The options that several commands share: dataclasses with a field for each option, and types of single options.

A command's function takes the dataclasses as parameters; `with_options` shows Typer their fields.
"""

import difflib
import functools
import inspect
import os
import re
import select
from collections.abc import Callable, Iterable
from dataclasses import dataclass, is_dataclass
from datetime import UTC, datetime, timedelta
from datetime import time as clock_time
from time import tzname
from typing import Annotated, Any

import typer

from poolctl.cli import completion
from poolctl.cli.outcome import Failure, Outcome, UsageError
from poolctl.exit_codes import DONE
from poolctl.selection.selector import ENDED, LISTS, Selector
from poolctl.states import State, Status
from poolctl.units import NUMBER, SECONDS, parse_duration

FORMATS = ("table", "wide", "json", "jsonl", "name")
# The fields that every Item has.
FIELDS = (
    "name", "bind", "expose", "state", "ready", "health", "pids", "workers", "uptime_seconds", "restarts", "tags",
)  # fmt: skip
UPTIME = "uptime"  # also a field of `-o`: `uptime_seconds` for people
STDIN = "-"  # the target that stands for the names on standard input
ALL_LINES = -1
DEFAULT_LINES = 100
_MAX_DIGITS = 9


class BadValue(typer.BadParameter):
    """The value of an option or argument is invalid. `hint` says how to fix it."""

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.hint = hint


def with_options(command: Callable[..., object]) -> Callable[..., object]:
    """Decorate a command that takes dataclasses of options: Typer sees the fields, the command gets the objects."""
    parameters: list[inspect.Parameter] = []
    groups: dict[str, tuple[Callable[..., object], list[str]]] = {}
    for parameter in inspect.signature(command, eval_str=True).parameters.values():
        kind = parameter.annotation
        if isinstance(kind, type) and is_dataclass(kind):
            fields = inspect.signature(kind, eval_str=True).parameters
            groups[parameter.name] = kind, [*fields]
            parameters += fields.values()
        else:
            parameters.append(parameter)

    @functools.wraps(command)
    def with_fields(**values: Any) -> object:
        for name, (kind, fields) in groups.items():
            values[name] = kind(**{field: values.pop(field) for field in fields})
        return command(**values)

    keyword = inspect.Parameter.KEYWORD_ONLY
    signature = inspect.Signature([parameter.replace(kind=keyword) for parameter in parameters])
    with_fields.__dict__["__signature__"] = signature
    return with_fields


def examples(*lines: str) -> str:
    """The `epilog` of a command with examples: a paragraph for each, as Typer prints them line by line."""
    return "\n\n".join(("Examples:", *lines))


def one_of(words: Iterable[str]) -> dict[str, Any]:
    """Settings of an option that takes one of these words. For words known before run time, use an enum."""
    allowed = tuple(dict.fromkeys(words))

    def parse(text: str) -> str:
        if text.lower() in allowed:
            return text.lower()
        raise BadValue(f"unknown value {text!r}", near_or_all(text, allowed))

    def complete(incomplete: str) -> list[str]:
        return [word for word in allowed if word.startswith(incomplete)]

    return {"parser": parse, "autocompletion": complete}


def near_or_all(text: str, candidates: Iterable[str]) -> str:
    """A hint: the known word that was probably meant, or else all known words."""
    words = [*candidates]
    near = difflib.get_close_matches(text, words, 1)
    near = near or [word for word in words if len(text) > 2 and word.startswith(text)]
    return f"did you mean {near[0]!r}?" if near else f"one of: {', '.join(words)}"


def forms(*words: str, fields: Iterable[str] = (*FIELDS, UPTIME), help: str = "", hint: str = "") -> Any:
    """The option -o with these forms and, where `name` is one of them, with a comma-separated list of these fields."""
    allowed = words or FORMATS
    names = tuple(fields) if "name" in allowed else ()

    def parse(text: str) -> str:
        texts = [word.strip() for word in text.removeprefix("=").split(",")]  # other tools accept -o=json
        for word in texts:
            if word not in (names if len(texts) > 1 and names else (*allowed, *names)):
                near = near_or_all(word, [*dict.fromkeys((*allowed, *names))])
                raise BadValue(f"unknown value {word!r}", hint.format(word) or near)
        return ",".join(texts)

    def complete(incomplete: str) -> list[str]:
        before, comma, last = incomplete.rpartition(",")
        offered = names if comma else dict.fromkeys((*allowed, *names))
        return [before + comma + word for word in offered if word.startswith(last)]

    help = help or "table, wide, json, jsonl, name, or FIELD,FIELD…"
    return typer.Option("-o", "--output", metavar="FORM", help=help, parser=parse, autocompletion=complete)


def duration(text: str) -> float:
    """The duration in seconds."""
    try:
        return parse_duration(text)
    except ValueError as error:
        raise BadValue(str(error)) from None


_TIMES = '03:00, yesterday, "2026-01-31 12:00", 10m or "1 hour ago"'
# The units of systemd.time(7), in seconds, including the units of durations.
_UNITS = SECONDS | {
    **dict.fromkeys(("second", "seconds", "sec"), 1.0),
    **dict.fromkeys(("minute", "minutes", "min"), 60.0),
    **dict.fromkeys(("hour", "hours", "hr"), 3600.0),
    **dict.fromkeys(("day", "days"), 86400.0),
    **dict.fromkeys(("week", "weeks"), 604800.0),
    **dict.fromkeys(("month", "months", "M"), 30.44 * 86400),
    **dict.fromkeys(("year", "years", "y"), 365.25 * 86400),
}
_DAYS = {"yesterday": -1, "today": 0, "tomorrow": 1}


def timestamp(text: str) -> str:
    """Convert a time as journalctl takes it, or a duration ago, to the timestamp format of logs."""
    from poolctl.logs.log_line import stamp

    try:
        return stamp(parse_time(text.strip(), datetime.now()).timestamp())
    except (ValueError, KeyError, OverflowError, OSError):
        raise BadValue(f"{text!r} is not a time", _TIMES) from None


def parse_time(text: str, now: datetime) -> datetime:
    """Parse a time as in systemd.time(7). A local time has no zone, like `now`.

    Raises ValueError, KeyError or OverflowError for any other text.
    """
    if text.startswith("@"):
        return datetime.fromtimestamp(float(text[1:]), UTC)
    # As `systemctl status` prints it: "Sun 2026-11-29 03:00:00 CET".
    text = re.sub(r"^(?:Mon|Tue|Wed|Thu|Fri|Sat|Sun) ", "", text)
    without_zone, _, zone = text.rpartition(" ")
    is_utc = zone in ("UTC", "GMT")
    text = without_zone if is_utc or zone in tzname else text
    day, _, clock = ("today", "", text) if re.match(r"\d\d?:", text) else text.partition(" ")
    if day in _DAYS:
        clock = f"0{clock}" if clock[1:2] == ":" else clock or "00:00"
        today = now.astimezone(UTC) if is_utc else now
        parsed = datetime.combine(today + timedelta(days=_DAYS[day]), clock_time.fromisoformat(clock))
    elif re.match(r"\d{4}-", text):
        parsed = datetime.fromisoformat(text)
    else:
        span = 0.0 if text == "now" else _span(text.removesuffix(" ago").lstrip("+-").strip())
        return now.astimezone(UTC) + timedelta(seconds=span if text.startswith("+") else -span)
    return parsed.replace(tzinfo=UTC) if is_utc else parsed


def _span(text: str) -> float:
    """The seconds of a span such as "10m", "2h 30min" or "1 hour"."""
    if not re.fullmatch(rf"{NUMBER}(\s*[A-Za-z]+(\s*{NUMBER}\s*[A-Za-z]+)*)?", text):
        raise ValueError(text)
    parts = re.findall(rf"({NUMBER})\s*([A-Za-z]*)", text)
    return sum(float(number) * _UNITS[unit or "s"] for number, unit in parts)


def line_count(text: str) -> int:
    """The number of lines; ALL_LINES for "all"."""
    if text == "all":
        return ALL_LINES
    if not text.isascii() or not text.isdigit() or len(text) > _MAX_DIGITS:
        raise BadValue(f"{text!r} is not a number of lines", 'a number, or "all"')
    return int(text)


def line_limit(lines: int | None, since: str | None) -> int | None:
    """The number of lines or events to print; None means all. The default is 100, or all after a time."""
    if lines is None:
        return None if since else DEFAULT_LINES
    return None if lines == ALL_LINES else lines


def names_from_input(targets: list[str], command: str) -> list[str]:
    """The names on standard input, which the target `-` stands for, else the targets themselves.

    Raises Failure with exit code 0 if standard input has no names: an empty list must not select all servers.
    """
    if STDIN not in targets:
        return targets
    if len(targets) > 1:
        message = "-: names from standard input cannot be combined with other targets"
        raise UsageError(message, hint="write all of them to standard input, one a line")
    if os.isatty(0):
        message = "-: standard input is a terminal; names are read from a pipe or a file"
        raise UsageError(message, hint=f"poolctl filter name --regex RE -o name | poolctl {command} -")
    lines = _read_stdin().decode(errors="backslashreplace").splitlines()
    if names := [line.strip() for line in lines if line.strip()]:
        return names
    outcome = Outcome(exit_code=DONE)
    outcome.notes.append("no names on standard input: nothing was done")
    raise Failure(outcome)


def _names_if_input(ctx: typer.Context, value: list[str] | None) -> list[str] | None:
    return names_from_input(value, ctx.info_name or "") if value and not ctx.resilient_parsing else value


def _read_stdin() -> bytearray:
    """Read standard input to its end, even if it is non-blocking."""
    text = bytearray()
    while True:
        select.select([0], [], [])
        try:
            chunk = os.read(0, 65536)
        except BlockingIOError:
            continue
        if not chunk:
            return text
        text += chunk


_select = functools.partial(typer.Option, rich_help_panel="Selection", show_default=False)
_match = functools.partial(_select, metavar="RE")
_option = functools.partial(typer.Option, show_default=False)
_targets = functools.partial(
    typer.Argument, metavar="[TARGET]...", show_default=False, autocompletion=completion.targets
)


_STATES = (*(state.value for state in State), ENDED)


@dataclass(frozen=True)
class Filters:
    """The options that select servers."""

    name: Annotated[list[str] | None, _match("--name", help="Whose name matches the expression.")] = None
    bind: Annotated[list[str] | None, _match("--bind", help="Whose address matches it.")] = None
    expose: Annotated[list[str] | None, _match("--expose", help="Whose exposed address matches it.")] = None
    tag: Annotated[
        list[str] | None,
        _select("--tag", metavar="TAG", help="With this tag.", autocompletion=completion.tags),
    ] = None
    state: Annotated[
        list[str] | None,
        _select(
            "--state",
            metavar="STATE",
            help="In this state, or ended.",
            **one_of(_STATES),
        ),
    ] = None
    health: Annotated[
        list[Status] | None,
        _select("--health", metavar="HEALTH", help="unknown, ok, warn or ko.", case_sensitive=False),
    ] = None
    invert: Annotated[bool, _select("--not", help="All other servers.")] = False
    allow_empty: Annotated[bool, _select("--allow-empty", help="Do not fail when nothing matches.")] = False

    def selector(self) -> Selector:
        """The selector of these options. Raises SelectorError for an invalid expression."""
        lists: dict[str, Any] = {key: getattr(self, key, None) or () for key in LISTS}
        return Selector(**lists, invert=self.invert, allow_empty=self.allow_empty)


@dataclass(frozen=True)
class Selection(Filters):
    """Which servers a command is about; all of them by default."""

    targets: Annotated[
        list[str] | None,
        _targets(
            help="Names or addresses; * and ? are wildcards; - reads them from standard input.",
            callback=_names_if_input,
        ),
    ] = None


@dataclass(frozen=True)
class ExplicitSelection(Selection):
    """Which servers a command is about that never acts on all of them by default."""

    everything: Annotated[bool, _select("--all", help="Every server of the pool.")] = False


Timeout = Annotated[
    float | None,
    _option("--timeout", parser=duration, metavar="DURATION", help='Give up after this time, such as "30s".'),
]


@dataclass(frozen=True)
class Wait:
    """How long a command waits for its result."""

    timeout: Timeout = None
    no_wait: Annotated[bool, _option("--no-wait", help="Return at once, without waiting.")] = False


@dataclass(frozen=True)
class Save:
    """Whether a change, which otherwise lasts until a reload, is written to the pool's files."""

    save: Annotated[
        bool, _option("--save", help="Also write the change to the TOML file, comments kept.")
    ] = False
    dry_run: Annotated[
        bool, _option("--dry-run", help="Print what --save would write; exit 3 if the file would change.")
    ] = False

    def __post_init__(self) -> None:
        if self.dry_run and not self.save:
            raise UsageError("--dry-run shows what --save would write", hint="add --save")


Form = Annotated[str | None, forms()]
LineForm = Annotated[str | None, forms(*FORMATS[:4], help="table (default), wide, or json for JSON lines.")]
NoDeps = Annotated[bool, _option("--no-deps", help="Ignore dependencies: act on the selected servers only.")]
CallerEnv = Annotated[
    bool, _option("--env", help="Use this command's environment instead of the supervisor's.")
]
Reveal = Annotated[bool, _option("--reveal", help="Show secrets instead of masking them.")]
Watch = Annotated[
    bool, _option("--watch", help="Keep running; reload when the configuration or code changes.")
]
Follow = Annotated[bool, _option("-f", "--follow", help="Keep following what is new.")]
Since = Annotated[
    str | None,
    _option("--since", parser=timestamp, metavar="TIME", help="Nothing older: 03:00, yesterday, 10m, …"),
]


def flags(**options: bool) -> dict[str, object]:
    """The protocol's options that are set."""
    return {name: True for name, is_set in options.items() if is_set}


def caller_env(wanted: bool) -> dict[str, object]:
    """The protocol's option with this command's environment, in which relative paths are made absolute."""
    if not wanted:
        return {}
    from poolctl.config.values.path_variables import with_absolute_paths

    return {"env": with_absolute_paths(os.environ)}
