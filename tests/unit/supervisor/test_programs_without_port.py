"""Programs that run for ever without a port: started, restarted, scaled and replaced like every server."""

from __future__ import annotations

import asyncio
from typing import Any

from poolctl import ServerConfig
from poolctl.runners.runner_protocol import Exit
from tests.unit.core.ordered_core import turns, web
from tests.unit.runners.scripted_runner import FAILS
from tests.unit.supervisor.desk import Desk


def queue(**keys: Any) -> ServerConfig:
    return ServerConfig(**{"name": "queue", "command": ["celery", "worker"], "restart": "always"} | keys)


async def test_it_is_a_server_keyed_by_its_name_that_others_depend_on() -> None:
    desk = Desk(web(depends_on=["queue"]), queue())
    answer = await desk.ask("start", "web")
    assert answer["exit_code"] == 0
    assert desk.runner.log.index("place queue.1.0") < desk.runner.log.index("place web.1.0")
    (item,) = (await desk.ask("list", "process:queue"))["items"]
    assert (item["name"], item["bind"], item["expose"], item["state"], item["ready"]) == (
        "queue", "process:queue", None, "running", True,
    )  # fmt: skip
    (item,) = (await desk.ask("show", "queue"))["items"]
    assert (item["expose"], "bind" in item["config"]) == (None, False)


async def test_restart_stops_the_only_one_before_it_starts_another() -> None:
    desk = Desk(queue())
    await desk.ask("start")
    desk.runner.log.clear()
    desk.runner.may_end.clear()
    restart = desk.begin("restart")
    await turns()
    assert "place queue.2.0" not in desk.runner.log
    desk.runner.may_end.set()
    assert (await restart)["exit_code"] == 0
    assert desk.runner.log[-1] == "place queue.2.0"
    assert [*desk.runner.running] == ["queue.2.0"]


async def test_restart_replaces_several_once_the_new_ones_are_ready() -> None:
    desk = Desk(queue(workers=2))
    await desk.ask("start")
    desk.runner.may_end.clear()
    restart = desk.begin("restart")
    await turns()
    assert {"queue.1.0", "queue.1.1", "queue.2.0", "queue.2.1"} == set(desk.runner.running)
    desk.runner.may_end.set()
    assert (await restart)["exit_code"] == 0
    await turns()
    assert {"queue.2.0", "queue.2.1"} == set(desk.runner.running)


async def test_failed_replacement_of_several_leaves_the_old_ones() -> None:
    desk = Desk(queue(workers=2))
    await desk.ask("start")
    desk.runner.script["queue"] = FAILS
    assert (await desk.ask("restart"))["exit_code"] == 1
    await turns()
    assert {"queue.1.0", "queue.1.1"} == set(desk.runner.running)


async def test_one_that_dies_is_replaced_and_one_that_ends_with_0_follows_its_policy() -> None:
    desk = Desk(queue(), queue(name="once", restart="on-failure"))
    await desk.ask("start")
    for name in ("queue.1.0", "once.1.0"):
        desk.runner.end(name, Exit.from_returncode(0))
    await turns()
    assert desk.states() == {"queue": "running", "once": "stopped"}
    assert (await desk.ask("status"))["exit_code"] == 3


async def test_scale_sets_the_number_of_processes() -> None:
    desk = Desk(queue(), queue(name="beat", overlap=False))
    await desk.ask("start")
    assert (await desk.ask("scale", "queue", workers=3))["exit_code"] == 0
    assert len([name for name in desk.runner.running if name.startswith("queue.")]) == 3
    answer = await desk.ask("scale", "beat", workers=2)
    assert "must not run twice at once" in answer["errors"][0]["message"]


async def test_drain_says_that_there_is_nothing_to_drain() -> None:
    desk = Desk(queue(), web())
    await desk.ask("start")
    answer = await desk.ask("drain", all=True)
    assert answer["warnings"] == ["queue: has no connections to drain; poolctl stop queue ends it"]
    assert desk.states() == {"queue": "running", "web": "draining"}


async def test_a_reload_gives_it_an_address_and_takes_it_away() -> None:
    desk = Desk(queue())
    await desk.ask("start")
    desk.files.written = [queue(bind="127.0.0.1:9001")]
    assert (await desk.ask("reload"))["exit_code"] == 0
    await asyncio.sleep(0)
    assert desk.runner.opened == {"127.0.0.1:9001"}
    desk.files.written = [queue()]
    assert (await desk.ask("reload"))["exit_code"] == 0
    await turns()
    assert (desk.runner.opened, desk.states()) == ({"process:queue"}, {"queue": "running"})
