"""The value: a canonical bind address, and the error of a text that is none."""

from __future__ import annotations

from collections import namedtuple

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Self

EXAMPLES = (
    '"127.0.0.1:8080", ":8080", "[::1]:8080", "localhost:8080", "127.0.0.1:auto", "unix:/run/a.sock", "fd:3"'
)


class AddressError(ValueError):
    """A text that is no address; the message says why, `hint` what to write."""

    def __init__(self, message: str, hint: str = "") -> None:
        self.message = message
        self.hint = hint or f"an address looks like {EXAMPLES}"
        super().__init__(f"{message}; {self.hint}")


_LOOPBACK_OF = {"0.0.0.0": "127.0.0.1", "::": "::1"}

_Fields = namedtuple("_Fields", ("kind", "host", "port", "path", "name", "key", "auto", "dual"))


class Address(_Fields):
    """A bind address; equal to another when the canonical keys are equal.

    `kind` is tcp, unix, fd or job. `port` is None while `auto` is true and for the other kinds. `dual`:
    written without a host (`:8080`), so `[::]:8080` (V6ONLY) is opened as well where the machine has IPv6.
    """

    # A tuple, because making ten thousand of them is a part of every validation.
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
        """The address of these parts, which are canonical already."""
        if kind == "tcp":
            key = f"{f'[{host}]' if ':' in host else host}:{'auto' if port is None else port}"
        else:
            key = f"{kind}:{path or name}"
        return tuple.__new__(cls, (kind, host, port, path, name, key, kind == "tcp" and port is None, dual))

    def __getnewargs_ex__(self) -> tuple[tuple[str], dict[str, object]]:
        parts: dict[str, object] = {
            "host": self.host,
            "port": self.port,
            "path": self.path,
            "name": self.name,
            "dual": self.dual,
        }
        return (self.kind,), parts

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
    def is_wildcard(self) -> bool:
        """Whether it takes connections to every address of the machine."""
        return self.host in _LOOPBACK_OF

    @property
    def is_ipv6(self) -> bool:
        """Whether the host is written as an IPv6 address."""
        return ":" in self.host

    @property
    def nearby(self) -> Address:
        """The address by which this machine reaches it: a wildcard is no place to connect to."""
        host = _LOOPBACK_OF.get(self.host)
        return self if host is None else Address("tcp", host=host, port=self.port)

    def with_port(self, port: int) -> Address:
        """The same host with this port."""
        if self.kind != "tcp":
            raise AddressError(f"{self.key} has no port")
        return Address("tcp", host=self.host, port=port, dual=self.dual)
