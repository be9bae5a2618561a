"""The types of the keys of [pool] and of other tables except servers."""

from __future__ import annotations

import re
from typing import Annotated

from pydantic import BeforeValidator, Field, Strict, WithJsonSchema

from poolctl.config.values.key_rules import app_findings
from poolctl.config.values.plain import BadValue
from poolctl.config.values.problems import Tree, shown

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


def _mode(value: Tree) -> Tree:
    text = f"{value:o}" if isinstance(value, int) and not isinstance(value, bool) else value
    if not isinstance(text, str) or not re.fullmatch(r"(0o?)?[0-7]{3}", text):
        raise BadValue(f"{shown(value)} is not allowed here", MODE_ALLOWED)
    return f"0{text[-3:]}"


FileMode = Annotated[
    str, BeforeValidator(_mode), WithJsonSchema({"type": "string", "pattern": "^0?[0-7]{3}$"})
]

# A list of tables becomes a tuple.
AS_TUPLE = Strict(False)
