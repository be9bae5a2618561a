"""Heads of requests as the proxy takes them from a client: in a form that all parsers read alike."""

from __future__ import annotations

import re

import httptools

from poolctl.http.message_head import BadMessage, RequestHead

_ABSOLUTE = re.compile(rb"(?i:https?)://([^/?#@]+)((?:[/?].*+)?)", re.DOTALL)
_HOST_LINE = re.compile(rb"\r\n(?i:host):[^\r\n]*+")


def read_request(data: bytes, max_head_bytes: int, scanned: int = 0) -> RequestHead | None:
    """The request whose head these bytes begin with; None while it is not complete. Raises BadMessage.

    Up to the offset `scanned` an earlier call has found them incomplete.
    """
    request = RequestHead.read(data, scanned, max_head_bytes)
    if request is None:
        return None
    if not request.canonical:
        request = _put_in_order(request, data[: request.end])
    if request.upgrade.lower() == b"h2c":  # its requests would go on unseen (RFC 9113 §3.1)
        request.upgrade = b""
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
    """The input of llhttp."""

    target = b""
    complete = False

    def on_url(self, url: bytes) -> None:
        self.target += url

    def on_headers_complete(self) -> None:
        self.complete = True
