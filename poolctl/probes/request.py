"""What one probe asks, made ready once: the bytes of a request, and what an answer has to be."""

from __future__ import annotations

import asyncio
from urllib.parse import quote, urlsplit

from poolctl.config import Probe, ServerConfig
from poolctl.expressions import is_plain
from poolctl.matching.matcher import TOO_SLOW, matcher
from poolctl.matching.matcher import Answer as Matched

from .answer import Answer
from .connection import Told

# An expression that took too long is not tried again before this time: it is the application that sends the body.
_SLOW_PAUSE_SECONDS = 60.0


class HttpQuestion:
    """A request, and how its answer is judged."""

    __slots__ = ("_body", "_head_only", "_plain", "_shown", "_slow_until", "_statuses", "request")

    def __init__(self, probe: Probe, server: ServerConfig) -> None:
        assert probe.http is not None
        self._shown = f"{probe.method} {probe.http}"
        self._head_only = probe.method == "HEAD"
        self._statuses = statuses(probe.status)
        self._body = probe.body
        self._plain = probe.body is not None and is_plain(probe.body)
        self._slow_until = 0.0
        self.request = _request(probe, server)

    def begin(self) -> Answer:
        """An empty answer, to be fed."""
        return Answer(head_only=self._head_only)

    def judge(self, answer: Answer, told: Told) -> None:
        """See Question. What is no plain word is looked for in another process."""
        said = f"{self._shown}: status {answer.status}"
        if answer.status not in self._statuses:
            told(said)
        elif self._body is None:
            told("")
        elif self._plain:
            found = self._body in answer.body.decode(errors="replace")
            told("" if found else self._without(said))
        elif asyncio.get_running_loop().time() < self._slow_until:
            told(f"{said}, body: {TOO_SLOW.problem}")
        else:
            text = answer.body.decode(errors="replace")
            matcher().ask([self._body], [text], lambda matched: self._matched(matched, said, told))

    def _matched(self, matched: Matched, said: str, told: Told) -> None:
        if matched is TOO_SLOW:
            self._slow_until = asyncio.get_running_loop().time() + _SLOW_PAUSE_SECONDS
        if matched.problem:
            told(f"{said}, body: {matched.problem}")
        else:
            told("" if matched.found else self._without(said))

    def _without(self, said: str) -> str:
        return f"{said}, and a body without {self._body!r}"


def statuses(text: str) -> frozenset[int]:
    """All that "200-299,404" means."""
    found: set[int] = set()
    for part in text.split(","):
        low, _, high = part.partition("-")
        found.update(range(int(low), int(high or low) + 1))
    return frozenset(found)


def _request(probe: Probe, server: ServerConfig) -> bytes:
    assert probe.http is not None
    fields = {"Host": _host(server), "User-Agent": "poolctl", "Accept": "*/*"}
    if server.command:
        # A program that serves one client at a time must not wait for the next question.
        fields["Connection"] = "close"
    known = {name.lower(): name for name in fields}
    for name, value in probe.headers.items():
        fields[known.get(name.lower(), name)] = value
    lines = [f"{probe.method} {quote(probe.http, safe=_AS_WRITTEN)} HTTP/1.1"]
    lines += [f"{name}: {value}" for name, value in fields.items()]
    if probe.method not in ("GET", "HEAD", "OPTIONS"):
        lines.append("Content-Length: 0")
    return "\r\n".join([*lines, "", ""]).encode()


_AS_WRITTEN = "/?&=%:@!$'()*+,;~-._"


def _host(server: ServerConfig) -> str:
    """As clients say it, so that an application which looks at it knows it."""
    return urlsplit(server.expose).netloc.rpartition("@")[2] or "localhost"


def speaks_tls(server: ServerConfig) -> bool:
    """Whether TLS is spoken on the server's connections; of a program only its `expose` tells."""
    if server.command:
        return server.expose.startswith("https:")
    return bool(server.tls)
