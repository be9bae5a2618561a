"""Contract §3: the one selector language."""

from __future__ import annotations

import contextlib
import re
import subprocess
import sys
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from poolctl.control.answers import Item
from poolctl.json_form import from_json
from poolctl.selection.selector import (
    LISTS,
    NothingMatched,
    Selector,
    SelectorError,
    missing_selection_error,
    select,
)


def item(name: str, bind: str, **keys: Any) -> Item:
    usual = {"expose": f"http://{bind}", "tags": [], "state": "running", "health": "ok"}
    return from_json(Item, {"name": name, "bind": bind} | usual | keys)


ITEMS = [
    item("users", "127.0.0.1:8081", tags=["api"]),
    item("Orders", "127.0.0.1:8082", tags=["api", "slow"], state="failed", health="ko"),
    item("admin", "[::1]:9000", expose="https://adm.local", state="stopped", health="unknown"),
    item("all", "0.0.0.0:80", health="warn"),
]


def chosen(selector: Selector) -> list[str]:
    return [each.name for each in select(ITEMS, selector)]


def unmatched(selector: Selector) -> NothingMatched:
    with pytest.raises(NothingMatched) as caught:
        select(ITEMS, selector)
    return caught.value


@pytest.mark.parametrize(
    ("targets", "names"),
    [
        (["users"], ["users"]),
        (["USERS"], ["users"]),
        (["orders", "users"], ["users", "Orders"]),
        (["users", "users"], ["users"]),
        (["127.0.0.1:8082"], ["Orders"]),
        (["http://127.0.0.1:8082"], ["Orders"]),
        (["[0:0:0:0:0:0:0:1]:9000"], ["admin"]),
        ([":80"], ["all"]),
        (["*:80"], ["all"]),
        (["*"], ["users", "Orders", "admin", "all"]),
        (["?sers"], ["users"]),
        (["*ER*"], ["users", "Orders"]),
        (["127.0.0.1:*"], ["users", "Orders"]),
        (["*:808?", "admin"], ["users", "Orders", "admin"]),
        (["[::1]*"], ["admin"]),
    ],
)
def test_targets_are_names_or_addresses_with_wildcards(targets: list[str], names: list[str]) -> None:
    assert chosen(Selector(targets)) == names


@pytest.mark.parametrize(
    ("targets", "is_named"),
    [
        (["USERS"], True),
        (["x", "users"], True),
        (["http://127.0.0.1:8081"], True),
        (["*sers"], False),
        (["127.0.0.1:*"], False),
        ([], False),
    ],
)
def test_name_and_address_name_a_server_and_patterns_do_not(targets: list[str], is_named: bool) -> None:
    assert Selector(targets).names("users", "127.0.0.1:8081") is is_named


def test_server_without_an_address_is_named_by_its_key() -> None:
    assert Selector(["process:HTTP"]).names("http", "process:http")


@pytest.mark.parametrize("target", ["user", "sers", "127.0.0.1:80", "nobody", "x*", ":", "[", "users\n"])
def test_a_target_that_names_nothing_is_unmatched(target: str) -> None:
    assert unmatched(Selector([target])).message == f"no server matches {target!r}"


@pytest.mark.parametrize("key", LISTS)
def test_an_empty_word_selects_nothing_and_not_everything(key: str) -> None:
    for words in ([""], ["users", ""]):
        with pytest.raises(SelectorError):
            Selector(**{key: words})
        with pytest.raises(SelectorError):
            Selector.from_dict({key: words})


def test_an_unknown_target_stops_everything_even_with_allow_empty_and_not() -> None:
    for selector in (
        Selector(["users", "nobody"], allow_empty=True),
        Selector(["users", "nobody"], invert=True),
        Selector(["users", "nobody"], tag=["api"]),
    ):
        assert unmatched(selector).message == "no server matches 'nobody'"


def test_of_thousands_of_unknown_targets_few_are_shown_and_explained() -> None:
    reason = unmatched(Selector([f"user{number}" for number in range(5000)]))
    assert reason.message.count("'user") == 10
    assert reason.hint == "did you mean 'users'?"
    assert reason.message.endswith("'user9' and 4990 more")
    assert unmatched(Selector([f"user{number}" for number in range(10)])).message.endswith("'user9'")
    tags = unmatched(Selector(tag=[f"ap{number}" for number in range(5000)]))
    assert tags.hint == "did you mean 'api'?"


@pytest.mark.parametrize(
    ("count", "servers"), [(None, "all servers"), (1, "the only server"), (3, "all 3 servers")]
)
def test_missing_selection_names_the_servers_that_would_change(count: int | None, servers: str) -> None:
    error = missing_selection_error("drain", count)
    assert str(error) == f"drain without a selection would change {servers} of the pool"
    assert "--all" in error.hint


def test_similar_names_are_suggested() -> None:
    reason = unmatched(Selector(["user", "ordes*"]))
    assert reason.message == "no server matches 'user', 'ordes*'"
    assert reason.hint == "did you mean 'users' or 'Orders'?"
    assert unmatched(Selector(["127.0.0.1:8083"])).hint.startswith("did you mean '127.0.0.1:8082'")
    assert unmatched(Selector([":8082"])).hint == "did you mean '127.0.0.1:8082'?"


def test_server_with_quite_another_port_is_not_suggested() -> None:
    hint = unmatched(Selector(["http://127.0.0.1:9941"])).hint
    assert hint == "poolctl list -o name shows the names"


@pytest.mark.parametrize(
    ("options", "names"),
    [
        ({"name": ["^u"]}, ["users"]),
        ({"name": ["^u", "^a"]}, ["users", "admin", "all"]),
        ({"name": ["orders"]}, []),
        ({"name": ["Orders"]}, ["Orders"]),
        ({"bind": [r":808\d$"]}, ["users", "Orders"]),
        ({"expose": ["^https:"]}, ["admin"]),
        ({"tag": ["api"]}, ["users", "Orders"]),
        ({"tag": ["API"]}, []),
        ({"tag": ["slow", "nothing"]}, ["Orders"]),
        ({"state": ["failed", "stopped"]}, ["Orders", "admin"]),
        ({"health": ["ok"]}, ["users"]),
        ({"tag": ["api"], "state": ["running"]}, ["users"]),
        ({"tag": ["api"], "name": ["a"]}, []),
        ({"targets": ["users", "admin"], "tag": ["api"]}, ["users"]),
    ],
)
def test_repeats_widen_and_different_options_narrow(options: dict[str, Any], names: list[str]) -> None:
    assert chosen(Selector(**options, allow_empty=True)) == names


def test_not_inverts_the_whole_selection() -> None:
    assert chosen(Selector(["users"], invert=True)) == ["Orders", "admin", "all"]
    assert chosen(Selector(tag=["api"], state=["running"], invert=True)) == ["Orders", "admin", "all"]


def test_options_that_match_nothing_are_unmatched_unless_that_is_allowed() -> None:
    reason = unmatched(Selector(tag=["nothing"]))
    assert reason.message == "no server matches --tag nothing"
    assert (
        unmatched(Selector(name=["^z"], tag=["API"], invert=False)).message
        == "no server matches --name ^z --tag API"
    )
    assert unmatched(Selector(tag=["API"])).hint == "did you mean 'api'?"
    assert unmatched(Selector(invert=True)).message == "no server matches --not"
    assert "--allow-empty" in reason.hint
    assert chosen(Selector(tag=["nothing"], allow_empty=True)) == []


def test_no_selector_means_all_also_of_nothing() -> None:
    assert chosen(Selector()) == [each.name for each in ITEMS]
    assert select([], Selector()) == []


def test_an_item_without_the_keys_is_not_chosen_by_them() -> None:
    assert select([from_json(Item, {})], Selector(tag=["x"], allow_empty=True)) == []


@pytest.mark.parametrize(
    ("pattern", "place"),
    [("(a", "(a\n^"), ("a)", "a)\n ^"), ("[z-a]", "[z-a]\n ^"), ("x{2,1}", "x{2,1}\n  ^")],
)
def test_an_invalid_regular_expression_shows_the_place(pattern: str, place: str) -> None:
    with pytest.raises(SelectorError) as caught:
        Selector(name=[pattern])
    assert pattern in caught.value.message
    assert caught.value.hint == place


def test_a_regular_expression_that_is_too_deep_is_an_error_too() -> None:
    with pytest.raises(SelectorError) as caught:
        Selector(bind=["(" * 50_000 + ")" * 50_000])
    assert "too complicated" in caught.value.message


def test_unknown_state_or_health_is_reported_with_the_nearest() -> None:
    with pytest.raises(SelectorError) as caught:
        Selector(state=["runing"])
    assert caught.value.message == "unknown state 'runing'"
    assert caught.value.hint.startswith("did you mean 'running'? one of: disabled, ")
    with pytest.raises(SelectorError) as caught:
        Selector(health=["purple"])
    assert caught.value.message == "unknown health 'purple'"
    assert caught.value.hint == "one of: unknown, ok, warn, ko"
    assert Selector(state=["Running"]).state == ["running"]


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"targets": "users"}, "'targets' of the selector must be a list of strings"),
        ({"tag": [1]}, "'tag' of the selector must be a list of strings"),
        ({"wat": []}, "unknown key 'wat' in the selector"),
    ],
)
def test_a_malformed_selector_from_outside_is_refused(data: dict[str, Any], message: str) -> None:
    with pytest.raises(SelectorError) as caught:
        Selector.from_dict(data)
    assert caught.value.message == message


def test_a_selector_says_what_it_chooses() -> None:
    assert repr(Selector()) == "<Selector all>"
    assert repr(Selector(["a"], tag=["b"], invert=True)) == "<Selector targets=['a'] tag=['b'] not>"
    assert repr(Selector(allow_empty=True)) == "<Selector allow_empty>"
    assert Selector(["a"]) != Selector(["b"])


def test_choosing_by_name_needs_neither_expressions_nor_addresses() -> None:
    script = (
        "import sys; before = set(sys.modules); from poolctl.selection.selector import *;"
        "from types import SimpleNamespace;"
        "select([SimpleNamespace(name='a', bind='b')], Selector(['a']));"
        "print(*(set(sys.modules) - before))"
    )
    done = subprocess.run(
        [sys.executable, "-I", "-c", script], capture_output=True, text=True, timeout=60, check=True
    )
    assert not {"regex", "difflib", "poolctl.address", "asyncio", "pydantic"} & set(done.stdout.split())


# Properties.

words = st.sampled_from(["a", "b", "ab", "B", "a-1", "Server", "server2"])
binds = st.sampled_from(["127.0.0.1:1", "127.0.0.1:11", "[::1]:1", "0.0.0.0:80", "unix:/a/b", "job:x"])
items = st.lists(
    st.fixed_dictionaries(
        {
            "name": words,
            "bind": binds,
            "expose": st.sampled_from(["http://a", "https://b:1"]),
            "tags": st.lists(words, max_size=2),
            "state": st.sampled_from(["running", "stopped"]),
            "health": st.sampled_from(["ok", "ko"]),
        }
    ).map(lambda table: from_json(Item, table)),
    max_size=6,
)
patterns = st.lists(st.sampled_from(["a", "^a", "1$", ".", "b|S", "nothing"]), max_size=2)
selectors = st.builds(
    Selector,
    st.lists(st.one_of(words, binds, st.sampled_from(["*", "a*", "?", "*:1*", "none"])), max_size=2),
    name=patterns,
    bind=patterns,
    expose=patterns,
    tag=st.lists(words, max_size=2),
    state=st.lists(st.sampled_from(["running", "stopped"]), max_size=2),
    health=st.lists(st.sampled_from(["ok", "ko"]), max_size=2),
    invert=st.booleans(),
    allow_empty=st.booleans(),
)


def by_definition(each: Item, selector: Selector) -> bool:
    """The contract's sentences, one by one."""

    def named(target: str) -> bool:
        glob = re.escape(target).replace(r"\*", ".*").replace(r"\?", ".")
        return any(re.fullmatch(glob, getattr(each, field), re.IGNORECASE) for field in ("name", "bind"))

    tests = [not selector.targets or any(named(target) for target in selector.targets)]
    for field in ("name", "bind", "expose"):
        wanted = getattr(selector, field)
        tests.append(not wanted or any(re.search(pattern, getattr(each, field)) for pattern in wanted))
    tests.append(not selector.tag or any(tag in each.tags for tag in selector.tag))
    tests.append(not selector.state or each.state in selector.state)
    tests.append(not selector.health or each.health in selector.health)
    return all(tests) is not selector.invert


@given(items, selectors)
def test_selecting_is_what_the_contract_says(found: list[Item], selector: Selector) -> None:
    try:
        assert select(found, selector) == [each for each in found if by_definition(each, selector)]
    except NothingMatched as reason:
        unknown = [target for target in selector.targets if repr(target) in reason.message]
        assert unknown or not any(by_definition(each, selector) for each in found)


@given(items, selectors)
def test_a_selection_and_its_inverse_are_everything_once(found: list[Item], selector: Selector) -> None:
    one = Selector.from_dict({**selector.to_dict(), "not": False, "allow_empty": True})
    other = Selector.from_dict({**selector.to_dict(), "not": True, "allow_empty": True})
    try:
        kept = select(found, one)
    except NothingMatched:
        with pytest.raises(NothingMatched):
            select(found, other)
    else:
        left = select(found, other)
        assert one.selects_all or sorted(map(id, kept + left)) == sorted(map(id, found))


@given(selectors)
def test_a_selector_survives_the_wire(selector: Selector) -> None:
    assert Selector.from_dict(selector.to_dict()) == selector


@given(st.text(max_size=20), st.text(max_size=20))
def test_any_text_is_a_target_or_an_error_and_never_a_crash(target: str, pattern: str) -> None:
    with contextlib.suppress(NothingMatched, SelectorError):
        select(ITEMS, Selector([target]))
    with contextlib.suppress(NothingMatched, SelectorError):
        select(ITEMS, Selector(name=[pattern]))
