"""The types of keys: durations, sizes, numbers, words."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Annotated, Literal, get_args

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    GetCoreSchemaHandler,
    InstanceOf,
    Strict,
    StringConstraints,
    WithJsonSchema,
)
from pydantic_core import CoreSchema, core_schema

from poolctl.address import Address, AddressError, parse
from poolctl.config.values.limits import MOST_WORKERS
from poolctl.config.values.plain import (
    NAME_PATTERN,
    BadValue,
    FrozenDict,
    number_from_environment,
    refuse_long_path,
    truth_from_environment,
)
from poolctl.config.values.problems import Tree, shown
from poolctl.time_windows import BadWindow, parse_window, time_zone
from poolctl.units import (
    DURATION_ALLOWED,
    DURATION_PATTERN,
    SIZE_ALLOWED,
    SIZE_PATTERN,
    format_duration,
    parse_duration,
    parse_size,
)

ADDRESS_ALLOWED = '"HOST:PORT", ":PORT" or "unix:/PATH"'
YEAR_SECONDS = 366 * 86400.0
LARGEST_BYTES = 2**60


def _duration(minimum: float, maximum: float = YEAR_SECONDS) -> Tree:
    """The type of a key that takes seconds, or a text such as "1m30s", in this range."""

    def seconds(value: Tree) -> float:
        try:
            found = parse_duration(value)
        except ValueError as problem:
            raise BadValue(str(problem), DURATION_ALLOWED) from None
        if not minimum <= found <= maximum:
            allowed = f"{format_duration(minimum)} to {format_duration(maximum)}"
            raise BadValue(f"{format_duration(found)} is out of range; allowed is {allowed}", allowed)
        return found

    number = {"type": "number", "minimum": minimum, "maximum": maximum}
    return Annotated[float, BeforeValidator(seconds), _schema(number, DURATION_PATTERN, "seconds")]


def _size(minimum: int, maximum: int, allowed: str) -> Tree:
    """The type of a key that takes bytes, or a text such as "64KiB", in this range."""

    def size_bytes(value: Tree) -> int:
        try:
            found = parse_size(number_from_environment(value))
        except ValueError as problem:
            raise BadValue(str(problem), SIZE_ALLOWED) from None
        if not minimum <= found <= maximum:
            raise BadValue(f"{found} bytes is out of range", allowed)
        return found

    number = {"type": "integer", "minimum": minimum}
    return Annotated[int, BeforeValidator(size_bytes), _schema(number, SIZE_PATTERN, "bytes")]


def _schema(number: dict[str, Tree], pattern: str, unit: str) -> WithJsonSchema:
    text = {"type": "string", "pattern": f"^(?:{pattern}|.*\\$\\{{.*)$"}
    return WithJsonSchema({"anyOf": [number, text], "unit": unit})


def _request_log(value: Tree) -> Tree:
    value = truth_from_environment(value)
    if isinstance(value, bool):
        return value
    if value != "errors":
        raise BadValue(f"{shown(value)} is not allowed here", 'true, false, or "errors"')
    return "errors"


def _proxies(value: Tree) -> Tree:
    if not isinstance(value, (list, tuple)):
        return value
    from ipaddress import ip_network

    for proxy in value:
        if isinstance(proxy, str) and proxy != "*":
            try:
                ip_network(proxy, strict=False)
            except ValueError:
                message = f"{proxy[:60]!r} is neither an IP address nor a network"
                raise BadValue(message, 'addresses, networks such as "10.0.0.0/8", or "*"') from None
    return tuple(value)


def _umask(value: Tree) -> Tree:
    if isinstance(value, int) and not isinstance(value, bool):
        # A parsed number does not show whether it was written as octal or decimal.
        raise BadValue(f"{value} may be octal or decimal", 'octal digits in quotes: "0022"')
    return value


def _windows(value: Tree) -> Tree:
    if not isinstance(value, (list, tuple)):
        return value
    for text in value:
        if isinstance(text, str):
            try:
                parse_window(text)
            except BadWindow as problem:
                raise BadValue(str(problem), problem.allowed) from None
    return tuple(value)


# Short forms of crontab(5), which are less explicit than the five fields.
_SHORT_FORMS = {
    "@hourly": "0 * * * *",
    "@daily": "0 0 * * *",
    "@midnight": "0 0 * * *",
    "@weekly": "0 0 * * sun",
    "@monthly": "0 0 1 * *",
    "@yearly": "0 0 1 1 *",
    "@annually": "0 0 1 1 *",
}
_MOST_DAYS = (31, 29, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31)


def _schedule_times(text: str) -> str:
    if text.lower() in _SHORT_FORMS:
        allowed = f'"{_SHORT_FORMS[text.lower()]}"'
        raise BadValue(f"short forms such as {shown(text)} are not known; allowed is {allowed}", allowed)
    try:
        window = parse_window(text)
    except BadWindow as problem:
        raise BadValue(str(problem), problem.allowed) from None
    if not window.either_day and all(_MOST_DAYS[month - 1] < min(window.days) for month in window.months):
        raise BadValue(f"{shown(text)} never comes", "a day that the month has")
    return text


def _time_zone(name: str) -> str:
    try:
        time_zone(name)
    except ValueError as problem:
        raise BadValue(
            str(problem), 'a name such as "Europe/Berlin" or "UTC" (tzselect(8) finds it)'
        ) from None
    return name


def _bind(text: str) -> str:
    try:
        address = parse(text)
    except AddressError as problem:
        raise BadValue(problem.message, ADDRESS_ALLOWED) from None
    refuse_long_path(address)
    if address.kind not in ("tcp", "unix") or address.auto:
        raise BadValue(f"{text[:60]!r} is no fixed address", ADDRESS_ALLOWED)
    return text


def _file_path(path: str) -> str:
    # The locale may have no encoding for this text: the path then has the bytes that it has in the file, UTF-8.
    return os.fsdecode(path.encode("utf-8", "surrogateescape"))


def _list(value: Tree) -> Tree:
    return tuple(value) if isinstance(value, list) else value


_from_text = BeforeValidator(number_from_environment)
if TYPE_CHECKING:
    Duration = float
    Positive = float
    Size = int
    HeadSize = int
else:
    Duration = _duration(0.0)  # 0 means "none" or "at once"
    Positive = _duration(0.001)  # for keys for which 0 is meaningless: a timeout, an interval
    Size = _size(1, LARGEST_BYTES, "1 byte to 1 EiB")
    # uvicorn's parsers are given at least as much in one piece; and no client needs more.
    HeadSize = _size(4096, 2**30, "4KiB to 1GiB")
AtLeastOne = Annotated[int, Field(ge=1), _from_text]
Count = Annotated[int, Field(ge=1, le=1000), _from_text]
FileCount = Annotated[int, Field(ge=0, le=10_000), _from_text]
OpenFiles = Annotated[int, Field(ge=16, le=2**30), _from_text]
Restarts = Annotated[int, Field(ge=0, le=1_000_000), _from_text]
LeastWorkers = Annotated[int, Field(ge=0, le=MOST_WORKERS), _from_text]
MostWorkers = Annotated[int, Field(ge=1, le=MOST_WORKERS), _from_text]
Threshold = Annotated[float, Field(gt=0, le=1_000_000, allow_inf_nan=False), _from_text]
Factor = Annotated[float, Field(ge=1, le=100, allow_inf_nan=False), _from_text]
Share = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False), _from_text]
Truth = Annotated[bool, BeforeValidator(truth_from_environment)]
RequestLog = Annotated[bool | Literal["errors"], BeforeValidator(_request_log)]
Text = Annotated[str, StringConstraints(min_length=1)]
Name = Annotated[str, StringConstraints(pattern=NAME_PATTERN)]
FilePath = Annotated[
    str,
    StringConstraints(min_length=1),
    AfterValidator(_file_path),
    Field(json_schema_extra={"format": "path"}),
]
Proxies = Annotated[tuple[Text, ...], BeforeValidator(_proxies)]
Windows = Annotated[tuple[Text, ...], BeforeValidator(_windows)]
Schedule = Annotated[Text, AfterValidator(_schedule_times)]
TimeZone = Annotated[str, AfterValidator(_time_zone)]
Patterns = Annotated[tuple[Text, ...], BeforeValidator(_list)]
Bind = Annotated[str, AfterValidator(_bind)]
Argument = Annotated[tuple[str, ...], Field(min_length=1), BeforeValidator(_list)]

PATH_PATTERN = r"^/[^\x00-\x20\x7f]*$"
METHOD_PATTERN = r"^[A-Z]+$"
STATUS_PATTERN = r"^[1-5][0-9]{2}(-[1-5][0-9]{2})?(,[1-5][0-9]{2}(-[1-5][0-9]{2})?)*$"
WORD_PATTERN = r"^[^\s,\x00-\x1f\x7f]+$"
UMASK_PATTERN = r"^0?[0-7]{3}$"
Umask = Annotated[str, StringConstraints(pattern=UMASK_PATTERN), BeforeValidator(_umask)]
UrlPath = Annotated[str, Field(pattern=PATH_PATTERN)]
Method = Annotated[str, Field(pattern=METHOD_PATTERN)]
Statuses = Annotated[str, Field(pattern=STATUS_PATTERN)]
Word = Annotated[str, StringConstraints(pattern=WORD_PATTERN)]
# A list becomes a tuple, the only conversion; it needs no Python code to run.
Words = Annotated[tuple[Word, ...], Strict(False)]


def _environment(value: Tree) -> Tree:
    if not isinstance(value, dict):
        return value
    for key, text in value.items():
        if not isinstance(key, str) or not key or "=" in key or "\0" in key:
            raise BadValue(f"{key!r} is not a variable's name", "a name without =")
        if isinstance(text, str) and "\0" in text:
            raise BadValue(f"the value of {key} holds a NUL", "text without NUL")
    # PORT = 8080 is what people write; true and 1.10 have more than one spelling as text.
    return {k: str(v) if isinstance(v, int) and not isinstance(v, bool) else v for k, v in value.items()}


HEADER_PATTERN = r"^[!#$%&'*+.^_`|~0-9A-Za-z-]+$"
HOST_HEADER_PATTERN = r"^[^\s/@\x00-\x1f\x7f]*$"
COOKIE_PATTERN = r"^[!#$%&'*+.^_`|~0-9A-Za-z-]*$"
HeaderName = Annotated[str, StringConstraints(pattern=HEADER_PATTERN)]
HeaderValue = Annotated[str, StringConstraints(pattern=r"^[^\x00-\x1f\x7f]*$")]
Headers = Annotated[dict[HeaderName, HeaderValue], AfterValidator(FrozenDict)]
Labels = Annotated[dict[str, str], AfterValidator(FrozenDict)]
Environment = Annotated[dict[str, str], BeforeValidator(_environment), AfterValidator(FrozenDict)]


class TruthOr:
    """Annotates `table | bool`: a table, or true or false. A plain union would report problems of both its sides."""

    def __init__(self, allowed: str) -> None:
        self.allowed = allowed

    def __get_pydantic_core_schema__(self, source: Tree, handler: GetCoreSchemaHandler) -> CoreSchema:
        table, *_ = get_args(source)

        def either(value: Tree, validate: core_schema.ValidatorFunctionWrapHandler) -> Tree:
            value = truth_from_environment(value)
            if isinstance(value, bool):
                return value
            if not isinstance(value, (dict, table)):
                raise BadValue(f"{shown(value)} is not allowed here", self.allowed)
            return validate(value)

        return core_schema.no_info_wrap_validator_function(either, handler.generate_schema(table))


TRUTH_OR_TLS = TruthOr('true, false, or { cert = "FILE", key = "FILE" }')
KnownAddress = InstanceOf[Address]
