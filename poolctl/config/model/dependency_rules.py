"""Rules of dependencies: names that exist, conditions that can come true, no circles."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TypeVar

from poolctl.config.model.explain import nearest
from poolctl.config.model.problems import Finding
from poolctl.config.model.server_keys import ServerKeys

Server = TypeVar("Server", bound=ServerKeys)


def dependency_findings(
    servers: Sequence[Server], others: Sequence[str] = ()
) -> Iterator[tuple[Server, Finding]]:
    """Each server whose dependencies cannot be met, with the reason.

    `others` are names of servers that have problems of their own: depending on one is not a second problem.
    """
    by_name = {server.name: server for server in servers}
    known = tuple(by_name) if len(by_name) <= 1000 else ()
    depending = [server for server in servers if server.depends_on]
    for server in depending:
        for index, wanted in enumerate(server.depends_on):
            other, path, name = by_name.get(wanted.name), ("depends_on", index), wanted.name[:60]
            if other is None and wanted.name not in others:
                near = nearest(wanted.name, known)
                hint = f"did you mean {near!r}?" if near else "name a server of this pool"
                yield server, Finding(path, f"there is no server {name!r}", hint, name)
            elif other is not None and wanted.condition == "completed" and not other.job:
                message = f"{wanted.name!r} is no job, so it never is completed"
                yield server, Finding(path, message, 'write condition = "ready", or job = true for it')
    for circle in circles({s.name: [d.name for d in s.depends_on if d.name in by_name] for s in depending}):
        message = "depends on itself" + (f": {' → '.join([*circle, circle[0]])}" if circle[1:] else "")
        yield by_name[circle[0]], Finding(("depends_on",), message, "take out one of these dependencies")


def circles(graph: Mapping[str, Sequence[str]]) -> Iterator[list[str]]:
    """Circles of the graph, so that breaking them all leaves none; no recursion, a chain may be long."""
    done: set[str] = set()
    for start in graph:
        if start in done:
            continue
        trail: list[str] = [start]
        on_trail = {start: 0}
        waiting = [iter(graph.get(start, ()))]
        while trail:
            step = next(waiting[-1], None)
            if step is None:
                waiting.pop()
                left = trail.pop()
                del on_trail[left]
                done.add(left)
            elif step in on_trail:
                yield trail[on_trail[step] :]
            elif step not in done:
                on_trail[step] = len(trail)
                trail.append(step)
                waiting.append(iter(graph.get(step, ())))


def longest_stop_seconds(servers: Iterable[ServerKeys]) -> float:
    """The time of a stop in the order of the dependencies: the longest chain, each server to its limit."""
    by_name = {server.name: server for server in servers}
    known: dict[str, float] = {}

    def chain(server: ServerKeys) -> float:
        if server.name not in known:
            below = [chain(by_name[each.name]) for each in server.depends_on if each.name in by_name]
            known[server.name] = server.drain_timeout + server.stop_timeout + max(below, default=0.0)
        return known[server.name]

    return max(map(chain, by_name.values()), default=0.0)
