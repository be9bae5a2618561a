"""What a configuration for HAProxy is made of, and how words and times are written in one."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

from ...routing.networks import EVERY

# The longest time that HAProxy knows, in the place of none.
_NO_LIMIT = "24d"
# Responses of HAProxy's own.
TOO_MANY = "status 429 content-type text/plain string 'Too Many Requests'"
UNAVAILABLE = "status 503 content-type text/plain string 'Service Unavailable'"


EVERYWHERE = ("0.0.0.0/0", "::/0")
NETWORKS_A_LINE = 20
# The name of binds where trusted proxies report their clients.
_REPORTING = "accept-proxy-protocol"


class HaproxyCertificate(NamedTuple):
    """A certificate of a listener: the file with certificate and key, and what holds for clients that are shown it."""

    file: str
    ca_file: str = ""
    client_auth: str = "none"
    min_version: str = "1.2"
    ciphers: str = ""

    @property
    def line(self) -> str:
        """The line of a crt-list."""
        options = [f"ssl-min-ver TLSv{self.min_version}"]
        if self.client_auth != "none":
            options.append(f"verify {self.client_auth} ca-file {self.ca_file}")
        if self.ciphers:
            options.append(f"ciphers {self.ciphers}")
        return f"{self.file} [{' '.join(options)}]"


class HaproxyListener(NamedTuple):
    """An address where HAProxy accepts, in its own words: of a stream's listener with the alias of the route.

    The file `crt_list` is made of `certificates`.
    """

    binds: tuple[str, ...]
    alias: str = ""
    crt_list: str = ""
    certificates: tuple[HaproxyCertificate, ...] = ()
    accept_proxy: bool = False

    def lines(self, *, http2: bool = False) -> Iterator[str]:
        """Its `bind` lines; with `http2`, clients that speak TLS may choose HTTP/2."""
        protocols = "h2,http/1.1" if http2 else "http/1.1"
        tls = f" ssl crt-list {self.crt_list} alpn {protocols}" if self.certificates else ""
        for bind in self.binds:
            yield f"    bind {bind}{f' name {_REPORTING}' if self.accept_proxy else ''}{tls}"


def reporting(listeners: Iterable[HaproxyListener], trusted: Sequence[str]) -> Iterator[str]:
    """On which of these listeners the connections of trusted proxies begin with a header of the PROXY protocol."""
    trusted = EVERYWHERE if EVERY in trusted else trusted
    if any(each.accept_proxy for each in listeners):
        for start in range(0, len(trusted), NETWORKS_A_LINE):
            source = f"{{ src {' '.join(trusted[start : start + NETWORKS_A_LINE])} }}"
            yield f"    tcp-request connection expect-proxy layer4 if {{ so_name {_REPORTING} }} {source}"


class HaproxyServer(NamedTuple):
    """A server of a backend: `key` is that of its target, `address` and `options` are as HAProxy has them."""

    name: str
    key: str
    address: str
    options: str
    weight: int = 1
    cookie: str = ""

    def line(self, *, disabled: bool = False) -> str:
        """Its line in the backend."""
        words = ["    server", self.name, self.address, self.arguments]
        words += [f"cookie {self.cookie}"] if self.cookie else []
        words += ["disabled"] if disabled else []
        return " ".join(filter(None, words))

    @property
    def arguments(self) -> str:
        """What follows its address."""
        return " ".join(filter(None, (self.options, f"weight {self.weight}" if self.weight != 1 else "")))


class HaproxyBackend(NamedTuple):
    """The section of a route, or of a stream: everything but its servers in `lines`."""

    name: str
    alias: str
    is_stream: bool
    lines: tuple[str, ...]
    servers: tuple[HaproxyServer, ...]

    @property
    def but_servers(self) -> HaproxyBackend:
        """The section without its servers."""
        return self._replace(servers=())


class HaproxyConfiguration(NamedTuple):
    """A configuration in its parts: `lines` are those before the backends; `files` are the crt-lists by their names."""

    lines: tuple[str, ...]
    backends: tuple[HaproxyBackend, ...]
    files: Mapping[str, str]

    def text(self, disabled: Iterable[tuple[str, str]] = ()) -> str:
        """The main file. Of the servers, given by the names of backend and server, those `disabled` get no traffic."""
        resting = frozenset(disabled)
        found = [*self.lines]
        for backend in self.backends:
            found += ["", *backend.lines]
            found += [
                server.line(disabled=(backend.name, server.name) in resting) for server in backend.servers
            ]
        return "\n".join([*found, ""])


class Names:
    """Names as HAProxy allows them, each given once."""

    def __init__(self) -> None:
        self._taken: set[str] = set()

    def of(self, text: str) -> str:
        """One that resembles the text."""
        wanted = found = re.sub(r"[^A-Za-z0-9_.:-]", "_", text)
        number = 1
        while found in self._taken:
            number += 1
            found = f"{wanted}:{number}"
        self._taken.add(found)
        return found


def quoted(text: str) -> str:
    """A word of a configuration, whatever characters it has but line breaks."""
    return text if re.fullmatch(r"[A-Za-z0-9_./:@=,+-]+", text) else "'" + text.replace("'", "'\\''") + "'"


def literal(text: str) -> str:
    """Text where a format is expected."""
    return text.replace("%", "%%")


def duration(seconds: float) -> str:
    """A time; 0 is no limit."""
    return f"{max(1, round(seconds * 1000))}ms" if seconds else _NO_LIMIT


def longest(times: Iterable[float]) -> str:
    """The longest of several times, of which 0 is no limit."""
    found = [*times]
    return duration(0.0 if 0.0 in found else max(found))
