"""The host part of an address in its one spelling."""

from __future__ import annotations

import re
import socket

from poolctl.address.address import AddressError

OCTET = r"(?:25[0-5]|2[0-4]\d|1\d\d|[1-9]?\d)"

_ipv4 = re.compile(r"(\d{1,3})\.(\d{1,3})\.(\d{1,3})\.(\d{1,3})", re.ASCII)
_numeric_tail = re.compile(r"(?:.*\.)?(?:\d+|0[xX][0-9a-fA-F]*)", re.ASCII)
_label = re.compile(r"[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9_])?", re.ASCII)
_zone = re.compile(r"[A-Za-z0-9._~-]+", re.ASCII)


def canonical_host(text: str) -> str:
    """Lower case, `*` and nothing as 0.0.0.0; names are not resolved. Raises AddressError."""
    if text in ("", "*"):
        return "0.0.0.0"
    match = _ipv4.fullmatch(text)
    if match:
        parts = match.groups()
        if any(int(part) > 255 or (len(part) > 1 and part[0] == "0") for part in parts):
            raise AddressError(
                f"{text!r} is not an IPv4 address", "four numbers from 0 to 255, without leading zeros"
            )
        return text
    if _numeric_tail.fullmatch(text):
        raise AddressError(f"{text[:80]!r} is not an IPv4 address", "four numbers from 0 to 255")
    return _host_name(text)


def _host_name(text: str) -> str:
    host = text
    if not host.isascii():
        try:
            host = host.encode("idna").decode("ascii")
        except UnicodeError as problem:
            raise AddressError(f"{text[:80]!r} is not a host name: {problem}") from problem
    host = host.lower().removesuffix(".")
    if len(host) > 253 or not all(_label.fullmatch(label) for label in host.split(".")):
        raise AddressError(f"{text[:80]!r} is not a host name")
    return host


def canonical_ipv6(text: str) -> str:
    """Compressed, a zone kept; an IPv4-mapped one as IPv4. Raises AddressError."""
    bare, percent, zone = text.partition("%")
    if percent and not _zone.fullmatch(zone):
        raise AddressError(f"{text[:80]!r} has no usable zone", 'write "[fe80::1%eth0]:8080"')
    try:
        packed = socket.inet_pton(socket.AF_INET6, bare)
    except (OSError, ValueError, UnicodeError):
        raise AddressError(f"{text[:80]!r} is not an IPv6 address", 'write "[::1]:8080"') from None
    if packed[:12] == b"\0" * 10 + b"\xff\xff":
        return ".".join(str(byte) for byte in packed[12:])
    return _compressed(packed) + percent + zone


def _compressed(packed: bytes) -> str:
    """RFC 5952: lower case, no leading zeros, the first longest run of zeros as `::`."""
    groups = [int.from_bytes(packed[i : i + 2], "big") for i in range(0, 16, 2)]
    best_start, best_length = 0, 1
    start = 0
    while start < 8:
        length = 0
        while start + length < 8 and groups[start + length] == 0:
            length += 1
        if length > best_length:
            best_start, best_length = start, length
        start += max(length, 1)
    text = [f"{group:x}" for group in groups]
    if best_length == 1:
        return ":".join(text)
    return ":".join(text[:best_start]) + "::" + ":".join(text[best_start + best_length :])
