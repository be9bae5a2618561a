"""Helpers for values that do not need pydantic: limits, strings from the environment, frozen tables, addresses."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping

    from poolctl.address import Address
    from poolctl.config.values.problems import Tree

NAME_PATTERN = r"^[A-Za-z0-9._-]{1,200}$"
PORTS = {"http": 80, "https": 443}
# Paths of a log that name the standard output or error of the pool, not a file.
STANDARD_STREAMS = (
    "-", "/dev/stdout", "/dev/stderr", "/dev/fd/1", "/dev/fd/2", "/proc/self/fd/1", "/proc/self/fd/2",
)  # fmt: skip
# The placeholders of a command that binds its address itself.
PLACEHOLDERS = ("{port}", "{host}", "{bind}")
_braced_word = re.compile(r"(?<!\{)(\{+)([a-z]+)(\}+)")
# A host in brackets, or a name with the characters of RFC 3986 §3.2.2 and letters of any script; and its port.
_AUTHORITY = r"(?P<host>\[(?P<ip>[^\[\]]*)\]|[\w.~!$&'()*+,;=%-]*)(?::(?P<port>[^:]*))?"


class BadValue(ValueError):
    """A value that is not allowed; `allowed` names the allowed values, `hint` says more than they do, or is ""."""

    def __init__(self, message: str, allowed: str, hint: str = "") -> None:
        super().__init__(message)
        self.allowed = allowed
        self.hint = hint


class Interpolated(str):
    """A string with an interpolated variable: it may be read as a number or a truth value.

    `written` is the text in the file, with its references; "" if it is not known.
    """

    written = ""


def number_if_interpolated(value: Tree) -> Tree:
    """The number in a text that came from `${VAR}`; other values are returned unchanged."""
    if type(value) is Interpolated:
        for kind in (int, float):
            try:
                return kind(value)
            except ValueError:
                continue
    return value


def truth_if_interpolated(value: Tree) -> Tree:
    """The truth value in a text that came from `${VAR}`; other values are returned unchanged."""
    if type(value) is Interpolated:
        return {"true": True, "1": True, "false": False, "0": False}.get(value.lower(), value)
    return value


def refuse_long_path(address: Address) -> None:
    """Raise BadValue if the path of a Unix socket is too long for the system."""
    if len(address.path.encode("utf-8", "surrogateescape")) > MAX_SOCKET_PATH_BYTES:
        message = f"the path of the unix socket is longer than {MAX_SOCKET_PATH_BYTES} bytes: {address.path}"
        raise BadValue(message, "a shorter one (unix(7))")


def host_and_port(rest: str) -> tuple[str, str] | None:
    """Return host and port of `rest`, a URL without its scheme (RFC 3986 §3.2), "" if missing; None if invalid."""
    authority = re.split(r"[/?#]", rest, maxsplit=1)[0].rpartition("@")[2]
    match = re.fullmatch(_AUTHORITY, authority)
    if match is None:
        return None
    if match["ip"] is not None:
        from ipaddress import IPv6Address  # few addresses are in brackets

        try:
            IPv6Address(match["ip"])
        except ValueError:
            return None
    return match["host"], match["port"] or ""


def is_port(text: str) -> bool:
    """Whether this is a port number, or empty, which means the scheme's default port."""
    return not text or (text.isascii() and text.isdigit() and 1 <= int(text[:6]) <= 65535)


class FrozenDict(dict[str, str]):
    """An immutable and hashable table of strings."""

    def _refuse(self, *_: Tree, **__: Tree) -> Tree:
        raise TypeError("a configuration does not change: make another one with other values")

    __setitem__ = __delitem__ = update = pop = popitem = clear = setdefault = __ior__ = _refuse

    def __hash__(self) -> int:  # type: ignore[override]
        return hash(frozenset(self.items()))

    def __reduce__(self) -> tuple[Tree, ...]:
        return FrozenDict, (dict(self),)


EMPTY = FrozenDict()


# With this value of `socket`, each process of a command opens a private port, and HAProxy forwards to it.
PROXIED = "proxied"


def binds_itself(command: Tree, env: Tree = None, socket: Tree = None) -> bool:
    """Whether the program opens its server's address itself, and gets it in its command or environment.

    False if `command` is not a list of words, and for a program with private ports (`proxied`).
    """
    if not isinstance(command, (list, tuple)) or socket == PROXIED:
        return False
    return socket == "program" or any(map(placeholders, (*command, *values_in(env))))


def placeholders(text: Tree, marks: Collection[str] = PLACEHOLDERS) -> list[str]:
    """The placeholders in a text that are among `marks`; empty for a value that is not a text."""
    if not isinstance(text, str) or "{" not in text:
        return []
    braced = _braced_word.findall(text)
    filled = {word for opening, word, closing in braced if min(len(opening), len(closing)) % 2}
    return [mark for mark in marks if mark.strip("{}") in filled]


def fill_placeholders(text: str, values: Mapping[str, str]) -> str:
    """Replace `{word}` for each word in `values`. Braces are escaped by doubling, and only around these words.

    As in Python's format strings `{{word}}` becomes `{word}`, and `{{{word}}}` the value in braces.
    """

    def fill(match: re.Match[str]) -> str:
        opening, word, closing = match.groups()
        if word not in values:
            return match[0]
        depth = min(len(opening), len(closing))
        pairs, is_filled = divmod(depth, 2)
        inner = values[word] if is_filled else word
        return f"{opening[depth:]}{'{' * pairs}{inner}{'}' * pairs}{closing[depth:]}"

    return _braced_word.sub(fill, text)


def values_in(env: Tree) -> Iterable[Tree]:
    """Return the values of the variables in `env`; empty if `env` is not a table."""
    return env.values() if isinstance(env, dict) else ()


def exposed_url(address: Address, tls: bool) -> str:
    """The address that clients use, as far as the bind address determines it.

    A wildcard becomes localhost. The address of a Unix or inherited socket stays as it is. For a job or process without
    an address it is "". A port that is not chosen yet is `auto`.
    """
    if address.kind != "tcp":
        return address.key if address.listens else ""
    scheme = "https" if tls else "http"
    if address.is_wildcard:
        return f"{scheme}://localhost:{'auto' if address.port is None else address.port}"
    return f"{scheme}://{address.key}"


def address_parts(expose: str, address: Address) -> dict[str, str]:
    """The `url`, `host` and `port` of a server: no `url` if `expose` is empty, `host` and `port` only for TCP."""
    parts = {"url": expose} if expose else {}
    if address.kind == "tcp":
        parts |= {"host": address.connect_address.host, "port": str(address.port)}
    return parts


PROBES = ("startup", "readiness", "liveness")
HOOKS = ("before_start", "after_stop")

# Limits are defined here so that their users need not import pydantic.
ANCHOR_TABLES = "x-"  # the prefix of YAML tables that only hold anchors (extension fields of compose)
MAX_WORKERS = 10_000
MAX_SOCKET_PATH_BYTES = 107
# Open files kept free by the supervisor so that commands are answered even when all other descriptors are used up.
OPEN_FILES_RESERVE = 16
# The open files of an idle pool: its helpers, journal, log and clients.
OPEN_FILES_OF_POOL = 48 + OPEN_FILES_RESERVE
RAISE_OPEN_FILES = (
    "raise the hard limit: ulimit -Hn in the shell, LimitNOFILE= of the unit, "
    "nofile in /etc/security/limits.conf"
)
