"""A text becomes an address."""

from __future__ import annotations

import os
import re
import socket

from poolctl.address.address import Address, AddressError
from poolctl.address.host import OCTET, canonical_host, canonical_ipv6

SCHEMES = frozenset({"http", "https", "ws", "wss", "tcp"})

# What nearly all addresses look like.
_common = re.compile(rf"((?:{OCTET}\.){{3}}{OCTET}):([1-9]\d{{0,4}})", re.ASCII)
_scheme = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://", re.ASCII)
_name = re.compile(r"[A-Za-z0-9._-]+", re.ASCII)
_blank = re.compile(r"[\x00-\x20\x7f]")


def canonical(text: str, *, base_dir: str | None = None) -> str:
    """The one spelling of an address that keys the pool. Raises AddressError."""
    return parse(text, base_dir=base_dir).key


def parse(text: str, *, base_dir: str | None = None) -> Address:
    """The address that `text` means; a relative socket path is relative to `base_dir`.

    `base_dir` None is the working directory. Service names are looked up in the machine's list; host names
    are not resolved. Raises AddressError.
    """
    if not isinstance(text, str):
        raise AddressError(f"an address is a string, and this is {text!r}")
    common = _common.fullmatch(text)
    if common is not None:
        port = int(common[2])
        if port <= 65535:
            return tuple.__new__(Address, ("tcp", common[1], port, "", "", text, False, False))
    text = text.strip(" \t\r\n")
    if not text:
        raise AddressError("the address is empty")
    kind, _, rest = text.partition(":")
    kind = kind.lower()
    if kind == "unix":
        return _unix(rest, base_dir)
    if _blank.search(text):
        raise AddressError(f"{text[:80]!r} holds a blank or a control character")
    # A host may be called "fd" or "job" only with a scheme in front of it.
    if kind == "fd":
        return _fd(rest)
    if kind == "job":
        if not _name.fullmatch(rest):
            raise AddressError(f"{text[:80]!r} names no job", "write job:NAME")
        return Address("job", name=rest)
    return _tcp(text)


def _unix(path: str, base_dir: str | None) -> Address:
    if path.startswith("//"):
        path = "/" + path.lstrip("/") if path.startswith("///") else path[2:]
    if not path:
        raise AddressError("the path of the unix socket is missing", 'write "unix:/run/a.sock"')
    if "\0" in path:
        raise AddressError("the path of the unix socket holds a NUL")
    if path.startswith("@"):
        raise AddressError(
            "abstract unix sockets have no owner and no permissions, and are not supported",
            f'write a path: "unix:/run/{path[1:]}.sock", or "unix:./{path}" for a file of that name',
        )
    whole = os.path.normpath(os.path.join(base_dir if base_dir is not None else os.getcwd(), path))
    return Address("unix", path="/" + whole.lstrip("/"))


def _fd(name: str) -> Address:
    if name.isascii() and name.isdigit():
        number = int(name[:10])
        if not 3 <= number <= 65535:
            raise AddressError(f"fd:{name[:20]} is no inherited socket", "they are numbered from fd:3")
        return Address("fd", name=str(number))
    if not name or ":" in name or "/" in name:
        raise AddressError(f'"fd:{name[:80]}" names no inherited socket', 'write "fd:3" or "fd:NAME"')
    return Address("fd", name=name)


def _tcp(text: str) -> Address:
    text = _without_scheme(text)
    if text.startswith("["):
        host_text, closing, port_text = text[1:].partition("]")
        if not closing or not port_text.startswith(":"):
            raise AddressError(f"{text[:80]!r} has no port", 'write "[::1]:8080"')
        return Address("tcp", host=canonical_ipv6(host_text), port=_port(port_text[1:], text))
    host_text, colon, port_text = text.rpartition(":")
    if not colon:
        mend = f'write ":{text}"' if text.isdigit() else f'write "{text[:80]}:8080"'
        raise AddressError(f"{text[:80]!r} has no port", mend)
    if ":" in host_text:
        raise AddressError(f"{text[:80]!r} is ambiguous", 'write an IPv6 address in brackets: "[::1]:8080"')
    return Address("tcp", host=canonical_host(host_text), port=_port(port_text, text), dual=not host_text)


def _without_scheme(text: str) -> str:
    match = _scheme.match(text)
    if match:
        if match[1].lower() not in SCHEMES:
            raise AddressError(
                f"{match[1]!r} is not a scheme of a server's address", "write http:// or leave it out"
            )
        text = text[match.end() :].removesuffix("/").replace("%25", "%")
    for sign, what in (("/", "a path"), ("?", "a query"), ("#", "a fragment"), ("@", "a user")):
        if sign in text:
            mend = (
                f'write "unix:{text[:80]}" for a unix socket'
                if text[0] in "/."
                else "write only host and port"
            )
            raise AddressError(f"{text[:80]!r} has {what}, and an address has none", mend)
    return text


def _port(text: str, whole: str) -> int | None:
    if text.lower() == "auto":
        return None
    if text.isascii() and text.isdigit():
        number = int(text[:20])
        if number > 65535:
            raise AddressError(
                f"port {text[:20]} of {whole[:80]!r} is out of range", "ports are 1 to 65535, or auto"
            )
        return number or None
    if not text:
        raise AddressError(f"{whole[:80]!r} has no port", "ports are 1 to 65535, or auto")
    if (
        text.isascii()
        and re.fullmatch(r"[A-Za-z0-9_.+-]{1,64}", text)
        and not re.fullmatch(r"[-+.0-9_]+", text)
    ):
        for name in (text, text.lower()):
            try:
                return socket.getservbyname(name, "tcp")
            except OSError:
                continue
        raise AddressError(f"{text!r} is not a service that this machine knows", "write the port's number")
    raise AddressError(f"{text[:80]!r} is not a port", "ports are 1 to 65535, or auto")
