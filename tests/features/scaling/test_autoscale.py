"""The decisions about a server's number of workers, with invented loads and an invented clock."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from random import Random
from typing import Any

import pytest

from poolctl.features.scaling._autoscale import Autoscale, Decision, LoadSample
from poolctl.features.scaling._triggers import Part
from poolctl.features.scaling.keys import Scale, Triggers
from poolctl.worker import tally

STEP = 0.25
Shape = Callable[[float], dict[str, Any]]


def scale(least: int = 1, most: int = 8, up: float = 5.0, down: float = 60.0, **triggers: Any) -> Scale:
    return Scale(min=least, max=most, triggers=Triggers(**triggers), cooldown={"up": up, "down": down})


class Server:
    """A server whose load is a function of the time; new workers are ready after `start_seconds`."""

    def __init__(self, table: Scale, size: int = 1, start_seconds: float = 0.5) -> None:
        self.autoscale = Autoscale(table, 0.0)
        self.size = self.ready = size
        self.now = 0.0
        self.start_seconds = start_seconds
        self.ready_at = 0.0
        self.decisions: list[tuple[float, Decision]] = []

    def run(self, seconds: float, shape: Shape, **more: Any) -> list[Decision]:
        begun = len(self.decisions)
        for _ in range(int(seconds / STEP)):
            self.now += STEP
            if self.now >= self.ready_at:
                self.ready = self.size
            load = self.load(**{"ready": self.ready} | shape(self.now))
            decision = self.autoscale.decide(load, self.size, **more)
            if decision is not None:
                self.decisions.append((self.now, decision))
                if decision.after > self.size:
                    self.ready_at = self.now + self.start_seconds
                self.size = decision.after
                self.ready = min(self.ready, self.size)
        return [decision for _, decision in self.decisions[begun:]]

    def load(self, *, ready: int, demand: int = 0, **figures: Any) -> LoadSample:
        """A sample; `requests` and `responses` are since the sample before, other figures are averages."""
        responses = figures.get("responses", ())
        measures = {name: Part(figures.get(name, 0)) for name in ("in_flight", "queue", "cpu")}
        measures["requests_per_second"] = Part(figures.get("requests", 0), STEP)
        return LoadSample(self.now, ready, True, demand, measures | {"p50": responses, "p99": responses})

    @property
    def changes(self) -> list[tuple[float, int]]:
        return [(at, each.after - each.before) for at, each in self.decisions if each.after != each.before]


def constant(**load: Any) -> Shape:
    return lambda now: load


def responses(seconds: float, count: int = 100) -> tuple[int, ...]:
    slot = next(at for at, bound in enumerate(tally.BOUNDS_NS) if seconds * 1e9 <= bound)
    return tuple(count if each == slot else 0 for each in range(len(tally.BOUNDS_NS) + 1))


def test_more_workers_follow_in_proportion_within_a_second_of_the_load() -> None:
    server = Server(scale(in_flight=20))
    server.run(10, constant(in_flight=15))
    begun = server.now
    (decision,) = server.run(10, constant(in_flight=90))
    assert (decision.before, decision.after, decision.trigger, decision.target) == (1, 5, "in_flight", 20)
    assert decision.value > 20
    assert server.decisions[0][0] - begun <= 1.0


@pytest.mark.parametrize(
    ("triggers", "load", "after"),
    [
        ({"in_flight": 20}, {"in_flight": 41}, 3),
        ({"queue": 5}, {"queue": 11}, 3),
        ({"requests_per_second": 100}, {"requests": 60}, 3),
        ({"cpu": 0.8}, {"cpu": 1.0}, 2),
        ({"p99": "300ms"}, {"responses": responses(0.9)}, 2),
        ({"p50": "300ms"}, {"responses": responses(0.9)}, 2),
        ({"in_flight": 20, "queue": 5}, {"in_flight": 30, "queue": 20}, 4),
    ],
)
def test_each_trigger_asks_for_workers(triggers: dict[str, Any], load: dict[str, Any], after: int) -> None:
    server = Server(scale(**triggers))
    server.run(2, constant(**load))
    assert server.decisions[0][1].after == after


@pytest.mark.parametrize(
    ("triggers", "load"),
    [
        ({"in_flight": 20}, {"in_flight": 20}),
        ({"queue": 5}, {"queue": 5}),
        ({"requests_per_second": 100}, {"requests": 25}),
        ({"cpu": 0.8}, {"cpu": None}),
        ({"p99": "300ms"}, {"responses": responses(0.2)}),
        ({"p99": "300ms"}, {"responses": responses(5, count=0)}),
    ],
)
def test_a_figure_that_is_not_above_its_target_changes_nothing(
    triggers: dict[str, Any], load: dict[str, Any]
) -> None:
    assert Server(scale(**triggers)).run(100, constant(**load)) == []


@pytest.mark.parametrize("in_flight", [21, 30, 60, 500])
def test_the_decision_takes_a_second_whatever_the_load(in_flight: int) -> None:
    server = Server(scale(in_flight=20, most=100))
    server.run(10, constant(in_flight=0))
    (decision,) = server.run(1, constant(in_flight=in_flight))
    assert decision.after == -(-in_flight // 20)


def test_a_peak_shorter_than_the_average_changes_nothing() -> None:
    server = Server(scale(in_flight=20))
    assert server.run(30, lambda now: {"in_flight": 60 if now == 15.0 else 5}) == []


def test_never_more_than_scale_max_and_that_is_reported_once() -> None:
    server = Server(scale(in_flight=1, most=3))
    first, second = server.run(120, constant(in_flight=500))
    assert (first.before, first.after) == (1, 3)
    assert (second.before, second.after, second.value) == (3, 3, pytest.approx(500 / 3))


def test_increases_keep_cooldown_up_between_them() -> None:
    server = Server(scale(p99="100ms", up=5, most=4))
    server.run(60, constant(responses=responses(0.9)))
    times = [at for at, _ in server.changes]
    assert server.size == 4
    assert all(after - before >= 5 for before, after in pairwise(times))


def test_latency_asks_for_no_more_workers_while_one_is_starting() -> None:
    server = Server(scale(p99="100ms", up=1), start_seconds=20)
    server.run(15, constant(responses=responses(0.9)))
    assert [after for _, after in server.changes] == [1]


def test_workers_that_start_count_as_workers() -> None:
    server = Server(scale(in_flight=10, up=1), start_seconds=30)
    server.run(20, constant(in_flight=35))
    assert server.size == 4


def test_a_failing_server_gets_no_more_workers() -> None:
    server = Server(scale(in_flight=10))
    assert server.run(30, constant(in_flight=500), may_change=False) == []
    assert server.run(5, constant(in_flight=500)) != []


def test_fewer_workers_follow_by_steps_after_cooldown_down() -> None:
    server = Server(scale(in_flight=20), size=8)
    server.run(59, constant(in_flight=8))
    assert server.size == 8
    server.run(300, constant(in_flight=8))
    assert [each.after for _, each in server.decisions] == [4, 2, 1]
    times = [0.0, *(at for at, _ in server.changes)]
    assert all(after - before >= 60 for before, after in pairwise(times))


def test_a_decrease_keeps_the_others_under_the_target_by_a_margin() -> None:
    server = Server(scale(in_flight=20), size=4)
    server.run(600, constant(in_flight=45))  # 15 of each of 3 workers, 22 of 2
    assert server.size == 3


def test_a_decrease_needs_all_triggers_under_their_targets() -> None:
    server = Server(scale(in_flight=20, cpu=0.8), size=3)
    server.run(300, constant(in_flight=1, cpu=2.1))
    assert server.size == 3
    server.run(300, constant(in_flight=1, cpu=0.1))
    assert server.size == 1


def test_latency_near_its_target_keeps_all_workers() -> None:
    server = Server(scale(p99="500ms"), size=3)
    server.run(300, constant(responses=responses(0.45)))
    assert server.size == 3
    server.run(300, constant(responses=responses(0.02)))
    assert server.size == 1


def test_a_peak_within_cooldown_down_delays_the_decrease() -> None:
    server = Server(scale(in_flight=20), size=2)
    server.run(50, constant(in_flight=2))
    server.run(2, constant(in_flight=36))
    server.run(55, constant(in_flight=2))
    assert server.size == 2
    server.run(10, constant(in_flight=2))
    assert server.size == 1


def test_a_pause_of_the_process_begins_the_averages_again() -> None:
    server = Server(scale(in_flight=20), size=4)
    server.run(30, constant(in_flight=2))
    server.now += 3600
    server.run(50, constant(in_flight=2))
    assert server.size == 4


def test_demand_from_elsewhere_counts_as_the_queue() -> None:
    server = Server(scale(queue=5))
    server.run(5, constant())
    (decision,) = server.run(2, lambda now: {"demand": 20 if now == 5.25 else 0})
    assert (decision.after, decision.trigger) == (4, "queue")


def test_demand_that_arrives_before_there_is_an_average_counts_once() -> None:
    server = Server(scale(queue=1))
    server.run(3 * STEP, constant(demand=1))
    server.now += 0.5  # the next sample comes late
    (decision,) = server.run(10, constant())
    assert (decision.after, decision.trigger) == (3, "queue")


@pytest.mark.parametrize(("load", "trigger"), [
    ({"in_flight": 55, "queue": 14.9}, "queue"), ({"in_flight": 59, "queue": 14}, "in_flight"),
])  # fmt: skip
def test_decision_names_the_trigger_that_is_furthest_above_its_target(
    load: dict[str, Any], trigger: str
) -> None:
    server = Server(scale(in_flight=20, queue=5))
    server.run(2, constant(**load))
    assert [(each.after, each.trigger) for _, each in server.decisions] == [(3, trigger)]


WAVES = [
    (1, 0.5, 90, 5),
    (7, 0.2, 200, 0),
    (45, 0.7, 61, 10),
    (100, 0.5, 150, 0),
    (160, 0.3, 45, 15),
    (400, 0.6, 199, 3),
]


@pytest.mark.parametrize(("period", "share", "high", "low"), WAVES)
def test_a_square_wave_never_makes_the_number_flap(period: int, share: float, high: int, low: int) -> None:
    chance = Random(period)

    def wave(now: float) -> dict[str, Any]:
        level = high if now % period < share * period else low
        return {"in_flight": max(0, round(chance.gauss(level, level / 10)))}

    server = Server(scale(in_flight=20, most=12))
    server.run(1200, wave)
    _is_calm(server, 1200, period)
    if (1 - share) * period < 60:
        # It is never low for long enough.
        assert all(by > 0 for _, by in server.changes)


@pytest.mark.parametrize(("level", "spread"), [(8, 1.0), (19, 0.2), (19.9, 0.05), (60, 0.5), (140, 0.1)])
def test_a_noisy_load_never_makes_the_number_flap(level: float, spread: float) -> None:
    chance = Random(int(level * 10))
    server = Server(scale(in_flight=20, most=12))
    server.run(1200, lambda now: {"in_flight": max(0, round(chance.gauss(level, spread * level)))})
    _is_calm(server, 1200, 1200)


def _is_calm(server: Server, length: float, period: float) -> None:
    """The number turns twice a period at most; decreases are rare, those soon taken back ever rarer."""
    changes = server.changes
    turns = [one for one, other in pairwise(changes) if (one[1] > 0) != (other[1] > 0)]
    assert len(turns) <= 2 * (length / max(period, 120) + 4)
    decreases = [at for at, by in changes if by < 0]
    assert all(after - before >= 60 for before, after in pairwise(decreases))
    mistakes = [at for (at, by), (until, back) in pairwise(changes) if by < 0 < back and until - at < 60]
    assert len(mistakes) <= 5


def test_each_decrease_that_was_a_mistake_doubles_the_time_before_the_next_one() -> None:
    server = Server(scale(in_flight=20, up=1.0, down=20.0))
    decreases = []
    for _ in range(3):
        server.run(10, constant(in_flight=35))
        begun = server.now
        while server.size > 1:
            server.run(STEP, constant(in_flight=0))
        decreases.append(server.now - begun)
    first, second, third = decreases
    assert second - first == pytest.approx(20, abs=3)
    assert third - second == pytest.approx(40, abs=3)


Step = tuple[float, dict[str, Any]]  # seconds, and the load meanwhile
Change = tuple[float, int, int, str, float]  # time, workers before and after, trigger and its value

IN_FLIGHT: list[Step] = [
    (seconds, {"in_flight": count})
    for seconds, count in ((10, 15), (10, 90), (80, 0), (20, 45), (130, 5), (40, 400), (40, 0), (60, 30), (400, 0))
]  # fmt: skip
QUEUE: list[Step] = [
    (seconds, {"queue": count})
    for seconds, count in ((3, 0), (5, 11), (2, 21), (4, 31), (15, 3), (2, 16), (60, 0))
]
SLOW, FAST = responses(0.9), responses(0.1)
BOTH: list[Step] = [
    (5, {"responses": FAST, "cpu": 0.1}), (9, {"responses": SLOW, "cpu": 0.2}),
    (30, {"responses": responses(0.25), "cpu": 0.2}), (40, {"responses": FAST, "cpu": 0.2}),
    (10, {"responses": FAST, "cpu": 1.6}), (60, {"responses": responses(0.05, count=0), "cpu": 0}),
]  # fmt: skip


@pytest.mark.parametrize(
    ("table", "size", "steps", "changes"),
    [
        (scale(in_flight=20, most=6, down=30), 1, IN_FLIGHT, [
            (10.75, 1, 5, "in_flight", 90.0), (53.0, 5, 4, "in_flight", 9.9), (83.0, 4, 2, "in_flight", 0.0),
            (101.0, 2, 3, "in_flight", 22.5), (183.25, 3, 2, "in_flight", 5.6667), (243.25, 2, 1, "in_flight", 2.5),
            (250.75, 1, 6, "in_flight", 400.0), (251.0, 6, 6, "in_flight", 66.6667),
            (358.0, 6, 5, "in_flight", 11.6667), (418.0, 5, 3, "in_flight", 3.3), (448.0, 3, 2, "in_flight", 0.0),
            (478.0, 2, 1, "in_flight", 0.0),
        ]),
        (scale(queue=5, least=2, most=6, up=2, down=8), 2, QUEUE, [
            (4.0, 2, 3, "queue", 5.5), (9.0, 3, 5, "queue", 7.0), (11.0, 5, 6, "queue", 6.2),
            (11.25, 6, 6, "queue", 5.1667), (23.25, 6, 5, "queue", 2.7417), (31.25, 5, 4, "queue", 1.12),
            (39.25, 4, 2, "queue", 1.0063),
        ]),
        (scale(p99="300ms", cpu=0.5, most=4, up=3, down=10), 1, BOTH, [
            (5.25, 1, 2, "p99", 0.98), (8.25, 2, 3, "p99", 0.995), (11.25, 3, 4, "p99", 0.995),
            (12.5, 4, 4, "p99", 0.995), (62.75, 4, 3, "p99", 0.0995), (72.75, 3, 2, "p99", 0.0995),
            (82.75, 2, 1, "p99", 0.0995), (84.75, 1, 4, "cpu", 1.6), (116.5, 4, 3, "cpu", 0.21),
            (136.5, 3, 2, "p99", 0.0), (146.5, 2, 1, "p99", 0.0),
        ]),
    ],
    ids=["in flight", "queue", "latency and processor"],
)  # fmt: skip
def test_course_of_a_load_has_its_course_of_workers(
    table: Scale, size: int, steps: list[Step], changes: list[Change]
) -> None:
    server = Server(table, size)
    for seconds, load in steps:
        server.run(seconds, constant(**load))
    assert [
        (at, each.before, each.after, each.trigger, round(each.value, 4)) for at, each in server.decisions
    ] == changes
    targets = table.triggers.targets
    for _, each in server.decisions:
        assert each.target == targets[each.trigger]
        assert each.window_seconds == (1.0 if each.after >= each.before else 10.0)
