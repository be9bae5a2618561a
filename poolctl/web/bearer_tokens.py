"""Authentication at the pool's own addresses: peers, bearer tokens, and the rate limit for wrong tokens.

A token is sent as `Authorization: Bearer TOKEN` (RFC 6750 §2.1).
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import socket
from collections import OrderedDict
from collections.abc import Iterable
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network
from typing import TYPE_CHECKING, NamedTuple

from poolctl.config.values.problems import Finding
from poolctl.platform import peer_credentials

if TYPE_CHECKING:
    from poolctl.config.values.problems import KeyPath

# Rate limit per address: a burst of wrong tokens, then one per this many seconds.
MAX_WRONG_TOKENS, WRONG_TOKEN_SECONDS = 10, 6.0
MAX_ADDRESSES = 4096
# The length in characters from which a token cannot be guessed. `openssl rand -hex 32` prints 64.
LONG_TOKEN = 32
_BEARER = "bearer "

Ip = IPv4Address | IPv6Address


class Refused(Exception):
    """A refused request, with the status, message and header fields of the response ("_" in a name becomes "-")."""

    def __init__(self, status: int, message: str, **fields: str) -> None:
        super().__init__(message)
        self.status = status
        self.fields = fields


class Peer(NamedTuple):
    """The sender of a request: its address, or None over a Unix socket. Wrong tokens are counted by `key`.

    `certified` is true if it has presented a certificate that the TLS context of the address accepts.
    """

    ip: Ip | None
    key: str
    certified: bool = False

    @property
    def address(self) -> str:
        """Its address as text; "" over a Unix socket."""
        return "" if self.ip is None else str(self.ip)

    @property
    def is_local(self) -> bool:
        return self.ip is None or self.ip.is_loopback


def peer_of(transport: asyncio.BaseTransport) -> Peer | None:
    """Return the client of this connection; None if it has disconnected.

    IPv6 clients in the same /64 network, which may be one machine, share a key.
    """
    sock = transport.get_extra_info("socket")
    if sock.family == socket.AF_UNIX:
        return Peer(None, f"uid {peer_credentials(sock)[1]}")
    address = transport.get_extra_info("peername")
    if not address:
        return None
    ip = unmapped(ip_address(str(address[0]).partition("%")[0]))
    key = str(ip_network((ip, 64), strict=False)) if isinstance(ip, IPv6Address) else str(ip)
    tls = transport.get_extra_info("ssl_object")
    return Peer(ip, key, certified=tls is not None and bool(tls.getpeercert()))


def unmapped(ip: Ip) -> Ip:
    """The IPv4 address of an IPv4-mapped IPv6 address; any other address as it is."""
    return (ip.ipv4_mapped or ip) if isinstance(ip, IPv6Address) else ip


class Token:
    """A token that grants access. A long token cannot be guessed, so it is accepted even after many wrong ones.

    Its SHA-256 is compared, so that timing does not reveal its length.
    """

    def __init__(self, text: str) -> None:
        self._digest = _digest(text.encode())
        self.is_long = len(text) >= LONG_TOKEN

    def has(self, digest: bytes) -> bool:
        """Whether this is the digest of the token, in constant time."""
        return hmac.compare_digest(digest, self._digest)


class TokenCheck:
    """Checks clients' tokens. Wrong ones fill a leaky bucket for each address, which has to wait while it is full.

    Beyond MAX_ADDRESSES, the address that was wrong least recently is forgotten.
    """

    def __init__(self) -> None:
        self._wrong: OrderedDict[str, tuple[float, float]] = OrderedDict()  # (fill level, time)

    def accepted(self, sent: bytes, tokens: Iterable[Token], key: str, now: float) -> Token:
        """Return the token in `tokens` that equals `sent`. Wrong tokens are counted under `key`.

        Raises Refused: 401 for a wrong token, 429 above the rate limit, to which long tokens are not subject.
        """
        match, digest = None, _digest(sent)
        for token in tokens:  # no early exit, so that timing reveals nothing
            if token.has(digest):
                match = token
        if match is not None and match.is_long:
            return match
        level, at = self._wrong.get(key, (0.0, now))
        level = max(0.0, level - (now - at) / WRONG_TOKEN_SECONDS)
        if (wait := (level - MAX_WRONG_TOKENS + 1) * WRONG_TOKEN_SECONDS) > 0:
            seconds = int(wait) + 1
            raise Refused(429, f"too many wrong tokens; wait {seconds} s", retry_after=str(seconds))
        if match is None:
            self._wrong[key] = level + 1, now
            self._wrong.move_to_end(key)
            if len(self._wrong) > MAX_ADDRESSES:
                self._wrong.popitem(last=False)
            raise Refused(401, "wrong token" if sent else "the token is missing", www_authenticate="Bearer")
        return match


def bearer_token(authorization: str) -> bytes:
    """The token in the field Authorization of a request; empty if there is none."""
    is_bearer = authorization[: len(_BEARER)].lower() == _BEARER
    return authorization[len(_BEARER) :].strip().encode("latin-1") if is_bearer else b""


def short_token_warnings(path: KeyPath, token: str, where: str, fix: str) -> list[Finding]:
    """A warning for `validate` if the token is short enough to fall under the rate limit; else []."""
    if not 0 < len(token) < LONG_TOKEN:
        return []
    message = f"the token in {where} has {len(token)} characters, and can be guessed"
    return [
        Finding(
            path,
            f"{message}: it has to wait, too, while clients send wrong ones",
            f"make it longer: {fix}",
            is_warning=True,
        )
    ]


def _digest(value: bytes) -> bytes:
    return hashlib.sha256(value).digest()
