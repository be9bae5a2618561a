"""The figures of servers and processes, now, in the last minutes, and over all supervisors."""

from __future__ import annotations

import itertools
import json
from types import SimpleNamespace
from typing import Any

import pytest

from poolctl import ServerConfig
from poolctl.core.server_state import Desired
from poolctl.keeper.store import Store
from poolctl.monitor.metrics import ServerSnapshot, WorkerUsage
from poolctl.runners.process_usage import Usage
from poolctl.runners.runner_protocol import Placement
from poolctl.supervisor.statistics import (
    Statistics,
    Totals,
    error_rate,
    errors,
    latency_seconds,
    quantile,
    request_rate,
)
from poolctl.supervisor.takeover.state_store import StateStore
from poolctl.worker import tally
from tests.serving import blank_page
from tests.unit.core.ordered_core import turns, web
from tests.unit.runners.scripted_runner import ScriptedUsages, SlowRunner
from tests.virtual_loop import VirtualLoop

from .desk import Desk
from .test_state_store import StoreLink

BOUNDS = (1.0, 2.0, 4.0)


@pytest.mark.parametrize(("command", "known"), [(None, True), (("nginx",), False)])
def test_requests_of_a_program_are_unknown_not_0(command: Any, known: bool) -> None:
    core: Any = SimpleNamespace(
        clock=SimpleNamespace(monotonic=lambda: 7.0),
        runner=SlowRunner(),
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
    snapshot = ServerSnapshot(entry, zeros, [WorkerUsage(worker, page, Usage(0, 0.0, 0.0))], counts=True)
    stats = Statistics(core, totals).figures(snapshot, with_errors=True)
    one = stats.workers[0]
    figures = (
        stats.requests_total, stats.requests_per_second, stats.errors_total, stats.errors_per_second, stats.in_flight,
        stats.connections, one.requests_total, one.connections,
    )  # fmt: skip
    assert figures == ((0,) if known else (None,)) * len(figures)
    assert (stats.counted, stats.memory_bytes, stats.cpu_percent) == (known, 0, 0.0)


def test_quantile_lies_within_the_bucket_of_its_rank() -> None:
    assert quantile(BOUNDS, (0, 10, 0, 0), 0.5) == pytest.approx(1.5)
    assert quantile(BOUNDS, (5, 0, 5, 0), 0.99) == pytest.approx(2 + 2 * 4.9 / 5)
    assert quantile(BOUNDS, (5, 0, 5, 0), 0.5) == pytest.approx(1.0)


def test_quantile_above_the_last_bound_is_that_bound_and_none_without_values() -> None:
    assert quantile(BOUNDS, (0, 0, 0, 3), 0.5) == 4.0
    assert quantile(BOUNDS, (0, 0, 0, 0), 0.5) is None


def counts_of(**slots: int) -> list[int]:
    counts = [0] * tally.COUNTED
    for name, value in slots.items():
        counts[{"started": tally.STARTED, "failed": tally.STATUS + 5, "broken": tally.BROKEN}[name]] = value
    return counts


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


class Counted(SlowRunner):
    """A runner whose workers use memory, and have counted what is in `pages`, by the index of the worker."""

    def __init__(self) -> None:
        super().__init__()
        self.pages: dict[int, list[int]] = {}
        self.usages = ScriptedUsages({1001: Usage(2_000_000, 5.0, 1.25)})

    def counts(self, placement: Placement) -> list[int] | None:
        return self.pages.get(placement.index)


class Shop:
    """The statistics of a pool, and the supervisor that continues them."""

    def __init__(self, *servers: ServerConfig, store: Store | None = None) -> None:
        self.runner = Counted()
        self.desk = Desk(*(servers or (web(),)), runner=self.runner)
        self.link = StoreLink(store or Store())
        self.store = StateStore(self.link, "/nowhere")
        self.totals = Totals(self.desk.core, self.runner.tallies, self.desk.events, self.store)
        self.statistics = Statistics(self.desk.core, self.totals)
        self.desk.verbs.add("stats", self.statistics.stats)
        self.desk.verbs.add("monitor", self.statistics.monitor)

    def count(self, index: int = 0, **slots: int) -> None:
        self.runner.pages[index] = page(**slots)

    async def stats(self, **options: Any) -> dict[str, Any]:
        (item,) = (await self.desk.ask("stats", "web", **options))["items"]
        stats: dict[str, Any] = item["stats"]
        return stats


SLOTS = {
    "started": tally.STARTED, "disconnected": tally.DISCONNECTED, "broken": tally.BROKEN, "ok": tally.STATUS + 2,
    "failed": tally.STATUS + 5, "connections": tally.CONNECTIONS, "open": tally.OPEN_CONNECTIONS,
    "websockets": tally.OPEN_WEBSOCKETS, "fast": tally.BUCKETS, "slow": tally.COUNTED - 2,
    "beat": tally.BEAT_ANSWERED_NS, "lag": tally.BEAT_LAG_NS,
}  # fmt: skip


def page(**slots: int) -> list[int]:
    counts = blank_page().tolist()
    for name, value in slots.items():
        counts[SLOTS[name]] = value
    return counts


def begin(loop: VirtualLoop, shop: Shop) -> None:
    """Start its servers."""

    async def start() -> None:
        for entry in shop.desk.core.entries.values():
            shop.desk.core.start(entry)

    loop.run_until_complete(start())
    loop.pass_time()


async def test_statistics_of_a_server_are_those_of_all_its_workers_and_of_each() -> None:
    shop = Shop(web(workers=2))
    await shop.desk.ask("start")
    shop.count(0, started=10, disconnected=1, broken=1, ok=6, failed=1, connections=4, open=2, websockets=1,
               fast=7, beat=1, lag=2_000_000)  # fmt: skip
    shop.count(1, started=5, ok=5, connections=3, open=1, slow=5)
    stats = await shop.stats()
    names = (
        "requests_total", "requests_per_second", "errors_total", "disconnects_total", "in_flight", "connections",
        "connections_total", "websockets", "wakes_total", "restarts_total", "counted", "loop_lag_seconds",
    )  # fmt: skip
    assert [stats[name] for name in names] == [15, 0.0, 2, 1, 1, 3, 7, 1, 0, 0, True, 0.002]
    assert stats["responses_total"] == {"1xx": 0, "2xx": 11, "3xx": 0, "4xx": 0, "5xx": 1}
    assert 0 < stats["latency_p50_seconds"] <= 0.00025
    assert 5 < stats["latency_p99_seconds"] <= 10
    assert (stats["memory_bytes"], stats["cpu_percent"]) == (4_000_000, 2.5)
    first, second = stats["workers"]
    assert (first["id"], first["pid"], first["phase"]) == ("web.1.0", 1001, "ready")
    names = ("requests_total", "errors_total", "in_flight", "connections", "loop_lag_seconds")
    assert [first[name] for name in names] == [10, 2, 1, 2, 0.002]
    assert [second[name] for name in names] == [5, 0, 0, 1, None]
    assert (first["memory_bytes"], first["cpu_percent"]) == (2_000_000, 1.25)
    assert stats.get("errors_per_second") is None
    assert stats["history"].get("errors_per_second") is None
    shop.link.end()


def test_rates_are_those_of_the_last_intervals_and_the_history_is_as_long_as_it_is_watched() -> None:
    loop = VirtualLoop()
    shop = Shop()

    def after(seconds: float, **slots: int) -> None:
        shop.count(0, **slots)
        shop.desk.clock.advance(seconds)
        loop.pass_time(seconds)

    begin(loop, shop)
    shop.count(0, started=100, ok=100, fast=100)
    first = loop.run_until_complete(shop.stats(errors=True))
    assert (first["requests_per_second"], first["errors_per_second"]) == (0.0, 0.0)
    assert first["history"]["requests_per_second"] == []
    after(2.0, started=120, ok=110, failed=10, fast=100, slow=20)
    stats = loop.run_until_complete(shop.stats(errors=True))
    assert (stats["requests_per_second"], stats["errors_per_second"]) == (10.0, 5.0)
    assert stats["latency_p50_seconds"] > 1, "only responses of these intervals count"
    history = stats["history"]
    assert (history["interval_seconds"], history["requests_per_second"], history["errors_per_second"]) == (
        2.0, [10.0], [5.0],
    )  # fmt: skip
    assert history["latency_p99_seconds"][0] > 1
    assert history["memory_bytes"] == [2_000_000]
    for _ in range(5):
        after(2.0, started=120, ok=110, failed=10, fast=100, slow=20)
    stats = loop.run_until_complete(shop.stats(errors=True))
    assert (stats["requests_per_second"], stats["errors_per_second"]) == (0.0, 0.0)
    assert stats["history"]["requests_per_second"] == [10.0, 0.0, 0.0, 0.0, 0.0, 0.0]
    assert stats["latency_p50_seconds"] is None
    for _ in range(33):
        after(2.0, started=120)
    measured = len(shop.runner.usages.requested)
    after(20.0, started=120)
    assert len(shop.runner.usages.requested) == measured, "nothing asks for figures"
    assert loop.run_until_complete(shop.stats())["history"]["requests_per_second"] == [], "it was not watched"
    after(2.0, started=140)
    assert loop.run_until_complete(shop.stats())["history"]["requests_per_second"] == [10.0]
    shop.link.end()
    loop.run_until_complete(shop.runner.aclose())
    loop.pass_time()
    loop.close()


def test_samples_are_given_for_as_long_as_somebody_takes_them_and_nobody_asks() -> None:
    loop = VirtualLoop()
    shop = Shop(web(), web("other"))
    begin(loop, shop)
    taken: list[tuple[float, list[str]]] = []

    async def take() -> None:
        shop.statistics.send_samples_to(
            lambda now, snapshots: taken.append((now, [snapshot.entry.name for snapshot in snapshots]))
        )

    def pass_time(seconds: int) -> None:
        for _ in range(seconds):
            shop.desk.clock.advance(1.0)
            loop.pass_time(1.0)

    loop.run_until_complete(take())
    pass_time(100)
    assert len(taken) in (50, 51)
    assert taken[-1][1] == ["web", "other"]
    assert {round(after - before) for (before, _), (after, _) in itertools.pairwise(taken)} == {2}
    shop.statistics.send_samples_to(None)
    pass_time(100)
    assert len(taken) in (50, 51)
    shop.link.end()
    loop.run_until_complete(shop.runner.aclose())
    loop.pass_time()
    loop.close()


async def test_totals_keep_what_ended_workers_have_counted_for_this_supervisor_and_the_next() -> None:
    store = Store()
    shop = Shop(web(), web("gone"), store=store)
    entry = shop.desk.core.entries["web"]
    counts = page(started=10, failed=2)
    for name in ("one", "one", "two"):
        shop.totals.add_up("web", name, counts)
    shop.totals.add_up("gone", "three", counts)
    assert shop.totals.counts_of_ended_workers(entry)[tally.STARTED] == 20
    shop.runner.tallies.unsaved_workers = ["two"]
    del shop.desk.core.entries["gone"]
    shop.totals.record_state_change(entry, "sleeping", "starting")
    entry.observed.has_pending_request = True
    entry.set_desired(Desired.RUN)
    shop.totals.record_state_change(entry, "sleeping", "starting")
    shop.totals.record_state_change(entry, "starting", "running")
    assert shop.totals.wakes(entry) == 1
    shop.totals.save()
    shop.totals.save()
    assert shop.runner.tallies.saves == 1
    shop.desk.clock.advance(5)

    after = Shop(web(), web("gone"), store=store)
    await after.totals.resume()
    entry, gone = (after.desk.core.entries[name] for name in ("web", "gone"))
    assert after.totals.counts_of_ended_workers(entry)[tally.STARTED] == 20
    assert after.totals.counts_of_ended_workers(gone)[tally.STARTED] == 0
    assert (after.totals.wakes(entry), after.totals.wakes(gone)) == (1, 0)
    after.totals.add_up("web", "two", counts)
    assert after.totals.counts_of_ended_workers(entry)[tally.STARTED] == 20, (
        "its counts are in what was saved"
    )
    after.totals.add_up("web", "four", counts)
    assert after.totals.counts_of_ended_workers(entry)[tally.STARTED] == 30
    for stage in (shop, after):
        stage.link.end()


async def test_availability_follows_the_states_and_the_probes_of_a_server() -> None:
    shop = Shop()
    entry = shop.desk.core.entries["web"]

    async def monitor() -> dict[str, Any]:
        (item,) = (await shop.desk.ask("monitor", "web"))["items"]
        report: dict[str, Any] = item["monitor"]
        return report

    assert (await monitor())["status"] == "unknown"
    shop.totals.record_state_change(entry, "stopped", "starting")
    shop.desk.clock.advance(3)
    await shop.desk.ask("start")
    shop.totals.record_state_change(entry, "starting", "running")
    shop.desk.clock.advance(7)
    report = await monitor()
    figures = ("status", "uptime_seconds", "downtime_seconds", "rises", "falls", "sli", "latency_seconds")
    assert [report[name] for name in figures] == ["ok", 7.0, 3.0, 1, 0, 0.7, None]
    shop.desk.events.record("health", "ko", server="web", after="ko")
    shop.desk.events.flush()
    shop.desk.clock.advance(10)
    report = await monitor()
    assert (report["falls"], report["downtime_seconds"]) == (1, 13.0)
    shop.link.end()


async def test_change_of_a_server_that_was_only_looked_at_is_saved_with_the_next_one() -> None:
    store = Store()
    shop = Shop(web(), web("other"), store=store)
    entry, other = (shop.desk.core.entries[name] for name in ("web", "other"))
    shop.totals.availability(entry)
    shop.totals.record_state_change(other, "stopped", "starting")
    shop.totals.save()
    await shop.desk.ask("start", "web")
    assert shop.totals.availability(entry).rise == 1
    shop.totals.record_state_change(other, "starting", "running")
    shop.totals.save()
    after = Shop(web(), web("other"), store=store)
    await after.totals.resume()
    assert after.totals.availability(after.desk.core.entries["web"]).rise == 1
    for stage in (shop, after):
        stage.link.end()


async def test_successor_that_changes_one_server_keeps_the_totals_of_the_others() -> None:
    store = Store()
    shop = Shop(web(), web("other"), web("gone"), store=store)
    for name in ("web", "other", "gone"):
        entry = shop.desk.core.entries[name]
        shop.totals.add_up(name, name, page(started=5))
        entry.observed.has_pending_request = True
        entry.set_desired(Desired.RUN)
        shop.totals.record_state_change(entry, "sleeping", "running")
    shop.desk.clock.advance(4)
    shop.totals.record_state_change(shop.desk.core.entries["other"], "running", "backoff")
    shop.totals.save()

    after = Shop(web(), web("other"), store=store)
    writes: list[dict[str, Any]] = []
    saves = after.store.store_for_successor
    after.store.store_for_successor = lambda name, content: (
        writes.append(json.loads(content)),
        saves(name, content),
    )[1]  # type: ignore[method-assign]
    await after.totals.resume()
    after.totals.save()
    assert writes == [], "nothing has changed"
    after.totals.add_up("web", "new", page(started=1))
    after.totals.save()
    (written,) = writes
    assert {name: counts[tally.STARTED] for name, counts in written["counts"].items()} == {
        "web": 6,
        "other": 5,
    }
    assert written["wakes"] == {"web": 1, "other": 1}
    assert sorted(written["availability"]) == ["other", "web"]
    assert after.totals.availability(after.desk.core.entries["other"]).uptime == 4.0
    for stage in (shop, after):
        stage.link.end()


async def test_totals_of_a_server_that_was_removed_are_forgotten_at_the_next_save() -> None:
    shop = Shop(web(), web("gone"))
    shop.totals.add_up("gone", "one", page(started=5))
    shop.totals.add_up("web", "two", page(started=5))
    shop.totals.save()
    gone = shop.desk.core.entries["gone"]
    await shop.desk.ask("remove", "gone")
    await turns()
    shop.totals.add_up("web", "three", page(started=5))
    shop.totals.save()
    assert shop.totals.counts_of_ended_workers(gone)[tally.STARTED] == 0
    totals = json.loads(await shop.store.read("totals") or b"")
    assert sorted(totals["counts"]) == ["web"]
    shop.link.end()


def test_samples_of_ended_workers_and_removed_servers_are_forgotten() -> None:
    loop = VirtualLoop()
    shop = Shop(web(), web("gone"))
    begin(loop, shop)

    def ask(verb: str, name: str) -> dict[str, Any]:
        return loop.run_until_complete(shop.desk.ask(verb, name))

    def sampled_pids() -> list[int]:
        shop.desk.clock.advance(2.0)
        loop.pass_time(2.0)
        return shop.runner.usages.requested[-1]

    def samples(name: str) -> int:
        (item,) = ask("stats", name)["items"]
        return len(item["stats"]["history"]["requests_per_second"])

    async def take() -> None:
        shop.statistics.send_samples_to(lambda now, snapshots: None)

    async def add_again() -> None:
        shop.desk.core.add(web("gone"))

    loop.run_until_complete(take())
    assert sampled_pids() == [1001, 1001]
    ask("remove", "gone")
    assert sampled_pids() == [1001]
    loop.run_until_complete(add_again())
    assert (samples("web"), samples("gone")) == (2, 0)
    ask("stop", "web")
    assert sampled_pids() == []
    assert (samples("web"), samples("gone")) == (3, 0)
    shop.statistics.send_samples_to(None)
    shop.link.end()
    loop.run_until_complete(shop.runner.aclose())
    loop.pass_time(2.0)
    loop.close()
