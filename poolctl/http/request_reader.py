"""Requests as a server reads them."""

from __future__ import annotations

from .head import FIELD_LINE, TOKEN, BadMessage, MessageHead, compiled
from .message_reader import MessageReader

# Visible ASCII without the fragment, which is no part of a target (RFC 9112 §3.2). One empty line may stand before it,
# left behind by a client that ended its last body with one (RFC 9112 §2.2).
_START_LINE = rb"(?:\r\n)?+(" + TOKEN + rb") ([!\"$-~]++) HTTP/1\.([01])\r\n"
# A whole head in order.
REQUEST_HEAD = _START_LINE + rb"(?:" + FIELD_LINE + rb")*+\r\n"
_OTHER_VERSION = rb"(?:\r\n)?+" + TOKEN + rb" [!-~]++ HTTP/(?!1\.[01])[0-9]\.[0-9]\r\n"
_HOST = rb"[0-9A-Za-z._~%!$&'()*+,;=:\[\]-]*+"  # RFC 9110 §7.2, RFC 3986 §3.2.2


class RequestHead(MessageHead):
    """The head of a request: its method, its target as it was sent, and its fields."""

    def __init__(self, raw: bytes) -> None:
        found = compiled(REQUEST_HEAD).fullmatch(raw)
        if found is None:
            raise reason(raw)
        self.method, self.target, minor = found.groups()
        super().__init__(raw, http_1_1=minor == b"1")
        if self.chunked and not self.http_1_1:
            raise BadMessage("transfer-encoding in HTTP/1.0")  # RFC 9112 §6.1
        # RFC 9112 §3.2: exactly one, which an older client may leave out.
        hosts = self.values(b"host")
        if len(hosts) > 1 or (self.http_1_1 and not hosts):
            raise BadMessage("more than one host" if hosts else "no host")
        if hosts and not compiled(_HOST).fullmatch(hosts[0]):
            raise BadMessage("host is not a host name")

    @property
    def path(self) -> str:
        """The target without its query."""
        return self.target.partition(b"?")[0].decode("ascii")

    @property
    def expects_continue(self) -> bool:
        """Whether the client waits for 100 before it sends the body (RFC 9110 §10.1.1)."""
        return self.http_1_1 and self.get(b"expect").lower() == b"100-continue"


class RequestReader(MessageReader):
    """Reads one request: `head`, then `body`. What follows it, in `rest`, belongs to the next one."""

    start_line = _START_LINE

    head: RequestHead | None = None

    def _read_head(self, raw: bytes) -> None:
        head = self.head = RequestHead(raw)
        length = head.content_length or 0
        if self._max_body_bytes is not None and length > self._max_body_bytes:
            self._body_too_large()
        self._frame(head, None if head.chunked else length)

    def _body_too_large(self) -> bool:
        raise BadMessage("the body is too large", 413)

    def _reason(self, raw: bytes) -> BadMessage:
        return reason(raw)


def reason(raw: bytes) -> BadMessage:
    """Why this is not the head of a request."""
    if compiled(_START_LINE).match(raw):
        return BadMessage("malformed header field")
    if compiled(_OTHER_VERSION).match(raw):
        return BadMessage("the version is not HTTP/1.1", 505)
    return BadMessage("no request line")
