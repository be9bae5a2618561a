"""The kinds of values that the keys of [pool] and of the tables besides the servers take."""

from __future__ import annotations

import re
from typing import Annotated
from urllib.parse import urlsplit

from pydantic import AfterValidator, BeforeValidator, Field, Strict, WithJsonSchema

from poolctl.address import AddressError, parse
from poolctl.config.values.key_rules import app_findings
from poolctl.config.values.plain import (
    PORTS,
    BadValue,
    refuse_long_path,
)
from poolctl.config.values.problems import Tree, shown

OPERATOR_ALLOWED = '"http://HOST:PORT", "https://HOST:PORT", either with a path, or "unix:/PATH"'
MODE_ALLOWED = 'a mode of files, such as "0660"'
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


def _handlers(value: Tree) -> Tree:
    if isinstance(value, str) and app_findings(value):
        raise BadValue(f"{value[:60]!r} is not module:function", '"module:function"')
    return value


MetricsPath = Annotated[str, Field(pattern=r"^/[^\x00-\x20\x7f?#]*$")]
PortRange = Annotated[
    tuple[int, int],
    BeforeValidator(_port_range),
    WithJsonSchema({"type": "string", "pattern": r"^\s*\d{1,5}\s*-\s*\d{1,5}\s*$"}),
]
Handlers = Annotated[str, BeforeValidator(_handlers)]


def _operator_url(text: str) -> str:
    """An operator's address. Errors do not repeat it, as it may hold a password."""
    if text.lower().startswith("unix:"):
        try:
            address = parse(text)
        except AddressError as problem:
            raise BadValue(problem.message, OPERATOR_ALLOWED) from None
        refuse_long_path(address)
        return address.key
    try:
        parts = urlsplit(text)
        found = parts.scheme in PORTS and parts.hostname and parts.port != 0
    except ValueError:  # a port that is no number
        found = None
    if not found or not text.isprintable() or " " in text:
        raise BadValue("this is no address of an operator", OPERATOR_ALLOWED)
    if "@" in parts.netloc:
        raise BadValue(
            "the address has credentials: name the variable of a token, token_env", OPERATOR_ALLOWED
        )
    if parts.query or parts.fragment:
        raise BadValue("the address has more than a path", OPERATOR_ALLOWED)
    return text.rstrip("/")


def _mode(value: Tree) -> Tree:
    text = f"{value:o}" if isinstance(value, int) and not isinstance(value, bool) else value
    if not isinstance(text, str) or not re.fullmatch(r"(0o?)?[0-7]{3}", text):
        raise BadValue(f"{shown(value)} is not allowed here", MODE_ALLOWED)
    return f"0{text[-3:]}"


FileMode = Annotated[
    str, BeforeValidator(_mode), WithJsonSchema({"type": "string", "pattern": "^0?[0-7]{3}$"})
]
OperatorUrl = Annotated[str, AfterValidator(_operator_url)]
Endpoint = Annotated[str, Field(pattern=r"^/[^\x00-\x20\x7f?#]*$")]

# A list of tables becomes a tuple.
AS_TUPLE = Strict(False)
