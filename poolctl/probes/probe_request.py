"""What one probe sends, prepared once: the bytes of a request, and what its response has to be."""

from __future__ import annotations

import asyncio
from urllib.parse import quote, urlsplit

from poolctl.config import Probe, ServerConfig
from poolctl.expressions import is_plain
from poolctl.http.head import request_head
from poolctl.http.response_reader import ResponseReader
from poolctl.selection.matcher import TOO_SLOW, matcher
from poolctl.selection.matcher import Answer as Matched

from .probe_connection import OnResult, ProbeReply

MAX_BODY_BYTES = 1024 * 1024  # more of it is not looked at, and ends the connection
# An expression that took too long is not tried again before this time: it is the application that sends the body.
_SLOW_PAUSE_SECONDS = 60.0
_UNQUOTED = "/?&=%:@!$'()*+,;~-._"


class HttpProbeRequest:
    """An HTTP request, and how its response is judged."""

    __slots__ = ("_body", "_head_only", "_label", "_plain", "_slow_until", "_statuses", "payload")

    def __init__(self, probe: Probe, server: ServerConfig) -> None:
        assert probe.http is not None
        self._label = f"{probe.method} {probe.http}"
        self._head_only = probe.method == "HEAD"
        self._statuses = statuses(probe.status)
        self._body = probe.body
        self._plain = probe.body is not None and is_plain(probe.body)
        self._slow_until = 0.0
        self.payload = request_head(
            probe.method, quote(probe.http, safe=_UNQUOTED), _fields(probe, server).items()
        )

    def new_reply(self) -> ResponseReader:
        """See ProbeRequest."""
        return ResponseReader(head_only=self._head_only, max_body_bytes=MAX_BODY_BYTES)

    def judge(self, reply: ProbeReply, on_result: OnResult) -> None:
        """See ProbeRequest. A regular expression is matched in another process."""
        found = f"{self._label}: status {reply.status}"
        if reply.status not in self._statuses:
            on_result(found)
        elif self._body is None:
            on_result("")
        elif self._plain:
            matches = self._body in reply.body.decode(errors="replace")
            on_result("" if matches else self._mismatch(found))
        elif asyncio.get_running_loop().time() < self._slow_until:
            on_result(f"{found}, body: {TOO_SLOW.problem}")
        else:
            text = reply.body.decode(errors="replace")
            matcher().ask([self._body], [text], lambda matched: self._matched(matched, found, on_result))

    def _matched(self, matched: Matched, found: str, on_result: OnResult) -> None:
        if matched is TOO_SLOW:
            self._slow_until = asyncio.get_running_loop().time() + _SLOW_PAUSE_SECONDS
        if matched.problem:
            on_result(f"{found}, body: {matched.problem}")
        else:
            on_result("" if matched.found else self._mismatch(found))

    def _mismatch(self, found: str) -> str:
        return f"{found}, and a body without {self._body!r}"


class EchoRequest:
    """One byte, which an application's worker sends back without asking the application."""

    payload = b"?"

    def new_reply(self) -> EchoReply:
        """See ProbeRequest."""
        return EchoReply()

    def judge(self, reply: ProbeReply, on_result: OnResult) -> None:
        """See ProbeRequest."""
        on_result("")


class EchoReply:
    """Complete with its first byte."""

    status = 0
    body = b""
    reusable = True

    def feed(self, data: bytes) -> bool:
        """See ProbeReply."""
        return True

    def end(self) -> bool:
        """See ProbeReply."""
        return False


def statuses(text: str) -> frozenset[int]:
    """All statuses that "200-299,404" names."""
    found: set[int] = set()
    for part in text.split(","):
        low, _, high = part.partition("-")
        found.update(range(int(low), int(high or low) + 1))
    return frozenset(found)


def speaks_tls(server: ServerConfig) -> bool:
    """Whether TLS is spoken on the server's connections; of a program only its `expose` says so."""
    if server.command:
        return server.expose.startswith("https:")
    return bool(server.tls)


def _fields(probe: Probe, server: ServerConfig) -> dict[str, str]:
    # The host as clients name it, so that an application that checks it accepts it.
    host = urlsplit(server.expose).netloc.rpartition("@")[2] or "localhost"
    fields = {"Host": host, "User-Agent": "poolctl", "Accept": "*/*"}
    if server.command:
        # A program that serves one client at a time must not wait for the next probe.
        fields["Connection"] = "close"
    known = {name.lower(): name for name in fields}
    for name, value in probe.headers.items():
        fields[known.get(name.lower(), name)] = value
    if probe.method not in ("GET", "HEAD", "OPTIONS"):
        fields["Content-Length"] = "0"
    return fields
