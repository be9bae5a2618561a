"""Heads of requests in canonical form, recognised in linear time.

Canonical is what httptools (llhttp) and h11 read alike: the same method, target, host and end of the message. So a
process can decide about a request by its head and leave the bytes to a server with either parser. A valid head may
have another form: then a full parser has to look at it. Where the parsers, or applications behind them, differ, this
form is stricter than RFC 9112:

- llhttp's methods without CONNECT; a target in origin form, or `OPTIONS *`. The absolute form names a second host, and
  uvicorn's two protocols give an application different paths for it.
- No empty line before the head, and no Proxy-Connection, which is Connection to llhttp and nothing to h11.
- Host, Content-Length, Transfer-Encoding, Connection, Upgrade and Expect at most once, in their plain form and without
  whitespace behind the value.
- No body in a request that asks for another protocol: to llhttp its bytes belong to that one.

Names with an underscore are ordinary names here, as they are for both parsers.
"""

from __future__ import annotations

import operator
import re
from collections.abc import Iterable
from typing import NamedTuple

from .message_head import FIELD_LINE, HOST, MOST_FIELDS, MOST_OPTIONS, TEXT, TOKEN, UNFIT

_METHODS = frozenset(
    b"ACL BIND CHECKOUT COPY DELETE GET HEAD LINK LOCK M-SEARCH MERGE MKACTIVITY MKCALENDAR MKCOL MOVE NOTIFY OPTIONS"
    b" PATCH POST PROPFIND PROPPATCH PURGE PUT REBIND REPORT SEARCH SUBSCRIBE TRACE UNBIND UNLINK UNLOCK UNSUBSCRIBE"
    b"".split()
)
# Only repetitions of single characters are possessive. Of a group that is repeated possessively, Python 3.11.2 loses
# the captured text, and may stay in the middle of a repetition that failed. Here a repetition has one way to match.
_request_head = re.compile(
    rb"([A-Z-]++) ((/[!\"$->@-~]*+)(?:\?[!\"$-~]*+)?|\*) HTTP/1\.([01])\r\n(?:" + FIELD_LINE + rb")*\r\n"
).match
# The fields that decide where the message ends, or whom it is for. The first letter rules out most others.
_DECISIVE = rb"(?i:host|connection|content-length|transfer-encoding|upgrade|expect|proxy-connection)"
_decisive_fields = re.compile(rb"\n(?=[CEHPTUcehptu])(" + _DECISIVE + rb"):[ \t]*+([^\r]*+)").findall
_is_other_field = re.compile(rb"(?!" + _DECISIVE + rb":)" + TOKEN + rb":" + TEXT).fullmatch
_is_host = re.compile(HOST).fullmatch
_is_length = re.compile(rb"[0-9]{1,15}").fullmatch
_length_line = re.compile(rb"(?i:content-length):[ \t]*+([0-9]{1,15}+)").fullmatch
_are_options = re.compile(TOKEN + rb"(?:, ?" + TOKEN + rb")*").fullmatch
_is_protocol = re.compile(TOKEN + rb"(?:/" + TOKEN + rb")?").fullmatch
_unfit = re.compile(UNFIT).search
CHUNKED = -1
_LINE_END = b"\r\n"
_END_LINES = 2  # empty ones, between and behind the last two line ends of a head
# Lines that were found to decide nothing.
_others: set[bytes] = set()
_MOST_OTHERS = 512
_LONGEST_OTHER = 256  # in bytes
_KEEP_ALIVE = {b"connection": b"keep-alive"}
_CONTINUE = b"100-continue"


class CanonicalHead(NamedTuple):
    """The head of a request. `path` is the target without its query; `host` as it was sent, b"" for none.

    `end` is the offset behind the empty line; `body` the length of what follows, or CHUNKED. `upgrade`: the connection
    may change to another protocol after this message (RFC 9110 §7.8).
    """

    method: bytes
    target: bytes
    path: bytes
    host: bytes
    end: int
    body: int
    http_1_1: bool
    keep_alive: bool
    upgrade: bool
    expects_continue: bool


def parse(data: bytes, at: int = 0) -> CanonicalHead | None:
    """The head that begins at this offset; None if it is not canonical, or not complete (see `is_incomplete`)."""
    found = _request_head(data, at)
    if found is None:
        return None
    method, target, path, minor = found.groups()
    end = found.end()
    if data.count(b"\n", at, end) > MOST_FIELDS + 2:  # the request line and the empty line
        return None
    lines = _decisive_fields(data, at, end)
    fields = {name.lower(): value for name, value in lines}
    if len(fields) != len(lines):
        return None
    http_1_1 = minor == b"1"
    host = fields.pop(b"host", None if http_1_1 else b"")  # RFC 9112 §3.2: an older client may leave it out
    if (
        host is None
        or not _is_host(host)
        or method not in _METHODS
        or (path is None and method != b"OPTIONS")
    ):
        return None
    keep_alive, body, upgrade, expects_continue = http_1_1, 0, False, False
    if fields == _KEEP_ALIVE:
        keep_alive = True
    elif fields:
        options = _connection_options(fields)
        length = _body_length(fields, http_1_1)
        expects = fields.get(b"expect", _CONTINUE).lower()
        if (
            options is None
            or length is None
            or expects != _CONTINUE
            or not _is_protocol(fields.get(b"upgrade", b"-"))
        ):
            return None
        keep_alive = (http_1_1 or b"keep-alive" in options) and b"close" not in options
        body = length
        upgrade = b"upgrade" in fields and b"upgrade" in options
        if upgrade and body:
            return None
        expects_continue = http_1_1 and b"expect" in fields
    return CanonicalHead(
        method, target, path or target, host, end, body, http_1_1, keep_alive, upgrade, expects_continue
    )


def _connection_options(fields: dict[bytes, bytes]) -> list[bytes] | None:
    """The options of Connection in lower case; None if they are not canonical."""
    value = fields.get(b"connection")
    if b"proxy-connection" in fields:
        return None
    if value is None:
        return []
    if value.count(b",") >= MOST_OPTIONS or not _are_options(value):
        return None
    return value.lower().replace(b" ", b"").split(b",")


def _body_length(fields: dict[bytes, bytes], http_1_1: bool) -> int | None:
    """The length of the body, or CHUNKED (RFC 9112 §6.3); None if it is not canonical."""
    length, coding = fields.get(b"content-length"), fields.get(b"transfer-encoding")
    if coding is not None:
        return CHUNKED if coding.lower() == b"chunked" and http_1_1 and length is None else None
    if length is None:
        return 0
    return int(length) if _is_length(length) else None


def is_incomplete(data: bytes, at: int = 0, scanned: int = 0) -> bool:
    """Whether the bytes from this offset are the beginning of a head, canonical or not, without its end.

    False as soon as more bytes cannot make them a valid one; the caller bounds their number. Up to the offset
    `scanned` an earlier call has found them incomplete.
    """
    return (
        data.find(b"\r\n\r\n", max(at, scanned - 3)) < 0
        and not data.startswith((b"\r", b"\n"), at)
        and _unfit(data, max(at, scanned - 1)) is None
    )


class KnownFields:
    """The fields of a canonical head: recognises heads that differ from it in nothing that decides.

    The requests of a client mostly differ in a few lines that stand together. So what is before and behind them is
    compared as a whole, and only the lines between are looked at: a fraction of what `parse` costs.
    """

    __slots__ = ("_between", "_body", "_count", "_decisive", "_end", "_length", "_length_differs", "_start")

    def __init__(self, fields: bytes, body: int = 0) -> None:
        """`fields` is the end of a canonical head, from its version on; `body` the length of its body, or CHUNKED."""
        lines = fields.split(_LINE_END)
        decisive = [line for line in lines if line not in _others and not _is_other(line)]
        self._start = self._end = fields  # both are narrowed by the first head
        self._count = len(lines)
        self._body = body
        self._length = next(filter(_length_line, decisive), None)
        self._decisive = [line for line in decisive if line != self._length]
        # The decisive lines that are neither in the start nor in the end; None before these are narrowed.
        self._between: list[bytes] | None = None
        self._length_differs = False  # it is between them

    def body_like(self, fields: bytes) -> int | None:
        """The length of the body, or CHUNKED, if these are the end of a whole canonical head that decides the same.

        Its version and decisive fields are the same, except for the length of the body.
        """
        start, end = self._start, self._end
        if (
            self._between is None
            or len(fields) < len(start) + len(end)
            or not (fields.startswith(start) and fields.endswith(end))
        ):
            if not self._narrow(fields):
                return None
            start, end = self._start, self._end
        lines = fields[len(start) : len(fields) - len(end)].split(_LINE_END)
        if lines.pop() or len(lines) > MOST_FIELDS:  # the end begins within a line
            return None
        decisive = [line for line in lines if line not in _others]
        body = self._body
        if self._length_differs:
            lengths = [found for line in decisive if (found := _length_line(line))]
            if len(lengths) != 1:
                return None
            decisive.remove(lengths[0][0])
            body = int(lengths[0][1])
        if decisive != self._between:
            decisive = [line for line in decisive if not _is_other(line)]
        return body if decisive == self._between else None

    def _narrow(self, fields: bytes) -> bool:
        """Keep what these fields have of the start and of the end; False if they decide otherwise."""
        lines = fields.split(_LINE_END)
        if not all(line in lines for line in self._decisive):
            return False
        first = _number_of_same(filter(None, self._start.split(_LINE_END)), lines)
        last = _number_of_same(self._end.split(_LINE_END)[::-1], lines[first:][::-1])
        last = min(last, self._count - first)
        if not first or last < _END_LINES:
            return False
        start, end = lines[:first], lines[len(lines) - last :]
        before, behind = (sum(line in self._decisive for line in part) for part in (start, end))
        self._between = self._decisive[before : len(self._decisive) - behind]
        self._length_differs = self._length is not None and self._length not in (*start, *end)
        self._start = b"".join([line + _LINE_END for line in start])
        self._end = _LINE_END.join(end)
        return True


def _number_of_same(some: Iterable[bytes], others: Iterable[bytes]) -> int:
    """How many of them are the same before the first that differ."""
    differ = [*map(operator.ne, some, others)]
    return differ.index(True) if True in differ else len(differ)


def _is_other(line: bytes) -> bool:
    """Whether the line is a field that decides nothing."""
    if not _is_other_field(line):
        return False
    if len(line) <= _LONGEST_OTHER:
        if len(_others) >= _MOST_OTHERS:
            _others.clear()
        _others.add(line)
    return True
