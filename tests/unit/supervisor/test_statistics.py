"""The figures of processes, and quantiles of what only buckets are known of."""

from __future__ import annotations

import os
import time
from types import SimpleNamespace
from typing import Any

import pytest

from poolctl.monitor.metrics import ServerSnapshot, Usage
from poolctl.supervisor.statistics import (
    Statistics,
    error_rate,
    errors,
    latency_seconds,
    quantile,
    request_rate,
)
from poolctl.worker import tally
from tests.serving import blank_page

BOUNDS = (1.0, 2.0, 4.0)


def test_cpu_at_the_first_look_is_the_average_since_the_process_was_started() -> None:
    until = time.process_time() + 0.05
    while time.process_time() < until:
        pass
    usage = Usage()
    usage.look(os.getpid(), time.monotonic())
    assert usage.cpu_percent > 0


@pytest.mark.parametrize(("command", "known"), [(None, True), (("nginx",), False)])
def test_requests_of_a_program_are_unknown_not_0(command: Any, known: bool) -> None:
    core: Any = SimpleNamespace(
        clock=SimpleNamespace(monotonic=lambda: 7.0),
        runner=SimpleNamespace(capabilities=SimpleNamespace(counters=object())),
    )
    totals: Any = SimpleNamespace(wakes=lambda entry: 0)
    worker: Any = SimpleNamespace(
        id="web.1.0", placement=SimpleNamespace(pid=1), phase=SimpleNamespace(value="ready")
    )
    entry: Any = SimpleNamespace(
        name="web", observed=SimpleNamespace(restarts=0), config=SimpleNamespace(command=command)
    )
    zeros = [0] * tally.COUNTED
    page = blank_page().tolist()
    seen = ServerSnapshot(entry, zeros, [(worker, page, Usage())], counts=True)
    stats = Statistics(core, totals).figures(seen, with_errors=True)
    one = stats.workers[0]
    found = (
        stats.requests_total, stats.requests_per_second, stats.errors_total, stats.errors_per_second, stats.in_flight,
        stats.connections, one.requests_total, one.connections,
    )  # fmt: skip
    assert found == ((0,) if known else (None,)) * len(found)
    assert (stats.counted, stats.memory_bytes, stats.cpu_percent) == (known, 0, 0.0)


def test_quantile_lies_within_the_bucket_of_its_rank() -> None:
    assert quantile(BOUNDS, (0, 10, 0, 0), 0.5) == pytest.approx(1.5)
    assert quantile(BOUNDS, (5, 0, 5, 0), 0.99) == pytest.approx(2 + 2 * 4.9 / 5)
    assert quantile(BOUNDS, (5, 0, 5, 0), 0.5) == pytest.approx(1.0)


def test_quantile_above_the_last_bound_is_that_bound_and_none_without_values() -> None:
    assert quantile(BOUNDS, (0, 0, 0, 3), 0.5) == 4.0
    assert quantile(BOUNDS, (0, 0, 0, 0), 0.5) is None


def counts_of(**slots: int) -> list[int]:
    found = [0] * tally.COUNTED
    for name, value in slots.items():
        found[{"started": tally.STARTED, "failed": tally.STATUS + 5, "broken": tally.BROKEN}[name]] = value
    return found


def test_rates_are_the_difference_by_the_time_and_never_negative() -> None:
    before, after = counts_of(started=10, failed=2, broken=1), counts_of(started=40, failed=5, broken=4)
    assert (errors(before), errors(after)) == (3, 9)
    assert (request_rate(before, after, 10), error_rate(before, after, 10)) == (3.0, 0.6)
    assert (request_rate(after, before, 10), error_rate(after, before, 10)) == (0, 0)
    assert (request_rate(before, after, 0), error_rate(before, after, 0)) == (0.0, 0.0)


@pytest.mark.parametrize(
    ("buckets", "q", "found"),
    [
        ([0, 0, 0], 0.5, None),
        ([4, 0, 0], 0.5, 0.5),
        ([4, 0, 0], 1.0, 1.0),
        ([0, 4, 0], 0.5, 2.0),
        ([2, 2, 0], 0.5, 1.0),
        ([2, 2, 0], 0.75, 2.0),
        ([0, 0, 4], 0.5, 3.0),
        ([0, 4, 0], 0.0, 1.0),
    ],
)
def test_quantile_spreads_values_evenly_within_a_bucket(
    buckets: list[int], q: float, found: float | None
) -> None:
    assert quantile([1.0, 3.0], buckets, q) == found


def test_latency_counts_only_the_responses_since_then() -> None:
    before, after = counts_of(), counts_of()
    before[tally.BUCKETS + 3] = after[tally.BUCKETS + 3] = 1000
    assert latency_seconds(after, before, 0.5) is None
    after[tally.BUCKETS] = 2
    fastest = latency_seconds(after, before, 1.0)
    assert fastest is not None
    after[tally.BUCKETS + 5] = 1
    slowest = latency_seconds(after, before, 1.0)
    assert slowest is not None
    assert 0 < fastest < slowest
    assert latency_seconds(before, after, 1.0) is None
