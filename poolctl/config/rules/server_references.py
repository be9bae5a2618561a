"""`${server.NAME.url}` in a server's `env` and `command`: the address of a server of the pool, once its port is chosen.

Until then the value keeps its references, and a literal `${server.` is `$${server.`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from typing import NamedTuple, TypeVar

from poolctl.address import Address
from poolctl.config.model.server_keys import ServerKeys
from poolctl.config.values.normalise import OPENING
from poolctl.config.values.plain import address_parts
from poolctl.config.values.problems import Finding, Path, Tree, printable
from poolctl.config.values.suggestions import nearest

_Server = TypeVar("_Server", bound=ServerKeys)

PARTS = ("url", "host", "port")
_ESCAPED = f"${OPENING}"
_reference = re.compile(rf"{re.escape(_ESCAPED)}|{re.escape(OPENING)}([^}}]*)\}}")


class Named(NamedTuple):
    """The values for references to a server: its address, None if it cannot be read, and the `expose` of its file."""

    address: Address | None
    expose: Tree = None


def reference_findings(table: Mapping[str, Tree], servers: Mapping[str, Named]) -> Iterator[Finding]:
    """The references in a server's table that do not resolve to the address of a server."""
    for path, text in _texts(table):
        for match in _reference.finditer(text):
            if match[1] is not None:
                finding = _wrong(match[1], path, servers)
                if finding is not None:
                    yield finding._replace(found=match[0][:60])


def with_addresses(servers: Iterable[_Server], others: Iterable[ServerKeys] = ()) -> list[_Server]:
    """The servers, with references to themselves or to `others` replaced by addresses.

    A reference to a server whose port is not chosen yet stays.
    """
    servers = list(servers)
    referring = [each for each in servers if next(_texts(vars(each)), None) is not None]
    if not referring:
        return servers
    there: list[ServerKeys] = [*others, *servers]
    known = {each.name: address_parts(each.expose, each.address) for each in there if not each.address.auto}
    names = {each.name for each in referring}
    return [_with_addresses(each, known) if each.name in names else each for each in servers]


def _with_addresses(server: _Server, known: Mapping[str, Mapping[str, str]]) -> _Server:
    def address(match: re.Match[str]) -> str:
        if match[1] is None:
            return OPENING
        name, _, part = match[1].rpartition(".")
        return known.get(name, {}).get(part, match[0])

    changes: dict[str, Tree] = {}
    if any(OPENING in value for value in server.env.values()):
        env = {name: _reference.sub(address, value) for name, value in server.env.items()}
        changes["env"] = type(server.env)(env)
    if server.command:
        changes["command"] = tuple(_reference.sub(address, word) for word in server.command)
    return server.but(**changes)


def _texts(table: Mapping[str, Tree]) -> Iterator[tuple[Path, str]]:
    """The texts of a server's table that have references, with their paths."""
    env, command = table.get("env"), table.get("command")
    for name, value in env.items() if isinstance(env, dict) else ():
        if isinstance(value, str) and OPENING in value:
            yield ("env", name), value
    for index, word in enumerate(command if isinstance(command, (list, tuple)) else ()):
        if isinstance(word, str) and OPENING in word:
            yield ("command", index), word


def _wrong(inside: str, path: Path, servers: Mapping[str, Named]) -> Finding | None:
    name, _, part = inside.rpartition(".")
    shown = printable(name or inside)[:60]
    if part not in PARTS or not name:
        names = " or ".join(f"{OPENING}{shown}.{each}}}" for each in PARTS)
        return Finding(path, f"{OPENING}{printable(inside)[:60]}}} is no reference", f"write {names}")
    if name not in servers:
        near = nearest(name, tuple(servers) if len(servers) <= 1000 else ())
        hint = f"did you mean {near!r}?" if near else "name a server of this pool"
        return Finding(path, f"there is no server {shown!r}", hint)
    address, expose = servers[name]
    if address is None or address.kind == "tcp" or (part == "url" and expose is not None):
        return None
    if not address.listens:
        return Finding(path, f"{shown!r} has no address", "refer to a server with 'bind'")
    if address.kind == "unix":
        hint = f"write {OPENING}{shown}.url}}"
        return None if part == "url" else Finding(path, f"{shown!r} has a Unix socket and no {part}", hint)
    hint = f'give {shown!r} expose = "http://HOST:PORT", and write {OPENING}{shown}.url}}'
    return Finding(path, f"the address of {shown!r} is that of the socket it inherits", hint)
