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
    truth_from_environment,
)
from poolctl.config.values.problems import Tree, shown

OPERATOR_ALLOWED = '"http://HOST:PORT", "https://HOST:PORT", either with a path, or "unix:/PATH"'
MODE_ALLOWED = 'a mode of files, such as "0660"'
API_ALLOWED = '"https://HOST:8006"'
VERIFY_ALLOWED = 'true, or the file of the CA that has signed the certificate ("pve-root-ca.pem")'
# The file that a Proxmox VE cluster has for its own CA.
CA_FILE = "/etc/pve/pve-root-ca.pem"
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


def _api_url(text: str) -> str:
    try:
        parts = urlsplit(text)
        port, host = parts.port, parts.hostname
    except ValueError:
        parts, port, host = urlsplit(""), None, None
    if "@" in text:
        # A user name or a password, which is not repeated.
        raise BadValue(
            "the address holds a user", f"{API_ALLOWED}; the token stands in token_env or token_file"
        )
    if not host or port == 0 or not text.isprintable() or parts.scheme not in ("http", "https"):
        raise BadValue(f"{text[:60]!r} is no address of a web service", API_ALLOWED)
    if parts.scheme == "http":
        raise BadValue(f"{text[:60]!r} would send the token in the clear", API_ALLOWED)
    if parts.path not in ("", "/") or parts.query or parts.fragment:
        raise BadValue(f"{text[:60]!r} has more than a host and a port", API_ALLOWED)
    return text.rstrip("/")


def _verify(value: Tree) -> Tree:
    value = truth_from_environment(value)
    if value is False:
        message = "without verification anyone between here and there can take the token"
        raise BadValue(message, f"{VERIFY_ALLOWED}; a cluster has it as {CA_FILE}")
    if value is not True and (not isinstance(value, str) or not value):
        raise BadValue(f"{shown(value)} is not allowed here", VERIFY_ALLOWED)
    return value


# A list of tables becomes a tuple.
AS_TUPLE = Strict(False)
ApiUrl = Annotated[str, AfterValidator(_api_url)]
Verify = Annotated[
    bool | str,
    BeforeValidator(_verify),
    WithJsonSchema({"anyOf": [{"const": True}, {"type": "string", "format": "path"}]}),
]
