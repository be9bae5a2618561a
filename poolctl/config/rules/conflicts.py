"""Rules between the servers of a pool: unique names and addresses, separate users, satisfiable dependencies.

References are checked and replaced here, too: `${server.NAME.url}` in a server's `env` and `command` becomes the
address of that server once its port is chosen. Before that, values keep their references, and a literal `${server.`
is stored as `$${server.`.
"""

from __future__ import annotations

import os
import pwd
import re
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from graphlib import TopologicalSorter
from typing import NamedTuple, TypeVar

from poolctl.address import Address, find_overlapping_unequal, parse
from poolctl.config.model.pool_tables import BoundAddress, Tables, rules_of
from poolctl.config.model.server_keys import ServerConfig
from poolctl.config.values.normalise import OPENING
from poolctl.config.values.plain import address_parts
from poolctl.config.values.problems import Finding, KeyPath, Tree, nearest, shortened_printable
from poolctl.platform import user_name

Server = TypeVar("Server", bound=ServerConfig)


class _TakenAddress(NamedTuple):
    address: Address
    order: int


def conflicts(servers: Sequence[tuple[str, Address | None]]) -> Iterator[tuple[int, int, Finding]]:
    """(index, earlier index, finding) for each conflict of a server's name or address with an earlier server.

    A server is given by its name and address. A missing name ("") or address (None) conflicts with no other.
    """
    names: dict[str, int] = {}
    taken: dict[str, _TakenAddress] = {}
    ports: Counter[int | None] = Counter()
    for index, (name, address) in enumerate(servers):
        first = names.setdefault(name.casefold(), index) if name else index
        if first != index:
            other = servers[first][0]
            by = "" if other == name else f" by {other!r} (selecting ignores case)"
            message = f"the name {shortened_printable(name)!r} is taken{by}"
            yield index, first, Finding(("name",), message, "choose another name", name)
        if address is None or address.auto or (first != index and not address.listens):
            continue
        earlier = taken.get(address.key)
        if earlier is not None:
            message = f"the address {address.key} is taken by {servers[earlier.order][0]!r}"
            yield index, earlier.order, Finding(("bind",), message, "choose another address", address.key)
            continue
        if (overlap := find_overlapping_unequal(address, taken, ports)) is not None:
            message = f"{_spelt(address)} overlaps {_spelt(overlap.address)} of {servers[overlap.order][0]!r}"
            hint = "choose another port, or narrower addresses"
            yield index, overlap.order, Finding(("bind",), message, hint, address.key)
        taken[address.key] = _TakenAddress(address, index)
        ports[address.port] += 1


def _spelt(address: Address) -> str:
    if address.dual:
        return f":{address.port} (all addresses)"
    return f"{address.key} (IPv4 too)" if address.host == "::" else address.key


def shared_users(servers: Sequence[ServerConfig]) -> Iterator[tuple[ServerConfig, Finding]]:
    """Warnings about servers that share a user in a pool with several users, one for each shared user.

    A pool with all servers under one user expects no isolation, and gets no warning.
    """
    by_user: dict[str, list[ServerConfig]] = {}
    for server in servers:
        by_user.setdefault((server.user or "").partition(":")[0], []).append(server)
    for user, sharing in by_user.items():
        if user and len(sharing) > 1 and len(by_user) > 1:
            first, *others = sharing
            more = f" and {len(others) - 1} more" if len(others) > 1 else ""
            message = f"it shares the user {user!r} with {others[0].name}{more}: they are not isolated from each other"
            yield first, Finding(("user",), message, "give each its own user if they must be isolated", user)


def os_users_by_server(servers: Iterable[ServerConfig]) -> dict[str, str]:
    """The name of the user that each server runs as, by the server's name. Accounts with the same uid get one name."""
    names: dict[str, str] = {}
    users: dict[str, str] = {}
    for server in servers:
        account = (server.user or "").partition(":")[0]
        if account not in names:
            names[account] = _canonical_user_name(account)
        users[server.name] = names[account]
    return users


def _canonical_user_name(name: str) -> str:
    try:
        uid = pwd.getpwnam(name).pw_uid if name else os.geteuid()
    except KeyError:  # a problem of its own
        return name
    return user_name(uid)


def dependency_findings(
    servers: Sequence[Server], others: Sequence[str] = ()
) -> Iterator[tuple[Server, Finding]]:
    """Each server with dependencies that cannot be satisfied, and the reason.

    `others` are names of invalid servers: a dependency on one of them is not reported.
    """
    by_name = {server.name: server for server in servers}
    dependents = [server for server in servers if server.depends_on]
    for server in dependents:
        for index, dependency in enumerate(server.depends_on):
            other, path = by_name.get(dependency.name), ("depends_on", index)
            if other is None and dependency.name not in others:
                yield server, _no_server(index, dependency.name, by_name)
            elif other is not None and other.every is not None:
                message = f"{dependency.name!r} runs at certain times (every), so nothing can wait for it"
                yield server, Finding(path, message, f"take it out, or every of {dependency.name!r}")
            elif other is not None and dependency.condition == "completed" and not other.job:
                message = f"{dependency.name!r} is no job, so it never completes"
                yield server, Finding(path, message, 'write condition = "ready", or job = true for it')
    for cycle in cycles({s.name: [d.name for d in s.depends_on if d.name in by_name] for s in dependents}):
        message = "depends on itself" + (f": {' → '.join([*cycle, cycle[0]])}" if cycle[1:] else "")
        yield by_name[cycle[0]], Finding(("depends_on",), message, "take out one of these dependencies")


def unknown_dependencies(written: Tree, names: Collection[str]) -> Iterator[Finding]:
    """Yield a finding for each server named in `written`, the unvalidated value of `depends_on`, but not in `names`."""
    for index, wanted in enumerate(written if isinstance(written, (list, tuple)) else ()):
        name = wanted.get("name") if isinstance(wanted, dict) else wanted
        if isinstance(name, str) and name not in names:
            yield _no_server(index, name, names)


def _no_server(index: int, name: str, names: Collection[str]) -> Finding:
    return Finding(("depends_on", index), f"there is no server {name[:60]!r}", _near(name, names), name[:60])


def _near(name: str, names: Collection[str]) -> str:
    near = nearest(name, tuple(names) if len(names) <= 1000 else ())
    return f"did you mean {near!r}?" if near else "name a server of this pool"


def cycles(graph: Mapping[str, Sequence[str]]) -> Iterator[list[str]]:
    """Some cycles of the graph, at least one if it has any. Not recursive, because chains may be long."""
    done: set[str] = set()
    for start in graph:
        if start in done:
            continue
        trail: list[str] = [start]
        on_trail = {start: 0}
        iterators = [iter(graph.get(start, ()))]
        while trail:
            step = next(iterators[-1], None)
            if step is None:
                iterators.pop()
                finished = trail.pop()
                del on_trail[finished]
                done.add(finished)
            elif step in on_trail:
                yield trail[on_trail[step] :]
            elif step not in done:
                on_trail[step] = len(trail)
                trail.append(step)
                iterators.append(iter(graph.get(step, ())))


def maximum_pool_stop_seconds(servers: Iterable[ServerConfig], more_seconds: float = 0.0) -> float:
    """Return the maximum duration of a stop of all servers.

    It is the sum of the longest dependency chain, the time for processes that `stop_group = "leader"` leaves running,
    and `more_seconds` for features.
    """
    by_name = {server.name: server for server in servers}
    chains: dict[str, float] = {}
    # A chain may be longer than Python's stack.
    order = TopologicalSorter(
        {server.name: [other.name for other in server.depends_on] for server in by_name.values()}
    )
    for server in (by_name[name] for name in order.static_order() if name in by_name):
        dependency_seconds = [chains[wanted.name] for wanted in server.depends_on if wanted.name in chains]
        # A program without connections does not drain.
        seconds = server.drain_timeout * server.listens + server.stop_timeout
        if server.hooks is not None and server.hooks.after_stop:
            seconds += server.stop_timeout
        chains[server.name] = seconds + max(dependency_seconds, default=0.0)
    leftover_seconds = [server.stop_timeout for server in by_name.values() if server.stop_group == "leader"]
    return max(chains.values(), default=0.0) + max(leftover_seconds, default=0.0) + more_seconds


def scalar_bind_addresses(tables: Tables) -> Iterator[tuple[str, Address]]:
    """Yield (table name, address) for each table with a string as `bind`, not a list."""
    for name, table in tables.by_name().items():
        bind = getattr(table, "bind", None)
        if isinstance(bind, str):
            yield name, parse(bind)


def _addresses(tables: Tables) -> Iterator[BoundAddress]:
    for name, address in scalar_bind_addresses(tables):
        yield BoundAddress((name, "bind"), f"[{name}]", address)
    for rules in rules_of(tables.by_name()):
        yield from rules.listed_bind_addresses(tables)


def named_addresses(tables: Tables) -> list[tuple[str, Address | None]]:
    """Return [(table name, address)] for all addresses that tables bind, as `conflicts` expects."""
    return [(address.name, address.address) for address in _addresses(tables)]


def table_conflicts(
    tables: Tables, servers: list[tuple[str, Address | None]]
) -> Iterator[tuple[KeyPath, str, Finding]]:
    """Yield (path, name, finding) for each table whose address is taken by `name`, a server or an earlier table."""
    addresses = [*_addresses(tables)]
    together = [*servers, *((address.name, address.address) for address in addresses)]
    for second, first, finding in conflicts(together) if addresses else ():
        if second >= len(servers) and finding.path == ("bind",):
            yield addresses[second - len(servers)].path, together[first][0], finding


PARTS = ("url", "host", "port")
_ESCAPED = f"${OPENING}"
_reference = re.compile(rf"{re.escape(_ESCAPED)}|{re.escape(OPENING)}([^}}]*)\}}")


class ServerReferenceValues(NamedTuple):
    """The values that replace references to a server: its address (None if invalid), and its configured `expose`."""

    address: Address | None
    expose: Tree = None


def reference_findings(
    table: Mapping[str, Tree], servers: Mapping[str, ServerReferenceValues]
) -> Iterator[Finding]:
    """The references in a server's table that do not resolve to the address of a server."""
    for path, text in _texts_with_references(table):
        for match in _reference.finditer(text):
            if match[1] is not None:
                finding = _reference_problem(match[1], path, servers)
                if finding is not None:
                    yield finding._replace(found=match[0][:60])


def wrong_references(
    servers: Sequence[ServerConfig], others: Iterable[ServerConfig] = (), failed: Iterable[str] = ()
) -> dict[int, list[Finding]]:
    """Wrong references to servers in `env` and `command`, by the index of the server that has them.

    References may name `servers`, `others`, and invalid servers with the names `failed`.
    """
    if not any(map(may_refer, servers)):
        return {}
    named = dict.fromkeys(failed, ServerReferenceValues(None))
    for server in (*others, *servers):
        expose = None if server.derived_expose else server.expose
        named[server.name] = ServerReferenceValues(server.address, expose)
    by_index = ((index, [*reference_findings(dict(server), named)]) for index, server in enumerate(servers))
    return {index: findings for index, findings in by_index if findings}


def may_refer(server: ServerConfig) -> bool:
    """Whether `env` or `command` has a reference to a server, or a literal `${server.`."""
    return any(OPENING in text for text in (*server.env.values(), *(server.command or ())))


def with_resolved_references(
    servers: Iterable[Server], others: Iterable[ServerConfig] = (), *, keep_escapes: bool = False
) -> list[Server]:
    """The servers, with `${server.NAME.…}` references in `env` and `command` replaced by addresses.

    References may name `servers` or `others`. A reference stays until the port of its server is chosen. A literal
    `$${server.` becomes `${server.`, unless `keep_escapes`: then the result can be resolved again.
    """
    servers = list(servers)
    if not any(map(may_refer, servers)):
        return servers
    named: list[ServerConfig] = [*others, *servers]
    chosen = [server for server in named if not server.address.auto]
    parts = {server.name: address_parts(server.expose, server.address) for server in chosen}
    literal = _ESCAPED if keep_escapes else OPENING
    return [
        _with_resolved_references(server, parts, literal) if may_refer(server) else server
        for server in servers
    ]


def _with_resolved_references(server: Server, parts: Mapping[str, Mapping[str, str]], literal: str) -> Server:
    def address(match: re.Match[str]) -> str:
        if match[1] is None:
            return literal
        name, _, part = match[1].rpartition(".")
        return parts.get(name, {}).get(part, match[0])

    changes: dict[str, Tree] = {}
    if any(OPENING in value for value in server.env.values()):
        env = {name: _reference.sub(address, value) for name, value in server.env.items()}
        changes["env"] = type(server.env)(env)
    if server.command:
        changes["command"] = tuple(_reference.sub(address, word) for word in server.command)
    return server.with_references_replaced(changes)


def _texts_with_references(table: Mapping[str, Tree]) -> Iterator[tuple[KeyPath, str]]:
    env, command = table.get("env"), table.get("command")
    for name, value in env.items() if isinstance(env, dict) else ():
        if isinstance(value, str) and OPENING in value:
            yield ("env", name), value
    for index, word in enumerate(command if isinstance(command, (list, tuple)) else ()):
        if isinstance(word, str) and OPENING in word:
            yield ("command", index), word


def _reference_problem(
    inside: str, path: KeyPath, servers: Mapping[str, ServerReferenceValues]
) -> Finding | None:
    name, _, part = inside.rpartition(".")
    shown = shortened_printable(name or inside)[:60]
    if part not in PARTS or not name:
        names = " or ".join(f"{OPENING}{shown}.{choice}}}" for choice in PARTS)
        return Finding(
            path, f"{OPENING}{shortened_printable(inside)[:60]}}} is no reference", f"write {names}"
        )
    if name not in servers:
        return Finding(path, f"there is no server {shown!r}", _near(name, servers))
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
