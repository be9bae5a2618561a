"""Load balancing policies: which backend of a route gets the next request or connection.

They use neither clocks nor sockets. A policy gets all backends of a route, and asks whether a backend is usable before
it chooses it. It is not notified when a request ends.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Sequence
from hashlib import blake2b
from random import Random
from typing import Generic, Protocol, TypeVar

from poolctl.routing.route import POLICIES

# The policies that read `load`. The gateway counts passed connections only for routes with these policies.
BY_LOAD = ("least-connections", "random-two")

# Points on the circle for each unit of weight: shares of equal backends differ by about a tenth.
POINTS = 128
_MOST_POINTS = 16_384


class Candidate(Protocol):
    """A backend as a policy sees it: `weight` is at least 1, `load` counts its current requests and connections."""

    @property
    def key(self) -> str: ...

    @property
    def weight(self) -> int: ...

    @property
    def load(self) -> int: ...


C = TypeVar("C", bound=Candidate)


class Policy(Generic[C]):
    """Chooses one of a route's backends, which are passed to the constructor."""

    def __init__(self, candidates: Sequence[C]) -> None:
        self._candidates = candidates

    def choose(self, client: str, usable: Callable[[C], bool]) -> C | None:
        """A usable backend for a request of this client (its IP address), or None."""
        raise NotImplementedError


class First(Policy[C]):
    """The first usable backend in the order of the file; the others are backups."""

    def choose(self, client: str, usable: Callable[[C], bool]) -> C | None:
        return next((each for each in self._candidates if usable(each)), None)


class SmoothWeighted(Policy[C]):
    """Smooth weighted round robin as in nginx: a, b, a for weights 2 and 1."""

    def __init__(self, candidates: Sequence[C]) -> None:
        super().__init__(candidates)
        self._credit = dict.fromkeys((each.key for each in candidates), 0)

    def choose(self, client: str, usable: Callable[[C], bool]) -> C | None:
        credit, total, found, most = self._credit, 0, None, 0
        for each in self._candidates:
            if not usable(each):
                continue
            total += each.weight
            has = credit[each.key] = credit[each.key] + each.weight
            if found is None or has > most:
                found, most = each, has
        if found is not None:
            credit[found.key] -= total
        return found


class LeastConnections(Policy[C]):
    """The backend with the least load relative to its weight; backends with equal load take turns."""

    def __init__(self, candidates: Sequence[C]) -> None:
        super().__init__(candidates)
        self._next = 0

    def choose(self, client: str, usable: Callable[[C], bool]) -> C | None:
        candidates, start = self._candidates, self._next
        found, at, least = None, 0, 0.0
        for index in range(start, start + len(candidates)):
            each = candidates[index % len(candidates)]
            load = each.load / each.weight
            if (found is None or load < least) and usable(each):
                found, at, least = each, index, load
        if found is not None:
            self._next = (at + 1) % len(candidates)
        return found


class RandomTwo(Policy[C]):
    """The less loaded of two backends drawn at random by weight; balances nearly as evenly as LeastConnections."""

    def __init__(self, candidates: Sequence[C], random: Random) -> None:
        super().__init__(candidates)
        self._random = random
        self._sums = [sum(each.weight for each in candidates[: at + 1]) for at in range(len(candidates))]

    def choose(self, client: str, usable: Callable[[C], bool]) -> C | None:
        candidates = self._candidates
        if not candidates:
            return None
        one, other = self._draw(), self._draw()
        if one is other:
            other = candidates[(candidates.index(one) + 1) % len(candidates)]
        if other.load * one.weight < one.load * other.weight:
            one, other = other, one
        if usable(one):
            return one
        if usable(other):
            return other
        start = self._random.randrange(len(candidates))
        return next((each for each in (*candidates[start:], *candidates[:start]) if usable(each)), None)

    def _draw(self) -> C:
        return self._candidates[bisect_left(self._sums, self._random.random() * self._sums[-1])]


class ConsistentHash(Policy[C]):
    """A client always gets the same backend; when one is added or removed, only its share of the clients moves.

    Each backend has many points on a circle of hashes, and a client is sent to the next point. The hash is the same
    in each process, so that a restart of the gateway moves no client.
    """

    def __init__(self, candidates: Sequence[C]) -> None:
        super().__init__(candidates)
        total = sum(each.weight for each in candidates) * POINTS
        points = POINTS if total <= _MOST_POINTS else max(1, POINTS * _MOST_POINTS // total)
        circle = sorted(
            (_hash(f"{each.key} {number}"), index)
            for index, each in enumerate(candidates)
            for number in range(each.weight * points)
        )
        self._hashes = [place for place, _ in circle]
        self._owners = [candidates[index] for _, index in circle]

    def choose(self, client: str, usable: Callable[[C], bool]) -> C | None:
        owners = self._owners
        if not owners:
            return None
        start = bisect_left(self._hashes, _hash(client)) % len(owners)
        if usable(owners[start]):
            return owners[start]
        refused = {owners[start].key}
        for index in range(start + 1, start + len(owners)):
            each = owners[index % len(owners)]
            if each.key not in refused:
                if usable(each):
                    return each
                refused.add(each.key)
                if len(refused) == len(self._candidates):
                    break
        return None


def policy_of(name: str, candidates: Sequence[C], random: Random) -> Policy[C]:
    """Return the policy with this name. Raises ValueError for an unknown name.

    For "sticky" that is round robin, because only clients without a usable cookie need a policy.
    """
    match name:
        case "round-robin" | "weighted" | "sticky":
            return SmoothWeighted(candidates)
        case "least-connections":
            return LeastConnections(candidates)
        case "ip-hash":
            return ConsistentHash(candidates)
        case "random-two":
            return RandomTwo(candidates, random)
        case "first":
            return First(candidates)
    raise ValueError(f"unknown policy {name!r}: one of {', '.join(POLICIES)}")


def _hash(text: str) -> int:
    return int.from_bytes(blake2b(text.encode(errors="surrogateescape"), digest_size=8).digest(), "big")
