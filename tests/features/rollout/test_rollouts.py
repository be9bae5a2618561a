"""A rollout from its command to its end, over a scripted runner whose workers count what the test says."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from poolctl.core.decide import Phase
from poolctl.core.server_entry import Entry, Worker, record_of, restore
from poolctl.features.gateway.supervision.gateway_reports import facts_of
from poolctl.features.rollout._canary_rollout import CanaryRollout
from poolctl.features.rollout.rollouts import Rollouts
from poolctl.runners.runner_protocol import Capabilities, Exit, Placement
from poolctl.selection.selector import SelectorError
from poolctl.supervisor.active_configuration import PoolEnvironment
from poolctl.supervisor.verbs.verbs import AUDITED
from poolctl.worker import tally
from tests.unit.core.ordered_core import run, turns, web
from tests.unit.runners.scripted_runner import FAILS, NEVER, SlowRunner
from tests.unit.supervisor.desk import Desk, part_site

ABORT_ON = ["errors > 1%"]


class CountingRunner(SlowRunner):
    """Its workers have served the `requests` that the test gives them, by their ids: how many, and how many failed."""

    def __init__(self, **script: str) -> None:
        super().__init__(**script)
        self.requests: dict[str, tuple[int, int]] = {}

    @property
    def capabilities(self) -> Capabilities:
        return Capabilities(sleep=self, counters=self)  # type: ignore[arg-type]

    add_up = None

    def counts(self, placement: Placement) -> list[int]:
        counts = [0] * tally.COUNTED
        counts[tally.STARTED], counts[tally.STATUS + 5] = self.requests.get(placement.id, (0, 0))
        return counts


class RolloutDesk(Desk):
    """A server "web" with three workers."""

    runner: CountingRunner

    def __init__(self, monkeypatch: pytest.MonkeyPatch, **script: str) -> None:
        monkeypatch.setattr("tests.unit.supervisor.desk.SlowRunner", CountingRunner)
        super().__init__(web(workers=3), web("worker", app=None, command=["sleep", "9"]), **script)
        keeper: Any = None
        site = part_site(self.core, self.events, PoolEnvironment(self.files, keeper, "", ""))
        for name, verb in Rollouts(site).verbs.items():
            self.verbs.add(name, verb)
        self.entry = self.core.entries["web"]

    async def started(self) -> None:
        assert (await self.ask("start"))["exit_code"] == 0

    def rollout(self, **options: Any) -> asyncio.Task[dict[str, Any]]:
        return self.begin("rollout", "web", **{"share": 0.25, "seconds": 60, "abort_on": ABORT_ON} | options)

    async def look(self) -> None:
        """What a second does."""
        for each in self.core.listeners:
            if isinstance(rollout := getattr(each, "__self__", None), CanaryRollout):
                rollout.look_at_figures()
                break
        await turns()

    @property
    def serving(self) -> list[str]:
        return sorted(each.id for each in self.entry.observed.workers.values() if each.phase is Phase.READY)


@pytest.fixture
def desk(monkeypatch: pytest.MonkeyPatch) -> RolloutDesk:
    return RolloutDesk(monkeypatch)


def test_canary_serves_beside_the_others_and_is_promoted_when_its_time_is_over(desk: RolloutDesk) -> None:
    async def work() -> None:
        await desk.started()
        outcome = desk.rollout()
        await turns()
        assert desk.serving == ["web.1.0", "web.1.1", "web.1.2", "web.2.0"]
        assert desk.entry.state == "running"
        desk.runner.requests = {"web.1.0": (5000, 5), "web.2.0": (1000, 1)}
        await desk.look()
        assert not outcome.done()
        desk.clock.advance(61)
        await desk.look()
        (item,) = (await outcome)["items"]
        assert (item["state"], item["reason"]) == (
            "promoted",
            "1000 requests, 0.1 % errors, no condition was met",
        )
        assert (item["canary"]["requests"], item["before"]["requests"]) == (1000, 5000)
        assert desk.serving == ["web.2.0", "web.2.1", "web.2.2"]
        assert desk.entry.desired.canary is None

    run(work())


def test_canary_that_fails_requests_is_withdrawn_and_the_others_serve_on(desk: RolloutDesk) -> None:
    async def work() -> None:
        await desk.started()
        outcome = desk.rollout()
        await turns()
        desk.runner.requests = {"web.1.0": (5000, 0), "web.2.0": (1000, 31)}
        await desk.look()
        answer = await outcome
        assert answer["exit_code"] == 1
        assert answer["errors"][0]["message"] == "withdrawn: errors > 1%: 3.1 %, in 1000 requests"
        assert desk.serving == ["web.1.0", "web.1.1", "web.1.2"]
        assert not any(name.startswith("web.2") for name in desk.runner.running)

    run(work())


@pytest.mark.parametrize("behaviour", [FAILS, NEVER])
def test_canary_that_does_not_start_is_withdrawn(monkeypatch: pytest.MonkeyPatch, behaviour: str) -> None:
    async def work() -> None:
        desk = RolloutDesk(monkeypatch, **{"web.2.0": behaviour})
        await desk.started()
        outcome = desk.rollout()
        await turns()
        if behaviour == NEVER:
            desk.runner.end("web.2.0", Exit.from_status(7))
        (item,) = (await outcome)["items"]
        assert item["state"] == "withdrawn"
        assert item["reason"].startswith("a worker exited with status ")
        assert desk.serving == ["web.1.0", "web.1.1", "web.1.2"]
        assert "place web.2.1" not in desk.runner.log
        assert desk.runner.log.count("place web.2.0") == 1

    run(work())


def test_canary_that_crashes_is_withdrawn_and_not_started_again(desk: RolloutDesk) -> None:
    async def work() -> None:
        await desk.started()
        outcome = desk.rollout()
        await turns()
        desk.runner.end("web.2.0", Exit.from_status(9))
        assert (await outcome)["items"][0]["state"] == "withdrawn"
        assert desk.serving == ["web.1.0", "web.1.1", "web.1.2"]
        assert desk.entry.observed.restarts == 0
        assert desk.runner.log.count("place web.2.0") == 1

    run(work())


def test_worker_of_the_others_that_dies_is_replaced_during_a_rollout(monkeypatch: pytest.MonkeyPatch) -> None:
    async def work() -> None:
        desk = RolloutDesk(monkeypatch)
        desk.core.change(desk.entry, web(workers=3, restart="always"), live=True)
        await desk.started()
        desk.rollout()
        await turns()
        desk.runner.end("web.1.1", Exit.from_status(1))
        await turns()
        assert desk.serving == ["web.1.0", "web.1.1", "web.1.2", "web.2.0"]

    run(work())


def test_paused_rollout_is_promoted_by_hand(desk: RolloutDesk) -> None:
    async def work() -> None:
        await desk.started()
        answer = await desk.rollout(pause=True, wait=False)
        assert answer["items"][0]["state"] == "paused"
        desk.runner.requests = {"web.2.0": (1000, 0)}
        desk.clock.advance(600)
        await desk.look()
        assert (await desk.ask("rollouts"))["items"][0]["state"] == "paused"
        (item,) = (await desk.ask("rollout", "web", op="promote"))["items"]
        assert (item["state"], item["reason"]) == ("promoted", "promoted by hand")
        assert desk.serving == ["web.2.0", "web.2.1", "web.2.2"]

    run(work())


def test_aborted_rollout_leaves_the_others_and_is_no_failure(desk: RolloutDesk) -> None:
    async def work() -> None:
        await desk.started()
        await desk.rollout(wait=False)
        answer = await desk.ask("rollout", op="abort")
        assert (answer["exit_code"], answer["items"][0]["state"]) == (0, "withdrawn")
        assert desk.serving == ["web.1.0", "web.1.1", "web.1.2"]
        assert (await desk.ask("rollout", op="abort"))["exit_code"] == 8

    run(work())


@pytest.mark.parametrize("verb", ["restart", "stop"])
def test_other_command_for_the_server_replaces_its_rollout(desk: RolloutDesk, verb: str) -> None:
    async def work() -> None:
        await desk.started()
        outcome = desk.rollout()
        await turns()
        await desk.ask(verb, "web")
        (item,) = (await outcome)["items"]
        assert (item["state"], item["reason"]) == (
            "withdrawn", "another command, or the end of the server, replaced it",
        )  # fmt: skip
        assert desk.serving == ([] if verb == "stop" else ["web.3.0", "web.3.1", "web.3.2"])

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
        successor.core.withdraw_lost_canaries()
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
            {"abort_on": ["cpu > 1"]},
            {"op": "undo"},
        ):
            with pytest.raises(SelectorError):
                await desk.ask("rollout", "web", **wrong)

    run(work())


class Split:
    """A gateway that can give a canary its exact share, or cannot for this reason."""

    def __init__(self, obstacle: str | None = "") -> None:
        self.obstacle = obstacle

    def split_obstacle(self, server: str) -> str | None:
        return self.obstacle if server == "web" else None


@pytest.fixture
def routed(desk: RolloutDesk) -> RolloutDesk:
    """Its server "web" is reached through a gateway."""
    desk.core.traffic_split = Split()
    return desk


def apart(desk: RolloutDesk) -> set[str]:
    """The open addresses that no server has."""
    return desk.runner.opened - {each.config.key for each in desk.core.entries.values()}


def test_behind_a_gateway_the_share_is_exact_and_the_canary_has_its_own_address(routed: RolloutDesk) -> None:
    async def work() -> None:
        desk = routed
        await desk.started()
        (item,) = (await desk.rollout(wait=False, share=0.01))["items"]
        assert (item["share"], item["share_asked"]) == (0.01, 0.01)
        (address,) = apart(desk)
        canary = desk.entry.observed.workers["web.2.0"]
        assert (canary.config.key, canary.config.name) == (address, "web")
        assert desk.entry.observed.workers["web.1.0"].config.key == desk.entry.config.key
        facts = facts_of(desk.core, desk.entry)
        assert (facts.canary, facts.canary_bind, facts.canary_share) == ("web (canary)", address, 0.01)
        await desk.ask("rollout", op="abort")
        await turns()
        assert not apart(desk)
        assert desk.serving == ["web.1.0", "web.1.1", "web.1.2"]
        facts = facts_of(desk.core, desk.entry)
        assert (facts.canary, facts.canary_bind, facts.canary_share) == ("", "", 0.0)

    run(work())


def test_canary_with_its_own_address_serves_until_all_others_are_replaced(routed: RolloutDesk) -> None:
    async def work() -> None:
        desk = routed
        await desk.started()
        desk.files.written[0] = web(workers=3, env={"TURN": "2"})
        await desk.rollout(wait=False)
        seen: list[tuple[str, ...]] = []
        desk.core.listeners.add(lambda entry: seen.append(tuple(desk.serving)))
        (item,) = (await desk.ask("rollout", "web", op="promote"))["items"]
        await turns()
        assert (item["state"], item["what"]) == ("promoted", "env.TURN changed")
        assert desk.serving == ["web.3.0", "web.3.1", "web.3.2"]
        assert desk.entry.config.env == {"TURN": "2"}
        assert {each.config.key for each in desk.entry.observed.workers.values()} == {desk.entry.config.key}
        assert ("web.2.0", "web.3.0", "web.3.1", "web.3.2") in seen
        assert not apart(desk)
        assert desk.entry.desired.canary is None
        assert not (await desk.ask("reload", dry_run=True))["changes"]

    run(work())


def test_promotion_whose_workers_do_not_start_leaves_the_others_and_ends_the_canary(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def work() -> None:
        desk = RolloutDesk(monkeypatch, **{f"web.3.{index}": FAILS for index in range(3)})
        desk.core.traffic_split = Split()
        await desk.started()
        desk.files.written[0] = web(workers=3, env={"TURN": "2"})
        await desk.rollout(wait=False)
        answer = await desk.ask("rollout", "web", op="promote")
        await turns()
        assert answer["items"][0]["state"] == "withdrawn"
        assert desk.serving == ["web.1.0", "web.1.1", "web.1.2"]
        assert desk.entry.config.env == {}
        assert not apart(desk)

    run(work())


@pytest.mark.parametrize("verb", ["restart", "stop", "disable"])
def test_other_command_closes_the_address_of_the_canary(routed: RolloutDesk, verb: str) -> None:
    async def work() -> None:
        desk = routed
        await desk.started()
        outcome = desk.rollout()
        await turns()
        assert apart(desk)
        await desk.ask(verb, "web")
        await turns()
        assert (await outcome)["items"][0]["state"] == "withdrawn"
        assert not apart(desk)

    run(work())


def test_stop_during_a_promotion_ends_the_rollout(monkeypatch: pytest.MonkeyPatch) -> None:
    async def work() -> None:
        desk = RolloutDesk(monkeypatch, **{f"web.3.{index}": NEVER for index in range(3)})
        desk.core.traffic_split = Split()
        await desk.started()
        outcome = desk.rollout(pause=True)
        await turns()
        promoting = desk.begin("rollout", "web", op="promote")
        await turns()
        await desk.ask("stop", "web")
        assert (await outcome)["items"][0]["state"] == "withdrawn"
        await promoting
        assert not apart(desk)

    run(work())


def test_where_the_gateway_cannot_share_whole_workers_are_taken_and_the_reason_is_said_first(
    desk: RolloutDesk,
) -> None:
    async def work() -> None:
        desk.core.traffic_split = Split("HAProxy serves its routes")
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


@pytest.mark.parametrize("obstacle", [None, "HAProxy serves its routes"])
def test_canary_is_withdrawn_when_the_gateway_cannot_send_it_requests_any_more(
    routed: RolloutDesk, obstacle: str | None
) -> None:
    async def work() -> None:
        await routed.started()
        outcome = routed.rollout()
        await turns()
        await routed.look()
        assert not outcome.done()
        routed.core.traffic_split = Split(obstacle)
        await routed.look()
        (item,) = (await outcome)["items"]
        assert item["reason"] == "requests for the server do not come through the gateway any more"
        assert routed.serving == ["web.1.0", "web.1.1", "web.1.2"]

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
        worker = Worker(each.id, each.generation, each.index, each.config, Phase.READY, each.placement, 1.0)
        successor.core.adopt_worker(entry, worker)
    for each in before.observed.workers.values():
        successor.core.adopt_listener(entry, each.config, (each.config.key,))
    successor.core.resume(entry)


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
        successor.core.withdraw_lost_canaries()
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
        assert (facts.canary, facts.canary_share, len(apart(routed))) == ("", 0.0, 1)
        successor.core.withdraw_lost_canaries()
        await turns()
        assert not apart(routed)
        assert sorted(entry.observed.workers) == ["web.1.0", "web.1.1", "web.1.2"]

    run(work())


def test_rollouts_that_change_the_pool_are_audited() -> None:
    assert {"rollout", "rollouts"} & AUDITED == {"rollout"}
