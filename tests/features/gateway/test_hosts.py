"""The states of hosts: ordered, coming back by themselves, kept over a restart."""

from __future__ import annotations

import json
import math

import pytest

from poolctl.features.gateway.supervision.hosts import HostRecord, HostStates, UnknownHost, find_host
from poolctl.routing.route_report import RequestedBackendState
from tests.manual_clock import ManualClock

ACTIVE, DISABLED, DRAINING = (
    RequestedBackendState.ACTIVE,
    RequestedBackendState.DISABLED,
    RequestedBackendState.DRAINING,
)


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock(50.0)


def manager(clock: ManualClock) -> tuple[HostStates, list[tuple[str, str, str]]]:
    changes: list[tuple[str, str, str]] = []

    def note(host: str, state: RequestedBackendState, why: str) -> None:
        changes.append((host, str(state), why))

    return HostStates(clock.monotonic, note, wall=clock.time), changes


def remaining_seconds(hosts: HostStates, host: str) -> float:
    """The time until the host becomes active again; 0 if that does not depend on time."""
    return max(0.0, hosts.host_record(host).until - hosts.wall())


def test_disabled_host_comes_back_by_itself_after_its_time(clock: ManualClock) -> None:
    hosts, changes = manager(clock)
    hosts.disable("a")
    record = hosts.host_record("a")
    assert (record.since, record.until) == (clock.time(), clock.time() + 30)
    assert (hosts.host_record("a").state, remaining_seconds(hosts, "a"), hosts.next_expiry) == (
        DISABLED,
        30.0,
        80.0,
    )
    clock.advance(29.9)
    assert hosts.host_record("a").state is DISABLED
    clock.advance(0.1)
    assert hosts.host_record("a").state is ACTIVE
    assert changes == [
        ("a", "disabled", "disabled by request"),
        ("a", "active", "the time for which it was disabled is over"),
    ]
    assert hosts.next_expiry == math.inf


def test_hosts_that_expire_together_are_reported_once_each_and_all_are_active(clock: ManualClock) -> None:
    changes, inactive = list[str](), list[int]()

    def note(host: str, *_: str) -> None:
        changes.append(host)
        inactive.append(len(hosts.to_json()["hosts"]))

    hosts = HostStates(clock.monotonic, note, wall=clock.time)
    names = [f"host-{number}" for number in range(200)]
    for name in names:
        hosts.disable(name, 5)
    clock.advance(5)
    hosts.enable_expired()
    assert changes[len(names) :] == names
    assert inactive[len(names) :] == [0] * len(names)


def test_expire_at_due_reports_each_host_once(clock: ManualClock) -> None:
    hosts, changes = manager(clock)
    hosts.disable("a", 10)
    hosts.disable("b", 5)
    assert hosts.next_expiry == 55.0
    clock.advance(5)
    hosts.enable_expired()
    hosts.enable_expired()
    assert ([change[0] for change in changes[2:]], hosts.next_expiry) == (["b"], 60.0)


def test_disabled_without_a_time_stays_until_it_is_enabled(clock: ManualClock) -> None:
    hosts, _ = manager(clock)
    hosts.disable("a", 0)
    clock.advance(1e9)
    assert (hosts.host_record("a").state, hosts.host_record("a").until) == (DISABLED, 0.0)
    clock.advance(1)
    enabled = HostRecord(host="a", why="enabled by request", since=clock.time())
    hosts.enable("a")
    assert hosts.host_record("a") == enabled
    clock.advance(1)
    hosts.enable("a")
    hosts.enable("b")
    assert hosts.host_record("a") == enabled
    assert hosts.host_record("b") == HostRecord(host="b", state="active", why="", since=0.0, until=0.0)


def test_host_that_is_forgotten_is_active_and_has_no_expiry(clock: ManualClock) -> None:
    hosts, _ = manager(clock)
    hosts.disable("a", 10)
    hosts.disable("b", 20)
    hosts.forget(["a"])
    assert (hosts.host_record("a").state, hosts.next_expiry) == (ACTIVE, clock.monotonic() + 20)
    hosts.forget(["b"])
    assert hosts.next_expiry == math.inf


@pytest.mark.parametrize(("left", "kept"), [(-1.0, False), (0.0, False), (0.5, True)])
def test_saved_state_whose_time_is_over_is_not_restored(clock: ManualClock, left: float, kept: bool) -> None:
    hosts, _ = manager(clock)
    until = clock.time() + left
    entry = {"host": "a", "state": "disabled", "why": "", "since": until - 10, "until": until}
    hosts.restore({"hosts": [entry]})
    assert [(each["host"], each["state"], each["until"]) for each in hosts.to_json()["hosts"]] == (
        [("a", "disabled", until)] if kept else []
    )


def test_orders_replace_each_other(clock: ManualClock) -> None:
    hosts, changes = manager(clock)
    hosts.disable("a", 10)
    hosts.drain("a")
    clock.advance(20)
    assert hosts.host_record("a").state is DRAINING
    hosts.disable("a", 10)
    hosts.disable("a", 60)
    clock.advance(20)
    assert hosts.host_record("a").state is DISABLED
    hosts.enable("a")
    hosts.enable("a")
    assert [(state, why) for _, state, why in changes] == [
        ("disabled", "disabled by request"), ("draining", "drained by request"), ("disabled", "disabled by request"),
        ("disabled", "disabled by request"), ("active", "enabled by request"),
    ]  # fmt: skip


def test_very_long_time_is_still_a_date(clock: ManualClock) -> None:
    hosts, _ = manager(clock)
    hosts.disable("a", float("inf"))
    assert hosts.host_record("a").until == clock.time() + 10 * 365 * 86_400


def test_default_time_follows_the_configuration(clock: ManualClock) -> None:
    hosts, _ = manager(clock)
    hosts.re_enable_seconds = 5.0
    hosts.disable("a")
    assert remaining_seconds(hosts, "a") == 5.0


def test_states_survive_a_restart_with_the_time_that_is_left(clock: ManualClock) -> None:
    before, _ = manager(clock)
    before.disable("a", 60)
    before.drain("b")
    before.disable("c", 10)
    before.disable("d", 0)
    before.disable("e")
    before.enable("e")
    kept = json.loads(json.dumps(before.to_json()))
    later = ManualClock(3.0, clock.time() + 20)  # another machine start: the monotonic clock began again
    after, changes = manager(later)
    after.restore(kept)
    restored = [(each["host"], each["state"]) for each in after.to_json()["hosts"]]
    assert (restored, changes) == ([("a", "disabled"), ("b", "draining"), ("d", "disabled")], [])
    assert (after.host_record("a").why, after.host_record("a").since, remaining_seconds(after, "a")) == (
        "disabled by request", clock.time(), 40.0,
    )  # fmt: skip
    assert after.host_record("c").state is ACTIVE
    assert (
        after.host_record("d")
        == before.host_record("d")
        == HostRecord(host="d", state="disabled", why="disabled by request", since=clock.time())
    )
    assert remaining_seconds(after, "d") == 0.0
    later.advance(40)
    assert after.host_record("a").state is ACTIVE


def test_clock_that_was_set_back_does_not_prolong_a_pause(clock: ManualClock) -> None:
    before, _ = manager(clock)
    before.disable("a", 60)
    after, _ = manager(ManualClock(0.0, clock.time() - 86_400))
    after.restore(before.to_json())
    assert remaining_seconds(after, "a") == 60.0


KNOWN = ("users", "Orders", "http://10.0.0.7:9000", "https://10.0.0.8:443", "http://10.0.0.8:443")


@pytest.mark.parametrize(
    ("name", "host"),
    [
        ("users", "users"),
        ("USERS", "users"),
        ("orders", "Orders"),
        ("10.0.0.7:9000", "http://10.0.0.7:9000"),
        ("HTTP://10.0.0.7:9000/", "http://10.0.0.7:9000"),
    ],
)
def test_host_is_found_by_what_a_user_writes(name: str, host: str) -> None:
    assert find_host(name, KNOWN) == host


def test_unknown_and_ambiguous_hosts_name_those_that_are_near() -> None:
    with pytest.raises(UnknownHost) as unknown:
        find_host("user", KNOWN)
    assert (unknown.value.message, unknown.value.hint) == (
        "no backend is called 'user'",
        "did you mean users?",
    )
    with pytest.raises(UnknownHost) as ambiguous:
        find_host("10.0.0.8:443", KNOWN)
    assert ambiguous.value.hint == "did you mean https://10.0.0.8:443 or http://10.0.0.8:443?"
    assert str(ambiguous.value) == f"no backend is called '10.0.0.8:443'; {ambiguous.value.hint}"
    with pytest.raises(UnknownHost) as none:
        find_host("x" * 100_000, KNOWN)
    assert none.value.hint == "`poolctl backends` lists them"
