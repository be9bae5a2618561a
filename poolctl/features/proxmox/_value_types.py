"""The value types of the keys of [proxmox]."""

from __future__ import annotations

from typing import Annotated
from urllib.parse import urlsplit

from pydantic import AfterValidator, BeforeValidator, WithJsonSchema

from poolctl.config.values.normalise import absolute
from poolctl.config.values.plain import BadValue, truth_if_interpolated
from poolctl.config.values.problems import Tree, shown
from poolctl.config.values.value_types import Relative

_API_ALLOWED = '"https://HOST:8006"'
_VERIFY_ALLOWED = 'true, or the file of the CA that has signed the certificate ("pve-root-ca.pem")'
# The file that a Proxmox VE cluster has for its own CA.
_CA_FILE = "/etc/pve/pve-root-ca.pem"


def _api_url(text: str) -> str:
    try:
        parts = urlsplit(text)
        port, host = parts.port, parts.hostname
    except ValueError:
        parts, port, host = urlsplit(""), None, None
    if "@" in text:
        # A user name or a password, which is not repeated.
        raise BadValue(
            "the address holds a user", f"{_API_ALLOWED}; the token stands in token_env or token_file"
        )
    if not host or port == 0 or not text.isprintable() or parts.scheme not in ("http", "https"):
        raise BadValue(f"{text[:60]!r} is not the address of a web service", _API_ALLOWED)
    if parts.scheme == "http":
        raise BadValue(f"{text[:60]!r} would send the token in the clear", _API_ALLOWED)
    if parts.path not in ("", "/") or parts.query or parts.fragment:
        raise BadValue(f"{text[:60]!r} has more than a host and a port", _API_ALLOWED)
    return text.rstrip("/")


def _validated_verify(value: Tree) -> Tree:
    value = truth_if_interpolated(value)
    if value is False:
        message = "without verification anyone between here and there can take the token"
        raise BadValue(message, f"{_VERIFY_ALLOWED}; a cluster has it as {_CA_FILE}")
    if value is not True and (not isinstance(value, str) or not value):
        raise BadValue(f"{shown(value)} is not allowed here", _VERIFY_ALLOWED)
    return value


def _absolute_unless_truth(value: Tree, directory: str) -> Tree:
    return value if isinstance(truth_if_interpolated(value), bool) else absolute(value, directory)


ApiUrl = Annotated[str, AfterValidator(_api_url)]
Verify = Annotated[
    bool | str,
    BeforeValidator(_validated_verify),
    Relative(_absolute_unless_truth),
    WithJsonSchema({"anyOf": [{"const": True}, {"type": "string", "format": "path"}]}),
]
