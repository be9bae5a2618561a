"""The triggers: each measures one figure of a server's load."""

from __future__ import annotations

import os
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from poolctl.core.server_entry import Entry
from poolctl.core.worker import Worker, WorkerPhase
from poolctl.features.scaling._triggers import TRIGGERS, Cpu, MovingAverage, MovingQuantile, Part, Sample
from poolctl.features.scaling.keys import Triggers
from poolctl.monitor.metrics import BOUNDS_SECONDS
from poolctl.runners.process_usage import Usage
from poolctl.runners.runner_protocol import Placement
from poolctl.worker import tally
from tests.unit.core.ordered_core import turns, web
from tests.unit.runners.scripted_runner import ScriptedUsages

PID = os.getpid()


def entry_of(*phases: WorkerPhase, pid: int | None = PID) -> Entry:
    """A server with a worker in each of these phases; all of them are this process."""
    entry = Entry(web())
    for index, phase in enumerate(phases):
        placement = Placement.of("web", 1, index, pid=pid)
        worker = Worker(placement.id, 1, index, entry.config, phase=phase, placement=placement)
        entry.observed.workers[worker.id] = worker
    return entry


def sample_of(entry: Entry, now: float = 0.0, *, in_flight: int = 0, **counted: int) -> Sample:
    counts = [0] * tally.COUNTED
    for name, count in counted.items():
        counts[getattr(tally, name)] = count
    return Sample(entry, now, 0.25, in_flight, counts)


def runner_with(usages: ScriptedUsages) -> Any:
    return SimpleNamespace(usages=usages)


ANY: Any = SimpleNamespace()


async def measured(cpu: Cpu, sample: Sample) -> float | None:
    """The cores in use according to the trigger, once it has also begun the measurement that is due."""
    found = cpu.measure(sample).amount
    await turns()
    return found


async def test_processor_time_counts_from_the_second_measurement() -> None:
    usages = ScriptedUsages({PID: Usage(cpu_seconds=10.0, measured_at=1.0)})
    cpu, busy = Cpu(runner_with(usages)), sample_of(entry_of(WorkerPhase.READY), in_flight=1)
    assert [await measured(cpu, busy._replace(now=at)) for at in (1.0, 1.25)] == [None, None]
    usages.figures[PID] = Usage(cpu_seconds=10.5, measured_at=1.5)
    assert [await measured(cpu, busy._replace(now=at)) for at in (1.5, 1.75)] == [1.0, 1.0]


async def test_processor_time_is_the_cores_that_all_ready_workers_use_between_two_measurements() -> None:
    usages = ScriptedUsages({PID: Usage(cpu_seconds=10.0, measured_at=1.0)})
    cpu, entry = Cpu(runner_with(usages)), entry_of(WorkerPhase.READY, WorkerPhase.STARTING)
    await measured(cpu, sample_of(entry, 1.0, in_flight=1))
    usages.figures[PID] = Usage(cpu_seconds=11.0, measured_at=1.5)
    assert await measured(cpu, sample_of(entry, 1.5, in_flight=1)) == 2.0
    usages.figures[PID] = Usage(cpu_seconds=11.1, measured_at=1.6)  # too soon to tell
    assert await measured(cpu, sample_of(entry, 1.75, in_flight=1)) == 2.0
    usages.figures[PID] = Usage(cpu_seconds=0.0, measured_at=2.0)  # another process has its pid
    assert await measured(cpu, sample_of(entry, 2.0, in_flight=1)) == 0.0


@pytest.mark.parametrize(
    ("load", "seconds", "is_measured"),
    [
        ({"in_flight": 1}, 0.44, False), ({"in_flight": 1}, 0.45, True), ({"STARTED": 1}, 0.45, True),
        ({}, 0.94, False), ({}, 0.95, True),
    ],
)  # fmt: skip
async def test_processor_time_of_an_idle_server_is_measured_less_often(
    load: dict[str, int], seconds: float, is_measured: bool
) -> None:
    usages = ScriptedUsages()
    cpu, entry = Cpu(runner_with(usages)), entry_of(WorkerPhase.READY)
    await measured(cpu, sample_of(entry))
    await measured(cpu, sample_of(entry, seconds, **load))
    assert usages.requested == [[PID]] * (2 if is_measured else 1)


@pytest.mark.parametrize(
    ("entry", "spent"),
    [
        (entry_of(WorkerPhase.STARTING), 10.0),
        (entry_of(WorkerPhase.READY, pid=None), 10.0),
        (entry_of(WorkerPhase.READY), None),
    ],
    ids=["starting", "without a process", "ended"],
)
async def test_worker_that_has_no_process_or_is_not_ready_uses_no_known_processor_time(
    entry: Entry, spent: float | None
) -> None:
    usages = ScriptedUsages()
    cpu = Cpu(runner_with(usages))
    for at in (1.0, 3.0, 5.0):
        usages.figures[PID] = Usage(cpu_seconds=spent, measured_at=at)
        assert await measured(cpu, sample_of(entry, at)) is None


def test_figures_of_workers_are_those_of_the_sample() -> None:
    sample = sample_of(entry_of(), in_flight=7, STARTED=3)
    assert TRIGGERS["in_flight"](ANY).measure(sample) == Part(7)
    assert TRIGGERS["requests_per_second"](ANY).measure(sample) == Part(3, 0.25)


def test_queue_is_the_backlog() -> None:
    runner: Any = SimpleNamespace(queued_connections=lambda config: 4 if config.name == "web" else 0)
    sample = sample_of(entry_of())
    assert TRIGGERS["queue"](runner).measure(sample) == Part(4)
    assert [name for name, kind in TRIGGERS.items() if kind.counts_demand] == ["queue"]


def test_latency_is_the_number_of_responses_by_their_time() -> None:
    p50 = TRIGGERS["p50"](ANY)
    assert p50.measure(sample_of(entry_of(), STARTED=9)) == ()
    assert p50.measure(sample_of(entry_of(), BUCKETS=2)) == [2] + [0] * (tally.COUNTED - tally.BUCKETS - 1)
    assert [name for name, kind in TRIGGERS.items() if kind.is_latency] == ["p50", "p99"]


def test_average_is_of_all_parts_by_their_weights_and_unknown_with_an_unknown_part() -> None:
    average = MovingAverage()
    assert average.value is None
    average.add(Part(6, 0.5), 1)
    average.add(Part(2, 1.5), 1)
    assert average.value == 4.0
    average.add(Part(None), 1)
    assert average.value is None
    average.add(Part(None), -1)
    average.add(Part(6, 0.5), -1)
    assert average.value == pytest.approx(2 / 1.5)


def test_quantile_needs_twenty_responses() -> None:
    first = [10, *[0] * (len(BOUNDS_SECONDS) - 1), 9]
    found = MovingQuantile(0.5)
    found.add((), 1)
    found.add(first, 1)
    assert found.value is None
    found.add([1, *[0] * len(BOUNDS_SECONDS)], 1)
    assert found.value is not None
    assert found.value <= BOUNDS_SECONDS[0]
    found.add(first, 1)
    found.add([21, *[0] * len(BOUNDS_SECONDS)], -1)
    assert found.value is None, "18 are left"


def test_latencies_are_the_quantiles_of_their_names() -> None:
    responses = [60, *[0] * (len(BOUNDS_SECONDS) - 1), 40]
    found = {}
    for name in ("p50", "p99"):
        sums: Any = TRIGGERS[name].new_accumulator()
        sums.add(responses, 1)
        found[name] = sums.value
    assert found["p50"] <= BOUNDS_SECONDS[0] < BOUNDS_SECONDS[-2] < found["p99"]
    rarely_slow: Any = TRIGGERS["p99"].new_accumulator()
    rarely_slow.add([199, *[0] * (len(BOUNDS_SECONDS) - 1), 1], 1)
    assert rarely_slow.value <= BOUNDS_SECONDS[0], "it is one of two hundred"
    assert isinstance(TRIGGERS["cpu"].new_accumulator(), MovingAverage)


def test_each_key_has_a_trigger() -> None:
    assert list(TRIGGERS) == list(Triggers.model_fields)


def test_docs_describe_each_trigger() -> None:
    text = (Path(__file__).parents[3] / "docs" / "scaling.md").read_text()
    table = text.partition("\n| trigger | ")[2].partition("\n\n")[0]
    names = re.findall(r"^\| (`.*?) \| ", table, re.MULTILINE)
    assert re.findall(r"`(\w+)`", " ".join(names)) == list(TRIGGERS), "docs/scaling.md"
