"""Commands that only read change nothing, and serialise nothing for the next supervisor."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from poolctl import ServerConfig
from poolctl.control.answers import ProgressLine
from poolctl.json_form import from_json
from poolctl.keeper.store import Store
from poolctl.monitor.event_queue import EventBus
from poolctl.monitor.journal import Journal, JournalEvent
from poolctl.runners.runner_protocol import Exit
from poolctl.runners.stack_report import WorkerStacks
from poolctl.selection.selector import Selector, SelectorError
from poolctl.supervisor.statistics import Statistics, Totals
from poolctl.supervisor.takeover.state_store import StateStore
from poolctl.supervisor.verbs.reading_verbs import expiry_warning
from poolctl.supervisor.verbs.verb import Call
from tests.coroutines import staged_by
from tests.unit.core.ordered_core import run, turns, web
from tests.unit.runners.scripted_runner import FAILS, NEVER, SlowRunner
from tests.unit.supervisor.desk import Desk
from tests.unit.supervisor.test_state_store import StoreLink


class Recorded(Desk):
    """A desk that leaves to a successor what has changed, as the supervisor does after each answer."""

    def __init__(self, directory: Path) -> None:
        super().__init__(*(web(f"s{number}") for number in range(3)))
        self.link = StoreLink(Store())
        self.store = StateStore(self.link, str(directory))
        totals = Totals(self.core, self.runner.tallies, self.events, self.store)
        self.statistics = Statistics(self.core, totals)
        self.verbs.add("stats", self.statistics.stats)
        self.verbs.add("monitor", self.statistics.monitor)

    async def begin(self) -> None:
        """Start the servers."""
        await self.ask("start")
        await turns()
        await self.ask("list")  # what has come of the start is written with this answer

    async def ask(self, verb: str, *targets: str, **options: Any) -> dict[str, Any]:
        document = await super().ask(verb, *targets, **options)
        if self.core.take_changed():
            self.store.note_changed()
        self.store.save(self.core.entries)
        return document


@pytest.fixture
def scenario(tmp_path: Path) -> Callable[..., None]:
    def begin(work: Callable[[Recorded], Any]) -> None:
        async def whole() -> None:
            desk = Recorded(tmp_path)
            await desk.begin()
            await work(desk)
            desk.link.end()

        run(whole())

    return begin


@pytest.mark.parametrize("verb", ["list", "show", "status", "wait", "stats", "monitor"])
@staged_by("scenario")
async def test_a_read_changes_nothing(desk: Recorded, /, verb: str) -> None:
    for _ in range(3):
        assert (await desk.ask(verb))["exit_code"] == 0
        await asyncio.sleep(0)
    assert desk.core.take_changed() == []


@staged_by("scenario")
async def test_change_without_a_command_is_written_with_the_next_answer(desk: Recorded, /) -> None:
    desk.runner.end("s2.1.0", Exit(status=1, message="exited with status 1"))
    await turns()
    assert (await desk.ask("list", "s2"))["items"][0]["state"] == "failed"
    assert desk.store.saved_state().servers["s2"]["desired"] == "failed"


async def test_wait_for_a_stop_does_not_quote_the_failure_of_an_earlier_restart() -> None:
    desk = Desk(web(), **{"web.2.0": FAILS})
    await desk.ask("start")
    assert (await desk.ask("restart"))["exit_code"] == 1
    answer = await desk.ask("wait", **{"for": "stopped", "timeout": 0.01})
    assert (answer["exit_code"], answer["errors"][0]["message"]) == (124, "is running, not stopped")
    assert answer["errors"][0]["hint"] == "poolctl stop web"


async def test_status_counts_what_should_run_and_names_what_does_not() -> None:
    desk = Desk(web("a"), web("b"), web("off", disabled=True), web("done"), b=FAILS)
    await desk.ask("start", "a", "b")
    answer = await desk.ask("status")
    assert answer["exit_code"] == 3
    summary = answer["summary"]
    assert (summary["servers"], summary["should_run"], summary["ready"]) == (4, 3, 1)
    assert summary["states"] == {"running": 1, "failed": 1, "disabled": 1, "stopped": 1}
    assert summary["health"] == {"ok": 1, "ko": 1, "unknown": 2}
    assert summary["keeper_pid"] == 1
    assert [(error["name"], error["message"]) for error in answer["errors"]] == [
        ("b", "exited with status 3 before it was ready")
    ]
    one = await desk.ask("status", "a")
    assert (one["exit_code"], one["errors"], [item["name"] for item in one["items"]]) == (0, [], ["a"])
    await desk.ask("stop", "b", "done")
    assert (await desk.ask("status"))["exit_code"] == 0


async def test_status_names_the_dependency_that_keeps_a_server_from_starting() -> None:
    desk = Desk(web("db", disabled=True), web("api", depends_on=["db"]))
    await desk.ask("start")
    (error,) = (await desk.ask("status"))["errors"]
    assert error["name"] == "api"
    assert "db" in error["message"]


async def test_status_of_an_unhealthy_server_has_its_complaint() -> None:
    desk = Desk(web("a"))
    await desk.ask("start")
    (worker,) = desk.core.entries["a"].observed.workers.values()
    worker.stuck = True
    answer = await desk.ask("status")
    assert (answer["exit_code"], answer["summary"]["health"]) == (3, {"ko": 1})
    (error,) = answer["errors"]
    assert error["message"].startswith("runs but is unhealthy: ")
    late = await desk.ask("wait", **{"for": "healthy", "timeout": 0.01})
    assert late["exit_code"] == 124
    assert late["errors"][0]["message"].startswith("is running, not healthy: ")


async def test_status_warns_of_a_failed_run_of_a_job() -> None:
    desk = Desk(ServerConfig(name="nightly", job=True, every="0 3 * * *", command=["backup"]), nightly=FAILS)
    await desk.ask("start")
    entry = desk.core.entries["nightly"]
    entry.schedule.last_run = {
        "result": "failed", "started_at": 1.0, "ended_at": 2.0, "status": 3, "signal": None,
        "message": "exited with status 3",
    }  # fmt: skip
    warnings = (await desk.ask("status"))["warnings"]
    (nightly,) = [warning for warning in warnings if warning.startswith("nightly: ")]
    assert "exited with status 3" in nightly


async def test_wait_names_goals_that_there_are() -> None:
    desk = Desk(web())
    with pytest.raises(SelectorError, match="nothing can be 'flying'") as caught:
        await desk.ask("wait", **{"for": "flying"})
    assert caught.value.hint.startswith("one of: ready, healthy, ")
    assert "stopped" in caught.value.hint


async def test_wait_returns_when_the_goal_is_reached() -> None:
    desk = Desk(web("a"), web("off", disabled=True), a=NEVER)
    starting = desk.begin("start", "a")
    await turns()
    for goal in ("ready", "healthy", "running"):
        late = await desk.ask("wait", **{"for": goal, "timeout": 0.01})
        assert late["exit_code"] == 124, goal
        assert [error["message"] for error in late["errors"]] == [f"is starting, not {goal}"], goal
    assert (await desk.ask("wait", "off", **{"for": "stopped", "timeout": 0.01}))["exit_code"] == 0
    assert (await desk.ask("wait", "a", **{"for": "starting", "timeout": 0.01}))["exit_code"] == 0
    assert (await desk.ask("wait", "off", **{"for": "disabled", "timeout": 0.01}))["exit_code"] == 0
    waiting = desk.begin("wait", "a", **{"for": "stopped"})
    await turns()
    assert not waiting.done()
    await desk.ask("stop", "a")
    answer = await waiting
    assert (answer["exit_code"], answer["items"][0]["state"]) == (0, "stopped")
    starting.cancel()


async def test_sleeping_server_is_ready_and_healthy() -> None:
    desk = Desk(web("a", scale={"min": 0}))
    await desk.ask("start")
    assert desk.states() == {"a": "sleeping"}
    for goal in ("ready", "healthy", "sleeping"):
        assert (await desk.ask("wait", **{"for": goal, "timeout": 0.01}))["exit_code"] == 0, goal
    assert (await desk.ask("wait", **{"for": "stopped", "timeout": 0.01}))["exit_code"] == 124


async def test_failed_server_is_not_stopped_and_says_why_it_is_not_ready() -> None:
    desk = Desk(web("a"), a=FAILS)
    await desk.ask("start")
    late = await desk.ask("wait", timeout=0.01)
    assert late["errors"][0]["message"] == "exited with status 3 before it was ready"
    assert (await desk.ask("wait", **{"for": "stopped", "timeout": 0.01}))["exit_code"] == 124
    assert (await desk.ask("wait", **{"for": "failed", "timeout": 0.01}))["exit_code"] == 0


class Dump(SlowRunner):
    """Stacks of workers, of which one does not answer."""

    def __init__(self) -> None:
        super().__init__()
        self.asked_for: list[tuple[str, float]] = []

    async def stacks(self, worker: str, seconds: float) -> WorkerStacks | None:
        self.asked_for.append((worker, seconds))
        return None if worker == "b.1.0" else from_json(WorkerStacks, {"name": "a", "worker": worker})


async def test_stacks_are_those_of_each_worker_that_answers() -> None:
    dump = Dump()
    desk = Desk(web("a", workers=2), web("b"), web("idle"), runner=dump)
    await desk.ask("start", "a", "b")
    answer = await desk.ask("stacks")
    assert ([item["worker"] for item in answer["items"]], answer["warnings"]) == (["a.1.0", "a.1.1"], [])
    assert dump.asked_for == [("a.1.0", 2.0), ("a.1.1", 2.0), ("b.1.0", 2.0)]
    answer = await desk.ask("stacks", "idle", "a")
    assert answer["warnings"] == ["idle: has no worker"]
    next(iter(desk.core.entries["a"].observed.workers.values())).placement = None
    assert [item["worker"] for item in (await desk.ask("stacks", "a"))["items"]] == ["a.1.1"]


class Following:
    """A client of the verb `events`."""

    def __init__(self, desk: Desk, *targets: str, **options: Any) -> None:
        self.seen: list[tuple[int, str, str]] = []

        def receive(line: ProgressLine) -> None:
            event = line.event or {}
            self.seen.append((event["seq"], event.get("server", ""), event["event"]))

        call = Call(Selector.from_dict({"targets": list(targets)}), options, receive)
        self.answer = asyncio.ensure_future(desk.verbs.perform("events", call))


class CountedSubscriptions(EventBus):
    """`subscribed` is the number of subscriptions that have not ended."""

    subscribed = 0

    def subscribe(self, fn: Callable[[JournalEvent], None]) -> Callable[[], None]:
        end = super().subscribe(fn)
        self.subscribed += 1

        def end_and_count() -> None:
            self.subscribed -= 1
            end()

        return end_and_count


def recorded(directory: Path) -> Desk:
    """A desk with a journal of four events."""
    desk = Desk(web("a"), web("b"))
    desk.events = CountedSubscriptions(desk.clock)
    desk.use(desk.files)
    desk.events.write_to(Journal(str(directory / "events.jsonl")))
    desk.events.record("lifecycle", "started", server="a")
    desk.events.record("config", "reloaded")
    desk.events.record("lifecycle", "started", server="b")
    desk.events.record("audit", "stop", server="a")
    return desk


async def test_past_events_are_those_that_are_asked_for(tmp_path: Path) -> None:
    desk = recorded(tmp_path)
    every = Following(desk)
    answer = await every.answer
    assert (answer.seq, answer.path) == (4, str(tmp_path / "events.jsonl"))
    assert [seq for seq, _, _ in every.seen] == [1, 2, 3, 4]
    for options, numbers in (
        ({"lines": 2}, [3, 4]), ({"lines": 0}, []), ({"kind": ["config"]}, [2]), ({"after": 2}, [3, 4]),
        ({"after": 9}, [1, 2, 3, 4]),
    ):  # fmt: skip
        client = Following(desk, **options)
        await client.answer
        assert [seq for seq, _, _ in client.seen] == numbers, options
    client = Following(desk, "a")
    await client.answer
    assert [seq for seq, _, _ in client.seen] == [1, 4]
    without = Desk(web())
    assert (await Following(without).answer).path == ""


async def test_new_events_follow_until_the_supervisor_ends(tmp_path: Path) -> None:
    desk = recorded(tmp_path)
    over = desk.supervisor_over
    client = Following(desk, "b", follow=True, lines=1)
    async with asyncio.timeout(20):
        while len(client.seen) < 1:
            await asyncio.sleep(0.001)
        desk.events.record("lifecycle", "stopped", server="a")
        desk.events.record("lifecycle", "stopped", server="b")
        desk.events.flush()
        while len(client.seen) < 2:
            await asyncio.sleep(0.001)
        assert not client.answer.done()
        over.set()
        await client.answer
    assert client.seen == [(3, "b", "started"), (6, "b", "stopped")]
    assert desk.events.subscribed == 0


async def test_client_that_leaves_while_it_follows_leaves_no_subscription_and_no_task(tmp_path: Path) -> None:
    desk = recorded(tmp_path)
    others = asyncio.all_tasks()
    client = Following(desk, follow=True)
    async with asyncio.timeout(20):
        while len(client.seen) < 4:
            await asyncio.sleep(0.001)
        await turns()
        client.answer.cancel()
        await asyncio.wait({client.answer})
    await turns()
    assert asyncio.all_tasks() == others
    assert desk.events.subscribed == 0


@pytest.mark.parametrize(
    "options",
    [
        {"lines": -1},
        {"lines": True},
        {"lines": "all"},
        {"kind": ["party"]},
        {"since": "soon"},
        {"after": "x"},
    ],
)
async def test_malformed_wish_for_events_is_refused(tmp_path: Path, options: dict[str, Any]) -> None:
    with pytest.raises(SelectorError, match="what is wanted") as caught:
        await Following(recorded(tmp_path), **options).answer
    assert "lines and after as numbers" in caught.value.hint


DAY = 86400.0


@pytest.mark.parametrize(
    ("ends_in", "said"),
    [
        (20 * DAY, ""),
        (14 * DAY, ""),
        (13.5 * DAY, "expires on 2001-09-22 (in 13 days); renew it, then poolctl reload"),
        (1.5 * DAY, "(in 1 day)"),
        (0.5 * DAY, "(within a day)"),
        (0.0, "its certificate expired on 2001-09-09; renew it, then poolctl reload"),
        (-DAY, "its certificate expired on 2001-09-08"),
    ],
)
async def test_certificate_that_ends_soon_is_a_warning(ends_in: float, said: str) -> None:
    now = 1e9
    desk = Desk(web("a", tls={"cert": "c.pem"}), web("plain"))
    await desk.ask("start")
    entry = desk.core.entries["a"]
    entry.observed.certificate_ends = now + ends_in
    warning = expiry_warning(entry, now)
    assert said in warning
    assert bool(warning) == bool(said)
    assert warning == "" or warning.startswith("a: ")
    desk.core.entries["plain"].observed.certificate_ends = now
    assert expiry_warning(desk.core.entries["plain"], now) == ""
    await desk.ask("stop", "a")
    assert expiry_warning(entry, now) == ""


async def test_show_has_the_origins_of_the_files_and_masks_secrets() -> None:
    desk = Desk(web("a", env={"API_KEY": "hidden"}), web("b"))

    async def origins(names: list[str]) -> dict[str, dict[str, str]]:
        asked.append(names)
        return {"a": {"bind": "/p/pool.toml:3"}}

    asked: list[list[str]] = []
    desk.files.key_origins = origins
    a, b = (await desk.ask("show"))["items"]
    assert (a["origin"], b["origin"], asked) == ({"bind": "/p/pool.toml:3"}, None, [["a", "b"]])
    assert a["config"]["env"] == {"API_KEY": "********"}
    (a,) = (await desk.ask("show", "a", reveal=True))["items"]
    assert a["config"]["env"] == {"API_KEY": "hidden"}
    assert (await desk.ask("show", "a", reveal="yes"))["items"][0]["config"]["env"] != {"API_KEY": "hidden"}
