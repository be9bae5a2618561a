"""The desired state of a server is one value, and only some changes of it are allowed."""

from __future__ import annotations

import asyncio

import pytest

from poolctl.config import ServerConfig
from poolctl.core.decision_input import FOLLOWS, Desired, ImpossibleChange
from poolctl.core.server_entry import Entry
from tests.unit.core.ordered_core import OrderedCore, run, web


def entry() -> Entry:
    return Entry(ServerConfig(name="web", bind=":1", app="a:b"))


def test_every_value_says_what_may_follow_it() -> None:
    assert FOLLOWS.keys() == set(Desired)


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (Desired.IDLE, Desired.BACKOFF),
        (Desired.IDLE, Desired.COMPLETED),
        (Desired.STOPPED, Desired.FAILED),
        (Desired.RUN, Desired.REFUSING),
        (Desired.FAILED, Desired.BACKOFF),
        (Desired.FAILED, Desired.COMPLETED),
        (Desired.COMPLETED, Desired.BACKOFF),
        (Desired.REMOVED, Desired.RUN),
    ],
)
def test_impossible_change_of_the_desired_state_is_refused(before: Desired, after: Desired) -> None:
    server = entry()
    server.desired.state = before
    with pytest.raises(ImpossibleChange, match=f"web: {before} does not become {after}"):
        server.become(after)
    assert server.desired.state is before


def test_a_backoff_ends_with_its_timers() -> None:
    async def scenario() -> None:
        server = entry()
        server.become(Desired.RUN)
        server.become(Desired.BACKOFF)
        timer = asyncio.get_running_loop().call_later(60, print)
        server.observed.timers.append(timer)
        server.become(Desired.REFUSING)
        assert not timer.cancelled()
        server.become(Desired.STOPPED)
        assert timer.cancelled()
        assert server.observed.timers == []

    asyncio.run(scenario())


def test_a_server_that_a_command_has_stopped_stays_so_when_it_is_disabled_and_enabled_by_a_reload() -> None:
    async def scenario() -> None:
        pool = OrderedCore(web())
        await pool.start()
        server = pool.core.entries["web"]
        await pool.stop("web")
        for disabled in (True, False):
            pool.core.change(server, web(disabled=disabled), live=True)
            assert server.desired.state is Desired.STOPPED

    run(scenario())


def test_a_server_that_ran_until_it_was_disabled_runs_again_when_it_is_enabled() -> None:
    async def scenario() -> None:
        pool = OrderedCore(web())
        await pool.start()
        server = pool.core.entries["web"]
        pool.core.change(server, web(disabled=True), live=True)
        assert server.desired.state is Desired.IDLE
        pool.core.change(server, web(), live=True)
        assert server.desired.state is Desired.RUN

    run(scenario())
