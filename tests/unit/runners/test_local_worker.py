"""Messages of a worker are checked, and one that breaks the protocol is killed."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Coroutine
from typing import Any, cast

import pytest

from poolctl import ServerConfig
from poolctl.keeper import wire
from poolctl.runners.local import local_worker as module
from poolctl.runners.local.fork_verification import Children, Process
from poolctl.runners.local.local_worker import LocalWorker
from poolctl.runners.runner_protocol import Exit, Placement, RunnerEvents, WorkerFailed
from poolctl.runners.untrusted_messages import Malformed
from tests.virtual_loop import VirtualLoop


class Keeper:
    """Kills the processes that it is told to kill."""

    def __init__(self) -> None:
        self.killed: list[Process] = []
        self.signals: list[int] = []

    async def signal(
        self, process: Process, exited: asyncio.Future[Exit], number: int, *, group: bool = False
    ) -> None:
        self.signals.append(number)

    def kill_after(self, process: Process, exited: asyncio.Future[Exit], seconds: float) -> None:
        self.killed.append(process)


class Heard:
    """What a runner reports by itself."""

    def __init__(self) -> None:
        self.expirations: list[Placement] = []

    def expired(self, placement: Placement) -> None:
        self.expirations.append(placement)


def worker(
    keeper: Keeper | None = None,
    events: Heard | None = None,
    *,
    name: str = "web",
    index: int = 0,
    **config: Any,
) -> LocalWorker:
    serves = {"bind": "127.0.0.1:8080", "app": "web:app"}
    server = ServerConfig(name=name, **(config if "command" in config else serves | config))
    return LocalWorker(
        cast(Children, keeper or Keeper()),
        cast(RunnerEvents, events),
        Placement.of(name, 1, index, pid=2),
        server,
        "web",
    )


@pytest.mark.parametrize(
    "message",
    [
        {"event": ["ready"]},
        {"event": {}},
        {"event": "ready", "leaving": "yes"},
        {"event": "ready", "resting": 1},
        {"event": "failed", "message": ["x"]},
    ],
)
def test_value_of_another_type_is_malformed(message: wire.Message) -> None:
    async def scenario() -> None:
        with pytest.raises(Malformed):
            worker().received(message)

    asyncio.run(scenario())


def test_message_of_another_version_is_ignored() -> None:
    async def scenario() -> None:
        worker().received({"event": "of tomorrow", "with": {"more": [1]}})
        worker().received({})

    asyncio.run(scenario())


def test_text_is_shortened_and_without_control_characters() -> None:
    async def scenario() -> None:
        found = worker()
        found.received({"event": "failed", "message": "\x1b]0;title\x07 \ud800 déjà\n" + "x" * 10_000})
        assert found.reason.startswith("\ufffd]0;title\ufffd \ufffd déjà\nxxx")
        assert len(found.reason) == 4000

    asyncio.run(scenario())


def test_served_requests_are_believed_once_and_only_where_there_is_a_limit() -> None:
    async def scenario() -> None:
        for limit, times in ((None, 0), (10, 1)):
            heard = Heard()
            found = worker(events=heard, http={"max_requests": limit})
            found.received({"event": "expired"})
            found.received({"event": "expired"})
            assert len(heard.expirations) == times

    asyncio.run(scenario())


def test_worker_that_closes_its_control_socket_and_lives_on_misbehaves(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "_END_SECONDS", 0.02)

    async def scenario() -> None:
        for ends in (True, False):
            keeper = Keeper()
            found = worker(keeper)
            ours, theirs = wire.pair()
            found.control_by(ours)
            theirs.close()
            await asyncio.sleep(0)
            if ends:
                found.ended(Exit.from_status(0))
            await asyncio.sleep(0.05)
            assert keeper.killed == ([] if ends else [found.process])
            assert found.breach == ("" if ends else "it closed its control socket")

    asyncio.run(scenario())


@pytest.mark.parametrize(
    ("keys", "seconds"),
    [
        ({}, 1.0),
        ({"start_timeout": 0.5}, 0.25),
        ({"health": {"liveness": {"exec": ["true"]}}}, 1.0),
        # The probe decides.
        ({"health": {"readiness": {"exec": ["true"]}}}, 0.0),
    ],
)
def test_program_without_a_port_is_ready_when_it_has_run_for_a_second(
    keys: dict[str, Any], seconds: float
) -> None:
    async def scenario() -> None:
        loop = asyncio.get_running_loop()
        begun = loop.time()
        await worker(command=["celery"], **keys).ready([])
        assert loop.time() - begun == seconds

    _run_virtually(scenario())


def test_program_without_a_port_that_notifies_is_ready_when_it_says_so() -> None:
    async def scenario() -> None:
        found = worker(command=["celery"], notify=True)
        asyncio.get_running_loop().call_later(20, found.answer)
        await found.ready([])
        assert asyncio.get_running_loop().time() == 20

    _run_virtually(scenario())


@pytest.mark.parametrize(
    ("status", "message", "hint"),
    [
        (0, "exited with status 0 before it was ready", "job = true if it runs to its end; poolctl logs web"),
        (3, "exited with status 3 before it was ready", "poolctl logs web"),
    ],
)
def test_program_without_a_port_that_ends_at_once_has_not_started(
    status: int, message: str, hint: str
) -> None:
    async def scenario() -> None:
        found = worker(command=["celery"])
        asyncio.get_running_loop().call_later(0.9, found.ended, Exit.from_status(status))
        with pytest.raises(WorkerFailed) as raised:
            await found.ready([])
        assert raised.value.message == message
        assert raised.value.hint.endswith(hint)

    _run_virtually(scenario())


def test_program_without_a_port_has_nothing_to_drain_and_gets_one_signal() -> None:
    async def scenario() -> None:
        keeper = Keeper()
        found = worker(keeper, command=["celery"], stop_timeout=9)
        await found.leave(None)
        await found.drain(None)
        assert (keeper.signals, asyncio.get_running_loop().time()) == ([], 0)
        asyncio.get_running_loop().call_later(5, found.ended, Exit.from_status(0))
        assert (await found.stop(9, None)).ok
        assert keeper.signals == [signal.SIGTERM]

    _run_virtually(scenario())


def _run_virtually(work: Coroutine[Any, Any, None]) -> None:
    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        runner.run(work)


@pytest.mark.parametrize(
    ("config", "reports", "says", "unseen"),
    [
        ({}, True, False, True),
        ({}, True, True, False),
        ({"command": ["./queue"]}, False, False, True),
        ({"command": ["./migrate"], "job": True}, False, False, False),
    ],
    ids=[
        "a worker that said nothing",
        "one that has reported",
        "a program that is gone",
        "a job that is gone",
    ],
)
def test_status_0_of_an_adopted_process_counts_only_if_it_was_seen_or_is_a_job(
    config: dict[str, Any], reports: bool, says: bool, unseen: bool
) -> None:
    """A supervisor that was killed may have ordered it to end."""

    async def scenario() -> None:
        found = worker(**config)
        found.start = -1  # of a process that has exited
        found.adopt(reports=reports)
        if says:
            found.received({"event": "ready", "leaving": False, "resting": ""})
        found.ended(Exit.from_status(0))
        found.answered.exception()
        assert found.exited.result().ok is not unseen

    asyncio.run(scenario())
