"""What a restart does about the dependencies of the servers: the same as a start for those that do not run."""

from __future__ import annotations

import pytest

from tests.unit.core.ordered_core import run, web
from tests.unit.runners.scripted_runner import FAILS
from tests.unit.supervisor.desk import Desk


@pytest.mark.parametrize("verb", ["start", "restart"])
def test_restart_of_a_stopped_server_starts_its_dependencies_first_as_start_does(verb: str) -> None:
    async def scenario() -> None:
        desk = Desk(web("db"), web("api", depends_on=["db"]), web("web", depends_on=["api"]), web("other"))
        answer = await desk.ask(verb, "web")
        assert (answer["exit_code"], [item["name"] for item in answer["items"]]) == (0, ["web"])
        assert desk.states() == {"db": "running", "api": "running", "web": "running", "other": "stopped"}
        assert desk.core.entries["web"].desired.ignore_dependencies is False
        pids = [item["pids"] for item in (await desk.ask("list", "db", "api"))["items"]]
        await desk.ask("stop", "web")
        await desk.ask(verb, "web")
        assert [item["pids"] for item in (await desk.ask("list", "db", "api"))["items"]] == pids, "they ran"

    run(scenario())


@pytest.mark.parametrize("verb", ["start", "restart"])
def test_restart_of_a_stopped_server_with_a_disabled_dependency_says_what_it_waits_for(verb: str) -> None:
    async def scenario() -> None:
        desk = Desk(web("db", disabled=True), web("web", depends_on=["db"]))
        answer = await desk.ask(verb, "web")
        (error,) = answer["errors"]
        assert (answer["exit_code"], error["name"]) == (1, "web")
        assert (error["message"], error["hint"]) == ("waits for db, which is disabled", "poolctl enable db")
        assert desk.runner.running == {}

    run(scenario())


@pytest.mark.parametrize("verb", ["start", "restart"])
def test_restart_of_a_stopped_server_reports_the_dependency_that_fails(verb: str) -> None:
    async def scenario() -> None:
        desk = Desk(web("db"), web("web", depends_on=["db"]), db=FAILS)
        answer = await desk.ask(verb, "web")
        assert (answer["exit_code"], {each["name"] for each in answer["errors"]}) == (1, {"db", "web"})
        assert desk.states()["web"] == "starting"

    run(scenario())


@pytest.mark.parametrize("verb", ["start", "restart"])
def test_restart_without_dependencies_starts_the_selected_server_only(verb: str) -> None:
    async def scenario() -> None:
        desk = Desk(web("db"), web("web", depends_on=["db"]))
        assert (await desk.ask(verb, "web", deps=False))["exit_code"] == 0
        assert desk.states() == {"db": "stopped", "web": "running"}

    run(scenario())


def test_restart_of_a_running_server_replaces_it_while_its_dependency_is_down() -> None:
    async def scenario() -> None:
        desk = Desk(web("db"), web("web", depends_on=["db"]))
        await desk.ask("start")
        await desk.ask("stop", "db", deps=False)
        answer = await desk.ask("restart", "web")
        assert (answer["exit_code"], desk.states()) == (0, {"db": "stopped", "web": "running"})
        assert desk.core.entries["web"].desired.generation == 2

    run(scenario())
