"""Pool against a dictionary that does the same, over random histories; filters against their definition."""

from __future__ import annotations

import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, invariant, rule

from poolctl import Field, Pool, PoolAddError, Server, ServerConfig
from poolctl.address import canonical, overlaps, parse
from tests.examples import examples

BINDS = [
    "127.0.0.1:1", "127.0.0.1:2", "127.0.0.2:1", "localhost:1", "[::1]:1", "0.0.0.0:1", ":2", "[::]:3", "*:3",
    "example.org:1", "unix:/run/a", "unix:/run/A", "http://127.0.0.1:1", "[0::1]:1", "fd:3", "[::ffff:127.0.0.1]:2",
]  # fmt: skip
NAMES = ["a", "A", "b", "api-1", "api-2", "web"]

binds = st.sampled_from(BINDS)
names = st.sampled_from(NAMES)


def config(name: str, bind: str) -> ServerConfig:
    return ServerConfig(name=name, bind=bind, app="m:app")


class PoolAgainstDict(RuleBasedStateMachine):
    """Every operation of the mapping, on a pool and on a dictionary of names by canonical address."""

    pools = Bundle("pools")

    def __init__(self) -> None:
        super().__init__()
        self.pool = Pool()
        self.model: dict[str, str] = {}

    def _in_the_way(self, bind: str) -> bool:
        address = parse(bind)
        # Whether ":2" or "0.0.0.0:2" was stored matters for overlaps, so the server's own address is asked.
        return any(
            key != address.key and overlaps(address, self.pool[key].config.address) for key in self.model
        )

    @rule(name=names, bind=binds, ready_made=st.booleans())
    def store(self, name: str, bind: str, ready_made: bool) -> None:
        key = canonical(bind)
        refused = key not in self.model and self._in_the_way(bind)
        try:
            if ready_made:
                self.pool.store(Server(config(name, bind)))
            else:
                assert self.pool.store_new(config(name, bind)) is self.pool[bind]
        except PoolAddError:
            assert refused
        else:
            assert not refused
            self.model[key] = name

    @rule(bind=binds)
    def load(self, bind: str) -> None:
        server = self.pool.load(bind)
        assert (server.name if server else None) == self.model.get(canonical(bind))
        assert self.pool.has(bind) is (bind in self.pool) is (canonical(bind) in self.model)

    @rule(bind=binds)
    def delete(self, bind: str) -> None:
        self.pool.delete(bind)
        self.model.pop(canonical(bind), None)

    @rule(bind=binds)
    def load_and_delete(self, bind: str) -> None:
        server = self.pool.load_and_delete(bind)
        assert (server.name if server else None) == self.model.pop(canonical(bind), None)

    @rule()
    def clean(self) -> None:
        self.pool.clean()
        self.model.clear()

    @rule(stop_after=st.integers(0, 4))
    def walk(self, stop_after: int) -> None:
        seen: list[str] = []

        def visit(bind: str, server: Server) -> bool:
            assert server.bind == bind
            seen.append(bind)
            return len(seen) <= stop_after

        assert self.pool.walk(visit) is (len(self.model) <= stop_after)
        assert seen == list(self.model)[: stop_after + 1]

    @rule(wanted=st.lists(binds, max_size=4))
    def walk_limit(self, wanted: list[str]) -> None:
        seen: list[str] = []
        assert self.pool.walk_limit(lambda bind, server: seen.append(bind), *wanted) is True
        known = [key for key in dict.fromkeys(map(canonical, wanted)) if key in self.model]
        assert seen == (known if wanted else list(self.model))

    @rule(regex=st.sampled_from(["a", "^127", "1$", "."]), field=st.sampled_from(Field))
    def view(self, regex: str, field: Field) -> None:
        view = self.pool.filter(field, regex=regex)
        for bind, server in view.items():
            assert self.pool[bind] is server
        view.clean()

    @rule()
    def clone(self) -> None:
        twin = self.pool.clone()
        assert {bind: server.name for bind, server in twin.items()} == self.model
        assert not {*map(id, twin.values())} & {*map(id, self.pool.values())}
        twin.clean()

    @rule(name=names, bind=binds)
    def merge(self, name: str, bind: str) -> None:
        key = canonical(bind)
        refused = key not in self.model and self._in_the_way(bind)
        try:
            self.pool.merge(Pool([config(name, bind)]))
        except PoolAddError:
            assert refused
        else:
            assert not refused
            self.model[key] = name

    @invariant()
    def both_are_equal(self) -> None:
        assert [(bind, server.name) for bind, server in self.pool.items()] == list(self.model.items())
        assert list(self.pool) == list(self.pool.keys()) == list(self.model)
        assert len(self.pool) == len(self.model)
        assert self.pool.monitor_names() == list(self.model.values())


TestPoolAgainstDict = PoolAgainstDict.TestCase
TestPoolAgainstDict.settings = examples(60, stateful_step_count=25)


members = st.lists(st.tuples(names, st.integers(1, 9)), max_size=8, unique_by=lambda pair: pair[1])
patterns = st.one_of(
    names,
    st.sampled_from(
        ["", "127.0.0.1:3", "http://127.0.0.1:3", "HTTPS://X:3", "x:3", "3", "[::ffff:127.0.0.1]:3"]
    ),
)
expressions = st.sampled_from(["", "a", "^a", "3$", "API", "(?i)API", "."])


@given(members, st.sampled_from(Field), patterns, expressions)
def test_a_filter_is_what_the_contract_says(
    given_members: list[tuple[str, int]], field: Field, pattern: str, regex: str
) -> None:
    pool = Pool(
        ServerConfig(name=name, bind=f"127.0.0.1:{port}", expose=f"https://x:{port}", app="m:app")
        for name, port in given_members
    )

    def matches(server: Server) -> bool:
        value: str = getattr(server, field.value)
        spellings = [value.casefold()]
        wanted = pattern
        if field is Field.EXPOSE:
            spellings.append(value.partition("://")[2].casefold())
        if field is Field.BIND:
            try:
                wanted = canonical(pattern)
            except ValueError:
                pass
        equal = bool(pattern) and wanted.casefold() in spellings
        return equal or (bool(regex) and re.search(regex, value) is not None)

    expected = [server for server in pool.values() if matches(server)]
    assert list(pool.filter(field, pattern, regex).values()) == expected
    for target in Field:
        values = [getattr(server, target.value) for server in expected]
        assert pool.list(field, target, pattern, regex) == values


@given(st.text(max_size=30))
def test_any_text_is_an_address_or_not_there(text: str) -> None:
    pool = Pool([config("a", "127.0.0.1:1")])
    found = pool.load(text)
    assert found is None or canonical(text) == "127.0.0.1:1"
    pool.delete(text)
    assert len(pool) == (0 if found else 1)


@pytest.mark.parametrize("field", list(Field))
def test_a_filter_that_both_empty_match_nothing(field: Any) -> None:
    assert len(Pool([config("a", ":1")]).filter(field)) == 0
