"""Requests as the proxy takes them from a client, whatever protocol that speaks."""

from __future__ import annotations

import re

import httptools

from ...http.canonical_head import CHUNKED, parse
from ...http.message_head import TOKEN, UNFIT, BadMessage, RequestHead

# RFC 9110 §9.2.2: sent twice they have the effect of one.
_IDEMPOTENT = frozenset((b"GET", b"HEAD", b"PUT", b"DELETE", b"OPTIONS", b"TRACE"))
_ABSOLUTE = re.compile(rb"(?i:https?)://([^/?#@]+)((?:[/?].*+)?)", re.DOTALL)
_REQUEST_LINE = re.compile(rb"(?:\r\n)?" + TOKEN + rb" [!-~]++ HTTP/1\.[01]\r\n")
# The line break behind it belongs to the fields.
_canonical_line = re.compile(
    rb"(GET|HEAD|POST|PUT|PATCH|DELETE|OPTIONS) ((/[!\"$->@-~]*+)(?:\?[!\"$-~]*+)?) HTTP/1\.1(?=\r\n)"
).match
_unfit = re.compile(UNFIT).search
_END = b"\r\n\r\n"


class ProxiedRequest:
    """The head of a request. `fields` are its lines as they were sent, each after its line break: "\\r\\nHost: a".

    `body` is the length of its body, or CHUNKED; `upgrade` the protocol that the client asks to change to. `canonical`:
    the head was, and the version is HTTP/1.1.
    """

    __slots__ = (
        "body", "canonical", "end", "fields", "host", "http_1_1", "keep_alive", "method", "path", "target", "upgrade",
    )  # fmt: skip

    def __init__(
        self,
        method: bytes,
        target: bytes,
        path: bytes,
        host: bytes,
        fields: bytes,
        body: int,
        *,
        end: int = 0,
        http_1_1: bool = True,
        keep_alive: bool = True,
        upgrade: bytes = b"",
        canonical: bool = False,
    ) -> None:
        self.method, self.target, self.path, self.host, self.fields = method, target, path, host, fields
        self.body, self.end, self.http_1_1, self.keep_alive = body, end, http_1_1, keep_alive
        self.upgrade, self.canonical = upgrade, canonical

    def __repr__(self) -> str:
        return f"<ProxiedRequest {self.method.decode()} {self.target.decode()}>"

    def again(self, line: re.Match[bytes], end: int) -> ProxiedRequest:
        """A request with the same fields and another request line; its head has so many bytes."""
        method, target, path = line.groups()
        return ProxiedRequest(
            method, target, path, self.host, self.fields, self.body,
            end=end, keep_alive=self.keep_alive, upgrade=self.upgrade, canonical=True,
        )  # fmt: skip

    @property
    def idempotent(self) -> bool:
        """Whether it may be sent again when it is unknown what became of it."""
        return self.method in _IDEMPOTENT

    def values(self, name: bytes) -> list[bytes]:
        """The values of the fields of this name, which is in lower case."""
        found = re.findall(rb"\r\n(?i:" + re.escape(name) + rb"):[\t ]*+([^\r\n]*+)", self.fields)
        return [value.rstrip(b"\t ") for value in found]

    def get(self, name: bytes) -> bytes:
        """The value of a field: several ones joined by commas, b"" without one."""
        return b", ".join(self.values(name))

    def cookie(self, name: str) -> str:
        """The value of the cookie of this name, "" without one."""
        pair = rb"(?:^|[;,])[\t ]*+" + re.escape(name.encode()) + rb"=([^;,]*+)"
        found = re.search(pair, self.get(b"cookie"))
        return found[1].decode("latin-1").strip("\t ").strip('"') if found else ""


def read_request(
    data: bytes, max_head_bytes: int, previous: ProxiedRequest | None = None
) -> ProxiedRequest | None:
    """The request whose head these bytes begin with; None while it is not complete. Raises BadMessage.

    `previous` is one in canonical form of the same connection: most clients send the same fields again, byte by byte.
    """
    if previous is not None:
        line = _canonical_line(data)
        if line is not None:
            at, fields = line.end(), previous.fields
            if data.startswith(fields, at) and data.startswith(_END, at + len(fields)):
                return previous.again(line, at + len(fields) + len(_END))
    head = parse(data)
    if head is None:
        return _read_any(data, max_head_bytes)
    method, target, path, host, end, body, http_1_1, keep_alive, upgrade, _ = head
    if end > max_head_bytes:
        raise BadMessage("the head is too large", 431)
    fields = data[data.index(b"\r\n") : end - 4]
    request = ProxiedRequest(
        method,
        target,
        path,
        host,
        fields,
        body,
        end=end,
        http_1_1=http_1_1,
        keep_alive=keep_alive,
        canonical=http_1_1,
    )
    if upgrade and not body:
        request.upgrade = _protocol(request.get(b"upgrade"))
    return request


def _protocol(name: bytes) -> bytes:
    """The protocol to change to. HTTP/2 without TLS is none: its requests would go on unseen (RFC 9113 §3.1)."""
    return b"" if name.lower() == b"h2c" else name


def _read_any(data: bytes, max_head_bytes: int) -> ProxiedRequest | None:
    """A request in any form that all parsers read alike."""
    end = data.find(_END, 2) + len(_END)  # one empty line may come first (RFC 9112 §2.2)
    if end < len(_END):
        _check_beginning(data, max_head_bytes)
        return None
    if end > max_head_bytes:
        raise BadMessage("the head is too large", 431)
    raw = data[:end]
    head = RequestHead(raw)
    _compare(head)
    # llhttp keeps a tab behind a value, h11 does not: a Host would name two hosts.
    lines = [line.rstrip(b"\t ") for line in raw.removeprefix(b"\r\n").split(b"\r\n")[1:-2]]
    fields = b"".join(b"\r\n" + line for line in lines)
    body = CHUNKED if head.chunked else head.content_length or 0
    target, host = head.target, head.get(b"host")
    if not target.startswith(b"/") and head.method != b"CONNECT" and target != b"*":
        # RFC 9112 §3.2.2: the authority of the target replaces Host.
        absolute = _ABSOLUTE.fullmatch(target)
        if absolute is None:
            raise BadMessage("the target is neither a path nor a URL")
        host, rest = absolute.groups()
        target = rest if rest.startswith(b"/") else b"/" + rest
        fields = b"\r\nHost: " + host + re.sub(rb"\r\n(?i:host):[^\r\n]*+", b"", fields)
        RequestHead(b"GET / HTTP/1.1" + fields + b"\r\n\r\n")  # the authority may be in a Host
    elif target == b"*" and head.method != b"OPTIONS":
        raise BadMessage("the target * is for OPTIONS only")
    expected = head.get(b"expect").lower()
    if expected not in (b"", b"100-continue"):
        raise BadMessage("an unknown expectation", 417)
    request = ProxiedRequest(
        head.method, target, target.partition(b"?")[0], host, fields, body,
        end=end, http_1_1=head.http_1_1, keep_alive=head.keep_alive,
    )  # fmt: skip
    options = {option.strip(b"\t ") for option in head.get(b"connection").lower().split(b",")}
    if b"upgrade" in options and head.http_1_1 and not body and len(head.values(b"upgrade")) == 1:
        request.upgrade = _protocol(head.get(b"upgrade"))
    return request


def _check_beginning(data: bytes, max_head_bytes: int) -> None:
    """Refuse the beginning of a head that no more bytes can put in order."""
    if len(data) > max_head_bytes:
        raise BadMessage("the head is too large", 431)
    if _unfit(data):
        raise BadMessage("a control character, or a line that does not end with CRLF")
    if b"\r\n" in data[2:] and not _REQUEST_LINE.match(data):
        raise RequestHead.problem(data)


def _compare(head: RequestHead) -> None:
    """Refuse what llhttp, the parser of many servers, refuses or reads in another way."""
    reading = _Reading()
    parser = httptools.HttpRequestParser(reading)
    try:
        parser.feed_data(head.raw)
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
