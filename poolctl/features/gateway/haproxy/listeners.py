"""The listeners of HAProxy and their TLS certificates: `bind` lines, crt-lists, and rules for client certificates."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

from poolctl.config.model.server_tables import TLSConfig

from .syntax import network_groups, quoted

# The suffix of the identifier (see `_identifier`) of a certificate that requests a client certificate.
_DEMANDS = "+"
# Part of the names of binds on which trusted proxies report their clients.
_PROXY_PROTOCOL_NAME = "accept-proxy-protocol"
_is_host_name = re.compile(r"(?:\*\.)?[a-z0-9_-]+(?:\.[a-z0-9_-]+)*").fullmatch
# Stands for the names of a certificate without names: clients do not ask for it.
_NO_NAME = "-"
_MISDIRECTED = "status 421 content-type text/plain string 'Misdirected Request'"


class HaproxyCertificate(NamedTuple):
    """A listener's TLS certificate: the file with certificate and key, and the rules for client certificates.

    `names` are the host names in the certificate. HAProxy reads them from `file` itself, unless a certificate of the
    same listener asks for a client certificate.
    """

    file: str
    ca_file: str = ""
    client_auth: str = "none"
    min_version: str = "1.2"
    ciphers: str = ""
    names: tuple[str, ...] = ()

    @classmethod
    def of(cls, tls: TLSConfig, file: str, ca_file: str, names: tuple[str, ...] = ()) -> HaproxyCertificate:
        """The certificate with these files and the other keys of `tls`."""
        return cls(file, ca_file, tls.client_auth, tls.min_version, tls.ciphers or "", names)

    @property
    def asks_for_certificate(self) -> bool:
        """Whether clients are asked for a certificate."""
        return self.client_auth != "none"

    @property
    def hosts(self) -> tuple[str, ...]:
        """The host names for which this certificate is presented (SNI); IP addresses are excluded (RFC 6066 §3)."""
        names = dict.fromkeys(name.lower().rstrip(".") for name in self.names)
        hosts = [name for name in names if _is_host_name(name) and not name.replace(".", "").isdigit()]
        return (*hosts,) or (_NO_NAME,)

    @property
    def crt_list_line(self) -> str:
        """The certificate's line in a crt-list file."""
        options = [f"ssl-min-ver TLSv{self.min_version}"]
        if self.asks_for_certificate:
            options.append(f"verify {self.client_auth} ca-file {self.ca_file}")
        if self.ciphers:
            options.append(f"ciphers {':'.join(self.ciphers.split())}")  # OpenSSL also allows blanks
        return f"{self.file} [{' '.join(options)}]"


class HaproxyListener(NamedTuple):
    """An address where HAProxy accepts connections, in HAProxy's syntax.

    For a stream's listener `alias` is the alias of its route. The file `crt_list` is generated from `certificates`.
    `passes_tls`: TLS is not terminated, but passed to servers that have certificates.
    """

    binds: tuple[str, ...]
    alias: str = ""
    crt_list: str = ""
    certificates: tuple[HaproxyCertificate, ...] = ()
    accept_proxy: bool = False
    passes_tls: bool = False

    @property
    def asks_for_certificate(self) -> bool:
        """Whether clients are asked for a certificate, at least for some hosts."""
        return any(certificate.asks_for_certificate for certificate in self.certificates)

    @property
    def name(self) -> str:
        """The name in the listener's `bind` lines, for rules that select the listener, or ""."""
        return "-".join(
            [_PROXY_PROTOCOL_NAME] * self.accept_proxy + [self.crt_list] * self.asks_for_certificate
        )

    @property
    def files(self) -> Mapping[str, str]:
        """The contents of the files that the listener's binds read, by file name."""
        if not self.certificates:
            return {}
        lines = [certificate.crt_list_line for certificate in self.certificates]
        if not self.asks_for_certificate:
            return {self.crt_list: "".join(f"{line}\n" for line in lines)}
        numbers: dict[str, list[int]] = {}  # of certificates, by host
        for number, certificate in enumerate(self.certificates):
            # With these names, HAProxy ignores those in the certificate, so that the rules find the shown certificate.
            lines[number] += f" {' '.join(certificate.hosts)}"
            for name in certificate.hosts:
                numbers.setdefault(name, []).append(number)
        map_lines = [f"{name} {self._identifier(of_name)}\n" for name, of_name in numbers.items()]
        return {
            self.crt_list: "".join(f"{line}\n" for line in lines),
            f"{self.crt_list}.map": "".join(map_lines),
        }

    def bind_lines(self, *, http2: bool = False) -> Iterator[str]:
        """The listener's `bind` lines; with `http2`, clients that speak TLS may choose HTTP/2."""
        protocols = "h2,http/1.1" if http2 else "http/1.1"
        tls = f" ssl crt-list {self.crt_list} alpn {protocols}" if self.certificates else ""
        # In TLS 1.3 a session could be resumed for another name without a check of the client's certificate.
        tls += " no-tls-tickets" if self.asks_for_certificate else ""
        for bind in self.binds:
            yield f"    bind {bind}{f' name {self.name}' if self.name else ''}{tls}"

    def sni_mismatch_variable_rules(self) -> Iterator[str]:
        """Yield rules that set txn.shown and txn.wanted; none if no client certificates are requested.

        txn.shown identifies the certificate for the SNI of the handshake, txn.wanted that for the host of the request.
        If they differ and the latter requires a client certificate, `misdirected_request_rules` refuses the request: a
        client could otherwise avoid the requirement by another SNI (RFC 9110 §7.4).
        """
        if not self.asks_for_certificate:
            return
        here = f"{{ so_name {self.name} }}"
        by_name = f"map_str({self.crt_list}.map)"
        default = self._identifier([0])
        by_pattern = quoted(f"regsub(^[^.]*,*),map_str({self.crt_list}.map,{default})")
        # HAProxy compares the name as it was sent, including a final dot.
        for variable, name in (("shown", "ssl_fc_sni,lower"), ("wanted", "var(txn.host)")):
            is_set = f"{{ var(txn.{variable}) -m found }}"
            yield f"    http-request set-var(txn.{variable}) {name},{by_name} if {here}"
            yield f"    http-request set-var(txn.{variable}) {name},{by_pattern} if {here} !{is_set}"
            yield f"    http-request set-var(txn.{variable}) str({default}) if {here} !{is_set}"

    def _identifier(self, numbers: Sequence[int]) -> str:
        """The text by which rules identify these members of `certificates`: the numbers joined by ".".

        It ends in "+" if one of them asks for a client certificate.
        """
        demands = any(self.certificates[number].asks_for_certificate for number in numbers)
        return f"{'.'.join(map(str, numbers))}{_DEMANDS if demands else ''}"


def misdirected_request_rules(listeners: Sequence[HaproxyListener]) -> Iterator[str]:
    """Rules that refuse a request if its host requires a client certificate but the handshake's SNI did not."""
    if any(listener.asks_for_certificate for listener in listeners):
        yield from (line for listener in listeners for line in listener.sni_mismatch_variable_rules())
        same = "{ var(txn.wanted),strcmp(txn.shown) eq 0 }"
        yield f"    http-request return {_MISDIRECTED} if {{ var(txn.wanted) -m end {_DEMANDS} }} !{same}"


def proxy_protocol_rules(listeners: Iterable[HaproxyListener], trusted: Sequence[str]) -> Iterator[str]:
    """Rules that expect the PROXY protocol from trusted proxies, on the listeners that accept it."""
    names = dict.fromkeys(listener.name for listener in listeners if listener.accept_proxy)
    for networks in network_groups(trusted) if names else ():
        here = f"{{ so_name {' '.join(names)} }}"
        yield f"    tcp-request connection expect-proxy layer4 if {here} {{ src {networks} }}"
