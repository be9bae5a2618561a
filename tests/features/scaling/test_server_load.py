"""Samples of the pages on which workers count, and of their processor time."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from poolctl.core.decide import Phase
from poolctl.core.server_entry import Entry, Worker
from poolctl.features.scaling._server_load import ServerLoad
from poolctl.features.scaling._triggers import TRIGGERS, Cpu, Part, Sample
from poolctl.features.scaling.keys import Triggers
from poolctl.runners.local.local_worker import Tallies, Tally
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
    load = ServerLoad(pages.core, ["in_flight", "requests_per_second", "p99"], 10.0)
    # An adopted worker has counted before: those are no new requests.
    pages.count(first, started=1000, answered=995)
    sample = load.sample(pages.entry, 10.25)
    assert (sample.ready, sample.serves) == (2, True)
    assert sample.figures == {"in_flight": Part(5), "requests_per_second": Part(0, 0.25), "p99": ()}
    pages.count(first, started=4, answered=6)
    pages.count(second, started=2, answered=1, bucket=7)
    pages.count(starting, started=9, answered=9)
    sample = load.sample(pages.entry, 10.75)
    responses = sample.figures["p99"]
    assert (sample.figures["in_flight"], sample.figures["requests_per_second"]) == (Part(4), Part(6, 0.5))
    assert (responses[3], responses[7], sum(responses)) == (6, 1, 7)
    del pages.entry.observed.workers[first]
    sample = load.sample(pages.entry, 11.0)
    assert (sample.ready, sample.figures["in_flight"]) == (1, Part(1))
    assert sample.figures["requests_per_second"] == Part(0, 0.25)


def test_counts_that_an_application_has_overwritten_do_no_harm(pages: Pages) -> None:
    worker = pages.add()
    load = ServerLoad(pages.core, ["in_flight", "requests_per_second"], 0.0)
    pages.count(worker, started=2**64 - 1, answered=0)
    assert load.sample(pages.entry, 0.25).figures["in_flight"] == Part(0)
    pages.written[worker][tally.STARTED] = 0
    assert load.sample(pages.entry, 0.5).figures["requests_per_second"] == Part(0, 0.25)


def test_unhealthy_workers_serve_nothing(pages: Pages) -> None:
    pages.entry.observed.workers[pages.add()].stuck = True
    assert not ServerLoad(pages.core, ["in_flight"], 0.0).sample(pages.entry, 1.0).serves


def test_processor_time_counts_from_the_second_measurement(pages: Pages) -> None:
    pages.add()
    cpu = Cpu(pages.core.runner.capabilities)
    busy = Sample(pages.entry, 0.0, 0.25, 1, [0] * tally.COUNTED)
    assert cpu.measure(busy) == Part(None)
    assert cpu.measure(busy._replace(now=0.25)) == Part(None)
    spent = os.times().user
    while os.times().user < spent + 0.05:
        continue
    found = cpu.measure(busy._replace(now=0.5)).amount
    assert found is not None
    assert found >= 0.05


def test_each_key_has_a_trigger() -> None:
    assert list(TRIGGERS) == list(Triggers.keys_of)


def test_docs_describe_each_trigger() -> None:
    text = (Path(__file__).parents[3] / "docs" / "scaling.md").read_text()
    table = text.partition("\n| trigger | ")[2].partition("\n\n")[0]
    names = re.findall(r"^\| (`.*?) \| ", table, re.MULTILINE)
    assert re.findall(r"`(\w+)`", " ".join(names)) == list(TRIGGERS), "docs/scaling.md"
