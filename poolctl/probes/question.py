"""What one probe asks, made ready once: the bytes of a request, and what an answer has to be."""

from __future__ import annotations

import re
from urllib.parse import quote, urlsplit

from poolctl.config.model import ServerConfig
from poolctl.config.sections import Probe

from .answer import Answer


class HttpQuestion:
    """A request, and how its answer is judged."""

    __slots__ = ("_body", "_head_only", "_shown", "_statuses", "request")

    def __init__(self, probe: Probe, server: ServerConfig) -> None:
        assert probe.http is not None
        self._shown = f"{probe.method} {probe.http}"
        self._head_only = probe.method == "HEAD"
        self._statuses = statuses(probe.status)
        self._body = None if probe.body is None else re.compile(probe.body)
        self.request = _request(probe, server)

    def begin(self) -> Answer:
        """An empty answer, to be fed."""
        return Answer(head_only=self._head_only)

    def judge(self, answer: Answer) -> str:
        """What is wrong with the answer; empty when it is as it should be."""
        status = answer.status
        if status not in self._statuses:
            return f"{self._shown}: status {status}"
        if self._body is not None and not self._body.search(answer.body.decode(errors="replace")):
            return f"{self._shown}: status {status}, and a body without {self._body.pattern!r}"
        return ""


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
