"""Types of keys, such as durations and sizes, for pydantic; and conversion of pydantic's errors to findings."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from types import NoneType
from typing import TYPE_CHECKING, Annotated, Any, Generic, Literal, Self, TypeVar, get_args, overload

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    Discriminator,
    Field,
    GetCoreSchemaHandler,
    Strict,
    StringConstraints,
    WithJsonSchema,
    WrapValidator,
)
from pydantic_core import CoreSchema, core_schema

from poolctl import units
from poolctl.address import CONTROLS, AddressError, parse
from poolctl.config.values.normalise import (
    absolute,
    absolute_address,
    absolute_interpreter,
    absolute_pattern,
)
from poolctl.config.values.plain import (
    MAX_WORKERS,
    NAME_PATTERN,
    BadValue,
    FrozenDict,
    host_and_port,
    is_port,
    number_if_interpolated,
    refuse_long_path,
    truth_if_interpolated,
)
from poolctl.config.values.problems import Tree, shown
from poolctl.config.values.shell_line import words_fix
from poolctl.routing.networks import EVERY, UNIX
from poolctl.selection.regular_expressions import BadExpression, check
from poolctl.time_windows import parse_time_zone, parse_window

Read = TypeVar("Read", covariant=True)
Given = TypeVar("Given", contravariant=True)

if TYPE_CHECKING:

    class Accepts(Generic[Read, Given]):
        """The type of a key that is read as `Read`, and may be given as `Given` (compare `Mapped` of SQLAlchemy).

        Type checkers take a constructor's argument from `__set__`, and the type of an attribute from `__get__`. `None`
        belongs inside the brackets: `Accepts[…] | None` would be no descriptor.
        """

        @overload
        def __get__(self, table: None, owner: Any) -> Self: ...
        @overload
        def __get__(self, table: object, owner: Any) -> Read: ...
        def __get__(self, table: Any, owner: Any) -> Any: ...
        def __set__(self, table: Any, value: Given) -> None: ...

else:

    class Accepts:
        """At run time `Accepts[float, float | str]` is `float`: a validator converts what is given."""

        def __class_getitem__(cls, types: tuple[Any, Any]) -> Any:
            return types[0]


ADDRESS_ALLOWED = '"HOST:PORT", ":PORT" or "unix:/PATH"'
YEAR_SECONDS = 366 * 86400.0
MAX_BYTES = 2**60


def _duration(minimum: float) -> tuple[BeforeValidator, WithJsonSchema]:
    def seconds(value: Tree) -> float:
        try:
            duration = units.parse_duration(value)
        except ValueError as problem:
            raise BadValue(str(problem), units.DURATION_ALLOWED) from None
        if not minimum <= duration <= YEAR_SECONDS:
            allowed = f"{units.format_duration(minimum)} to {units.format_duration(YEAR_SECONDS)}"
            message = f"{units.format_duration(duration)} is out of range; allowed is {allowed}"
            raise BadValue(message, allowed)
        return duration

    number = {"type": "number", "minimum": minimum, "maximum": YEAR_SECONDS}
    return BeforeValidator(seconds), _schema(number, units.DURATION_PATTERN, "seconds")


def _size(minimum: int, maximum: int, allowed: str) -> tuple[BeforeValidator, WithJsonSchema]:
    def size_bytes(value: Tree) -> int:
        try:
            size = units.parse_size(number_if_interpolated(value))
        except ValueError as problem:
            raise BadValue(str(problem), units.SIZE_ALLOWED) from None
        if not minimum <= size <= maximum:
            raise BadValue(f"{size} bytes is out of range", allowed)
        return size

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
_MAX_DAYS = (31, 29, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31)


def _schedule_times(text: str) -> str:
    if text.lower() in _SHORT_FORMS:
        allowed = f'"{_SHORT_FORMS[text.lower()]}"'
        raise BadValue(f"short forms such as {shown(text)} are not known; allowed is {allowed}", allowed)
    window = parse_window(text)
    if not window.either_day and all(_MAX_DAYS[month - 1] < min(window.days) for month in window.months):
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


def _allow_surrogates(value: Tree, validate: core_schema.ValidatorFunctionWrapHandler) -> Tree:
    # pydantic rejects surrogates, with which os.fsdecode represents bytes that are not UTF-8.
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
    if isinstance(value, (list, tuple)) and value and value[0] == "":
        raise BadValue("the program's name is empty", "a list of words", 'write ["prog", …]')
    return _list(value)


EXPOSE_SCHEMES = ("http://", "https://", "ws://", "wss://", "http+unix://", "unix://")


def _expose(expose: str) -> str:
    if expose.lower().startswith(("unix:", "fd:")):
        return expose
    head, scheme, rest = expose.partition("://")
    message, fix = "", 'write "http://HOST:PORT"'
    if not expose or not expose.isprintable() or " " in expose or (scheme and not rest):
        message = f"{shown(expose)} is no address that clients could use"
    elif scheme and head.lower() + scheme not in EXPOSE_SCHEMES:
        message = f"{shown(expose)} has the scheme {head!r}"
    elif wrong := _wrong_authority(expose):
        message, fix = wrong
    if message:
        raise BadValue(message, "a URL", fix)
    return expose


def _wrong_authority(expose: str) -> tuple[str, str] | None:
    scheme, separator, rest = expose.rpartition("://")
    if "unix" in scheme.lower():
        return None
    if (authority := host_and_port(rest)) is None:
        fix = 'write "http://HOST:PORT", an address of IPv6 in brackets: "http://[::1]:PORT"'
        return f"{shown(expose)} has no host that clients could use", fix
    host, port = authority
    if not host and (separator or not port):
        return f"{shown(expose)} has no host", 'write "http://HOST:PORT"'
    if port == "auto" or is_port(port):
        return None
    return f"port {port[:20]} of {shown(expose)} is not one", "ports are 1 to 65535"


APP_ALLOWED = '"module:attribute"'
_module_and_attribute = re.compile(r"[^\W\d]\w*(?:\.[^\W\d]\w*)*:[^\W\d]\w*(?:\.[^\W\d]\w*)*")


def is_module_and_attribute(text: str) -> bool:
    """Whether the text is "module:attribute". A module may be called "py", but who writes app.py means the file."""
    return bool(_module_and_attribute.fullmatch(text)) and not text.partition(":")[0].endswith(".py")


def _app(app: Tree) -> Tree:
    if app is None or callable(app) or (isinstance(app, str) and is_module_and_attribute(app)):
        return app
    if not isinstance(app, str):
        raise BadValue(f"{shown(app)} is no app", APP_ALLOWED, f"write {APP_ALLOWED}")
    module, _, attribute = app.partition(":")
    if app.endswith(")"):
        fix = f'write app = "{app.partition("(")[0]}" and factory = true'
    elif "/" in app or module.endswith(".py"):
        module = module.removeprefix("./").removesuffix(".py").replace("/", ".")
        fix = f'write the module, not the file: "{module}:{attribute or "app"}"'
    elif ":" not in app:
        fix = f'write "{app}:app", if app is the name of the application in it'
    else:
        fix = 'write "module:attribute", such as "shop.users:app"'
    raise BadValue(f"{shown(app)} is not module:attribute", APP_ALLOWED, fix)


_user_and_group = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*\$?(?::[A-Za-z0-9_][A-Za-z0-9_.-]*\$?)?", re.ASCII)


def _account(account: str) -> str:
    if not _user_and_group.fullmatch(account):
        fix = 'write "www-data" or "www-data:web"'
        raise BadValue(f"{shown(account)} is not name[:group]", '"USER" or "USER:GROUP"', fix)
    return account


def _root_path(path: str) -> str:
    if path and (path[0] != "/" or path[-1] == "/"):
        inner = path.strip("/")
        fix = f'write "/{inner}"' if inner else 'write ""'
        raise BadValue(f"{shown(path)} does not begin with /, or ends with one", '"/PATH"', fix)
    return path


def _statuses(text: str) -> str:
    for part in text.split(","):
        first, dash, last = part.partition("-")
        if dash and first > last:
            raise BadValue(f"the range {shown(part)} holds no status", "statuses", f'write "{last}-{first}"')
    return text


def _expression(text: str) -> str:
    try:
        check(text)
    except BadExpression as bad:
        fix = bad.fix or "correct the regular expression"
        raise BadValue(str(bad), "a regular expression", fix) from None
    return text


@dataclass(frozen=True)
class Relative:
    """Marks a key with a path, which is relative to the directory of its file.

    `absolute(value, directory)` returns the value with an absolute path.
    """

    absolute: Callable[[Tree, str], Tree]


@dataclass(frozen=True)
class Short:
    """Marks a table that may be written as a text, which sets its key `key`: `health = "/ready"`.

    `allowed` describes the texts and the table. `text` is the type of the text, for the JSON Schema. `false` is the
    text that YAML reads as false if it is not quoted.
    """

    key: str
    allowed: str
    text: Any = str
    false: str = ""

    def long(self, value: Tree) -> Tree:
        """The table that the text means; other values are returned unchanged."""
        if value is False and self.false:
            value = self.false
        if isinstance(value, str) and value:
            for part in reversed(self.key.split(".")):
                value = {part: value}
        return value

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        def table_of(value: Tree) -> Tree:
            expanded = self.long(value)
            if not isinstance(expanded, (dict, BaseModel, NoneType)):
                raise BadValue(f"{shown(value)} is not allowed here", self.allowed)
            return expanded

        table = handler(source)
        either = core_schema.union_schema([handler.generate_schema(self.text), table])
        return core_schema.no_info_before_validator_function(table_of, table, json_schema_input_schema=either)


@dataclass(frozen=True)
class Flat:
    """Marks a table of texts with dotted names: without quotes, such a name is a table within it."""

    def long(self, value: Tree) -> Tree:
        """The table with dotted names instead of tables within it."""
        if not isinstance(value, dict) or not any(isinstance(inner, dict) for inner in value.values()):
            return value
        table: dict[str, Tree] = {}
        for key, inner in value.items():
            if isinstance(inner, dict):
                table |= {f"{key}.{name}": text for name, text in self.long(inner).items()}
            else:
                table[key] = inner
        return table

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        texts = handler(source)
        either = handler.generate_schema(dict[str, str | dict[str, Any]])
        return core_schema.no_info_before_validator_function(
            self.long, texts, json_schema_input_schema=either
        )


@dataclass(frozen=True)
class OrSingle:
    """Marks a list that may be written as its only element. `needs` says what an empty list lacks; "" allows it."""

    needs: str = ""

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        def listed(value: Tree) -> Tree:
            if not isinstance(value, (list, tuple)):
                return (value,)
            if not value and self.needs:
                raise BadValue("an empty list is not allowed here", self.needs)
            return value

        elements = handler(source)
        several: Any = {**elements, "min_length": int(bool(self.needs))}
        either = core_schema.union_schema([handler.generate_schema(get_args(source)[0]), several])
        return core_schema.no_info_before_validator_function(
            listed, elements, json_schema_input_schema=either
        )


_from_text = BeforeValidator(number_if_interpolated)
_Seconds = Annotated[float, *_duration(0.0)]  # 0 means "none" or "at once"
_PositiveSeconds = Annotated[float, *_duration(0.001)]  # 0 is meaningless: a timeout, an interval
Duration = Accepts[_Seconds, float | str | timedelta]
DurationOrNone = Accepts[_Seconds | None, float | str | timedelta | None]
Positive = Accepts[_PositiveSeconds, float | str | timedelta]
PositiveOrNone = Accepts[_PositiveSeconds | None, float | str | timedelta | None]
_Bytes = Annotated[int, *_size(1, MAX_BYTES, "1 byte to 1 EiB")]
Size = Accepts[_Bytes, int | str]
SizeOrNone = Accepts[_Bytes | None, int | str | None]
# uvicorn's parsers are given at least the minimum in one piece; no client needs more than the maximum.
HeadSize = Accepts[Annotated[int, *_size(4096, 2**30, "4KiB to 1GiB")], int | str]
# HAProxy has several buffers of this size for each request, and knows no longer header.
GatewayHeadSize = Accepts[Annotated[int, *_size(4096, 2**20, "4KiB to 1MiB")], int | str]
AtLeastOne = Annotated[int, Field(ge=1), _from_text]
Count = Annotated[int, Field(ge=1, le=1000), _from_text]
FileCount = Annotated[int, Field(ge=0, le=10_000), _from_text]
OpenFiles = Annotated[int, Field(ge=16, le=2**30), _from_text]
Restarts = Annotated[int, Field(ge=0, le=1_000_000), _from_text]
LeastWorkers = Annotated[int, Field(ge=0, le=MAX_WORKERS), _from_text]
MostWorkers = Annotated[int, Field(ge=1, le=MAX_WORKERS), _from_text]
Threshold = Annotated[float, Field(gt=0, le=1_000_000, allow_inf_nan=False), _from_text]
Factor = Annotated[float, Field(ge=1, le=100, allow_inf_nan=False), _from_text]
Share = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False), _from_text]
Truth = Annotated[bool, BeforeValidator(truth_if_interpolated)]
RequestLog = Annotated[bool | Literal["errors"], BeforeValidator(_request_log)]
Text = Annotated[str, StringConstraints(min_length=1)]
OsText = Annotated[str, WrapValidator(_allow_surrogates)]
Name = Annotated[str, StringConstraints(pattern=NAME_PATTERN)]
FilePath = Annotated[
    Text,
    WrapValidator(_allow_surrogates),
    AfterValidator(_file_path),
    Field(json_schema_extra={"format": "path"}),
    Relative(absolute),
]
Interpreter = Annotated[FilePath, Relative(absolute_interpreter)]
Proxies = Accepts[Annotated[tuple[Text, ...], BeforeValidator(checked_networks)], Sequence[str]]
TrustedPeers = Accepts[
    Annotated[tuple[Text, ...], BeforeValidator(lambda value: checked_networks(value, (EVERY, UNIX)))],
    Sequence[str],
]
Windows = Accepts[Annotated[tuple[Text, ...], BeforeValidator(_validated_windows)], Sequence[str]]
Schedule = Annotated[Text, AfterValidator(_schedule_times)]
TimeZone = Annotated[str, AfterValidator(_time_zone)]
Patterns = Accepts[
    Annotated[
        tuple[Annotated[Text, WrapValidator(_allow_surrogates), Relative(absolute_pattern)], ...],
        BeforeValidator(_list),
    ],
    Sequence[str],
]
Bind = Annotated[OsText, AfterValidator(_checked_bind), Relative(absolute_address)]
ServerBind = Annotated[  # checked by a rule
    OsText,
    Relative(absolute_address),
    Field(examples=["127.0.0.1:8080", ":8080", "[::1]:8080", "127.0.0.1:auto", "unix:/run/a.sock", "fd:3"]),
]
_Command = Annotated[tuple[OsText, ...], Field(min_length=1), BeforeValidator(_word_list)]
Argument = Accepts[_Command, Sequence[str]]
ArgumentOrNone = Accepts[_Command | None, Sequence[str] | None]

PATH_PATTERN = rf"^/[^\x20{CONTROLS}]*$"
PLAIN_PATH_PATTERN = r"^/[^\x00-\x20\x7f?#]*$"
METHOD_PATTERN = r"^[A-Z]+$"
STATUS_PATTERN = r"^[1-5][0-9]{2}(-[1-5][0-9]{2})?(,[1-5][0-9]{2}(-[1-5][0-9]{2})?)*$"
WORD_PATTERN = rf"^[^\s,{CONTROLS}]+$"
UMASK_PATTERN = r"^0?[0-7]{3}$"
Umask = Annotated[str, StringConstraints(pattern=UMASK_PATTERN), BeforeValidator(_refuse_numeric_umask)]
UrlPath = Annotated[str, Field(pattern=PATH_PATTERN)]
RootPath = Annotated[
    str, AfterValidator(_root_path), Field(json_schema_extra={"pattern": r"^(?:/.*[^/]|.*\$\{.*)?$"})
]
Method = Annotated[str, Field(pattern=METHOD_PATTERN)]
Statuses = Annotated[str, Field(pattern=STATUS_PATTERN), AfterValidator(_statuses)]
Expression = Annotated[str, AfterValidator(_expression)]
Account = Annotated[str, AfterValidator(_account)]
Expose = Annotated[OsText, AfterValidator(_expose)]
Word = Annotated[str, StringConstraints(pattern=WORD_PATTERN)]
# A list becomes a tuple, the only conversion; it needs no Python code to run.
Words = Accepts[Annotated[tuple[Word, ...], Strict(False)], Sequence[str]]


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
Headers = Accepts[Annotated[dict[HeaderName, HeaderValue], AfterValidator(FrozenDict)], Mapping[str, str]]
Labels = Accepts[
    Annotated[dict[str, str], AfterValidator(FrozenDict), Flat()], Mapping[str, str | Mapping[str, Any]]
]
Environment = Accepts[
    Annotated[
        dict[str, OsText],
        BeforeValidator(_environment, json_schema_input_type=dict[str, str | int]),
        AfterValidator(FrozenDict),
    ],
    Mapping[str, str | int],
]


# The forms of a value, as tags of a union: pydantic reports errors only of the form that was written. Paths of findings
# leave the tags out.
TRUTH, TEXT, TABLE, LIST = "<truth>", "<text>", "<table>", "<list>"


def _form(value: Tree) -> str | None:
    value = truth_if_interpolated(value)
    if isinstance(value, bool):
        return TRUTH
    if isinstance(value, (dict, BaseModel)):
        return TABLE
    return TEXT if isinstance(value, str) else LIST if isinstance(value, (list, tuple)) else None


def by_form(allowed: str) -> Discriminator:
    """Select the alternative of a union by the form of the value; `allowed` describes all of them."""
    return Discriminator(_form, custom_error_type="not_allowed", custom_error_message=allowed)


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
    if isinstance(value, str) and not is_module_and_attribute(value):
        raise BadValue(f"{value[:60]!r} is not module:function", '"module:function"')
    return value


App = Annotated[
    Any,
    AfterValidator(_app),
    WithJsonSchema({"type": "string", "pattern": r"^[^\s:]+:[^\s:]+$|\$\{"}),
]
MetricsPath = Annotated[str, Field(pattern=PLAIN_PATH_PATTERN)]
PortRange = Accepts[
    Annotated[
        tuple[int, int],
        BeforeValidator(_port_range),
        WithJsonSchema({"type": "string", "pattern": r"^\s*\d{1,5}\s*-\s*\d{1,5}\s*$"}),
    ],
    str,
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
