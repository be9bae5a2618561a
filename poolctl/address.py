"""Bind addresses of servers: parsed from text, written in one canonical form, and compared for conflicts."""

from __future__ import annotations

import os
import re
import socket
from collections import namedtuple
from typing import TYPE_CHECKING, Protocol, Self, TypeVar

if TYPE_CHECKING:
    from collections import Counter
    from collections.abc import Iterator, Mapping

    class Addressed(Protocol):
        """An object with an address."""

        @property
        def address(self) -> Address:
            """The object's bind address."""

    Item = TypeVar("Item", bound=Addressed)

EXAMPLES = (
    '"127.0.0.1:8080", ":8080", "[::1]:8080", "localhost:8080", "127.0.0.1:auto", "unix:/run/a.sock", "fd:3"'
)
_LOOPBACK_OF = {"0.0.0.0": "127.0.0.1", "::": "::1"}
_Fields = namedtuple("_Fields", ("kind", "host", "port", "path", "name", "key", "auto", "dual"))
_IPV4 = r"(?a)(\d{1,3})\.(\d{1,3})\.(\d{1,3})\.(\d{1,3})"
_NUMERIC_TAIL = r"(?a)(?:.*\.)?(?:\d+|0[xX][0-9a-fA-F]*)"
_LABEL = r"[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9_])?"
_ZONE = r"[A-Za-z0-9._~-]+"
# Kinds without an address: a program that runs to completion, and a program that runs indefinitely.
NAMED = ("job", "process")
SCHEMES = frozenset({"http", "https", "ws", "wss", "tcp"})
_SCHEME = r"([A-Za-z][A-Za-z0-9+.-]*)://"
_NAME = r"[A-Za-z0-9._-]+"
_BLANK = r"[\x00-\x20\x7f]"
# For a regex character class: control and bidirectional characters, which make text look different from what it is.
CONTROLS = r"\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069"


class AddressError(ValueError):
    """The text is not an address; the message says why, `hint` suggests a valid one."""

    def __init__(self, message: str, hint: str = "") -> None:
        self.message = message
        self.hint = hint or f"an address looks like {EXAMPLES}"
        super().__init__(f"{message}; {self.hint}")


class Address(_Fields):
    """A bind address; equal to another when the canonical keys are equal.

    `kind` is tcp, unix, fd, job or process. `auto` means that a port is still to be chosen. `port` is None until then,
    and for kinds other than tcp. `dual` means that the text had no host, such as `:8080`. A dual address gets two
    listeners on a machine with IPv6: `0.0.0.0:8080` and `[::]:8080`.
    """

    # A tuple, because every validation of a large file creates thousands of addresses.
    __slots__ = ()

    kind: str
    host: str
    port: int | None
    path: str
    name: str
    key: str
    auto: bool
    dual: bool

    def __new__(
        cls,
        kind: str,
        *,
        host: str = "",
        port: int | None = None,
        path: str = "",
        name: str = "",
        dual: bool = False,
    ) -> Self:
        """The address with these parts, which must be canonical."""
        if kind == "tcp":
            key = f"{f'[{host}]' if ':' in host else host}:{'auto' if port is None else port}"
        else:
            key = f"{kind}:{path or name}"
        return tuple.__new__(cls, (kind, host, port, path, name, key, kind == "tcp" and port is None, dual))

    def __getnewargs_ex__(self) -> tuple[tuple[str], dict[str, object]]:
        names = ("host", "port", "path", "name", "dual")
        return (self.kind,), {name: getattr(self, name) for name in names}

    def __eq__(self, other: object) -> bool:
        return self.key == other.key if isinstance(other, Address) else NotImplemented

    def __ne__(self, other: object) -> bool:
        return self.key != other.key if isinstance(other, Address) else NotImplemented

    def __hash__(self) -> int:
        return hash(self.key)

    def __str__(self) -> str:
        return self.key

    def __repr__(self) -> str:
        return f"<Address {self.key}>"

    @property
    def bind(self) -> str:
        """The key, or `:PORT` for a dual address: the text from which `parse` makes this address."""
        return f":{self.key.rpartition(':')[2]}" if self.dual else self.key

    @property
    def listens(self) -> bool:
        """Whether clients can connect to the address; False for a job or a process, which have only a name."""
        return self.kind not in NAMED

    @property
    def is_wildcard(self) -> bool:
        """Whether it accepts connections on every address of the machine."""
        return self.host in _LOOPBACK_OF

    @property
    def is_ipv6(self) -> bool:
        """Whether the host is written as an IPv6 address."""
        return ":" in self.host

    @property
    def is_local(self) -> bool:
        """Return whether only the local machine can reach the address."""
        is_loopback = self.host in ("localhost", "::1") or re.fullmatch(r"127(\.\d+){3}", self.host)
        return self.kind == "unix" or bool(is_loopback)

    @property
    def connect_address(self) -> Address:
        """The address to connect to from this machine: a loopback address for a wildcard, else this address."""
        host = _LOOPBACK_OF.get(self.host)
        return self if host is None else Address("tcp", host=host, port=self.port)

    def with_port(self, port: int) -> Address:
        """The same host with this port. Raises AddressError for a kind without a port."""
        if self.kind != "tcp":
            raise AddressError(f"{self.key} has no port")
        return Address("tcp", host=self.host, port=port, dual=self.dual)


def canonical_host(text: str) -> str:
    """The host in lower case; `*` and an empty host become 0.0.0.0. Names are not resolved. Raises AddressError."""
    if text in ("", "*"):
        return "0.0.0.0"
    match = re.fullmatch(_IPV4, text)
    if match:
        parts = match.groups()
        if any(int(part) > 255 or (len(part) > 1 and part[0] == "0") for part in parts):
            raise AddressError(
                f"{text!r} is not an IPv4 address", "four numbers from 0 to 255, without leading zeros"
            )
        return text
    if re.fullmatch(_NUMERIC_TAIL, text):
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
    if len(host) > 253 or not all(re.fullmatch(_LABEL, label) for label in host.split(".")):
        raise AddressError(f"{text[:80]!r} is not a host name")
    return host


def canonical_ipv6(text: str) -> str:
    """The IPv6 address in compressed form, with its zone if it has one; an IPv4-mapped address becomes IPv4.

    Raises AddressError.
    """
    bare, percent, zone = text.partition("%")
    if percent and not re.fullmatch(_ZONE, zone):
        raise AddressError(f"{text[:80]!r} has no usable zone", 'write "[fe80::1%eth0]:8080"')
    try:
        packed = socket.inet_pton(socket.AF_INET6, bare)
    except (OSError, ValueError, UnicodeError):
        raise AddressError(f"{text[:80]!r} is not an IPv6 address", 'write "[::1]:8080"') from None
    if packed[:12] == b"\0" * 10 + b"\xff\xff":
        return ".".join(str(byte) for byte in packed[12:])
    from ipaddress import IPv6Address  # imported late: IPv6 addresses are rare

    return str(IPv6Address(packed)) + percent + zone  # RFC 5952


def canonical(text: str, *, base_dir: str | None = None) -> str:
    """The canonical spelling of the address that `parse` returns: a server's key in the pool. Raises AddressError."""
    return parse(text, base_dir=base_dir).key


def parse(text: str, *, base_dir: str | None = None) -> Address:
    """The address described by `text`; a relative socket path is relative to `base_dir` (default: working directory).

    Service names are looked up in services(5); host names are not resolved. Raises AddressError.
    """
    if not isinstance(text, str):
        raise AddressError(f"an address is a string, and this is {text!r}")
    text = text.strip(" \t\r\n")
    if not text:
        raise AddressError("the address is empty")
    kind, _, rest = text.partition(":")
    kind = kind.lower()
    if kind == "unix":
        return _unix(rest, base_dir)
    if re.search(_BLANK, text):
        raise AddressError(f"{text[:80]!r} holds a blank or a control character")
    # A host named "fd", "job" or "process" needs a scheme.
    if kind == "fd":
        return _fd(rest)
    if kind in NAMED:
        if not re.fullmatch(_NAME, rest):
            raise AddressError(f"{text[:80]!r} names no {kind}", f"write {kind}:NAME")
        return Address(kind, name=rest)
    return _tcp(text)


def _unix(path: str, base_dir: str | None) -> Address:
    if path.startswith("//"):
        path = "/" + path.lstrip("/") if path.startswith("///") else path[2:]
    if not path:
        raise AddressError("the path of the unix socket is missing", 'write "unix:/run/a.sock"')
    if re.search(f"[{CONTROLS}]", path):
        raise AddressError(f"{path[:80]!r} holds a control character")
    if path.startswith("@"):
        raise AddressError(
            "abstract unix sockets have no owner and no permissions, and are not supported",
            f'write a path: "unix:/run/{path[1:]}.sock", or "unix:./{path}" for a file of that name',
        )
    absolute = os.path.normpath(os.path.join(base_dir if base_dir is not None else os.getcwd(), path))
    try:
        # The locale may be unable to encode this text: the path then uses the UTF-8 bytes of the file.
        absolute = os.fsdecode(absolute.encode("utf-8", "surrogateescape"))
    except UnicodeEncodeError:
        raise AddressError("the path of the unix socket contains an unpaired surrogate") from None
    return Address("unix", path="/" + absolute.lstrip("/"))


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
        return Address("tcp", host=canonical_ipv6(host_text), port=_parse_port(port_text[1:], text))
    host_text, colon, port_text = text.rpartition(":")
    if not colon:
        fix = f'write ":{text}"' if text.isdigit() else f'write "{text[:80]}:8080", or "{text[:80]}:auto"'
        raise AddressError(f"{text[:80]!r} has no port", fix)
    if ":" in host_text:
        raise AddressError(f"{text[:80]!r} is ambiguous", 'write an IPv6 address in brackets: "[::1]:8080"')
    return Address(
        "tcp", host=canonical_host(host_text), port=_parse_port(port_text, text), dual=not host_text
    )


def _without_scheme(text: str) -> str:
    match = re.match(_SCHEME, text)
    if match:
        if match[1].lower() not in SCHEMES:
            raise AddressError(
                f"{match[1]!r} is not a scheme of a server's address", "write http:// or leave it out"
            )
        text = text[match.end() :].removesuffix("/").replace("%25", "%")
    for sign, what in (("/", "a path"), ("?", "a query"), ("#", "a fragment"), ("@", "a user")):
        if sign in text:
            fix = (
                f'write "unix:{text[:80]}" for a unix socket'
                if text[0] in "/."
                else "write only host and port"
            )
            raise AddressError(f"{text[:80]!r} has {what}, and an address has none", fix)
    return text


def _parse_port(text: str, whole: str) -> int | None:
    """The port number; None for `auto` and for 0, which leave the choice to the pool. Raises AddressError."""
    if text.lower() == "auto":
        return None
    if text.isascii() and text.isdigit():
        number = int(text[:20])
        if number > 65535:
            raise AddressError(
                f"port {text[:20]} of {whole[:80]!r} is out of range (1-65535)", "choose another one, or auto"
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
        from difflib import get_close_matches

        is_auto = get_close_matches(text.lower(), ["auto"])
        fix = f'write "{whole[: -len(text)]}auto"' if is_auto else "write the port's number, or auto"
        raise AddressError(f"{text!r} is not a service that this machine knows", fix)
    raise AddressError(f"{text[:80]!r} is not a port", "ports are 1 to 65535, or auto")


LOOPBACKS = frozenset({"127.0.0.1", "::1"})

_LOCALHOST = "localhost"
# Hosts, as spelt in keys, that may overlap with another host of the same port; the second tuple is for localhost.
_OVERLAPPING = ("0.0.0.0", "[::]", _LOCALHOST)
_OVERLAPPING_LOCALHOST = (*_OVERLAPPING, "127.0.0.1", "[::1]")


def overlaps(a: Address, b: Address) -> bool:
    """Whether listeners on the two addresses would conflict.

    Host names other than localhost are not resolved: they overlap only with themselves and with a wildcard.
    """
    if a.kind != b.kind or a.auto or b.auto:
        return False
    if a.key == b.key:
        return True
    if a.kind != "tcp" or a.port != b.port:
        return False
    return _covers(a, b) or _covers(b, a)


def _covers(a: Address, b: Address) -> bool:
    if a.host == "::" or a.dual:
        # [::] without V6ONLY accepts IPv4 as well; `:8080` opens both families.
        return True
    if a.host == "0.0.0.0":
        return not b.is_ipv6 or b.host == "::"
    if a.host == _LOCALHOST:
        return b.host in LOOPBACKS
    if a.is_ipv6 and b.is_ipv6:
        a_bare, _, a_zone = a.host.partition("%")
        b_bare, _, b_zone = b.host.partition("%")
        return a_bare == b_bare and not (a_zone and b_zone)
    return False


def find_overlapping_unequal(
    address: Address, items: Mapping[str, Item], ports: Counter[int | None]
) -> Item | None:
    """Return an item whose address overlaps with `address` but has a different key; None if there is none.

    `items` maps address keys to items, and `ports` counts the items by TCP port: a wildcard on an unused port needs no
    search.
    """
    if address.port is None or (address.is_wildcard and not ports[address.port]):
        return None
    for item in _candidates(address, items):
        other = item.address
        if other.key != address.key and overlaps(address, other):
            return item
    return None


def _candidates(address: Address, items: Mapping[str, Item]) -> Iterator[Item]:
    if address.is_wildcard:
        yield from items.values()
        return
    for host in _OVERLAPPING_LOCALHOST if address.host == _LOCALHOST else _OVERLAPPING:
        item = items.get(f"{host}:{address.port}")
        if item is not None:
            yield item
    if "%" in address.host or address.host.startswith("fe80"):
        # With and without a zone, one address has several spellings.
        bare = address.host.partition("%")[0]
        yield from (item for item in items.values() if item.address.host.partition("%")[0] == bare)
