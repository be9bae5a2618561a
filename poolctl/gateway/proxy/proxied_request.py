"""Heads of requests as the proxy takes them from a client: in a form that all parsers read alike."""

from __future__ import annotations

import re

import httptools

from ...http.message_head import BadMessage, RequestHead

_ABSOLUTE = re.compile(rb"(?i:https?)://([^/?#@]+)((?:[/?].*+)?)", re.DOTALL)
_HOST_LINE = re.compile(rb"\r\n(?i:host):[^\r\n]*+")
# The line break behind it belongs to the fields.
_canonical_line = re.compile(
    rb"(GET|HEAD|POST|PUT|PATCH|DELETE|OPTIONS) ((/[!\"$->@-~]*+)(?:\?[!\"$-~]*+)?) HTTP/1\.1(?=\r\n)"
).match
_END = b"\r\n\r\n"


def read_request(
    data: bytes, max_head_bytes: int, previous: RequestHead | None = None, *, scanned: int = 0
) -> RequestHead | None:
    """The request whose head these bytes begin with; None while it is not complete. Raises BadMessage.

    Up to the offset `scanned` an earlier call has found them incomplete. `previous` is a request of the same
    connection: most clients send the same fields again, byte by byte.
    """
    if previous is not None and previous.canonical and previous.http_1_1:
        line = _canonical_line(data)
        if line is not None:
            at, fields = line.end(), previous.fields
            if data.startswith(fields, at) and data.startswith(_END, at + len(fields)):
                return _with_line(previous, line, at + len(fields) + len(_END))
    request = RequestHead.read(data, scanned, max_head_bytes)
    if request is None:
        return None
    if not request.canonical:
        request = _put_in_order(request, data[: request.end])
    if request.upgrade.lower() == b"h2c":  # its requests would go on unseen (RFC 9113 §3.1)
        request.upgrade = b""
    return request


def _with_line(previous: RequestHead, line: re.Match[bytes], end: int) -> RequestHead:
    """A request with the same fields and another request line; its head has so many bytes."""
    request = RequestHead.__new__(RequestHead)
    request.method, request.target, request.path = line.groups()
    request.end, request.fields, request.host, request.body = (
        end,
        previous.fields,
        previous.host,
        previous.body,
    )
    request.options, request.upgrade = previous.options, previous.upgrade
    request.expects_continue = previous.expects_continue
    request.http_1_1 = request.canonical = True
    request.keep_alive = previous.keep_alive
    return request


def _put_in_order(head: RequestHead, raw: bytes) -> RequestHead:
    """The request in a form that all parsers read alike, if it has one."""
    _compare(head, raw)
    target, host, fields = head.target, head.host, head.fields
    if head.get(b"expect").lower() not in (b"", b"100-continue"):
        raise BadMessage("an unknown expectation", 417)
    if not target.startswith(b"/") and head.method != b"CONNECT" and target != b"*":
        # RFC 9112 §3.2.2: the authority of the target replaces Host.
        absolute = _ABSOLUTE.fullmatch(target)
        if absolute is None:
            raise BadMessage("the target is neither a path nor a URL")
        host, rest = absolute.groups()
        target = rest if rest.startswith(b"/") else b"/" + rest
        fields = b"\r\nHost: " + host + _HOST_LINE.sub(b"", fields)
    elif target == b"*" and head.method != b"OPTIONS":
        raise BadMessage("the target * is for OPTIONS only")
    # llhttp keeps a tab behind a value, h11 does not: a Host would name two hosts.
    fields = b"\r\n".join([line.rstrip(b"\t ") for line in fields.split(b"\r\n")])
    version = b"1.1" if head.http_1_1 else b"1.0"
    request = RequestHead(b"%b %b HTTP/%b%b\r\n\r\n" % (head.method, target, version, fields))
    request.end, request.canonical = head.end, False
    return request


def _compare(head: RequestHead, raw: bytes) -> None:
    """Refuse what llhttp, the parser of many servers, refuses or reads in another way."""
    reading = _Reading()
    parser = httptools.HttpRequestParser(reading)
    try:
        parser.feed_data(raw)
    except httptools.HttpParserUpgrade:
        pass
    except httptools.HttpParserError as error:
        raise BadMessage("not read alike by all parsers") from error
    if parser.get_method() != head.method or reading.target != head.target or not reading.complete:
        raise BadMessage("not read alike by all parsers")


class _Reading:
    """What llhttp reads."""

    target = b""
    complete = False

    def on_url(self, url: bytes) -> None:
        self.target += url

    def on_headers_complete(self) -> None:
        self.complete = True
