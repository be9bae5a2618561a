"""Which servers a stop or an enable says that it left as they were."""

from __future__ import annotations

from typing import Any

from tests.unit.core.ordered_core import run, turns, web
from tests.unit.runners.scripted_runner import FAILS, NEVER
from tests.unit.supervisor.desk import Desk


def unchanged(answer: dict[str, Any]) -> list[str]:
    return list(answer.get("unchanged") or ())


def test_stop_names_the_servers_that_did_not_run_before() -> None:
    async def scenario() -> None:
        desk = Desk(web("on"), web("off", disabled=True), web("never"), web("bad"), bad=FAILS)
        await desk.ask("start", "on", "bad")
        assert unchanged(await desk.ask("stop", "off", "never", "bad")) == ["off", "never", "bad"]
        assert unchanged(await desk.ask("stop")) == ["off", "never", "bad"]

    run(scenario())


def test_stop_counts_what_starts_sleeps_or_waits_for_a_retry_as_running() -> None:
    async def scenario() -> None:
        backoff = {"policy": "on-failure", "backoff": {"initial": 60, "max": 60}}
        desk = Desk(
            web("starts"), web("waits", depends_on=["starts"]), web("sleeps", scale={"min": 0}),
            web("retries", restart=backoff), starts=NEVER, retries=FAILS,
        )  # fmt: skip
        await desk.ask("start", wait=False)
        await turns(60)
        assert sorted(desk.states().values()) == ["backoff", "sleeping", "starting", "starting"]
        assert unchanged(await desk.ask("stop")) == []

    run(scenario())


def test_stop_counts_no_dependent_that_had_failed_before() -> None:
    async def scenario() -> None:
        desk = Desk(web("db"), web("bad", depends_on=["db"]), web("web", depends_on=["db"]), bad=FAILS)
        await desk.ask("start")
        assert desk.states() == {"db": "running", "bad": "failed", "web": "running"}
        assert (await desk.ask("stop", "db"))["dependents"] == ["web"]

    run(scenario())


def test_enable_names_the_servers_that_were_not_disabled() -> None:
    async def scenario() -> None:
        desk = Desk(web("off", disabled=True), web("stopped"), web("on"))
        await desk.ask("start", "on")
        answer = await desk.ask("enable", all=True)
        assert (answer["exit_code"], unchanged(answer)) == (0, ["stopped", "on"])
        assert desk.states() == {"off": "running", "stopped": "stopped", "on": "running"}

    run(scenario())


def test_enable_names_a_selected_server_that_it_starts_with_its_dependency_as_a_dependent() -> None:
    async def scenario() -> None:
        desk = Desk(web("db"), web("web", depends_on=["db"]))
        await desk.ask("start")
        await desk.ask("disable", "db")
        answer = await desk.ask("enable", all=True)
        assert (answer["dependents"], unchanged(answer)) == (["web"], []), "it is started with db"

    run(scenario())
