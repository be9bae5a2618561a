"""Balancing policies: who is chosen, how often, and what moves when a backend comes or goes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from poolctl.features.gateway.process.backends import balance
from poolctl.features.gateway.process.backends.balance import BY_LOAD, ConsistentHash, policy_of
from poolctl.features.gateway.process.backends.route_backends import sticky_value
from poolctl.routing.route import POLICIES
from tests.examples import examples


class Host:
    def __init__(self, key: str, weight: int = 1, load: int = 0) -> None:
        self.key = key
        self.weight = weight
        self.load = load

    def __repr__(self) -> str:
        return f"{self.key}*{self.weight}"


def hosts(*weights: int) -> list[Host]:
    return [Host("abcdefghij"[at], weight) for at, weight in enumerate(weights)]


def anyone(host: Host) -> bool:
    return True


def chosen(
    name: str, candidates: Sequence[Host], times: int, usable: Callable[[Host], bool] = anyone
) -> list[str]:
    policy = policy_of(name, candidates, Random(7))
    return [found.key if (found := policy.choose("10.0.0.1", usable)) else "-" for _ in range(times)]


def test_round_robin_takes_each_in_turn_and_passes_over_those_that_are_not_usable() -> None:
    assert "".join(chosen("round-robin", hosts(1, 1, 1), 6)) == "abcabc"
    assert "".join(chosen("round-robin", hosts(1, 1, 1), 4, lambda host: host.key != "b")) == "acac"


def test_weighted_spreads_the_turns_of_a_heavy_backend() -> None:
    assert "".join(chosen("weighted", hosts(5, 1, 1), 7)) == "aabacaa"
    assert "".join(chosen("round-robin", hosts(2, 1), 3)) == "aba", (
        "weights hold without asking for the policy"
    )


@given(st.lists(st.integers(1, 20), min_size=1, max_size=6))
@examples(100)
def test_weights_hold_within_one_over_each_cycle(weights: list[int]) -> None:
    candidates = hosts(*weights)
    found = chosen("weighted", candidates, 3 * sum(weights))
    for cycle in range(3):
        counts = Counter(found[cycle * sum(weights) : (cycle + 1) * sum(weights)])
        assert all(abs(counts[host.key] - host.weight) <= 1 for host in candidates)
    assert Counter(found) == {host.key: 3 * host.weight for host in candidates}


@given(
    st.sampled_from(POLICIES),
    st.lists(st.tuples(st.integers(1, 9), st.integers(0, 9), st.booleans()), max_size=8),
)
@examples(100)
def test_every_policy_finds_a_usable_backend_if_there_is_one(
    name: str, drawn: list[tuple[int, int, bool]]
) -> None:
    candidates = [Host(f"h{at}", weight, load) for at, (weight, load, _) in enumerate(drawn)]
    usable = {f"h{at}" for at, (_, _, up) in enumerate(drawn) if up}
    for key in chosen(name, candidates, 20, lambda host: host.key in usable):
        assert key in (usable or {"-"})


@pytest.mark.parametrize("name", POLICIES)
def test_policy_that_depends_on_the_load_is_listed(name: str) -> None:
    idle, busy = hosts(1, 1, 1), [Host("a", load=9), Host("b", load=1), Host("c", load=4)]
    assert (chosen(name, idle, 30) != chosen(name, busy, 30)) == (name in BY_LOAD), "see BY_LOAD"


def test_least_connections_takes_the_least_loaded_for_its_weight_and_equal_ones_in_turn() -> None:
    candidates = [Host("a", 1, 2), Host("b", 4, 4), Host("c", 1, 1)]
    assert chosen("least-connections", candidates, 4) == ["b", "c", "b", "c"]
    candidates[2].load = 2
    assert chosen("least-connections", candidates, 2) == ["b", "b"]


def test_random_two_avoids_the_loaded_backend() -> None:
    candidates = [Host("a", 1, 100), Host("b"), Host("c")]
    counts = Counter(chosen("random-two", candidates, 300))
    assert counts["a"] == 0
    assert min(counts["b"], counts["c"]) > 100


def test_random_two_of_two_backends_compares_both() -> None:
    assert {*chosen("random-two", [Host("a", 1, 100), Host("b")], 100)} == {"b"}
    assert {*chosen("random-two", [Host("a", 4, 4), Host("b", 1, 2)], 100)} == {"a"}
    assert {*chosen("random-two", [Host("a", 1, 2), Host("b", 4, 4)], 100)} == {"b"}


def test_least_connections_begins_with_the_first_and_takes_equal_ones_in_turn() -> None:
    assert "".join(chosen("least-connections", hosts(1, 1, 1), 7)) == "abcabca"


def test_first_takes_a_spare_only_when_the_first_is_not_usable() -> None:
    assert chosen("first", hosts(1, 1), 2) == ["a", "a"]
    assert chosen("first", hosts(1, 1), 1, lambda host: host.key != "a") == ["b"]


def owners(candidates: Sequence[Host], down: str = "") -> dict[str, str]:
    policy = ConsistentHash(candidates)
    found = {}
    for number in range(2000):
        client = f"10.0.{number // 250}.{number % 250}"
        host = policy.choose(client, lambda each: each.key != down)
        assert host is not None
        found[client] = host.key
    return found


@pytest.mark.parametrize("weights", [(1, 1, 1, 1), (1, 2, 3)])
def test_consistent_hash_moves_only_the_share_of_the_backend_that_leaves(weights: tuple[int, ...]) -> None:
    before = owners(hosts(*weights))
    for leaving in hosts(*weights):
        rest = [host for host in hosts(*weights) if host.key != leaving.key]
        after = owners(rest)
        moved = {client for client, owner in before.items() if after[client] != owner}
        assert moved == {client for client, owner in before.items() if owner == leaving.key}
        assert owners(hosts(*weights), down=leaving.key) == after, (
            "one that is not usable counts as one that left"
        )


def test_consistent_hash_gives_each_about_its_share() -> None:
    counts = Counter(owners(hosts(1, 1, 2)).values())
    assert abs(counts["a"] - 500) < 150
    assert abs(counts["b"] - 500) < 150
    assert abs(counts["c"] - 1000) < 200


def test_consistent_hash_is_the_same_in_every_process() -> None:
    policy = ConsistentHash(hosts(1, 1, 1))
    found = "".join(host.key for n in range(12) if (host := policy.choose(f"10.0.0.{n}", anyone)))
    assert found == "acabcabccbab"


def test_backend_below_a_path_that_is_not_utf_8_has_a_place_and_a_cookie() -> None:
    backend = Host("unix:/caf\udce9/a.sock")
    assert ConsistentHash([backend]).choose("10.0.0.1", anyone) is backend
    assert sticky_value(backend.key) != sticky_value("unix:/caf/a.sock")


def test_very_heavy_backends_keep_the_circle_small() -> None:
    candidates = hosts(1000, 3000)
    counts = Counter(owners(candidates).values())
    assert abs(counts["a"] - 500) < 100


@pytest.mark.parametrize(
    ("weights", "points"), [((1,), 128), ((128,), 16_384), ((1000, 3000), 16_000), ((20_000,), 20_000)]
)
def test_circle_has_points_by_weight_within_its_limit_and_one_at_least(
    monkeypatch: pytest.MonkeyPatch, weights: tuple[int, ...], points: int
) -> None:
    hashed: list[str] = []
    monkeypatch.setattr(balance, "_hash", lambda text: hashed.append(text) or len(hashed))
    ConsistentHash(hosts(*weights))
    assert len(hashed) == points


@pytest.mark.parametrize("name", POLICIES)
def test_route_without_backends_has_none_to_choose(name: str) -> None:
    assert chosen(name, [], 2) == ["-", "-"]
    assert chosen(name, hosts(1, 1, 1), 2, lambda host: False) == ["-", "-"]


def test_unknown_policy_is_refused_with_the_known_ones() -> None:
    with pytest.raises(ValueError, match="unknown policy 'fair': one of round-robin"):
        policy_of("fair", hosts(1), Random())
