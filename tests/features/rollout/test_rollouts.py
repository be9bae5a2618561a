"""A rollout from its command to its end, over a scripted runner whose workers count what the test says."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from poolctl.control.answers import ErrorEntry
from poolctl.core.decide import WorkerPhase
from poolctl.core.server_entry import Entry, Worker, record_of, restore
from poolctl.features.gateway.supervision.targets import facts_of
from poolctl.features.rollout import rollouts
from poolctl.json_form import from_json
from poolctl.selection.selector import SelectorError
from poolctl.supervisor.verbs.verbs import AUDITED
from tests.features.rollout.rollout_desk import RolloutDesk, Split, apart
from tests.unit.core.ordered_core import run, turns, web
from tests.unit.supervisor.desk import Desk


def test_aborted_rollout_leaves_the_others_and_is_no_failure(desk: RolloutDesk) -> None:
    async def work() -> None:
        await desk.started()
        await desk.rollout(wait=False)
        answer = await desk.ask("rollout", op="abort")
        assert (answer["exit_code"], answer["items"][0]["state"]) == (0, "withdrawn")
        assert desk.serving == ["web.1.0", "web.1.1", "web.1.2"]
        assert (await desk.ask("rollout", op="abort"))["exit_code"] == 8

    run(work())


def test_rollout_that_another_command_aborts_has_failed(desk: RolloutDesk) -> None:
    async def work() -> None:
        await desk.started()
        waiting = asyncio.ensure_future(desk.rollout())
        while (await desk.ask("rollout", op="abort"))["exit_code"] != 0:
            await asyncio.sleep(0)
        answer = await waiting
        assert (answer["exit_code"], answer["items"][0]["state"]) == (1, "withdrawn")
        (error,) = answer["errors"]
        assert (error["name"], error["message"]) == ("web", "withdrawn: aborted by hand")

    run(work())


def test_next_supervisor_withdraws_a_rollout_and_reports_it(desk: RolloutDesk) -> None:
    async def work() -> None:
        await desk.started()
        await desk.rollout(wait=False)
        record = record_of(desk.entry)
        successor = Desk(web(workers=3))
        entry = successor.core.entries["web"]
        restore(entry, record)
        assert (entry.desired.generation, entry.desired.canary) == (1, None)
        seen: list[Any] = []
        successor.events.subscribe(seen.append)
        successor.core.withdraw_canaries_of_previous_supervisor()
        successor.events.flush()
        (event,) = seen
        assert (event.event, event.server, event.cause) == (
            "rollout withdrawn", "web", "the supervisor was replaced",
        )  # fmt: skip
        assert "canary_generation" not in record_of(entry)

    run(work())


def test_changed_configuration_is_tried_and_in_force_after_the_promotion(desk: RolloutDesk) -> None:
    async def work() -> None:
        await desk.started()
        before = desk.entry.config
        desk.files.written[0] = web(workers=3, env={"TURN": "2"})
        answer = await desk.rollout(wait=False)
        assert answer["items"][0]["what"] == "env.TURN changed"
        assert desk.entry.config is before
        assert {each.id: each.config.env for each in desk.entry.observed.workers.values()} == {
            "web.1.0": {}, "web.1.1": {}, "web.1.2": {}, "web.2.0": {"TURN": "2"},
        }  # fmt: skip
        await desk.ask("rollout", "web", op="promote")
        assert desk.entry.config.env == {"TURN": "2"}
        assert desk.serving == ["web.2.0", "web.2.1", "web.2.2"]
        assert all(desk.entry.observed.workers[each].config.env == {"TURN": "2"} for each in desk.serving)
        assert not (await desk.ask("reload", dry_run=True))["changes"]

    run(work())


def test_refusal_during_a_recovery_says_to_wait_for_its_end(desk: RolloutDesk) -> None:
    async def scenario() -> None:
        await desk.started()
        desk.entry.observed.recovering = {"step": "replace", "generation": 1, "stuck": []}
        answer = await desk.rollout()
        assert answer["exit_code"] == 8
        (error,) = answer["errors"]
        assert error["message"].startswith("a recovery of web is under way")
        assert error["hint"] == "poolctl wait web, then repeat it"

    run(scenario())


def test_refusal_of_a_sleeping_server_names_the_command_that_wakes_it(desk: RolloutDesk) -> None:
    async def scenario() -> None:
        await desk.started()
        desk.files.written[0] = web(scale={"min": 0, "max": 3, "idle": 60})
        await desk.ask("reload")
        await desk.ask("stop")
        await desk.ask("start")
        answer = await desk.rollout()
        assert answer["exit_code"] == 8
        (error,) = answer["errors"]
        assert error["message"].startswith("web is sleeping")
        assert error["hint"] == "poolctl scale web 1"
        await desk.ask("scale", "web", workers=1)
        assert (await desk.rollout(share=0.5, wait=False))["exit_code"] == 0

    run(scenario())


def test_what_cannot_be_tried_on_a_share_is_refused_with_the_reason(desk: RolloutDesk) -> None:
    async def refusal(*targets: str, **options: Any) -> str:
        answer = await desk.ask("rollout", *targets, **{"share": 0.25} | options)
        assert answer["exit_code"] == 8
        return str(answer["errors"][0]["message"])

    async def work() -> None:
        assert "web is stopped" in await refusal("web")
        await desk.started()
        assert "a program" in await refusal("worker")
        assert "more than twice the 5 % asked for" in await refusal("web", share=0.05)
        desk.files.written[0] = web(workers=3, bind="127.0.0.1:9999")
        assert "bind changed, which all of its workers have in common" in await refusal("web")
        desk.files.written[0] = web(workers=3)
        await desk.rollout(wait=False)
        assert "a rollout of web is under way" in await refusal("web")
        for wrong in (
            {"share": 0},
            {"share": 1},
            {"seconds": "1m"},
            {"share": True},
            {"seconds": -1},
            {"seconds": float("inf")},
            {"abort_on": ["cpu > 1"]},
            {"abort_on": "errors > 1%"},
            {"abort_on": [1]},
            {"op": "undo"},
        ):
            with pytest.raises(SelectorError):
                await desk.ask("rollout", "web", **wrong)
        with pytest.raises(SelectorError, match="a rollout is of one server, and 2 are selected"):
            await desk.ask("rollout", "web", "worker")

    run(work())


def test_files_that_are_not_valid_begin_no_rollout(desk: RolloutDesk) -> None:
    async def work() -> None:
        await desk.started()
        desk.files.wrong = [from_json(ErrorEntry, {"message": "unknown key 'bin'"})]
        answer = await desk.rollout()
        assert (answer["exit_code"], [each["message"] for each in answer["errors"]]) == (
            5,
            ["unknown key 'bin'"],
        )
        assert desk.serving == ["web.1.0", "web.1.1", "web.1.2"]

    run(work())


def test_server_whose_generations_may_not_overlap_has_no_rollout(desk: RolloutDesk) -> None:
    async def work() -> None:
        await desk.started()
        desk.entry.config = web(workers=3, overlap=False)
        answer = await desk.rollout()
        assert answer["exit_code"] == 8
        assert answer["errors"][0]["message"] == "web: two generations of it may not run at once"

    run(work())


def test_rollout_is_paused_resumed_and_shown(desk: RolloutDesk) -> None:
    async def work() -> None:
        await desk.started()
        assert (await desk.ask("rollouts"))["items"] == []
        await desk.rollout(wait=False)
        for operation, state in (("pause", "paused"), ("resume", "running")):
            answer = await desk.ask("rollout", "web", op=operation)
            assert [each["state"] for each in answer["items"]] == [state]
            assert (await desk.ask("rollouts", "web"))["items"] == answer["items"]
        assert (await desk.ask("rollouts", "worker"))["items"] == []

    run(work())


def test_request_that_is_repeated_after_the_promotion_gets_its_result(desk: RolloutDesk) -> None:
    async def work() -> None:
        await desk.started()
        await desk.rollout(wait=False)
        await desk.ask("rollout", "web", op="promote")
        answer = await desk.rollout(again=2)
        (item,) = answer["items"]
        assert (item["state"], item["generation"]) == ("promoted", 2)
        assert item["reason"] == "promoted before the supervisor was replaced"
        assert desk.entry.desired.generation == 2
        (item,) = (await desk.rollout(again=3, wait=False))["items"]
        assert (item["state"], item["generation"]) == ("running", 3)

    run(work())


def test_server_that_stops_while_its_canarys_address_is_opened_has_no_rollout(routed: RolloutDesk) -> None:
    async def work() -> None:
        await routed.started()
        routed.runner.may_open.clear()
        answer = routed.rollout()
        await turns()
        await routed.ask("stop", "web")
        routed.runner.may_open.set()
        assert (await answer)["errors"][0]["message"].startswith("web is stopped")
        await turns()
        assert not apart(routed)

    run(work())


def test_where_the_gateway_cannot_share_whole_workers_are_taken_and_the_reason_is_said_first(
    desk: RolloutDesk,
) -> None:
    async def work() -> None:
        desk.core.split_obstacle = Split("HAProxy serves its routes").split_obstacle
        await desk.started()
        answer = await desk.ask("rollout", "web", share=0.05)
        assert answer["errors"][0]["message"].endswith(
            "more than twice the 5 % asked for; HAProxy serves its routes"
        )
        seen: list[Any] = []
        desk.events.subscribe(seen.append)
        await desk.rollout(wait=False)
        desk.events.flush()
        said = [each.message for each in seen if each.event == "rollout started"]
        assert said == ["HAProxy serves its routes: 1 of 4 workers, 25 % (25 % asked), code"]
        assert not apart(desk)

    run(work())


def test_next_rollout_begins_once_the_address_of_the_last_canary_is_closed(routed: RolloutDesk) -> None:
    async def work() -> None:
        desk = routed
        await desk.started()
        await desk.rollout(wait=False)
        (before,) = apart(desk)
        desk.runner.may_close.clear()
        await desk.ask("rollout", op="abort")
        answer = desk.rollout(wait=False)
        await turns()
        assert not answer.done()
        assert apart(desk) == {before}
        desk.runner.may_close.set()
        assert (await answer)["items"][0]["state"] == "running"
        assert desk.serving == ["web.1.0", "web.1.1", "web.1.2", "web.3.0"]
        assert desk.entry.observed.workers["web.3.0"].config.key in apart(desk)

    run(work())


def test_address_of_the_last_canary_that_stays_open_prevents_the_next_rollout(
    routed: RolloutDesk, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rollouts, "_LAST_CANARY_SECONDS", 0.01)

    async def work() -> None:
        await routed.started()
        await routed.rollout(wait=False)
        routed.runner.may_close.clear()
        await routed.ask("rollout", op="abort")
        answer = await routed.rollout()
        assert (answer["exit_code"], answer["errors"][0]["message"]) == (
            8, "web: its last canary has not left yet",
        )  # fmt: skip
        routed.runner.may_close.set()

    run(work())


def test_canary_whose_address_cannot_be_opened_is_refused(routed: RolloutDesk) -> None:
    async def work() -> None:
        await routed.started()
        routed.runner.unopenable.add("web")
        answer = await routed.ask("rollout", "web", share=0.05)
        assert answer["exit_code"] == 8
        assert answer["errors"][0]["message"].startswith("web: its canary has no address: ")
        assert routed.serving == ["web.1.0", "web.1.1", "web.1.2"]

    run(work())


def adopt(successor: Desk, before: Entry) -> None:
    """What the successor does with the workers and the listeners of its predecessor."""
    entry = successor.core.entries[before.name]
    for each in before.observed.workers.values():
        worker = Worker(
            each.id, each.generation, each.index, each.config, WorkerPhase.READY, each.placement, 1.0
        )
        successor.core.adopt_worker(entry, worker)
    for each in before.observed.workers.values():
        successor.core.adopt_listener(entry, each.config, (each.config.key,))
    successor.core.resume_adopted_server(entry)


def test_next_supervisor_withdraws_a_canary_with_its_own_address_after_it_has_adopted_it(
    routed: RolloutDesk,
) -> None:
    async def work() -> None:
        await routed.started()
        await routed.rollout(wait=False)
        record = record_of(routed.entry)
        successor = Desk(web(workers=3), runner=routed.runner)
        entry = successor.core.entries["web"]
        restore(entry, record)
        adopt(successor, routed.entry)
        await turns()
        (address,) = apart(routed)
        assert (facts_of(successor.core, entry).canary_bind, entry.desired.canary_share) == (address, 0.25)
        successor.core.withdraw_canaries_of_previous_supervisor()
        await turns()
        assert not apart(routed)
        assert sorted(entry.observed.workers) == ["web.1.0", "web.1.1", "web.1.2"]
        assert "canary_share" not in record_of(entry)

    run(work())


def test_next_supervisor_takes_a_canary_that_was_not_recorded_yet_from_the_gateway(
    routed: RolloutDesk,
) -> None:
    async def work() -> None:
        await routed.started()
        record = record_of(routed.entry)
        await routed.rollout(wait=False)
        successor = Desk(web(workers=3), runner=routed.runner)
        entry = successor.core.entries["web"]
        restore(entry, record)
        adopt(successor, routed.entry)
        await turns()
        facts = facts_of(successor.core, entry)
        assert (facts.canary_share, len(apart(routed))) == (0.0, 1)
        successor.core.withdraw_canaries_of_previous_supervisor()
        await turns()
        assert not apart(routed)
        assert sorted(entry.observed.workers) == ["web.1.0", "web.1.1", "web.1.2"]

    run(work())


def test_rollouts_that_change_the_pool_are_audited() -> None:
    assert {"rollout", "rollouts"} & AUDITED == {"rollout"}
