"""Types of keys, such as durations and sizes, for pydantic; and conversion of pydantic's errors to findings."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from typing import Annotated, Any, Literal, get_args, get_origin

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    GetCoreSchemaHandler,
    InstanceOf,
    Strict,
    StringConstraints,
    ValidationError,
    WithJsonSchema,
    WrapValidator,
)
from pydantic_core import CoreSchema, core_schema

from poolctl import units
from poolctl.address import CONTROLS, Address, AddressError, parse
from poolctl.config.values.normalise import PROBES, app_findings
from poolctl.config.values.plain import (
    MOST_WORKERS,
    NAME_PATTERN,
    BadValue,
    FrozenDict,
    number_if_interpolated,
    refuse_long_path,
    truth_if_interpolated,
)
from poolctl.config.values.problems import (
    Finding,
    KeyPath,
    Tree,
    nearest,
    shortened_printable,
    shown,
    unknown_key,
)
from poolctl.config.values.shell_line import words_fix
from poolctl.routing.networks import EVERY, UNIX
from poolctl.time_windows import parse_time_zone, parse_window

ADDRESS_ALLOWED = '"HOST:PORT", ":PORT" or "unix:/PATH"'
YEAR_SECONDS = 366 * 86400.0
LARGEST_BYTES = 2**60


def _duration(minimum: float) -> tuple[BeforeValidator, WithJsonSchema]:
    def seconds(value: Tree) -> float:
        try:
            found = units.parse_duration(value)
        except ValueError as problem:
            raise BadValue(str(problem), units.DURATION_ALLOWED) from None
        if not minimum <= found <= YEAR_SECONDS:
            allowed = f"{units.format_duration(minimum)} to {units.format_duration(YEAR_SECONDS)}"
            raise BadValue(f"{units.format_duration(found)} is out of range; allowed is {allowed}", allowed)
        return found

    number = {"type": "number", "minimum": minimum, "maximum": YEAR_SECONDS}
    return BeforeValidator(seconds), _schema(number, units.DURATION_PATTERN, "seconds")


def _size(minimum: int, maximum: int, allowed: str) -> tuple[BeforeValidator, WithJsonSchema]:
    def size_bytes(value: Tree) -> int:
        try:
            found = units.parse_size(number_if_interpolated(value))
        except ValueError as problem:
            raise BadValue(str(problem), units.SIZE_ALLOWED) from None
        if not minimum <= found <= maximum:
            raise BadValue(f"{found} bytes is out of range", allowed)
        return found

    number = {"type": "integer", "minimum": minimum}
    return BeforeValidator(size_bytes), _schema(number, units.SIZE_PATTERN, "bytes")


def _schema(number: dict[str, Tree], pattern: str, unit: str) -> WithJsonSchema:
    text = {"type": "string", "pattern": f"^(?:{pattern}|.*\\$\\{{.*)$"}
    return WithJsonSchema({"anyOf": [number, text], "unit": unit})


def _request_log(value: Tree) -> Tree:
    value = truth_if_interpolated(value)
    if isinstance(value, bool):
        return value
    if value != "errors":
        raise BadValue(f"{shown(value)} is not allowed here", 'true, false, or "errors"')
    return "errors"


def checked_networks(value: Tree, words: tuple[str, ...] = ("*",)) -> Tree:
    """The list as a tuple. Raises BadValue for an element that is neither a network nor one of the words."""
    if not isinstance(value, (list, tuple)):
        return value
    from ipaddress import ip_network

    for proxy in value:
        if isinstance(proxy, str) and proxy not in words:
            try:
                ip_network(proxy, strict=False)
            except ValueError:
                message = f"{proxy[:60]!r} is neither an IP address nor a network"
                allowed = " or ".join(f'"{word}"' for word in words)
                raise BadValue(message, f'addresses, networks such as "10.0.0.0/8", or {allowed}') from None
    return tuple(value)


def _trusted_peers(value: Tree) -> Tree:
    return checked_networks(value, (EVERY, UNIX))


def _refuse_numeric_umask(value: Tree) -> Tree:
    if isinstance(value, int) and not isinstance(value, bool):
        # A parsed number does not show whether it was written as octal or decimal.
        raise BadValue(f"{value} may be octal or decimal", 'octal digits in quotes: "0022"')
    return value


def _validated_windows(value: Tree) -> Tree:
    if not isinstance(value, (list, tuple)):
        return value
    for text in value:
        if isinstance(text, str):
            parse_window(text)
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
    window = parse_window(text)
    if not window.either_day and all(_MOST_DAYS[month - 1] < min(window.days) for month in window.months):
        raise BadValue(f"{shown(text)} never comes", "a day that the month has")
    return text


def _time_zone(name: str) -> str:
    try:
        parse_time_zone(name)
    except ValueError as problem:
        raise BadValue(
            str(problem), 'a name such as "Europe/Berlin" or "UTC" (tzselect(8) finds it)'
        ) from None
    return name


def _checked_bind(text: str) -> str:
    try:
        address = parse(text)
    except AddressError as problem:
        raise BadValue(problem.message, ADDRESS_ALLOWED) from None
    refuse_long_path(address)
    if address.kind not in ("tcp", "unix") or address.auto:
        raise BadValue(f"{text[:60]!r} is no fixed address", ADDRESS_ALLOWED)
    return text


_undecoded = re.compile("[\udc80-\udcff]")


def _passing_undecoded_bytes(value: Tree, validate: core_schema.ValidatorFunctionWrapHandler) -> Tree:
    # pydantic's texts hold no surrogates, by which os.fsdecode stands for bytes that are not UTF-8.
    return value if isinstance(value, str) and _undecoded.search(value) else validate(value)


def _file_path(path: str) -> str:
    if re.search(f"[{CONTROLS}]", path):
        raise BadValue(f"{shown(path)} holds a control character", "a path without control characters")
    # The locale may have no encoding for this text: the path then has the bytes that it has in the file, UTF-8.
    return os.fsdecode(path.encode("utf-8", "surrogateescape"))


def _list(value: Tree) -> Tree:
    return tuple(value) if isinstance(value, list) else value


def _word_list(value: Tree) -> Tree:
    if isinstance(value, str):
        message = "a command is a list of words, not a line for a shell"
        raise BadValue(message, "a list of words", words_fix(value))
    return _list(value)


_from_text = BeforeValidator(number_if_interpolated)
Duration = Annotated[float, *_duration(0.0)]  # 0 means "none" or "at once"
Positive = Annotated[float, *_duration(0.001)]  # for keys for which 0 is meaningless: a timeout, an interval
Size = Annotated[int, *_size(1, LARGEST_BYTES, "1 byte to 1 EiB")]
# uvicorn's parsers are given at least the minimum in one piece; no client needs more than the maximum.
HeadSize = Annotated[int, *_size(4096, 2**30, "4KiB to 1GiB")]
# HAProxy has several buffers of this size for each request, and knows no longer header.
GatewayHeadSize = Annotated[int, *_size(4096, 2**20, "4KiB to 1MiB")]
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
Truth = Annotated[bool, BeforeValidator(truth_if_interpolated)]
RequestLog = Annotated[bool | Literal["errors"], BeforeValidator(_request_log)]
Text = Annotated[str, StringConstraints(min_length=1)]
OsText = Annotated[str, WrapValidator(_passing_undecoded_bytes)]
Name = Annotated[str, StringConstraints(pattern=NAME_PATTERN)]
FilePath = Annotated[
    Text,
    WrapValidator(_passing_undecoded_bytes),
    AfterValidator(_file_path),
    Field(json_schema_extra={"format": "path"}),
]
Proxies = Annotated[tuple[Text, ...], BeforeValidator(checked_networks)]
TrustedPeers = Annotated[tuple[Text, ...], BeforeValidator(_trusted_peers)]
Windows = Annotated[tuple[Text, ...], BeforeValidator(_validated_windows)]
Schedule = Annotated[Text, AfterValidator(_schedule_times)]
TimeZone = Annotated[str, AfterValidator(_time_zone)]
Patterns = Annotated[
    tuple[Annotated[Text, WrapValidator(_passing_undecoded_bytes)], ...], BeforeValidator(_list)
]
Bind = Annotated[OsText, AfterValidator(_checked_bind)]
Argument = Annotated[tuple[OsText, ...], Field(min_length=1), BeforeValidator(_word_list)]

PATH_PATTERN = rf"^/[^\x20{CONTROLS}]*$"
PLAIN_PATH_PATTERN = r"^/[^\x00-\x20\x7f?#]*$"
METHOD_PATTERN = r"^[A-Z]+$"
STATUS_PATTERN = r"^[1-5][0-9]{2}(-[1-5][0-9]{2})?(,[1-5][0-9]{2}(-[1-5][0-9]{2})?)*$"
WORD_PATTERN = rf"^[^\s,{CONTROLS}]+$"
UMASK_PATTERN = r"^0?[0-7]{3}$"
Umask = Annotated[str, StringConstraints(pattern=UMASK_PATTERN), BeforeValidator(_refuse_numeric_umask)]
UrlPath = Annotated[str, Field(pattern=PATH_PATTERN)]
# Checked by a rule, with a fix.
RootPath = Annotated[str, Field(json_schema_extra={"pattern": r"^(?:/.*[^/]|.*\$\{.*)?$"})]
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
HEADER_VALUE_PATTERN = rf"^[^{CONTROLS}]*$"
HOST_HEADER_PATTERN = rf"^[^\s/@{CONTROLS}]*$"
TLS_NAME_PATTERN = r"^[A-Za-z0-9_]([A-Za-z0-9_.-]*[A-Za-z0-9_])?$"
TOPIC_PATTERN = r"^[A-Za-z0-9_-]{1,64}$"
COOKIE_PATTERN = r"^[!#$%&'*+.^_`|~0-9A-Za-z-]*$"
HeaderName = Annotated[str, StringConstraints(pattern=HEADER_PATTERN)]
HeaderValue = Annotated[str, StringConstraints(pattern=HEADER_VALUE_PATTERN)]
Headers = Annotated[dict[HeaderName, HeaderValue], AfterValidator(FrozenDict)]
Labels = Annotated[dict[str, str], AfterValidator(FrozenDict)]
Environment = Annotated[dict[str, OsText], BeforeValidator(_environment), AfterValidator(FrozenDict)]


class TruthOr:
    """A pydantic annotation for `table | bool`, or for `tuple[table, ...] | bool`, which also accepts a single table.

    A plain union would give an error for each alternative; this gives one error, which names the values `allowed`.
    """

    def __init__(self, allowed: str) -> None:
        self.allowed = allowed

    def __get_pydantic_core_schema__(self, source: Tree, handler: GetCoreSchemaHandler) -> CoreSchema:
        form, *_ = get_args(source)
        is_list = get_origin(form) is tuple
        table = get_args(form)[0] if is_list else form

        def either(value: Tree, validate: core_schema.ValidatorFunctionWrapHandler) -> Tree:
            value = truth_if_interpolated(value)
            if isinstance(value, bool):
                return value
            found = tuple(value) if is_list and isinstance(value, (list, tuple)) else (value,)
            if not found or not all(isinstance(each, (dict, table)) for each in found):
                raise BadValue(f"{shown(value)} is not allowed here", self.allowed)
            return validate(found if is_list else value)

        return core_schema.no_info_wrap_validator_function(either, handler.generate_schema(form))


class PathOr:
    """A pydantic annotation for `FilePath | table`, with the errors of the form that is given."""

    def __get_pydantic_core_schema__(self, source: Tree, handler: GetCoreSchemaHandler) -> CoreSchema:
        path, table = get_args(source)

        def either(value: Tree, validate: core_schema.ValidatorFunctionWrapHandler) -> Tree:
            return table.nested(value) if isinstance(value, (dict, table)) else validate(value)

        return core_schema.no_info_wrap_validator_function(either, handler.generate_schema(path))


TRUTH_OR_TLS = TruthOr('true, false, or { cert = "FILE", key = "FILE" }')
KnownAddress = InstanceOf[Address]


MODE_ALLOWED = 'a mode of files in quotes, such as "0660"'
PORT_RANGE_ALLOWED = '"FIRST-LAST", ports from 1 to 65535'


def _port_range(value: object) -> tuple[int, int]:
    text = "-".join(map(str, value)) if isinstance(value, tuple) else value
    ports = (
        re.fullmatch(r"\s*(\d{1,20})\s*-\s*(\d{1,20})\s*", text, re.ASCII) if isinstance(text, str) else None
    )
    if ports is None:
        raise BadValue(f"{str(value)[:60]!r} is not a range of ports", PORT_RANGE_ALLOWED)
    if not 1 <= int(ports[1]) <= int(ports[2]) <= 65535:
        raise BadValue(f"{ports[0][:60]!r} is not within 1-65535, the smaller first", PORT_RANGE_ALLOWED)
    return int(ports[1]), int(ports[2])


def _valid_handlers(value: Tree) -> Tree:
    if isinstance(value, str) and app_findings(value):
        raise BadValue(f"{value[:60]!r} is not module:function", '"module:function"')
    return value


MetricsPath = Annotated[str, Field(pattern=PLAIN_PATH_PATTERN)]
PortRange = Annotated[
    tuple[int, int],
    BeforeValidator(_port_range),
    WithJsonSchema({"type": "string", "pattern": r"^\s*\d{1,5}\s*-\s*\d{1,5}\s*$"}),
]
Handlers = Annotated[str, BeforeValidator(_valid_handlers)]


def _mode_text(value: Tree) -> Tree:
    # A parsed number does not show whether it was written as octal or decimal.
    if not isinstance(value, str) or not re.fullmatch(r"(0o?)?[0-7]{3}", value):
        raise BadValue(f"{shown(value)} is not allowed here", MODE_ALLOWED)
    return f"0{value[-3:]}"


FileMode = Annotated[
    str, BeforeValidator(_mode_text), WithJsonSchema({"type": "string", "pattern": "^0?[0-7]{3}$"})
]

# A list of tables becomes a tuple.
AS_TUPLE = Strict(False)


# Keyed by pydantic's names of errors, up to the first underscore; for names with several meanings, the whole name.
EXPECTED = {
    "string": "a string",
    "int": "a whole number",
    "float": "a number",
    "finite": "a finite number",
    "bool": "true or false",
    "tuple": "a list",
    "dict": "a table",
    "mapping": "a table",
    "model": "a table",
    "too": "a value that is not empty",
    "string_too_short": "a value that is not empty",
}
FIX_BY_TYPE = {
    "a string": 'put it in quotes: "…"',
    "a list": 'put it in brackets: ["…"]',
    "true or false": "write true or false, without quotes",
}
BOUNDS = {
    "greater_than": ("gt", "more than"),
    "greater_than_equal": ("ge", "at least"),
    "less_than_equal": ("le", "at most"),
}
PATTERNS = {
    NAME_PATTERN: "letters, digits, dots, underscores and hyphens, at most 200 of them",
    WORD_PATTERN: "a word without blanks and commas",
    PATH_PATTERN: 'a path such as "/ready"',
    PLAIN_PATH_PATTERN: 'a path without a query, such as "/metrics"',
    METHOD_PATTERN: 'a method such as "GET"',
    HEADER_PATTERN: 'the name of a header, such as "X-Beta"',
    HEADER_VALUE_PATTERN: "text without line breaks and other control characters",
    HOST_HEADER_PATTERN: 'a host such as "example.com"',
    COOKIE_PATTERN: 'the name of a cookie, such as "backend"',
    TLS_NAME_PATTERN: 'a host name such as "example.com"',
    TOPIC_PATTERN: "letters, digits, underscores and hyphens, at most 64 of them",
    UMASK_PATTERN: 'octal digits: "0022"',
    STATUS_PATTERN: 'statuses and ranges of them, such as "200-399" or "200,204"',
}
# Tables with a short form.
SHORT_FORMS = {
    "restart": '"no", "on-failure", "always", or a table',
    "recovery": '"restart", "replace", "disable", "notify", "none", or a table',
    "health": 'a path such as "/ready", or a table',
    "redirect": '"https", a URL, or a table such as { to = "https://example.com", status = 301 }',
    "sticky": 'the name of a cookie, such as "backend", or a table such as { secure = true }',
    "timeouts": 'a table such as { connect = "5s", idle = "60s" }',
    "limit": "a table such as { concurrency = 100 }",
    "backend_limit": "a table such as { concurrency = 100 }",
    "breaker": "a table such as { failures = 5 }",
    "headers": 'a table such as { "X-Beta" = "1" }',
    "add_headers": 'a table such as { "X-Beta" = "1" }',
    "set_headers": 'a table such as { "X-Beta" = "1" }',
    "response_headers": 'a table such as { "Strict-Transport-Security" = "max-age=31536000" }',
}


def findings_of(
    error: ValidationError, keys_at: Callable[[KeyPath], tuple[str, ...]], table: str
) -> list[Finding]:
    """Convert each of pydantic's errors to a finding, in the order of the keys in the file.

    `keys_at` returns the known keys of the table at a path, for suggestions. `table` is the name of the validated table
    in files, such as "gateway"; for a server's table it is "".
    """
    return [_finding(details, keys_at, table) for details in error.errors(include_url=False)]


def _finding(details: Any, keys_at: Callable[[KeyPath], tuple[str, ...]], table: str) -> Finding:
    kind: str = details["type"]
    path: KeyPath = tuple(details["loc"])
    context = details.get("ctx", {})
    value = details.get("input")
    if kind == "extra_forbidden":
        return unknown_key(path, keys_at(path[:-1]), table)
    if kind == "missing":
        return Finding(path, f"{path[-1]!r} is missing", f"add {path[-1]} = …")
    if kind == "value_error":
        cause = context["error"]
        allowed = getattr(cause, "allowed", "")
        hint = f"allowed is {allowed}" if allowed and allowed not in str(cause) else ""
        hint = getattr(cause, "hint", "") or hint
        return Finding(path, str(cause), hint, shown(value), allowed)
    found, allowed = shown(value), _allowed(kind, context)
    if allowed == "a table":
        allowed = SHORT_FORMS.get(str(path[-1]) if path else "", allowed)
    message, hint = f"{found} is not allowed here", f"allowed is {allowed}"
    if not allowed:
        message, hint = f"{found}: {details['msg'][:1].lower()}{details['msg'][1:]}", ""
    if kind == "literal_error" and isinstance(value, str):
        near = nearest(value, tuple(re.findall(r"'([^']*)'", context["expected"])))
        hint = f'did you mean "{near}"? {hint}' if near else hint
    if allowed == "a table" and path[-2:-1] == ("health",) and path[-1] in PROBES and isinstance(value, str):
        hint = f'write {path[-1]} = {{ http = "{shortened_printable(value)}" }}'
    if allowed in FIX_BY_TYPE and isinstance(value, (str, int, float)):
        hint = f"expected {allowed}: {FIX_BY_TYPE[allowed]}"
    return Finding(path, message, hint, found, allowed)


def _allowed(error_type: str, context: dict[str, Any]) -> str:
    if error_type == "literal_error":
        return str(context["expected"]).replace("'", '"')
    if error_type in BOUNDS:
        key, words = BOUNDS[error_type]
        return f"{words} {context[key]}"
    if error_type == "string_pattern_mismatch":
        return PATTERNS.get(context["pattern"], f"what matches {context['pattern']}")
    return EXPECTED.get(error_type) or EXPECTED.get(error_type.partition("_")[0], "")
