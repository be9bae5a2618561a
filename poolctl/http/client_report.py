"""Header fields that describe a request's client. Applications trust them, so clients may not set them.

The proxy, and a worker that serves a client directly, set `X-Forwarded-For`, `X-Forwarded-Proto`, `X-Forwarded-Host`
and `Forwarded` (RFC 7239). Similar fields of the request are removed, also if written with underscores, which CGI and
WSGI do not distinguish. `Proxy` is removed too, because CGI would turn it into the variable HTTP_PROXY.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

from .messages import HOST

CLIENT_FIELD = (
    rb"(?i:forwarded|proxy|x[-_]real[-_]ip|x[-_](?:forwarded|poolctl)[-_][!#$%&'*+.^_`|~0-9A-Za-z-]*+)"
)
is_client_field = re.compile(CLIENT_FIELD).fullmatch
_is_host = re.compile(HOST).fullmatch
_FOR, _PROTO, _HOST_FIELD = b"x-forwarded-for", b"x-forwarded-proto", b"x-forwarded-host"
_FORWARDED = b"forwarded"

Fields = list[tuple[bytes, bytes]]  # names in lower case, and values


class ForwardedHeaders:
    """The fields about one connection's client that are reported with each of its requests.

    `peer` is the address at the other end, "" for a Unix socket. A `trusted` peer is a proxy: its own fields about the
    client are kept and extended. The fields of any other peer are replaced.
    """

    __slots__ = ("_node", "_peer", "_scheme", "_trusted")

    def __init__(self, peer: str, scheme: str, *, trusted: bool) -> None:
        self._peer = peer.encode()
        self._scheme = scheme.encode()
        self._trusted = trusted
        self._node = (f'"[{peer}]"' if ":" in peer else peer or "unknown").encode()

    def fields(self, host: bytes, values: Callable[[bytes], Sequence[bytes]]) -> Fields:
        """Return the header fields about the client that are added to a request for `host` (b"" if unknown).

        `values(name)` has to return the values of the request's header fields with this lower-case name.
        """
        hops, scheme, named, elements = self._peer, self._scheme, host, self._forwarded_element(host)
        if self._trusted:
            hops = b", ".join([*values(_FOR), *([hops] if hops else [])])
            scheme = b", ".join(values(_PROTO)) or scheme
            named = b", ".join(values(_HOST_FIELD)) or named
            elements = b", ".join([*values(_FORWARDED), elements])
        fields = [(_FOR, hops), (_PROTO, scheme), (_HOST_FIELD, named), (_FORWARDED, elements)]
        return [field for field in fields if field[1]]

    def with_forwarded_fields(self, headers: Fields) -> Fields:
        """Return a copy of `headers` whose fields about the client are replaced by those that `self.fields` returns.

        Header names are in lower case.
        """
        kept = [field for field in headers if not is_client_field(field[0])]
        host = next((value for name, value in kept if name == b"host"), b"")
        return kept + self.fields(
            host if _is_host(host) else b"",
            lambda wanted: [value.strip(b" \t") for name, value in headers if name == wanted],
        )

    def _forwarded_element(self, host: bytes) -> bytes:
        """The element that is added to `Forwarded` (RFC 7239 §4). `host` must not contain quotation marks."""
        named = b';host="' + host + b'"' if host else b""
        return b"for=" + self._node + b";proto=" + self._scheme + named
