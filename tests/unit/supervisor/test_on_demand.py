"""Servers with `on_demand = true`: started by name or for a server that depends on them, and by nothing else."""

from __future__ import annotations

from typing import Any

import pytest

from poolctl import ServerConfig
from poolctl.core.server_entry import record_of, restore
from poolctl.core.server_state import Desired
from poolctl.selection.selector import Selector
from poolctl.supervisor.verbs.verb import Call
from tests.unit.core.ordered_core import turns, web
from tests.unit.runners.scripted_runner import FAILS
from tests.unit.supervisor.desk import Desk


def debug(name: str = "debug", **keys: Any) -> ServerConfig:
    return web(name, on_demand=True, **keys)


def migrate(**keys: Any) -> ServerConfig:
    return ServerConfig(**{"name": "migrate", "command": ["x"], "job": True, "on_demand": True} | keys)


async def select(desk: Desk, verb: str, **selection: Any) -> dict[str, Any]:
    options = {"all": True} if verb == "enable" else {}
    answer = await desk.verbs.perform(verb, Call(Selector(**selection), options, lambda line: None))
    return {"code": answer.exit_code, "warnings": list(answer.warnings)}


@pytest.mark.parametrize("verb", ["start", "restart"])
@pytest.mark.parametrize("word", ["debug", "DEBUG", "127.0.0.1:9100", "http://127.0.0.1:9100"])
async def test_name_or_address_starts_the_server_and_nothing_else_does(verb: str, word: str) -> None:
    desk = Desk(web(), debug(bind="127.0.0.1:9100", tags=["tools"]))
    for _ in range(2):
        answer = await desk.ask(verb)
        assert (answer["exit_code"], [item["state"] for item in answer["items"]]) == (
            0,
            ["running", "stopped"],
        )
    for selection in (
        {"targets": ["*"]},
        {"targets": ["d*"]},
        {"tag": ["tools"]},
        {"targets": ["web"], "invert": True},
    ):
        assert (await select(desk, verb, **selection))["code"] == 0
        assert desk.states()["debug"] == "stopped"
    assert (await desk.ask(verb, word))["exit_code"] == 0
    assert desk.states() == {"web": "running", "debug": "running"}


@pytest.mark.parametrize("verb", ["start", "restart"])
async def test_selection_of_such_servers_alone_says_how_they_are_started(verb: str) -> None:
    desk = Desk(web(), debug(tags=["tools"]), debug("mail", tags=["tools"]))
    answer = await select(desk, verb, tag=["tools"])
    hint = "debug, mail start on demand: name them, as in `poolctl start debug mail`"
    assert answer == {"code": 0, "warnings": [hint]}
    for selection in ({}, {"targets": ["*"]}, {"targets": ["debug"], "tag": ["tools"]}):
        assert (await select(desk, verb, **selection))["warnings"] == []


@pytest.mark.parametrize("verb", ["start", "restart"])
async def test_server_that_depends_on_it_starts_it(verb: str) -> None:
    needed = debug("store", depends_on=["disk"])
    desk = Desk(debug("disk"), needed, debug("idle", depends_on=["store"]), web(depends_on=["store"]))
    assert (await desk.ask(verb))["exit_code"] == 0
    assert desk.states() == {"disk": "running", "store": "running", "idle": "stopped", "web": "running"}
    await desk.ask("stop", "store")
    assert desk.states() == {"disk": "running", "store": "stopped", "idle": "stopped", "web": "stopped"}
    assert (await desk.ask(verb, "web"))["exit_code"] == 0
    assert desk.states()["store"] == "running"


async def test_server_that_is_started_without_its_dependencies_starts_none() -> None:
    desk = Desk(debug("store"), web(depends_on=["store"]))
    await desk.ask("start", deps=False)
    assert desk.states() == {"store": "stopped", "web": "running"}


async def test_server_that_was_added_or_enabled_starts_what_it_depends_on() -> None:
    desk = Desk(debug("store"), web(depends_on=["store"]), web("other", disabled=True, depends_on=["store"]))
    await desk.ask("enable", "other")
    assert desk.states() == {"store": "running", "web": "stopped", "other": "running"}
    await desk.ask("stop", "store")
    table = {"name": "new", "bind": "127.0.0.1:7070", "app": "a:b", "depends_on": ["store"]}
    assert (await desk.ask("add", server=table, base_dir="/"))["exit_code"] == 0
    assert desk.states()["store"] == "running"


async def test_server_at_rest_is_missed_by_nobody_and_one_that_was_started_is_like_any_other() -> None:
    desk = Desk(web(), debug())
    await desk.ask("start")
    status = await desk.ask("status")
    summary = status["summary"]
    assert (status["exit_code"], summary["servers"], summary["should_run"], summary["ready"]) == (
        0,
        2,
        1,
        1,
    )
    for word in ("ready", "healthy", "running"):
        assert (await desk.ask("wait", **{"for": word, "timeout": 0.0}))["exit_code"] == 0
    assert (await desk.ask("wait", "debug", timeout=0.0))["exit_code"] == 124
    desk.runner.script["debug"] = FAILS
    assert (await desk.ask("start", "debug"))["exit_code"] == 1
    assert (await desk.ask("status"))["exit_code"] == 3
    desk.runner.script.clear()
    assert (await desk.ask("start"))["exit_code"] == 0  # it should run, so a start of everything tries again
    assert desk.states()["debug"] == "running"
    await desk.ask("restart")
    assert "debug.2.0" in desk.runner.running
    await desk.ask("stop", "debug")
    assert (await desk.ask("status"))["exit_code"] == 0
    await desk.ask("start")
    assert desk.states() == {"web": "running", "debug": "stopped"}


async def test_items_say_which_servers_start_on_demand() -> None:
    web_item, debug_item = (await Desk(web(), debug()).ask("list"))["items"]
    assert (web_item.get("on_demand"), debug_item["on_demand"]) == (None, True)


def runs(desk: Desk) -> int:
    return sum(line.startswith("place migrate") for line in desk.runner.log)


async def test_job_that_has_ended_runs_again_by_its_name_alone() -> None:
    desk = Desk(migrate(), web(depends_on=[{"name": "migrate", "condition": "completed"}]))
    await desk.ask("start")
    assert desk.states() == {"migrate": "completed", "web": "running"}
    for verb, *targets in (("start",), ("restart",), ("start", "web"), ("restart", "web")):
        assert (await desk.ask(verb, *targets))["exit_code"] == 0
    await desk.ask("stop", "web")
    await desk.ask("start", "web")
    assert runs(desk) == 1
    await desk.ask("restart", "migrate")
    await turns(100)
    assert (runs(desk), desk.states()["migrate"]) == (2, "completed")


async def test_schedule_begins_with_the_name() -> None:
    desk = Desk(migrate(every="0 3 * * *"))
    for verb in ("start", "restart"):
        await desk.ask(verb)
        assert desk.states() == {"migrate": "stopped"}
    await desk.ask("start", "migrate")
    assert desk.states() == {"migrate": "sleeping"}


async def test_disabled_server_is_not_started_by_its_name_and_enabling_is_a_start_by_name_alone() -> None:
    desk = Desk(web(), debug(disabled=True))
    assert (await desk.ask("start", "debug"))["exit_code"] == 1
    assert (await desk.ask("enable", all=True))["exit_code"] == 0
    assert desk.states() == {"web": "stopped", "debug": "stopped"}
    await desk.ask("disable", "debug")
    await desk.ask("enable", "debug")
    assert desk.states() == {"web": "stopped", "debug": "running"}


async def test_scale_starts_nothing_and_counts_from_the_start() -> None:
    desk = Desk(debug())
    assert (await desk.ask("scale", "debug", workers=2))["exit_code"] == 0
    assert desk.states() == {"debug": "stopped"}
    await desk.ask("start", "debug")
    assert len(desk.runner.running) == 2


async def test_reload_leaves_a_new_one_at_rest_unless_a_server_that_runs_depends_on_it() -> None:
    desk = Desk(web(), web("other"))
    await desk.ask("start")
    desk.files.written = [web(depends_on=["late"]), web("new", depends_on=["store"]), web("other"),
                          debug("store"), debug("late"), debug()]  # fmt: skip
    answer = await desk.ask("reload")
    assert answer["exit_code"] == 0
    (line,) = [change["message"] for change in answer["changes"] if change["name"] == "debug"]
    assert line == "is new, and starts on demand"
    running = {name for name, state in desk.states().items() if state == "running"}
    assert running == {"web", "new", "other", "store", "late"}


async def test_reload_that_turns_the_key_on_stops_nothing_and_one_that_turns_it_off_starts() -> None:
    desk = Desk(web("a"), web("b"), debug("c"), debug("d"))
    await desk.ask("start")
    await desk.ask("start", "d")
    await desk.ask("stop", "d")
    desk.files.written = [debug("a"), web("b", disabled=True), web("c"), web("d")]
    answer = await desk.ask("reload")
    kinds = {change["name"]: change["change"] for change in answer["changes"]}
    assert kinds == dict.fromkeys("abcd", "update")
    # A server that a command has stopped stays stopped.
    assert desk.states() == {"a": "running", "b": "disabled", "c": "running", "d": "stopped"}
    assert not any(line.startswith(("stop a", "drain a")) for line in desk.runner.log)
    desk.files.written = [debug("a"), debug("b"), web("c"), web("d")]
    await desk.ask("reload")
    assert desk.states()["b"] == "stopped"


async def test_changed_files_of_a_pool_at_rest_start_nothing_but_the_named_server() -> None:
    desk = Desk(web(), debug())
    desk.files.written = [web(), web("debug")]
    desk.files.marks = {}
    await desk.ask("start", "web")
    assert desk.states() == {"web": "running", "debug": "stopped"}


async def test_successor_keeps_what_was_started_and_starts_nothing_else() -> None:
    desk = Desk(web(), debug("a"), debug("b"), debug("c"))
    await desk.ask("start")
    await desk.ask("start", "a", "c")
    await desk.ask("stop", "c")
    after = Desk(*(entry.config for entry in desk.core.entries.values()))
    for name, entry in desk.core.entries.items():
        restore(after.core.entries[name], record_of(entry))
        after.core.resume_adopted_server(after.core.entries[name])
    await turns(100)
    desired = {name: entry.desired.state for name, entry in after.core.entries.items()}
    assert desired == {"web": Desired.RUN, "a": Desired.RUN, "b": Desired.IDLE, "c": Desired.STOPPED}
    assert after.states() == {"web": "running", "a": "running", "b": "stopped", "c": "stopped"}
