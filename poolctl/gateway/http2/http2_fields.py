"""Fields of HTTP/2 as the lines of an HTTP/1.1 head, and back (RFC 9113 §8.3)."""

from __future__ import annotations

import re
from collections.abc import Iterable

from ...http.message_head import HOST, TOKEN

Fields = list[tuple[bytes, bytes]]

_is_token = re.compile(TOKEN).fullmatch
_is_host = re.compile(HOST).fullmatch
_is_path = re.compile(rb"/[!\"$-~]*+|\*").fullmatch
# RFC 9113 §8.2.1: no capital letters; no control characters, and no whitespace around a value.
_is_name = re.compile(rb"[!#$%&'*+.^_`|~0-9a-z-]++").fullmatch
_is_value = re.compile(rb"(?:[!-~\x80-\xff]++(?:[\t ]++[!-~\x80-\xff]++)*)?").fullmatch
_PSEUDO_FIELDS = (b":method", b":scheme", b":authority", b":path")
# RFC 9113 §8.2.2; TE has a rule of its own.
_OF_CONNECTIONS = frozenset(
    (b"connection", b"proxy-connection", b"keep-alive", b"transfer-encoding", b"upgrade")
)


class MalformedError(Exception):
    """The fields, or the body that follows them, are no request: its stream is reset (RFC 9113 §8.1.1)."""


def request_head(fields: Iterable[tuple[bytes, bytes]], *, complete: bool) -> bytes:
    """The head of the same request in HTTP/1.1. `complete`: no body follows. Raises MalformedError.

    Nothing in it can end a line or the head: every part is checked before it becomes one.
    """
    pseudo: dict[bytes, bytes] = {}
    lines: list[bytes] = []
    cookies: list[bytes] = []
    host = b""
    framed = complete
    for name, value in fields:
        if name.startswith(b":"):
            if name not in _PSEUDO_FIELDS or name in pseudo or lines or cookies or host:
                raise MalformedError("an unknown pseudo-header field, or one twice or after other fields")
            pseudo[name] = value
            continue
        _check_field(name, value)
        if name == b"cookie":
            cookies.append(value)
        elif name == b"host":
            if host or not value:
                raise MalformedError("more than one host")
            host = value
        else:
            framed = framed or name == b"content-length"
            lines.append(b"%b: %b" % (name, value))
    method, path = pseudo.get(b":method", b""), pseudo.get(b":path", b"")
    authority = pseudo.get(b":authority", host)
    if not _is_token(method) or not authority or not _is_host(authority):
        raise MalformedError("no method, or no authority")
    if host and host.lower() != authority.lower():
        raise MalformedError("two different hosts")
    if method == b"CONNECT":
        if path or b":scheme" in pseudo:
            raise MalformedError("a target of CONNECT has an authority only")
        path = authority
    elif pseudo.get(b":scheme") not in (b"https", b"http") or not _is_path(path):
        raise MalformedError("no scheme, or no path")
    if cookies:  # RFC 9113 §8.2.3
        lines.append(b"cookie: " + b"; ".join(cookies))
    if not framed:
        lines.append(b"transfer-encoding: chunked")
    return b"%b %b HTTP/1.1\r\nHost: %b\r\n%b" % (
        method, path, authority, b"".join([line + b"\r\n" for line in [*lines, b""]]),
    )  # fmt: skip


def trailer_lines(fields: Iterable[tuple[bytes, bytes]]) -> bytes:
    """The fields of a request's trailer section as lines, each with its end. Raises MalformedError."""
    lines = []
    for name, value in fields:
        _check_field(name, value)
        lines.append(b"%b: %b\r\n" % (name, value))
    return b"".join(lines)


def response_fields(lines: bytes) -> Fields:
    """The fields of a response whose status line and fields these are."""
    status, _, rest = lines.partition(b"\r\n")
    return [(b":status", status[9:12]), *fields_of(rest)]


def fields_of(lines: bytes) -> Fields:
    """The fields that these lines are."""
    found: Fields = []
    for line in lines.split(b"\r\n"):
        name, colon, value = line.partition(b":")
        if colon:
            found.append((name.lower(), value.strip(b"\t ")))
    return found


def _check_field(name: bytes, value: bytes) -> None:
    if (
        not _is_name(name)
        or not _is_value(value)
        or name in _OF_CONNECTIONS
        or (name == b"te" and value.lower() != b"trailers")
    ):
        raise MalformedError("a field that HTTP/2 does not have")
