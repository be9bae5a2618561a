"""A process beside the supervisor: its ends are counted, and reported when there are many."""

from __future__ import annotations

import asyncio
import os
import subprocess
from collections.abc import Coroutine
from typing import Any

import pytest

from poolctl.clock import Clock
from poolctl.errors import ServerError
from poolctl.features.gateway.supervision import sidecar
from poolctl.features.gateway.supervision.sidecar import SidecarManager, SidecarProcess
from poolctl.keeper import wire
from poolctl.monitor.event_queue import EventBus
from poolctl.runners.process_link import Link, LinkHandler, LinkLost, identity
from tests.manual_clock import ManualClock
from tests.virtual_loop import VirtualLoop


def at_once(work: Coroutine[Any, Any, None]) -> None:
    """Run it in a loop whose time passes only while it waits."""
    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        runner.run(work)


class PageProcess(SidecarProcess):
    """A process with a name."""

    part, label, output = "page", "the page", "page.log"


class Dying(SidecarManager):
    """Its process has always ended already."""

    label, entry = "the page", "page"

    async def _reconcile(self) -> None:
        if self.restarts < 3:
            ours, theirs = wire.pair()
            theirs.close()
            self._manage_process(PageProcess(ours, {"pid": 1, "start": 1}, "mark"))

    async def _shut_down(self) -> None:
        pass


def test_process_that_ends_three_times_within_ten_minutes_is_reported() -> None:
    async def scenario() -> None:
        ours, theirs = wire.pair()
        keeper = Link(ours, LinkHandler())
        manager = Dying(keeper, EventBus(Clock()))
        found = [manager.instability]
        async with asyncio.timeout(60):
            for count in (1, 2, 3):
                await manager._reconcile_now()
                while manager.restarts < count:
                    await asyncio.sleep(0)
                found.append(manager.instability)
        await manager.aclose()
        keeper.close()
        theirs.close()
        assert found == ["", "", "", "its process has ended 3 times within 10m"]
        assert manager.problem == ""

    asyncio.run(scenario())


class Keeper:
    """Keeps the entries that are put into its store, and answers a `get` with nothing."""

    def __init__(self) -> None:
        self.sent: list[dict[str, Any]] = []

    def send(self, message: dict[str, Any], fds: Any = ()) -> None:
        self.sent.append({**message, "fds": len(fds)})

    async def call(self, message: dict[str, Any]) -> tuple[dict[str, Any], list[int]]:
        self.sent.append(message)
        return {}, []


class Settling(SidecarManager):
    """Settles, or fails with the next of the errors."""

    label, entry = "the page", "page"

    def __init__(self, *errors: Exception) -> None:
        self.keeper: Any = Keeper()
        self.recorded = EventBus(ManualClock())
        super().__init__(self.keeper, self.recorded)
        self.errors = [*errors]
        self.settled = self.off = 0

    async def _reconcile(self) -> None:
        self.settled += 1
        if self.errors:
            raise self.errors.pop(0)
        self._succeeded()

    async def _shut_down(self) -> None:
        self.off += 1

    @property
    def pause_seconds(self) -> float:
        """The time until the next attempt."""
        assert self._retry is not None
        return round(self._retry.when() - asyncio.get_running_loop().time(), 1)


@pytest.mark.parametrize(
    ("error", "problem"),
    [
        (ServerError("port taken"), "port taken"),
        (LinkLost("gone"), "gone"),
        (OSError("disk"), "disk"),
        (TimeoutError(), "its process does not come up"),
        (KeyError("odd"), "KeyError('odd')"),
    ],
)
def test_failure_is_a_problem_until_an_attempt_succeeds(
    error: Exception, problem: str, caplog: pytest.LogCaptureFixture
) -> None:
    async def scenario() -> None:
        manager = Settling(error)
        seen = []
        manager.recorded.subscribe(lambda event: seen.append((event.event, event.message)))
        changed = manager._changed
        await manager._reconcile_now()
        assert (manager.problem, [each.message for each in manager.failures]) == (problem, [problem])
        assert changed.is_set()
        assert manager._changed is not changed
        await asyncio.wait_for(manager.wait_for_opening_attempt(), 10)
        await manager._reconcile_now()
        assert (manager.problem, manager.failures) == ("", ())
        await manager.aclose()
        manager.recorded.flush()
        assert seen == [("page failed", problem)]
        assert ("Traceback" in caplog.text) == isinstance(error, KeyError)

    asyncio.run(scenario())


def test_pause_between_attempts_doubles_up_to_half_a_minute_and_a_change_resets_it() -> None:
    async def scenario() -> None:
        manager = Settling(*[ServerError("port taken") for _ in range(11)])
        pauses = []
        for _ in range(10):
            await manager._reconcile_now()
            pauses.append(manager.pause_seconds)
        assert pauses == [0.2, 0.4, 0.8, 1.6, 3.2, 6.4, 12.8, 25.6, 30.0, 30.0]
        manager._on_configured()
        assert not manager._tried.is_set()
        await asyncio.wait_for(manager.wait_for_opening_attempt(), 10)
        assert manager.settled == 11
        assert manager.pause_seconds == 0.2
        assert manager._attempted_times == manager._configured_times == 1
        await manager.aclose()

    at_once(scenario())


def test_attempt_with_an_earlier_configuration_says_nothing_about_the_current_one() -> None:
    async def scenario() -> None:
        goes_on = asyncio.Event()

        class Slow(Settling):
            async def _reconcile(self) -> None:
                await goes_on.wait()
                await asyncio.sleep(0.01)
                await super()._reconcile()

        manager = Slow(ServerError("port taken"))
        manager._on_configured()
        await asyncio.sleep(0)  # the attempt has begun
        manager._on_configured()
        goes_on.set()
        await asyncio.wait_for(manager.wait_for_opening_attempt(), 10)
        assert (manager.settled, manager.problem) == (2, "")
        await manager.aclose()

    at_once(scenario())


def test_closed_manager_attempts_nothing_more() -> None:
    async def scenario() -> None:
        manager = Settling(ServerError("port taken"))
        await manager._reconcile_now()
        retry = manager._retry
        await manager.aclose()
        assert retry is not None
        assert retry.cancelled()
        await manager._reconcile_now()
        manager._schedule_retry()
        assert (manager.settled, manager.off, manager._retry) == (1, 1, retry)

    asyncio.run(scenario())


def test_attempt_in_progress_ends_when_the_manager_is_closed() -> None:
    class Waiting(Settling):
        async def _reconcile(self) -> None:
            self.settled += 1
            await asyncio.Event().wait()

    async def scenario() -> None:
        manager = Waiting()
        manager._on_configured()
        while not manager.settled:
            await asyncio.sleep(0)
        await asyncio.wait_for(manager.aclose(), 10)
        assert manager.off == 1

    asyncio.run(scenario())


@pytest.mark.parametrize(("life_seconds", "pause_seconds"), [(50.0, 0.8), (70.0, 0.2)])
def test_process_that_ends_is_reported_and_restarted_sooner_after_a_long_life(
    life_seconds: float, pause_seconds: float
) -> None:
    async def scenario() -> None:
        manager = Settling(*[ServerError("port taken") for _ in range(2)])
        for _ in range(2):
            await manager._reconcile_now()
        recorded = []
        manager.recorded.subscribe(recorded.append)
        ours, theirs = wire.pair()
        process = PageProcess(ours, {"pid": 2**22 + 1, "start": 1}, "mark")
        process.began -= life_seconds
        manager._manage_process(process)
        theirs.close()
        await asyncio.wait_for(process.exited, 10)
        await asyncio.sleep(0)
        assert (manager.restarts, manager.pause_seconds) == (1, pause_seconds)
        assert manager.keeper.sent == [{"op": "drop", "name": "page", "fds": 0}]
        manager.recorded.flush()
        event = recorded[-1]
        message = "the page's process has ended; another one is started"
        assert (event.event, event.message, event.detail) == (
            "page ended", message, {"severity": "warning", "pid": 2**22 + 1},
        )  # fmt: skip
        manager._end_process()
        assert len(manager.keeper.sent) == 1
        await manager.aclose()

    at_once(scenario())


def test_end_of_a_process_that_was_replaced_has_no_effect() -> None:
    async def scenario() -> None:
        manager = Settling()
        ours, theirs = wire.pair()
        others, peer = wire.pair()
        replaced = PageProcess(ours, {"pid": 2**22 + 1, "start": 1}, "mark")
        manager._manage_process(replaced)
        manager._manage_process(PageProcess(others, {"pid": 2**22 + 2, "start": 1}, "mark"))
        theirs.close()
        await asyncio.wait_for(replaced.exited, 10)
        await asyncio.sleep(0)
        assert (manager.restarts, manager._retry, manager.keeper.sent) == (0, None, [])
        manager._end_process()
        peer.close()
        await manager.aclose()

    asyncio.run(scenario())


def test_ends_over_more_than_ten_minutes_are_no_instability() -> None:
    async def scenario() -> None:
        manager = Settling()
        now = asyncio.get_running_loop().time()
        for ages_seconds, unstable in (((590, 10, 5), True), ((610, 10, 5), False)):
            manager._ends.extend(now - age for age in ages_seconds)
            assert bool(manager.instability) == unstable

    asyncio.run(scenario())


def test_process_in_use_is_in_the_keepers_store_and_is_asked_to_end_once() -> None:
    async def scenario() -> None:
        manager = Settling()
        ours, theirs = wire.pair()
        process = PageProcess(ours, {"pid": 2**22 + 1, "start": 1}, "mark")
        manager._store_and_watch(process)
        assert manager.keeper.sent == [
            {"op": "put", "name": "page", "meta": {"pid": 2**22 + 1, "start": 1, "mark": "mark"}, "fds": 1}
        ]
        manager._end_process()
        manager._end_process()
        assert [each["op"] for each in manager.keeper.sent] == ["put", "drop"]
        received = []
        while (message := wire.receive(theirs, wait=True)) is not None:
            received.append(message[0])
        assert {"t": "end"} in received
        await asyncio.sleep(0)
        assert (manager.restarts, manager._retry) == (0, None), "it was meant to end"
        theirs.close()
        await manager.aclose()

    asyncio.run(scenario())


def test_process_is_ready_when_it_says_so_and_one_that_ends_before_names_its_log() -> None:
    async def scenario() -> None:
        ours, theirs = wire.pair()
        process = PageProcess(ours, {"pid": 2**22 + 1, "start": 1}, "mark")
        process.received({"t": "another"}, [])
        assert not process.up.is_set()
        process.received({"t": "up"}, [])
        await asyncio.wait_for(process.wait_until_ready("/run"), 10)
        process.end()
        theirs.close()
        ours, theirs = wire.pair()
        process = PageProcess(ours, {"pid": 2**22 + 1, "start": 1}, "mark")
        theirs.close()
        with pytest.raises(LinkLost, match="its process ended at its start; see /run/page"):
            await asyncio.wait_for(process.wait_until_ready("/run"), 10)
        assert process.exited.done()

    asyncio.run(scenario())


def test_keeper_that_is_gone_starts_no_process_and_leaves_no_descriptor() -> None:
    class Gone(Keeper):
        async def call(self, message: dict[str, Any], fds: Any = ()) -> Any:
            self.sent.append(message)
            raise LinkLost("gone")

    async def scenario() -> None:
        keeper: Any = Gone()
        before = os.listdir("/proc/self/fd")
        for part in ("", "another"):
            with pytest.raises(LinkLost, match="gone"):
                await PageProcess.spawn(keeper, "/run", "mark", part)
        assert os.listdir("/proc/self/fd") == before
        assert [(each["argv"][-1], each["output"]) for each in keeper.sent] == [
            ("page", "/run/page.log"), ("another", "/run/page.log"),
        ]  # fmt: skip

    asyncio.run(scenario())


def test_process_that_the_keeper_has_started_is_adopted_by_the_next_supervisor() -> None:
    class Starting(Keeper):
        """Has started `child`, and holds the link to it."""

        async def call(self, message: dict[str, Any], fds: Any = ()) -> Any:
            if message["op"] == "spawn":
                self.theirs = fds[0].dup()
                return {"pid": child.pid}, []
            (kept,) = [each for each in self.sent if each["op"] == "put" and each["name"] == message["name"]]
            return {"meta": kept["meta"]}, [os.dup(process.link.sock.fileno())]

    async def scenario() -> None:
        nonlocal process
        keeper: Any = Starting()
        process = await PageProcess.spawn(keeper, "/run", "mark")
        assert (process.known, process.mark) == (identity(child.pid), "mark")
        wire.send(keeper.theirs, {"t": "up"})
        await asyncio.wait_for(process.wait_until_ready("/run"), 10)
        process.save_to_keeper(keeper, "page")
        adopted = await PageProcess.adopt(keeper, "page")
        process.link.close()
        assert adopted is not None
        assert (adopted.known, adopted.mark) == ({**process.known, "mark": "mark"}, "mark")
        wire.send(keeper.theirs, {"t": "up"})
        await asyncio.wait_for(adopted.wait_until_ready("/run"), 10)
        adopted.link.close()
        keeper.theirs.close()

    process: Any = None
    with subprocess.Popen(["sleep", "60"]) as child:
        try:
            asyncio.run(scenario())
        finally:
            child.kill()


def test_orders_of_a_process_that_is_gone_are_not_confirmed() -> None:
    async def scenario() -> None:
        ours, theirs = wire.pair()
        process = PageProcess(ours, {"pid": 2**22 + 1, "start": 1}, "mark")
        theirs.close()
        with pytest.raises(LinkLost):
            await asyncio.wait_for(process.wait_until_performed(), 10)
        process.end()

    asyncio.run(scenario())


def test_keeper_without_an_entry_has_no_process_to_adopt() -> None:
    async def scenario() -> None:
        keeper: Any = Keeper()
        assert await PageProcess.adopt(keeper, "page") is None
        assert keeper.sent == [{"op": "get", "name": "page"}]

    asyncio.run(scenario())


@pytest.mark.parametrize("ends", ["leave", "lost"])
def test_process_that_is_not_in_use_any_more_is_not_watched(
    monkeypatch: pytest.MonkeyPatch, ends: str
) -> None:
    async def scenario() -> None:
        heard: list[str] = []

        class Watch:
            def __init__(self, *given: object) -> None:
                pass

            def received(self) -> None:
                heard.append("pong")

            def stop_watching(self) -> None:
                heard.append("closed")

        monkeypatch.setattr(sidecar, "ProcessWatchdog", Watch)
        ours, theirs = wire.pair()
        process = PageProcess(ours, {"pid": 2**22 + 1, "start": 1}, "mark")
        process.received({"t": "pong"}, [])
        if ends == "leave":
            process.end_with({"t": "end"}, 1.0)
            process.end_with({"t": "end"}, 1.0)
            process.received({"t": "pong"}, [])
        theirs.close()
        if ends == "lost":
            await asyncio.wait_for(process.exited, 10)
        assert heard == ["pong", "closed"]
        process.link.close()

    asyncio.run(scenario())
