"""Samples of the pages on which workers count, and of their processor time."""

from __future__ import annotations

import os
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from poolctl.core.decision_input import Phase
from poolctl.core.server_entry import Entry, Worker
from poolctl.features.scaling._server_load import Processors, ServerLoad
from poolctl.features.scaling.keys import Triggers
from poolctl.runners.local.tallies import Tallies, Tally
from poolctl.runners.runner_protocol import Capabilities, Placement
from poolctl.worker import tally
from tests.unit.core.ordered_core import web


class Pages:
    """Workers of one server, each with a page that the test writes."""

    def __init__(self) -> None:
        self.entry = Entry(web())
        self.workers: dict[str, Any] = {}
        self.written: dict[str, memoryview] = {}
        keeper: Any = None
        self.core: Any = SimpleNamespace(
            runner=SimpleNamespace(
                capabilities=Capabilities(counters=Tallies(keeper, self.workers, lambda *why: None))
            )
        )

    def add(self, phase: Phase = Phase.READY) -> str:
        placement = Placement.of("web", 1, len(self.workers), pid=os.getpid())
        page = Tally.new()
        self.workers[placement.id] = SimpleNamespace(tally=page)
        self.written[placement.id] = tally.map_page(page.fd)
        config = self.entry.config
        self.entry.observed.workers[placement.id] = Worker(
            placement.id, 1, placement.index, config, phase=phase, placement=placement
        )
        return placement.id

    def count(self, worker: str, started: int, answered: int, bucket: int = 3) -> None:
        self.written[worker][tally.STARTED] += started
        self.written[worker][tally.BUCKETS + bucket] += answered


@pytest.fixture
def pages() -> Iterator[Pages]:
    found = Pages()
    yield found
    for worker in found.workers.values():
        worker.tally.close()


def test_a_sample_has_the_requests_since_the_one_before_over_all_ready_workers(pages: Pages) -> None:
    first, second, starting = pages.add(), pages.add(), pages.add(Phase.STARTING)
    load = ServerLoad(pages.core, Triggers(in_flight=5, p99="1s"), 10.0)
    # An adopted worker has counted before: those are no new requests.
    pages.count(first, started=1000, answered=995)
    sample = load.sample(pages.entry, 10.25)
    assert (sample.ready, sample.serves, sample.in_flight, sample.requests) == (2, True, 5, 0)
    assert (sample.seconds, list(sample.buckets)) == (0.25, [])
    pages.count(first, started=4, answered=6)
    pages.count(second, started=2, answered=1, bucket=7)
    pages.count(starting, started=9, answered=9)
    sample = load.sample(pages.entry, 10.75)
    assert (sample.seconds, sample.in_flight, sample.requests) == (0.5, 4, 6)
    assert (sample.buckets[3], sample.buckets[7], sum(sample.buckets)) == (6, 1, 7)
    del pages.entry.observed.workers[first]
    sample = load.sample(pages.entry, 11.0)
    assert (sample.ready, sample.in_flight, sample.requests) == (1, 1, 0)


def test_counts_that_an_application_has_overwritten_do_no_harm(pages: Pages) -> None:
    worker = pages.add()
    load = ServerLoad(pages.core, Triggers(in_flight=5, p99="1s"), 0.0)
    pages.count(worker, started=2**64 - 1, answered=0)
    assert load.sample(pages.entry, 0.25).in_flight == 0
    pages.written[worker][tally.STARTED] = 0
    assert load.sample(pages.entry, 0.5).requests == 0


def test_unhealthy_workers_serve_nothing(pages: Pages) -> None:
    pages.entry.observed.workers[pages.add()].stuck = True
    assert not ServerLoad(pages.core, Triggers(in_flight=5), 0.0).sample(pages.entry, 1.0).serves


def test_processor_time_counts_from_the_second_measurement(pages: Pages) -> None:
    pages.add()
    cores = Processors()
    assert cores.cores(pages.entry, 0.0, is_busy=True) is None
    assert cores.cores(pages.entry, 0.25, is_busy=True) is None
    spent = os.times().user
    while os.times().user < spent + 0.05:
        continue
    found = cores.cores(pages.entry, 0.5, is_busy=True)
    assert found is not None
    assert found >= 0.05
