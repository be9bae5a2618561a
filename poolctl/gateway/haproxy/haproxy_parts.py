"""The parts of a configuration for HAProxy, and the syntax of words and times in one."""

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
MISDIRECTED = "status 421 content-type text/plain string 'Misdirected Request'"
# At the end of the name of a certificate list in which a certificate demands a client certificate.
DEMANDS = "+"


EVERYWHERE = ("0.0.0.0/0", "::/0")
NETWORKS_A_LINE = 20
# In the names of binds where trusted proxies report their clients.
_REPORTING = "accept-proxy-protocol"
_is_host_name = re.compile(r"(?:\*\.)?[a-z0-9_-]+(?:\.[a-z0-9_-]+)*").fullmatch
# In the place of names, for a certificate without any: clients do not ask for it.
_NO_NAME = "-"


class HaproxyCertificate(NamedTuple):
    """A certificate of a listener: the file with certificate and key, and its rules for clients.

    Its `names` are needed on listeners where a certificate demands a client certificate.
    """

    file: str
    ca_file: str = ""
    client_auth: str = "none"
    min_version: str = "1.2"
    ciphers: str = ""
    names: tuple[str, ...] = ()

    @property
    def demands(self) -> bool:
        """Whether clients are asked for a certificate of theirs."""
        return self.client_auth != "none"

    @property
    def hosts(self) -> tuple[str, ...]:
        """The names by which clients ask for it; addresses are not among them (RFC 6066 §3)."""
        given = dict.fromkeys(name.lower().rstrip(".") for name in self.names)
        found = [name for name in given if _is_host_name(name) and not name.replace(".", "").isdigit()]
        return (*found,) or (_NO_NAME,)

    @property
    def line(self) -> str:
        """The line of a crt-list."""
        options = [f"ssl-min-ver TLSv{self.min_version}"]
        if self.demands:
            options.append(f"verify {self.client_auth} ca-file {self.ca_file}")
        if self.ciphers:
            options.append(f"ciphers {self.ciphers}")
        return f"{self.file} [{' '.join(options)}]"


class HaproxyListener(NamedTuple):
    """An address where HAProxy accepts, in its own syntax; for a stream's listener with the alias of the route.

    The file `crt_list` is made of `certificates`.
    """

    binds: tuple[str, ...]
    alias: str = ""
    crt_list: str = ""
    certificates: tuple[HaproxyCertificate, ...] = ()
    accept_proxy: bool = False

    @property
    def demands(self) -> bool:
        """Whether clients are asked for a certificate of theirs where they ask for some hosts."""
        return any(each.demands for each in self.certificates)

    @property
    def name(self) -> str:
        """The name of its binds, by which rules refer to it; "" without rules."""
        return "-".join([_REPORTING] * self.accept_proxy + [self.crt_list] * self.demands)

    @property
    def files(self) -> Mapping[str, str]:
        """The texts of the files that it reads, by their names."""
        if not self.certificates:
            return {}
        if not self.demands:
            return {self.crt_list: "".join(f"{each.line}\n" for each in self.certificates)}
        # A line with names of its own does not apply to the names that HAProxy finds in the certificate, so that the
        # rules find the certificate that was shown to the client.
        lines = [f"{each.line} {' '.join(each.hosts)}\n" for each in self.certificates]
        shown: dict[str, list[int]] = {}
        for number, each in enumerate(self.certificates):
            for name in each.hosts:
                shown.setdefault(name, []).append(number)
        found = "".join(f"{name} {self._shown(numbers)}\n" for name, numbers in shown.items())
        return {self.crt_list: "".join(lines), f"{self.crt_list}.map": found}

    def lines(self, *, http2: bool = False) -> Iterator[str]:
        """Its `bind` lines; with `http2`, clients that speak TLS may choose HTTP/2."""
        protocols = "h2,http/1.1" if http2 else "http/1.1"
        tls = f" ssl crt-list {self.crt_list} alpn {protocols}" if self.certificates else ""
        # In TLS 1.3 a session could be resumed for another name without a check of the client's certificate.
        tls += " no-tls-tickets" if self.demands else ""
        for bind in self.binds:
            yield f"    bind {bind}{f' name {self.name}' if self.name else ''}{tls}"

    def misdirected(self) -> Iterator[str]:
        """Refuse a host that demands a client's certificate over a connection that was shown another certificate.

        A client could otherwise avoid that by naming different hosts in the handshake and the request (RFC 9110 §7.4).
        See ServerContext.admits; needs txn.host.
        """
        if not self.demands:
            return
        here = f"{{ so_name {self.name} }}"
        by_name = f"map_str({self.crt_list}.map)"
        by_pattern = quoted(f"regsub(^[^.]*,*),map_str({self.crt_list}.map,{self._shown([0])})")
        # HAProxy compares the name as it was sent, including a final dot.
        for variable, name in (("shown", "ssl_fc_sni,lower"), ("wanted", "var(txn.host)")):
            known = f"{{ var(txn.{variable}) -m found }}"
            yield f"    http-request set-var(txn.{variable}) {name},{by_name} if {here}"
            yield f"    http-request set-var(txn.{variable}) {name},{by_pattern} if {here} !{known}"
            yield f"    http-request set-var(txn.{variable}) str({self._shown([0])}) if {here} !{known}"

    def _shown(self, numbers: Sequence[int]) -> str:
        """The certificates of a name, of which the kind of their keys may choose, as a word."""
        demands = any(self.certificates[number].demands for number in numbers)
        return f"{'.'.join(map(str, numbers))}{DEMANDS if demands else ''}"


def reporting(listeners: Iterable[HaproxyListener], trusted: Sequence[str]) -> Iterator[str]:
    """On which of these listeners the connections of trusted proxies begin with a header of the PROXY protocol."""
    trusted = EVERYWHERE if EVERY in trusted else trusted
    names = dict.fromkeys(each.name for each in listeners if each.accept_proxy)
    if names:
        for start in range(0, len(trusted), NETWORKS_A_LINE):
            source = f"{{ src {' '.join(trusted[start : start + NETWORKS_A_LINE])} }}"
            yield f"    tcp-request connection expect-proxy layer4 if {{ so_name {' '.join(names)} }} {source}"


class HaproxyServer(NamedTuple):
    """A server of a backend: `key` is the key of its target, `address` and `options` are in HAProxy's syntax."""

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
        """The options after its address."""
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
    """A configuration in its parts: `lines` precede the backends; `files` are the crt-lists by name."""

    lines: tuple[str, ...]
    backends: tuple[HaproxyBackend, ...]
    files: Mapping[str, str]

    def text(self, disabled: Iterable[tuple[str, str]] = ()) -> str:
        """The main file. The servers in `disabled`, given by the names of backend and server, get no traffic."""
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
    """A word of a configuration with any characters except line breaks."""
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
