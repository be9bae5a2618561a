"""The kinds of values that keys take: durations, sizes, numbers, words."""

from __future__ import annotations

import os
import re
from ipaddress import IPv6Address
from typing import TYPE_CHECKING, Annotated

from pydantic import AfterValidator, BeforeValidator, Field, Strict, StringConstraints, WithJsonSchema

from poolctl.address import Address, AddressError, parse
from poolctl.config.model import LONGEST_SOCKET_PATH_BYTES, MOST_WORKERS
from poolctl.config.model.problems import Tree
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

NAME_PATTERN = r"^[A-Za-z0-9._-]{1,200}$"
ADDRESS_ALLOWED = '"HOST:PORT", ":PORT" or "unix:/PATH"'
YEAR_SECONDS = 366 * 86400.0
LARGEST_BYTES = 2**60
# A host in brackets, or a name with the characters of RFC 3986 §3.2.2 and letters of any script; and its port.
_AUTHORITY = r"(?P<host>\[(?P<ip>[^\[\]]*)\]|[\w.~!$&'()*+,;=%-]*)(?::(?P<port>[^:]*))?"


def field(default: Tree, description: str, **more: Tree) -> Tree:
    """A key of a table that may be left out."""
    return Field(default=default, description=description, **more)


class BadValue(ValueError):
    """A value that is not allowed; `allowed` names those that are."""

    def __init__(self, message: str, allowed: str) -> None:
        super().__init__(message)
        self.allowed = allowed


class Interpolated(str):
    """A string that came from the environment: it may be read as a number or a truth value."""

    __slots__ = ()


def number_from_environment(value: Tree) -> Tree:
    """A number, where `${VAR}` gave its text."""
    if type(value) is Interpolated:
        for kind in (int, float):
            try:
                return kind(value)
            except ValueError:
                continue
    return value


def truth_from_environment(value: Tree) -> Tree:
    """A truth value, where `${VAR}` gave its text."""
    if type(value) is Interpolated:
        return {"true": True, "1": True, "false": False, "0": False}.get(value.lower(), value)
    return value


def _duration(minimum: float, maximum: float = YEAR_SECONDS) -> Tree:
    """The type of seconds, or a text such as "1m30s", in a range."""

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
    """The type of bytes, or a text such as "64KiB", in a range."""

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


def _time_zone(name: str) -> str:
    try:
        time_zone(name)
    except ValueError as problem:
        raise BadValue(
            str(problem), 'a name such as "Europe/Berlin" or "UTC" (tzselect(8) finds it)'
        ) from None
    return name


def refuse_long_path(address: Address) -> None:
    """Raise BadValue for the path of a Unix socket that the system would not take."""
    if len(os.fsencode(address.path)) > LONGEST_SOCKET_PATH_BYTES:
        message = (
            f"the path of the unix socket is longer than {LONGEST_SOCKET_PATH_BYTES} bytes: {address.path}"
        )
        raise BadValue(message, "a shorter one (unix(7))")


def host_and_port(rest: str) -> tuple[str, str] | None:
    """The parts of a URL behind its scheme (RFC 3986 §3.2), "" for one that is left out; None for another text."""
    authority = re.split(r"[/?#]", rest, maxsplit=1)[0].rpartition("@")[2]
    found = re.fullmatch(_AUTHORITY, authority)
    if found is None:
        return None
    if found["ip"] is not None:
        try:
            IPv6Address(found["ip"])
        except ValueError:
            return None
    return found["host"], found["port"] or ""


def is_port(text: str) -> bool:
    """Whether this is the number of a port, or none, which is the scheme's."""
    return not text or (text.isascii() and text.isdigit() and 1 <= int(text[:6]) <= 65535)


def _bind(text: str) -> str:
    try:
        address = parse(text)
    except AddressError as problem:
        raise BadValue(problem.message, ADDRESS_ALLOWED) from None
    refuse_long_path(address)
    if address.kind not in ("tcp", "unix") or address.auto:
        raise BadValue(f"{text[:60]!r} is no fixed address", ADDRESS_ALLOWED)
    return text


def _list(value: Tree) -> Tree:
    return tuple(value) if isinstance(value, list) else value


_from_text = BeforeValidator(number_from_environment)
if TYPE_CHECKING:
    Duration = float
    Positive = float
    Size = int
    HeadSize = int
else:
    Duration = _duration(0.0)  # 0 is "none" or "at once"
    Positive = _duration(0.001)  # where 0 makes no sense: a timeout, an interval
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
Text = Annotated[str, StringConstraints(min_length=1)]
Name = Annotated[str, StringConstraints(pattern=NAME_PATTERN)]
FilePath = Annotated[str, StringConstraints(min_length=1), Field(json_schema_extra={"format": "path"})]
Proxies = Annotated[tuple[Text, ...], BeforeValidator(_proxies)]
Windows = Annotated[tuple[Text, ...], BeforeValidator(_windows)]
TimeZone = Annotated[str, AfterValidator(_time_zone)]
Bind = Annotated[str, AfterValidator(_bind)]
Argument = Annotated[tuple[str, ...], Field(min_length=1), BeforeValidator(_list)]

PATH_PATTERN = r"^/[^\x00-\x20\x7f]*$"
METHOD_PATTERN = r"^[A-Z]+$"
STATUS_PATTERN = r"^[1-5][0-9]{2}(-[1-5][0-9]{2})?(,[1-5][0-9]{2}(-[1-5][0-9]{2})?)*$"
WORD_PATTERN = r"^[^\s,\x00-\x1f\x7f]+$"
UrlPath = Annotated[str, Field(pattern=PATH_PATTERN)]
Method = Annotated[str, Field(pattern=METHOD_PATTERN)]
Statuses = Annotated[str, Field(pattern=STATUS_PATTERN)]
Word = Annotated[str, StringConstraints(pattern=WORD_PATTERN)]
# A list becomes a tuple; nothing else does, and it needs no Python to run.
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


class FrozenDict(dict[str, str]):
    """A table of strings that does not change, and can be hashed."""

    def _refuse(self, *_: Tree, **__: Tree) -> Tree:
        raise TypeError("a configuration does not change: make another one with other values")

    __setitem__ = __delitem__ = update = pop = popitem = clear = setdefault = __ior__ = _refuse

    def __hash__(self) -> int:  # type: ignore[override]
        return hash(frozenset(self.items()))

    def __reduce__(self) -> tuple[Tree, ...]:
        return FrozenDict, (dict(self),)


EMPTY = FrozenDict()
HEADER_PATTERN = r"^[!#$%&'*+.^_`|~0-9A-Za-z-]+$"
HOST_HEADER_PATTERN = r"^[^\s/@\x00-\x1f\x7f]*$"
COOKIE_PATTERN = r"^[!#$%&'*+.^_`|~0-9A-Za-z-]*$"
HeaderName = Annotated[str, StringConstraints(pattern=HEADER_PATTERN)]
HeaderValue = Annotated[str, StringConstraints(pattern=r"^[^\x00-\x1f\x7f]*$")]
Headers = Annotated[dict[HeaderName, HeaderValue], AfterValidator(FrozenDict)]
Labels = Annotated[dict[str, str], AfterValidator(FrozenDict)]
Environment = Annotated[dict[str, str], BeforeValidator(_environment), AfterValidator(FrozenDict)]
