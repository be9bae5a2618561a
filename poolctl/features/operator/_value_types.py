"""The value types of the keys of [operator]."""

from __future__ import annotations

from typing import Annotated
from urllib.parse import urlsplit

from pydantic import AfterValidator, Field

from poolctl.address import AddressError, parse
from poolctl.config.values.normalise import absolute_address
from poolctl.config.values.plain import PORTS, BadValue, refuse_long_path
from poolctl.config.values.value_types import PLAIN_PATH_PATTERN, FileMode, Relative

__all__ = ["Endpoint", "FileMode", "OperatorUrl"]

_ALLOWED = '"http://HOST:PORT", "https://HOST:PORT", either with a path, or "unix:/PATH"'


def _operator_url(text: str) -> str:
    """The normalized URL of an operator. The message of BadValue omits the URL, which may contain a password."""
    if text.lower().startswith("unix:"):
        try:
            address = parse(text)
        except AddressError as problem:
            raise BadValue(problem.message, _ALLOWED) from None
        refuse_long_path(address)
        return address.key
    try:
        parts = urlsplit(text)
        valid = parts.scheme in PORTS and parts.hostname and parts.port != 0
    except ValueError:  # a port that is no number
        valid = None
    if not valid or not text.isprintable() or " " in text:
        raise BadValue("this is not the address of an operator", _ALLOWED)
    if "@" in parts.netloc:
        raise BadValue("the address has credentials: name the variable of a token, token_env", _ALLOWED)
    if parts.query or parts.fragment:
        raise BadValue("the address has more than a path", _ALLOWED)
    return text.rstrip("/")


# It may be a Unix socket.
OperatorUrl = Annotated[str, AfterValidator(_operator_url), Relative(absolute_address)]
Endpoint = Annotated[str, Field(pattern=PLAIN_PATH_PATTERN)]
