"""A helper runs as its owner's settings say, whatever happens to its process."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from poolctl import __version__
from poolctl.errors import ServerError
from poolctl.keeper import wire
from poolctl.runners.helper_process import Helper, HelperKind, HelperOwner, HelperProcess, Helpers
from poolctl.runners.process_link import LinkLost, NoAnswer, Refused
from tests.helper_keeper import ExecutingKeeper, HelperKeeper
from tests.processes import freeze

PAGE = HelperKind(name="page", label="the page", argv=("/python", "page"), entry="page link")
ASKED = replace(PAGE, on_demand=True)


class Owner(HelperOwner[HelperProcess]):
    """Wants what `wanted` says, and records what it is notified of. An exception in `wanted` is raised once."""

    def __init__(self) -> None:
        self.wanted: list[str | Exception | None] = [""]
        self.got: list[Any] = []
        self.events: list[tuple[str, str, dict[str, Any]]] = []
        self.goes_on = asyncio.Event()
        self.goes_on.set()

    async def settings(self) -> str | None:
        await self.goes_on.wait()
        wanted = self.wanted[0]
        if len(self.wanted) > 1:
            self.wanted.pop(0)
        if isinstance(wanted, Exception):
            raise wanted
        return wanted

    def begin(self, process: HelperProcess) -> None:
        process.link.send({"t": "begin"})

    def use(self, process: HelperProcess, *, is_new: bool) -> None:
        self.got.append(("use", is_new))
        process.link.send({"t": "used"})

    def received(self, message: wire.Message, fds: list[int]) -> None:
        self.got.append(message)
        super().received(message, fds)

    def on_lost(self, process: HelperProcess) -> None:
        self.got.append("lost")

    def on_event(self, event: str, message: str, **detail: Any) -> None:
        self.events.append((event, message, detail))


class Stage:
    """A helper, its owner and its keeper, on a loop whose time passes at once."""

    def __init__(self, kind: HelperKind = PAGE) -> None:
        self.keeper = HelperKeeper()
        self.owner = Owner()
        keeper: Any = self.keeper
        self.helpers = Helpers(keeper, "/run")
        self.helper = self.helpers.add(kind, self.owner, HelperProcess)

    async def started(self) -> None:
        self.helper.reconcile()
        await self.up()

    async def up(self) -> None:
        """Let the process that is being started be up."""
        await self.keeper.settle()
        await self.keeper.say({"t": "up"})

    async def close(self) -> None:
        await self.helper.aclose()
        for end in range(len(self.keeper.ends)):
            self.keeper.end(end)
        await self.keeper.settle()
        self.keeper.close()


@contextlib.asynccontextmanager
async def staged(kind: HelperKind = PAGE) -> AsyncIterator[Stage]:
    stage = Stage(kind)
    yield stage
    await stage.close()


@pytest.fixture
def stage(virtual_time: None, descriptors_closed: None) -> AbstractAsyncContextManager[Stage]:
    return staged()


async def test_process_is_started_and_in_use_and_in_the_keepers_store_once_it_is_up(stage: Stage) -> None:
    stage.helper.reconcile()
    await stage.keeper.settle()
    (order,) = stage.keeper.spawned
    assert (order["argv"], order["output"], order["session"]) == (PAGE.argv, "/run/page.log", True)
    assert stage.keeper.heard() == [{"t": "begin"}]
    assert (stage.helper.process, stage.helper.pid, stage.keeper.entries) == (None, (1 << 22) + 1, {})
    await stage.up()
    assert stage.helper.process is not None
    meta, fds = stage.keeper.entries["page link"]
    assert meta == {"pid": (1 << 22) + 1, "start": None, "mark": __version__}
    assert len(fds) == 1
    assert stage.keeper.heard() == [{"t": "used"}]
    assert stage.owner.got == [("use", True)]
    assert await stage.helper.wait_until_up() is stage.helper.process


async def test_process_that_is_no_longer_wanted_ends_and_what_it_still_sends_is_received(
    stage: Stage,
) -> None:
    await stage.started()
    stage.keeper.heard()
    stage.owner.wanted = [None]
    stage.helper.reconcile()
    await stage.keeper.settle()
    assert (stage.keeper.heard(), stage.keeper.entries) == ([{"t": "end"}], {})
    with pytest.raises(LinkLost):
        await stage.helper.wait_until_up()
    await stage.keeper.say({"t": "last"})
    assert stage.owner.got[-1] == {"t": "last"}
    stage.keeper.end()
    await asyncio.sleep(100)
    assert (stage.helper.restarts, stage.owner.events, len(stage.keeper.spawned)) == (0, [], 1)


@pytest.mark.parametrize("overlaps", [True, False])
@pytest.mark.usefixtures("virtual_time", "descriptors_closed")
async def test_other_settings_replace_the_process_with_or_without_an_overlap(overlaps: bool) -> None:
    async with staged(replace(PAGE, overlaps=overlaps)) as stage:
        await stage.started()
        stage.owner.wanted = ["other"]
        stage.helper.reconcile()
        await stage.keeper.settle()
        assert len(stage.keeper.spawned) == (2 if overlaps else 1)
        assert ({"t": "end"} in stage.keeper.heard(0)) is not overlaps
        if not overlaps:
            stage.keeper.end(0)
            await stage.keeper.settle()
        await stage.up()
        assert len(stage.keeper.spawned) == 2
        if overlaps:
            assert stage.keeper.heard(0) == [{"t": "end"}]
        assert stage.keeper.entries["page link"][0]["mark"] == f"{__version__} other"
        assert stage.helper.process is not None
        stage.helper.reconcile()
        await stage.keeper.settle()
        assert len(stage.keeper.spawned) == 2, "nothing has changed"


@pytest.mark.usefixtures("virtual_time", "descriptors_closed")
async def test_process_that_is_ordered_to_end_and_hangs_does_not_hold_up_its_replacement_for_ever() -> None:
    async with staged(replace(PAGE, overlaps=False)) as stage:
        await stage.started()
        stage.owner.wanted = ["other"]
        stage.helper.reconcile()
        await asyncio.sleep(9.9)
        assert len(stage.keeper.spawned) == 1
        await asyncio.sleep(0.2)
        assert len(stage.keeper.spawned) == 2


async def test_process_that_ends_is_reported_and_another_one_is_started_after_a_pause(stage: Stage) -> None:
    await stage.started()
    stage.keeper.end()
    await stage.keeper.settle()
    message = "the page's process has ended; another one is started"
    detail = {"severity": "warning", "pid": (1 << 22) + 1}
    assert stage.owner.events == [("page ended", message, detail)]
    assert (stage.owner.got[-1], stage.helper.restarts) == ("lost", 1)
    assert (stage.keeper.entries, len(stage.keeper.spawned)) == ({}, 1)
    await asyncio.sleep(PAGE.first_pause_seconds)
    await stage.up()
    assert stage.helper.process is not None
    assert stage.helper.problem == ""


async def test_pause_between_attempts_doubles_up_to_half_a_minute_and_a_change_begins_again(
    stage: Stage,
) -> None:
    stage.keeper.refusals = [LinkLost("no")] * 20
    stage.helper.reconcile()
    await asyncio.sleep(110)
    pauses = [round(later - before, 1) for before, later in itertools.pairwise(stage.keeper.attempts)]
    assert pauses == [0.2, 0.4, 0.8, 1.6, 3.2, 6.4, 12.8, 25.6, 30.0]
    stage.keeper.attempts.clear()
    stage.helper.reconcile()
    await asyncio.sleep(1)
    assert len(stage.keeper.attempts) == 3


@pytest.mark.parametrize(("life_seconds", "pause_seconds"), [(50, 1.6), (70, 0.2)])
async def test_process_that_ends_after_a_long_life_is_restarted_sooner(
    stage: Stage, life_seconds: int, pause_seconds: float
) -> None:
    stage.keeper.refusals = [LinkLost("no")] * 3
    stage.helper.reconcile()
    await asyncio.sleep(2)
    await stage.up()
    for _ in range(life_seconds):
        await asyncio.sleep(1)
        await stage.keeper.say({"t": "pong"})
    stage.keeper.end()
    await stage.keeper.settle()
    ended = asyncio.get_running_loop().time()
    await asyncio.sleep(3)
    assert round(stage.keeper.attempts[-1] - ended, 1) == pause_seconds


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
async def test_failure_is_a_problem_until_an_attempt_succeeds(
    stage: Stage, error: Exception, problem: str, caplog: pytest.LogCaptureFixture
) -> None:
    stage.owner.wanted = [error, error, ""]
    stage.helper.reconcile()
    await stage.helper.wait_for_attempt()
    await stage.keeper.settle()
    assert stage.helper.problem == problem
    with pytest.raises(LinkLost):
        await stage.helper.wait_until_up()
    await asyncio.sleep(1)
    await stage.up()
    assert stage.helper.problem == ""
    assert stage.owner.events == [("page failed", problem, {})], "once"
    assert ("Traceback" in caplog.text) == isinstance(error, KeyError)


async def test_attempt_with_earlier_settings_says_nothing_about_the_current_ones(stage: Stage) -> None:
    stage.owner.goes_on.clear()
    stage.owner.wanted = [ServerError("port taken"), None]
    stage.helper.reconcile()
    await stage.keeper.settle()
    stage.helper.reconcile()
    stage.owner.goes_on.set()
    await stage.helper.wait_for_attempt()
    await stage.keeper.settle()
    assert stage.helper.problem == ""


async def test_process_that_ends_or_is_late_at_its_start_is_a_problem(stage: Stage) -> None:
    stage.helper.reconcile()
    await stage.keeper.settle()
    stage.keeper.end()
    await stage.keeper.settle()
    assert stage.helper.problem == "its process ended at its start"
    await asyncio.sleep(1)
    assert len(stage.keeper.spawned) == 2
    await asyncio.sleep(PAGE.ready_seconds)
    assert stage.helper.problem == "its process does not come up"
    assert stage.keeper.heard(1)[-1] == {"t": "end"}


async def test_process_of_an_earlier_supervisor_or_of_the_start_is_adopted(stage: Stage) -> None:
    ours, theirs = wire.pair()
    stage.keeper.ends.append(theirs)
    stage.keeper.hold("page link", {"pid": 1 << 23, "start": 1, "mark": __version__}, ours)
    stage.helper.reconcile()
    await stage.keeper.settle()
    assert (stage.keeper.spawned, stage.helper.pid) == ([], 1 << 23)
    assert stage.keeper.heard() == [{"t": "used"}]
    assert stage.owner.got == [("use", False)]


async def test_process_of_another_version_is_replaced_when_it_is_adopted(stage: Stage) -> None:
    ours, theirs = wire.pair()
    stage.keeper.ends.append(theirs)
    stage.keeper.hold("page link", {"pid": 1 << 23, "start": 1, "mark": ""}, ours)
    stage.helper.reconcile()
    await stage.up()
    assert len(stage.keeper.spawned) == 1
    assert stage.keeper.heard(0) == [{"t": "used"}, {"t": "end"}]


async def test_closed_helper_starts_nothing_and_an_attempt_in_progress_ends(stage: Stage) -> None:
    stage.helper.reconcile()
    await stage.keeper.settle()
    await asyncio.wait_for(stage.helper.aclose(), 10)
    assert stage.keeper.heard() == [{"t": "begin"}, {"t": "end"}]
    stage.helper.reconcile()
    await asyncio.sleep(100)
    assert len(stage.keeper.spawned) == 1
    with pytest.raises(LinkLost):
        await stage.helper.wait_until_up()


@pytest.mark.usefixtures("virtual_time", "descriptors_closed")
async def test_helper_on_demand_is_started_by_a_request_and_again_by_the_first_one_after_its_exit() -> None:
    async with staged(ASKED) as stage:
        await stage.helper.adopt()
        await stage.keeper.settle()
        assert stage.keeper.spawned == []
        for count in (1, 2):
            asked = asyncio.ensure_future(stage.helper.ask({"t": "question"}))
            await stage.up()
            assert len(stage.keeper.spawned) == count
            question = stage.keeper.heard()[-1]
            await stage.keeper.say({"id": question["id"], "answer": count})
            assert (await asked)[0]["answer"] == count
            stage.keeper.end()
            await asyncio.sleep(100)
            assert len(stage.keeper.spawned) == count


@pytest.mark.usefixtures("virtual_time", "descriptors_closed")
async def test_requests_to_a_process_that_cannot_be_started_or_ends_fail() -> None:
    async with staged(ASKED) as stage:
        stage.keeper.refusals = [LinkLost("no memory")]
        asked = [asyncio.ensure_future(stage.helper.ask({"t": "question"})) for _ in range(3)]
        failures = await asyncio.gather(*asked, return_exceptions=True)
        assert list(map(str, failures)) == ["no memory"] * 3
        asked = [asyncio.ensure_future(stage.helper.ask({"t": "question"}))]
        await stage.up()
        stage.keeper.end()
        (failure,) = await asyncio.gather(*asked, return_exceptions=True)
        assert isinstance(failure, LinkLost)
        asked = [asyncio.ensure_future(stage.helper.ask({"t": "question"}))]
        await stage.up()
        question = stage.keeper.heard()[-1]
        await stage.keeper.say({"id": question["id"], "error": "odd"})
        (failure,) = await asyncio.gather(*asked, return_exceptions=True)
        assert isinstance(failure, Refused)


@pytest.mark.usefixtures("virtual_time", "descriptors_closed")
async def test_request_to_a_process_that_ends_as_soon_as_it_is_up_fails() -> None:
    async with staged(ASKED) as stage:
        asked = asyncio.ensure_future(stage.helper.ask({"t": "question"}))
        await stage.keeper.settle()
        wire.send(stage.keeper.ends[0], {"t": "up"})
        await asyncio.sleep(0)
        stage.keeper.end()
        (failure,) = await asyncio.gather(asked, return_exceptions=True)
        assert isinstance(failure, LinkLost)


# Processes that are executed.


def program(text: str) -> tuple[str, ...]:
    """A program whose link is `link`, and which is up."""
    setup = (
        "import os, signal, sys, time\n"
        "from poolctl.keeper import wire\n"
        "link = wire.socket_from_fd(3)\n"
        "wire.send(link, {'t': 'up'})\n"
    )
    return sys.executable, "-c", setup + text


@contextlib.asynccontextmanager
async def executed(
    directory: Path, text: str, **keys: Any
) -> AsyncIterator[tuple[Helper[HelperProcess], ExecutingKeeper]]:
    """A helper on demand whose process runs the text."""
    keeper = ExecutingKeeper()
    link: Any = keeper
    helpers = Helpers(link, str(directory))
    keeper.report = helpers.handle_exit_report
    helper = helpers.add(replace(ASKED, **{"argv": program(text), **keys}), HelperOwner(), HelperProcess)
    yield helper, keeper
    await helper.aclose()
    for pid in keeper.pids:
        with contextlib.suppress(ProcessLookupError):  # it has ended with its link
            os.kill(pid, signal.SIGKILL)
    await keeper.wait_for_exits()
    keeper.close()


async def test_process_that_prints_and_ends_at_its_start_names_its_log(tmp_path: Path) -> None:
    async with executed(tmp_path, "", argv=("/bin/sh", "-c", "echo no library >&2")) as (helper, keeper):
        helper.start()
        await helper.wait_until_settled()
        assert helper.problem == f"its process ended at its start; see {tmp_path}/page.log"
        assert (tmp_path / "page.log").read_text() == "no library\n"
        keeper.pids.clear()


_ECHO = "while found := wire.receive(link, wait=True):\n    if 'id' in found[0]: wire.send(link, found[0])\n"


async def test_process_that_is_silent_for_too_long_during_a_request_is_killed(tmp_path: Path) -> None:
    async with executed(tmp_path, _ECHO) as (helper, keeper):
        await helper.ask({"t": "question"})
        process = helper.process
        assert process is not None
        freeze(keeper.pids[0])
        with pytest.raises(NoAnswer):
            await process.ask({"t": "question"}, patience_seconds=0.1)
        exit_ = await process.wait_briefly_for_exit()
        assert exit_ is not None
        assert exit_.signal == signal.SIGKILL
        await helper.ask({"t": "question"})
        assert len(keeper.pids) == 2
        keeper.pids.pop(0)


async def test_exit_status_of_a_process_is_known_even_if_it_ends_at_once(tmp_path: Path) -> None:
    async with executed(tmp_path, "sys.exit(3)") as (helper, keeper):
        with pytest.raises(LinkLost):
            await helper.ask({"t": "question"})
        (pid,) = keeper.pids
        keeper.pids.clear()
        assert pid


async def test_process_that_keeps_running_after_it_was_ordered_to_end_is_killed(tmp_path: Path) -> None:
    async with executed(tmp_path, "signal.pause()", end_seconds=0.1) as (helper, keeper):
        process = await helper.wait_until_up()
        helper.end_process()
        exit_ = await process.wait_briefly_for_exit()
        assert exit_ is not None
        assert exit_.signal == signal.SIGKILL
        keeper.pids.clear()
