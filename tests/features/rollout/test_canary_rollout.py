"""One rollout from its canary's start to its end, over a scripted runner whose workers count what the test says."""

from __future__ import annotations

from typing import Any

import pytest

from poolctl.features.gateway.supervision.targets import facts_of
from poolctl.monitor.journal import JournalEvent
from poolctl.runners.process_usage import Usage
from poolctl.runners.runner_protocol import Exit
from tests.features.rollout.rollout_desk import RolloutDesk, Split, apart
from tests.unit.core.ordered_core import run, turns, web
from tests.unit.runners.scripted_runner import FAILS, NEVER


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


def test_canary_is_looked_at_again_and_again_until_its_rollout_is_over(
    desk: RolloutDesk, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def work() -> None:
        monkeypatch.setattr("poolctl.features.rollout._canary_rollout.JUDGE_SECONDS", 0)
        await desk.started()
        outcome = desk.rollout()
        await turns()
        assert not outcome.done()
        desk.runner.requests = {"web.2.0": (1000, 31)}
        (item,) = (await outcome)["items"]
        assert item["state"] == "withdrawn"

    run(work())


@pytest.mark.parametrize("behaviour", [FAILS, NEVER])
def test_canary_that_does_not_start_is_withdrawn(monkeypatch: pytest.MonkeyPatch, behaviour: str) -> None:
    async def work() -> None:
        desk = RolloutDesk(monkeypatch, **{"web.2.0": behaviour})
        await desk.started()
        outcome = desk.rollout()
        await turns()
        if behaviour == NEVER:
            desk.runner.end("web.2.0", Exit.from_returncode(7))
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
        desk.runner.end("web.2.0", Exit.from_returncode(9))
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
        desk.runner.end("web.1.1", Exit.from_returncode(1))
        await turns()
        assert desk.serving == ["web.1.0", "web.1.1", "web.1.2", "web.2.0"]

    run(work())


def test_worker_of_the_others_that_is_replaced_alone_does_not_end_a_rollout(desk: RolloutDesk) -> None:
    async def work() -> None:
        await desk.started()
        await desk.rollout(pause=True, wait=False)
        first = desk.serving[0]
        desk.core.replace_worker(desk.entry, first)
        await turns()
        assert first not in desk.serving
        desk.runner.requests = dict.fromkeys(desk.serving, (100, 0))
        desk.clock.advance(600)
        await desk.look()
        (item,) = (await desk.ask("rollouts"))["items"]
        assert (item["state"], item["before"]["workers"]) == ("paused", desk.entry.size)
        (item,) = (await desk.ask("rollout", "web", op="promote"))["items"]
        assert item["state"] == "promoted"
        assert all(each.startswith("web.2.") for each in desk.serving)

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
        assert (facts.canary_bind, facts.canary_share) == (address, 0.01)
        await desk.ask("rollout", op="abort")
        await turns()
        assert not apart(desk)
        assert desk.serving == ["web.1.0", "web.1.1", "web.1.2"]
        facts = facts_of(desk.core, desk.entry)
        assert (facts.canary_bind, facts.canary_share) == ("", 0.0)

    run(work())


def test_canary_with_its_own_address_serves_until_all_others_are_replaced(routed: RolloutDesk) -> None:
    async def work() -> None:
        desk = routed
        await desk.started()
        desk.files.written[0] = web(workers=3, env={"TURN": "2"})
        await desk.rollout(wait=False)
        seen: list[tuple[str, ...]] = []
        desk.core.observers.add(lambda entry: seen.append(tuple(desk.serving)))
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
        desk.core.split_obstacle = Split().split_obstacle
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
        desk.core.split_obstacle = Split().split_obstacle
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
        routed.core.split_obstacle = Split(obstacle).split_obstacle
        await routed.look()
        (item,) = (await outcome)["items"]
        assert item["reason"] == "requests for the server do not come through the gateway any more"
        assert routed.serving == ["web.1.0", "web.1.1", "web.1.2"]

    run(work())


def test_report_and_events_have_the_plan_and_the_figures_of_both_generations(desk: RolloutDesk) -> None:
    async def work() -> None:
        desk.runner.usages.figures = {1001: Usage(5), 1002: Usage(7)}
        await desk.started()
        seen: list[JournalEvent] = []
        desk.events.subscribe(seen.append)
        desk.runner.requests = {"web.1.0": (50, 5), "web.1.1": (7, 0)}
        (begun,) = (await desk.rollout(wait=False, seconds=30, min_requests=200))["items"]
        desk.runner.requests = {"web.1.0": (150, 7), "web.1.1": (107, 0), "web.2.0": (199, 1)}
        desk.clock.advance(29.5)
        await desk.look()
        (running,) = (await desk.ask("rollouts"))["items"]
        nothing = {"workers": 1, "requests": 0, "errors": 0}
        assert without_memory(begun) == {
            "name": "web", "state": "running", "reason": "", "what": "code", "generation": 2, "share_asked": 0.25,
            "share": 0.25, "for_seconds": 30, "elapsed_seconds": 0.0, "min_requests": 200,
            "abort_on": ["errors > 1%"], "canary": nothing, "before": {**nothing, "workers": 3},
        }  # fmt: skip
        served = {"canary": {**nothing, "requests": 199, "errors": 1},
                  "before": {**nothing, "workers": 3, "requests": 200, "errors": 2}}  # fmt: skip
        assert [running[key]["memory_bytes"] for key in ("before", "canary")] == [5, 7]
        assert without_memory(running) == {**without_memory(begun), "elapsed_seconds": 29.5, **served}
        desk.clock.advance(0.5)
        await desk.look()
        (waiting,) = (await desk.ask("rollouts"))["items"]
        assert waiting["reason"] == "waits until its workers have had 200 requests"
        desk.runner.requests["web.2.0"] = (200, 1)
        await desk.look()
        desk.clock.advance(100)
        (ended,) = (await desk.ask("rollouts"))["items"]
        assert ended["state"] == "promoted"
        assert ended["elapsed_seconds"] == 30.0
        assert ended["canary"]["requests"] == 200
        desk.events.flush()
        started, promoted = [
            each for each in seen if each.kind == "config" and each.event.startswith("rollout")
        ]
        assert (started.event, started.server, started.message, started.cause) == (
            "rollout started", "web", "1 of 4 workers, 25 % (25 % asked), code", "",
        )  # fmt: skip
        assert (promoted.event, promoted.message, promoted.cause) == (
            "rollout promoted", "1 of 4 workers, 25 % (25 % asked), code",
            "200 requests, 0.5 % errors, no condition was met",
        )  # fmt: skip
        assert (started.severity, promoted.severity) == ("info", "info")
        assert (started.detail["generation"], promoted.detail["generation"]) == (2, 2)
        assert started.detail["canary"]["requests"] == 0
        assert promoted.detail["others"]["requests"] == 200

    run(work())


def without_memory(item: dict[str, Any]) -> dict[str, Any]:
    """The report without its members that depend on the machine."""
    figures = {
        key: {name: value for name, value in item[key].items() if name != "memory_bytes"}
        for key in ("canary", "before")
    }
    return {**item, **figures}


def test_withdrawal_is_a_warning_with_its_reason(desk: RolloutDesk) -> None:
    async def work() -> None:
        await desk.started()
        seen: list[JournalEvent] = []
        await desk.rollout(wait=False, seconds=30)
        desk.events.flush()
        desk.events.subscribe(seen.append)
        await desk.ask("rollout", op="abort")
        desk.events.flush()
        (event,) = [each for each in seen if each.event.startswith("rollout")]
        assert (event.event, event.cause, event.severity) == (
            "rollout withdrawn",
            "aborted by hand",
            "warning",
        )
        report = (await desk.ask("rollouts"))["items"][0]
        desk.clock.advance(10)
        assert (await desk.ask("rollouts"))["items"] == [report], "it does not change any more"

    run(work())


def test_share_behind_a_gateway_is_said_in_requests(routed: RolloutDesk) -> None:
    async def work() -> None:
        await routed.started()
        seen: list[JournalEvent] = []
        routed.events.subscribe(seen.append)
        await routed.rollout(wait=False, share=0.015)
        routed.events.flush()
        (event,) = [each for each in seen if each.event == "rollout started"]
        assert event.message == "1.5 % of the requests through the gateway, 1 of 4 workers, code"

    run(work())


def test_paused_rollout_goes_on_when_it_is_resumed(desk: RolloutDesk) -> None:
    async def work() -> None:
        await desk.started()
        outcome = desk.rollout(pause=True)
        await turns()
        desk.runner.requests = {"web.2.0": (1000, 0)}
        desk.clock.advance(600)
        await desk.look()
        assert not outcome.done()
        assert (await desk.ask("rollout", op="resume"))["items"][0]["state"] == "running"
        await desk.look()
        assert (await outcome)["items"][0]["state"] == "promoted"

    run(work())


def test_unhealthy_canary_is_withdrawn_and_an_unhealthy_other_worker_is_not(desk: RolloutDesk) -> None:
    async def work() -> None:
        await desk.started()
        outcome = desk.rollout()
        await turns()
        workers = desk.entry.observed.workers
        workers["web.1.0"].stuck = True
        for observer in list(desk.core.observers):
            observer(desk.entry)
        await turns()
        assert not outcome.done()
        workers["web.2.0"].stuck = True
        for observer in list(desk.core.observers):
            observer(desk.entry)
        (item,) = (await outcome)["items"]
        assert item["reason"].startswith("web.2.0 is unhealthy: ")

    run(work())
