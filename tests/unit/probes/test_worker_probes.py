"""A status that does not flap, as properties over random answers; and probes at their times."""

from __future__ import annotations

import asyncio
import errno
import socket
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from poolctl import ServerConfig
from poolctl.config import Probe
from poolctl.probes.prober import Unsent
from poolctl.probes.worker_probes import (
    GRAIN_SECONDS,
    Hysteresis,
    WorkerProbe,
    WorkerProbes,
    call_at_rounded_time,
)
from poolctl.runners.runner_protocol import Exit, Placement, WorkerFailed
from poolctl.states import Status
from tests.deadline import until
from tests.virtual_loop import VirtualLoop

LEVELS = [Status.KO, Status.WARN, Status.OK]

counts = st.integers(1, 4)
probes = st.builds(
    lambda **keys: Probe(tcp=True, **keys),
    fall_count_warn=counts,
    fall_count_ko=counts,
    rise_count_warn=counts,
    rise_count_ko=counts,
    interval=st.just(5.0),
    interval_fall=st.sampled_from([None, 1.0]),
    interval_rise=st.sampled_from([None, 2.0]),
)


def probe(**keys: Any) -> Probe:
    return Probe(tcp=True, **keys)


def statuses(answers: str, **keys: Any) -> list[str]:
    """What follows from each answer: `+` is a success, `-` a failure."""
    hysteresis = Hysteresis(probe(**keys))
    return [hysteresis.record(answer == "+").value for answer in answers]


def test_by_default_one_success_is_ok_one_failure_warns_and_three_more_are_ko() -> None:
    assert statuses("+----++") == ["ok", "warn", "warn", "warn", "ko", "warn", "ok"]


def test_every_step_takes_its_own_count_in_a_row() -> None:
    assert statuses("+--+---+", fall_count_warn=3) == ["ok", "ok", "ok", "ok", "ok", "ok", "warn", "ok"]
    assert statuses("---+-+++", rise_count_ko=2, fall_count_ko=1, rise_count_warn=2) == [
        "warn", "ko", "ko", "ko", "ko", "ko", "warn", "warn",
    ]  # fmt: skip


def test_unknown_falls_as_ok_does_and_rises_as_warn_does() -> None:
    assert statuses("--", fall_count_warn=2) == ["unknown", "warn"]
    assert statuses("++", rise_count_warn=2) == ["unknown", "ok"]


@given(probes, st.lists(st.booleans(), max_size=60))
def test_status_moves_one_step_at_a_time_in_the_direction_of_the_result(
    chosen: Probe, answers: list[bool]
) -> None:
    hysteresis = Hysteresis(chosen, Status.OK)
    for answer in answers:
        before = LEVELS.index(hysteresis.status)
        step = LEVELS.index(hysteresis.record(answer)) - before
        assert step in ((0, 1) if answer else (0, -1))


@given(probes, st.lists(st.booleans(), max_size=60))
def test_a_step_is_taken_after_as_many_answers_in_a_row_as_its_threshold_and_no_fewer(
    chosen: Probe, answers: list[bool]
) -> None:
    hysteresis = Hysteresis(chosen, Status.OK)
    needed = {
        (Status.OK, False): chosen.fall_count_warn,
        (Status.WARN, False): chosen.fall_count_ko,
        (Status.KO, True): chosen.rise_count_ko,
        (Status.WARN, True): chosen.rise_count_warn,
    }
    row = 0
    last: bool | None = None
    for answer in answers:
        row = row + 1 if answer is last else 1
        last = answer
        before = hysteresis.status
        moved = hysteresis.record(answer) is not before
        assert moved is (row >= needed.get((before, answer), 1000))
        if moved:
            row = 0


@given(probes, st.lists(st.booleans(), max_size=60))
def test_status_reaches_either_end_when_the_results_stay_the_same(chosen: Probe, answers: list[bool]) -> None:
    for last, end in ((True, Status.OK), (False, Status.KO)):
        hysteresis = Hysteresis(chosen)
        for answer in answers + [last] * 8:
            hysteresis.record(answer)
        assert hysteresis.status is end
        assert hysteresis.interval_seconds == chosen.interval


@given(probes, st.lists(st.booleans(), min_size=1, max_size=60))
def test_interval_is_that_of_the_direction_in_which_the_status_moves(
    chosen: Probe, answers: list[bool]
) -> None:
    hysteresis = Hysteresis(chosen)
    for answer in answers:
        hysteresis.record(answer)
    expected = chosen.interval
    if answers[-1] and hysteresis.status is not Status.OK:
        expected = chosen.interval_rise or expected
    elif not answers[-1] and hysteresis.status is not Status.KO:
        expected = chosen.interval_fall or expected
    assert hysteresis.interval_seconds == expected


def test_results_before_a_reset_do_not_count() -> None:
    hysteresis = Hysteresis(probe(rise_count_warn=2))
    hysteresis.record(True)
    hysteresis.reset()
    assert hysteresis.record(True) is Status.UNKNOWN
    assert repr(hysteresis) == "<Hysteresis unknown +1>"


class CountingLoop(VirtualLoop):
    """Counts how often it wakes up for a timer."""

    wake_ups = 0

    def _run_once(self) -> None:
        before = self.time()
        super()._run_once()  # type: ignore[misc]
        self.wake_ups += self.time() > before


@pytest.fixture
def loop() -> Iterator[CountingLoop]:
    made = CountingLoop()
    yield made
    made.close()


@given(st.lists(st.floats(0, 5), min_size=1, max_size=30))
def test_every_probe_runs_about_when_it_is_due(wishes: list[float]) -> None:
    loop = VirtualLoop()
    ran: dict[int, float] = {}

    for place, wish in enumerate(wishes):
        loop.call_soon(call_at_rounded_time, wish, lambda place=place: ran.update({place: loop.time()}))
    loop.pass_time(6)
    loop.close()
    for place, wish in enumerate(wishes):
        assert abs(ran[place] - wish) <= GRAIN_SECONDS / 2 + 1e-9


def test_thousand_probes_are_served_by_few_wake_ups(loop: CountingLoop) -> None:
    turns = [0] * 1000

    def run(place: int, when: float) -> None:
        call_at_rounded_time(when, lambda: again(place))

    def again(place: int) -> None:
        turns[place] += 1
        run(place, loop.time() + 1)

    for place in range(1000):
        loop.call_soon(run, place, (place + 100) / 1000)
    loop.pass_time(4.9)
    assert all(4 <= count <= 5 for count in turns)
    assert loop.wake_ups <= 5 / GRAIN_SECONDS + 2


def test_failing_callback_does_not_prevent_the_others(loop: CountingLoop) -> None:
    ran: list[int] = []
    reported: list[dict[str, Any]] = []
    loop.set_exception_handler(lambda _, context: reported.append(context))

    loop.call_soon(call_at_rounded_time, 1, lambda: 1 // 0)
    loop.call_soon(call_at_rounded_time, 1, lambda: ran.append(1))
    loop.pass_time(2)
    assert ran == [1]
    assert len(reported) == 1


class TimedProber:
    """Notes when it is asked, and answers after a time, or never."""

    def __init__(self, loop: VirtualLoop, problem: str = "", seconds: float | None = 0) -> None:
        self.loop, self.problem, self.seconds = loop, problem, seconds
        self.asked: list[float] = []
        self.cancelled: list[float] = []
        self.closed = False
        self.on_result: Any = None

    def start(self, on_result: Any) -> None:
        self.asked.append(self.loop.time())
        self.on_result = on_result
        if self.seconds:
            self.loop.call_later(self.seconds, on_result, self.problem)
        elif self.seconds == 0:
            on_result(self.problem)

    def cancel(self) -> None:
        self.cancelled.append(self.loop.time())

    def queued(self) -> bool:
        return False

    def close(self) -> None:
        self.closed = True

    @property
    def pauses(self) -> list[float]:
        return [after - before for before, after in pairwise(self.asked)]


def test_probe_is_repeated_at_its_interval_until_it_is_stopped(loop: CountingLoop) -> None:
    prober = TimedProber(loop)
    probe = WorkerProbe("liveness", Probe(tcp=True, interval=1, jitter=0), prober, print)  # type: ignore[arg-type]

    loop.call_soon(probe.start, Status.OK)
    loop.pass_time(5.5)
    pauses = prober.pauses
    assert len(pauses) >= 4
    assert pauses == pytest.approx([1] * len(pauses), abs=GRAIN_SECONDS / 2)
    count = len(prober.asked)
    probe.stop()
    loop.pass_time(5)
    assert (len(prober.asked), prober.closed) == (count, True)


def test_probe_that_could_not_be_sent_leaves_the_status(loop: CountingLoop) -> None:
    prober = TimedProber(loop, Unsent("true: Resource temporarily unavailable"))
    probe = WorkerProbe("liveness", Probe(tcp=True, interval=1, jitter=0), prober, print)  # type: ignore[arg-type]

    loop.call_soon(probe.start, Status.OK)
    loop.pass_time(9.5)
    assert len(prober.asked) >= 5
    assert (probe.status, probe.message) == (Status.OK, "true: Resource temporarily unavailable")


def test_probe_without_an_answer_fails_at_its_timeout_and_once(loop: CountingLoop) -> None:
    prober = TimedProber(loop, seconds=None)
    found: list[str] = []
    probe = WorkerProbe(
        "liveness",
        Probe(tcp=True, interval=10, timeout=2, jitter=0),
        prober,  # type: ignore[arg-type]
        lambda result: found.append(repr(result)),
    )

    loop.call_soon(probe.start, Status.OK)
    while not prober.cancelled and loop.time() < 20:
        loop.pass_time(0.5)
    assert prober.cancelled == pytest.approx([prober.asked[0] + 2])
    assert probe.latency_seconds == pytest.approx(2)
    prober.on_result("")
    loop.pass_time(0.5)
    assert found == ["<WorkerProbe liveness warn (no answer within 2s)>"]
    assert len(prober.asked) == 1
    probe.stop()


def test_probe_that_takes_longer_than_its_interval_is_repeated_at_once(loop: CountingLoop) -> None:
    prober = TimedProber(loop, seconds=3)
    probe = WorkerProbe("liveness", Probe(tcp=True, interval=1, timeout=5, jitter=0), prober, lambda _: None)  # type: ignore[arg-type]

    loop.call_soon(probe.start, Status.OK)
    loop.pass_time(13)
    assert prober.pauses[:3] == pytest.approx([3] * 3, abs=GRAIN_SECONDS)
    assert probe.latency_seconds == pytest.approx(3)
    probe.stop()


@pytest.mark.parametrize(
    ("status", "latest_seconds"), [(Status.OK, 60), (Status.WARN, 0.5), (Status.UNKNOWN, 0.5)]
)
def test_probes_are_spread_over_their_interval_but_come_soon_if_the_worker_is_not_ok(
    loop: CountingLoop, status: Status, latest_seconds: float
) -> None:
    probers = [TimedProber(loop) for _ in range(50)]
    probe = Probe(tcp=True, interval=60, jitter=0.1)
    probes = [WorkerProbe("liveness", probe, each, lambda _: None) for each in probers]  # type: ignore[arg-type]

    for each in probes:
        loop.call_soon(each.start, status)
    loop.pass_time(latest_seconds + 67)
    first = [each.asked[0] for each in probers]
    assert min(first) < latest_seconds / 2 < max(first) <= latest_seconds + GRAIN_SECONDS
    pauses = [each.pauses[0] for each in probers]
    assert 54 - GRAIN_SECONDS <= min(pauses) < 60 < max(pauses) <= 66 + GRAIN_SECONDS
    for each in probes:
        each.stop()


def test_worker_that_is_not_ready_is_probed_after_growing_pauses(loop: CountingLoop) -> None:
    prober = TimedProber(loop, "not yet")
    probe = WorkerProbe("readiness", Probe(tcp=True, interval=1), prober, lambda _: None)  # type: ignore[arg-type]
    waiting = loop.create_task(probe.probe_until_ok())
    loop.pass_time(12)
    first, second, *_, last = prober.pauses
    assert first < second < last == pytest.approx(1)
    assert prober.pauses == pytest.approx(sorted(prober.pauses))
    assert (probe.status, probe.message, waiting.done()) == (Status.UNKNOWN, "not yet", False)
    prober.problem = ""
    loop.pass_time(1)
    assert (probe.status, probe.message, waiting.done()) == (Status.OK, "", True)


def test_probe_in_progress_is_cancelled_with_the_wait_for_it(loop: CountingLoop) -> None:
    prober = TimedProber(loop, seconds=None)
    probe = WorkerProbe("readiness", Probe(tcp=True, timeout=5), prober, lambda _: None)  # type: ignore[arg-type]
    waiting = loop.create_task(probe.probe_until_ok())
    loop.pass_time(1)
    waiting.cancel()
    loop.pass_time(10)
    assert waiting.cancelled()
    assert prober.cancelled == [pytest.approx(1)]
    assert len(prober.asked) == 1


async def test_started_probes_keep_what_they_have_found_and_others_begin_with_the_workers_status() -> None:
    found = worker_probes(**BOTH)
    readiness, liveness = found.probes
    readiness.hysteresis.record(False)
    assert not found.started
    found.start(Status.OK)
    assert (found.started, readiness.status, liveness.status) == (True, Status.WARN, Status.OK)
    found.stop()


def worker_probes(**health: Any) -> WorkerProbes:
    """The probes of a worker that accepts no connection."""
    server = ServerConfig(name="web", bind="127.0.0.1:8080", app="a:b", health=health)
    return WorkerProbes(server, Placement.of("web", 1, 0, pid=17), Refusing(), lambda *_: None)  # type: ignore[arg-type]


class Refusing:
    def __init__(self) -> None:
        self.exact: list[bool] = []

    async def connect_for_probe(
        self, placement: Placement, kind: str, plain: bool, *, exact: bool = False
    ) -> socket.socket:
        self.exact.append(exact)
        raise ConnectionRefusedError(errno.ECONNREFUSED, "Connection refused")


async def test_only_the_probes_of_a_worker_that_is_not_ready_must_reach_that_worker() -> None:
    health = {"readiness": {"tcp": True, "interval": "50ms"}}
    server = ServerConfig(name="web", bind="127.0.0.1:8080", command=["prog"], health=health)
    runner = Refusing()
    found = WorkerProbes(server, Placement.of("web", 1, 0, pid=17), runner, lambda *_: None)  # type: ignore[arg-type]
    waiting = asyncio.ensure_future(found.wait_until_ready(asyncio.get_running_loop().create_future()))
    await until(lambda: len(runner.exact) >= 2)
    waiting.cancel()
    found.start(Status.OK)
    count = len(runner.exact)
    await until(lambda: len(runner.exact) >= count + 2)
    found.stop()
    assert runner.exact == [True] * count + [False] * (len(runner.exact) - count)


BOTH = {"readiness": {"tcp": True}, "liveness": {"tcp": True}}


def test_status_of_a_worker_is_the_worst_of_its_probes() -> None:
    found = worker_probes(**BOTH)
    readiness, liveness = found.get("readiness"), found.get("liveness")
    assert readiness is not None
    assert liveness is not None
    assert found.get("startup") is None
    assert found.status is Status.UNKNOWN
    readiness.hysteresis.record(True)
    assert found.status is Status.UNKNOWN
    liveness.hysteresis.record(True)
    assert found.status is Status.OK
    liveness.hysteresis.record(False)
    assert found.status is Status.WARN
    for _ in range(3):
        readiness.hysteresis.record(False)
    assert found.status is Status.WARN
    readiness.hysteresis.record(False)
    assert found.status is Status.KO


def test_message_of_a_worker_names_each_probe_that_has_found_a_problem() -> None:
    found = worker_probes(**BOTH)
    assert (found.message, found.latency_seconds) == ("", None)
    readiness, liveness = found.probes
    liveness.message = "no answer"
    liveness.latency_seconds = 3.0
    assert (found.message, found.latency_seconds) == ("liveness: no answer", None)
    readiness.message = "status 500"
    readiness.latency_seconds = 2.0
    assert (found.message, found.latency_seconds) == ("readiness: status 500; liveness: no answer", 2.0)


def test_worker_without_probes_is_ok() -> None:
    found = worker_probes(readiness=None, liveness=None)
    assert (found.status, found.message, found.latency_seconds) == (Status.OK, "", None)


def show(variables: str) -> dict[str, Any]:
    return {"exec": ["/bin/sh", "-c", f"echo {variables}; exit 1"], "interval": 0.1}


@pytest.mark.parametrize("kind", ["startup", "readiness"])
async def test_worker_that_ends_before_its_probes_succeed_fails_with_what_they_found(kind: str) -> None:
    found = worker_probes(**{"readiness": None, kind: show("$POOLCTL_NAME $POOLCTL_PID $HOST $PORT")})
    ending: asyncio.Future[Exit] = asyncio.get_running_loop().create_future()
    waiting = asyncio.ensure_future(found.wait_until_ready(ending, "look into its log"))
    await until(lambda: found.message)
    assert found.message == f"{kind}: /bin/sh: exited with status 1: web 17 127.0.0.1 8080"
    ending.set_result(Exit.from_signal(9))
    with pytest.raises(WorkerFailed, match="before it was ready") as caught:
        await waiting
    assert (caught.value.hint, caught.value.exit) == ("look into its log", ending.result())
    found.stop()


async def test_worker_is_ready_once_its_startup_and_then_its_readiness_probe_succeed(tmp_path: Path) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    found = worker_probes(
        startup={"exec": ["/bin/ls", str(first)], "interval": 0.1},
        readiness={"exec": ["/bin/ls", str(second)], "interval": 0.1},
    )
    waiting = asyncio.ensure_future(found.wait_until_ready(asyncio.get_running_loop().create_future()))
    second.touch()
    await until(lambda: "startup" in found.message)
    second.unlink()
    first.touch()
    await until(lambda: "readiness" in found.message)
    assert "startup" not in found.message
    assert not waiting.done()
    second.touch()
    await waiting
    assert (found.status, found.message) == (Status.OK, "")
    found.stop()
