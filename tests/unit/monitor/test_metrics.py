"""The figures that become metrics, and their text, read back by Prometheus's own parser."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from prometheus_client.parser import text_string_to_metric_families as text_families

import poolctl
from poolctl import ServerConfig
from poolctl.core.server_entry import Availability, Entry
from poolctl.core.server_state import Desired
from poolctl.core.worker import Worker, WorkerPhase
from poolctl.monitor.metrics import (
    PARTS,
    Family,
    ObservedServer,
    ServerSnapshot,
    WorkerUsage,
    loop_lag_seconds,
    measure_server,
    pool_families,
    render,
    worker_pids,
)
from poolctl.runners.inline_runner import InlineRunner
from poolctl.runners.process_usage import Usage
from poolctl.runners.runner_protocol import Placement
from poolctl.worker import tally
from tests.serving import blank_page
from tests.unit.runners.scripted_runner import ScriptedRunner, ScriptedUsages

NASTY = 'a "quoted"\\name\nwith a line'


def families() -> list[Family]:
    counter = Family("shop_requests", "counter", 'How many; a \\ and a\nline and "quotes".')
    counter.add(12, server=NASTY)
    gauge = Family("shop_memory_bytes", "gauge", "How much.")
    gauge.add(1.5e6, server="web")
    gauge.add(None, server="unknown")
    info = Family("shop_build", "info", "What it is.")
    info.add(1, version="1.0")
    histogram = Family("shop_duration_seconds", "histogram", "How long.")
    histogram.add_histogram((0.25, 1), (3, 0, 2), 7.5, server="web")
    return [counter, gauge, info, histogram, Family("shop_nothing", "gauge", "No sample.")]


def samples(found: Any) -> dict[tuple[str, str], float]:
    return {
        (sample.name, sample.labels.get("le", sample.labels.get("server", ""))): sample.value
        for family in found
        for sample in family.samples
    }


EXPECTED = {
    ("shop_requests_total", NASTY): 12.0,
    ("shop_memory_bytes", "web"): 1.5e6,
    ("shop_build_info", ""): 1.0,
    ("shop_duration_seconds_bucket", "0.25"): 3.0,
    ("shop_duration_seconds_bucket", "1.0"): 3.0,
    ("shop_duration_seconds_bucket", "+Inf"): 5.0,
    ("shop_duration_seconds_count", "web"): 5.0,
    ("shop_duration_seconds_sum", "web"): 7.5,
}


def test_text_format_is_parsed_by_prometheus_client_without_loss() -> None:
    found = list(text_families(render(families())))
    assert samples(found) == EXPECTED
    assert {family.name: family.type for family in found} == {
        "shop_requests": "counter",
        "shop_memory_bytes": "gauge",
        "shop_build_info": "gauge",
        "shop_duration_seconds": "histogram",
    }
    assert found[0].documentation == 'How many; a \\ and a\nline and "quotes".'


def test_path_that_is_not_utf_8_does_not_prevent_an_answer() -> None:
    info = Family("shop_build", "info", "What it is.")
    info.add(1, server="unix:/caf\udce9/a.sock")
    assert 'server="unix:/caf?/a.sock"' in render([info]).encode().decode()


def test_infinity_and_nan_are_written_as_the_format_requires() -> None:
    family = Family("odd", "gauge", "Odd.")
    for name, value in (("inf", math.inf), ("minus", -math.inf), ("nan", math.nan), ("tiny", 1e-7)):
        family.add(value, server=name)
    read = samples(text_families(render([family])))
    assert read["odd", "inf"] == math.inf
    assert read["odd", "minus"] == -math.inf
    assert math.isnan(read["odd", "nan"])
    assert read["odd", "tiny"] == 1e-7


def counts_of(slots: Mapping[int, int]) -> list[int]:
    found = blank_page().tolist()
    for slot, value in slots.items():
        found[slot] = value
    return found


def entry_of(name: str, **keys: Any) -> Entry:
    return Entry(ServerConfig(name=name, bind="127.0.0.1:8081", app="shop:app", **keys))


def worker_of(
    entry: Entry, generation: int, index: int, phase: WorkerPhase = WorkerPhase.READY, pid: int | None = 71
) -> Worker:
    placement = Placement.of(entry.name, generation, index, pid=pid)
    worker = Worker(placement.id, generation, index, entry.config, phase, placement, 1.0)
    entry.observed.workers[worker.id] = worker
    return worker


def used(memory: int, cpu: float = 0.0) -> Usage:
    return Usage(memory, 60.5, cpu, 1.0)


REQUESTS = {
    tally.STARTED: 20, tally.DISCONNECTED: 2, tally.BROKEN: 3, tally.MALFORMED: 4, tally.LATENCY_NS: 1_500_000_000,
    tally.CONNECTIONS: 6, tally.OPEN_CONNECTIONS: 5, tally.WEBSOCKETS: 8, tally.OPEN_WEBSOCKETS: 7,
    tally.STATUS + 1: 1, tally.STATUS + 2: 9, tally.STATUS + 4: 1, tally.STATUS + 5: 2, tally.BUCKETS: 10,
    tally.COUNTED - 1: 2, tally.BEAT_ANSWERED_NS: 1, tally.BEAT_LAG_NS: 2_500_000,
}  # fmt: skip

WEB = """\
poolctl_server_info{server="web",bind="127.0.0.1:8081",expose="http://ann:********@web.example",tags="api,inner"} 1
poolctl_server_state{server="web",state="running"} 1
poolctl_server_state{server="web",state="stopped"} 0
poolctl_server_ready{server="web"} 1
poolctl_server_workers_wanted{server="web"} 3
poolctl_server_workers{server="web"} 2
poolctl_server_restarts_total{server="web"} 4
poolctl_server_flapping{server="web"} 0
poolctl_server_failures_total{server="web"} 5
poolctl_server_memory_bytes{server="web"} 3000
poolctl_certificate_expiration_timestamp_seconds{server="web"} 1900000000.0
poolctl_monitor_status{server="web",status="ok"} 1
poolctl_monitor_status{server="web",status="ko"} 0
poolctl_monitor_latency_seconds{server="web"} 0.25
poolctl_monitor_uptime_seconds_total{server="web"} 10.001
poolctl_monitor_downtime_seconds_total{server="web"} 20.002
poolctl_monitor_risetime_seconds_total{server="web"} 3.003
poolctl_monitor_falltime_seconds_total{server="web"} 4.004
poolctl_monitor_rises_total{server="web"} 2
poolctl_monitor_falls_total{server="web"} 1
poolctl_monitor_sli_ratio{server="web"} 0.3333300003333
poolctl_server_wakes_total{server="web"} 6
poolctl_responses_total{server="web",code="1xx"} 1
poolctl_responses_total{server="web",code="2xx"} 9
poolctl_responses_total{server="web",code="3xx"} 0
poolctl_responses_total{server="web",code="4xx"} 1
poolctl_responses_total{server="web",code="5xx"} 2
poolctl_request_errors_total{server="web",reason="5xx"} 2
poolctl_request_errors_total{server="web",reason="broken"} 3
poolctl_request_errors_total{server="web",reason="disconnected"} 2
poolctl_request_errors_total{server="web",reason="malformed"} 4
poolctl_request_duration_seconds_bucket{server="web",le="0.00025"} 10
poolctl_request_duration_seconds_bucket{server="web",le="10.0"} 10
poolctl_request_duration_seconds_bucket{server="web",le="+Inf"} 12
poolctl_request_duration_seconds_count{server="web"} 12
poolctl_request_duration_seconds_sum{server="web"} 1.5
poolctl_requests_total{server="web"} 20
poolctl_requests_in_flight{server="web"} 3
poolctl_open_connections{server="web"} 5
poolctl_connections_total{server="web"} 6
poolctl_open_websockets{server="web"} 7
poolctl_websockets_total{server="web"} 8
poolctl_worker_info{server="web",worker="0",pid="71",generation="1"} 1
poolctl_worker_memory_bytes{server="web",worker="0"} 1000
poolctl_worker_memory_bytes{server="web",worker="1"} 2000
poolctl_worker_cpu_seconds_total{server="web",worker="0"} 60.5
poolctl_worker_event_loop_lag_seconds{server="web",worker="0"} 0.0025
poolctl_worker_requests_total{server="web",worker="0"} 20
poolctl_worker_requests_in_flight{server="web",worker="0"} 3
poolctl_worker_open_connections{server="web",worker="0"} 5
"""


def shop() -> list[ObservedServer]:
    web = entry_of("web", workers=3, tags=["api", "inner"], expose="http://ann:secret@web.example")
    web.set_desired(Desired.RUN)
    web.desired.generation = 1
    web.observed.restarts, web.observed.failures, web.observed.certificate_ends = 4, 5, 1.9e9
    pairs = [
        WorkerUsage(worker_of(web, 1, 0), counts_of(REQUESTS), used(1000)),
        WorkerUsage(worker_of(web, 1, 1, pid=None), None, used(2000)),
    ]
    up = Availability("running", "ok", 10.0009, 20.0021, 3.0032, 4.0041, 2, 1)
    off = entry_of("off")
    return [
        ObservedServer(
            "web", "running", ServerSnapshot(web, counts_of(REQUESTS), [*pairs], counts=True), up, 0.25, 6
        ),
        ObservedServer(
            "off",
            "stopped",
            ServerSnapshot(off, blank_page().tolist(), [], counts=True),
            Availability(),
            None,
            0,
        ),
    ]


def text_of(servers: Sequence[ObservedServer]) -> str:
    return render([family for part in PARTS for family in part(servers)])


def names(lines: Iterable[str]) -> set[str]:
    return {line.partition("{")[0] for line in lines if not line.startswith("#")}


def test_figures_of_a_server_and_its_workers_are_metrics_of_these_names_and_labels() -> None:
    lines = text_of(shop()).splitlines()
    for line in WEB.splitlines():
        assert line in lines
    assert names(lines) == names(WEB.splitlines()), "an example of each metric belongs in WEB above"
    ready = [line.partition(" ")[2] for line in lines if line.startswith("poolctl_server_ready")]
    assert ready == ["1", "0"]


def test_server_that_is_off_has_no_latency_no_certificate_and_no_availability() -> None:
    lines = [line for line in text_of(shop()).splitlines() if 'server="off"' in line]
    names = {line.partition("{")[0] for line in lines}
    assert not names & {
        "poolctl_monitor_latency_seconds", "poolctl_certificate_expiration_timestamp_seconds", "poolctl_worker_info",
    }  # fmt: skip
    assert 'poolctl_monitor_status{server="off",status="unknown"} 1' in lines
    assert 'poolctl_server_state{server="off",state="stopped"} 1' in lines
    assert 'poolctl_server_memory_bytes{server="off"} 0' in lines


def test_unknown_memory_and_processor_time_are_left_out() -> None:
    entry = entry_of("web")
    seen = ServerSnapshot(
        entry, blank_page().tolist(), [WorkerUsage(worker_of(entry, 1, 0), None, Usage())], counts=True
    )
    text = text_of([ObservedServer("web", "running", seen, Availability(), None, 0)])
    assert "poolctl_worker_info{" in text
    for name in ("server_memory_bytes", "worker_memory_bytes", "worker_cpu_seconds_total"):
        assert f"poolctl_{name}{{" not in text


def test_requests_of_a_server_that_does_not_count_are_not_shown() -> None:
    entry = Entry(ServerConfig(name="web", bind=":1", command=["nginx"]))
    for counts in (True, False):
        seen = ServerSnapshot(entry, counts_of(REQUESTS), [], counts=counts)
        assert "poolctl_requests" not in text_of(
            [ObservedServer("web", "running", seen, Availability(), None, 0)]
        )
    seen = ServerSnapshot(entry_of("web"), counts_of(REQUESTS), [], counts=False)
    assert not seen.counted


def test_during_a_replacement_the_worker_that_stays_is_shown_for_its_index() -> None:
    entry = entry_of("web")
    for leaving, staying in ((1, 2), (2, 1)):
        entry.observed.workers.clear()
        workers = [
            WorkerUsage(worker_of(entry, leaving, 0, WorkerPhase.DRAINING, pid=7), None, Usage()),
            WorkerUsage(worker_of(entry, staying, 0, pid=8), None, Usage()),
        ]
        for order in (workers, workers[::-1]):
            seen = ServerSnapshot(entry, blank_page().tolist(), [*order], counts=True)
            text = text_of([ObservedServer("web", "running", seen, Availability(), None, 0)])
            if staying > leaving:
                assert f'worker_info{{server="web",worker="0",pid="8",generation="{staying}"}} 1' in text
            assert text.count("poolctl_worker_info{") == 1


def test_pool_names_itself_and_counts_its_servers_by_state() -> None:
    lines = render(pool_families("shop", "3.11.7", shop())).splitlines()
    version = poolctl.__version__
    assert f'poolctl_build_info{{pool="shop",version="{version}",python="3.11.7"}} 1' in lines
    counted = {line for line in lines if line.startswith("poolctl_servers{") and not line.endswith(" 0")}
    assert counted == {'poolctl_servers{state="running"} 1', 'poolctl_servers{state="stopped"} 1'}
    assert 'poolctl_servers{state="failed"} 0' in lines
    assert "# HELP poolctl_servers Servers of the pool by their state." in lines
    assert "# HELP poolctl_build_info Which pool this is, and the version of poolctl that runs it." in lines


def test_usage_of_a_server_is_unknown_while_that_of_one_worker_is() -> None:
    entry = entry_of("web")
    one, other = worker_of(entry, 1, 0), worker_of(entry, 1, 1)
    zeros = blank_page().tolist()
    late = counts_of({tally.BEAT_ANSWERED_NS: 1, tally.BEAT_LAG_NS: 7_000_000})
    soon = counts_of({tally.BEAT_ANSWERED_NS: 1, tally.BEAT_LAG_NS: 1_000_000})
    known = ServerSnapshot(
        entry,
        zeros,
        [WorkerUsage(one, late, used(1, 1.234)), WorkerUsage(other, soon, used(2, 2.345))],
        counts=True,
    )
    assert (known.memory_bytes, known.cpu_percent, known.loop_lag_seconds) == (3, 3.58, 0.007)
    unknown = ServerSnapshot(
        entry, zeros, [WorkerUsage(one, zeros, used(1, 1.2)), WorkerUsage(other, None, Usage())], counts=True
    )
    assert (unknown.memory_bytes, unknown.cpu_percent, unknown.loop_lag_seconds) == (None, None, None)


class Counted(ScriptedRunner):
    """A runner of whose workers only the first counts."""

    def counts(self, placement: Placement) -> list[int] | None:
        return counts_of({tally.STARTED: 5}) if placement.index == 0 else None


def test_snapshot_adds_the_running_workers_to_those_that_have_ended() -> None:
    entry = entry_of("web")
    for index, pid in ((0, 71), (1, 72), (2, None)):
        worker_of(entry, 1, index, pid=pid)
    worker_of(entry, 1, 3).placement = None
    runner = Counted()
    runner.usages = ScriptedUsages({72: used(3)})
    seen = measure_server(entry, counts_of({tally.STARTED: 2}), runner)
    assert (seen.total[tally.STARTED], seen.counted) == (7, True)
    assert [(worker.index, counts is not None, usage) for worker, counts, usage in seen.workers] == [
        (0, True, Usage()), (1, False, used(3)), (2, False, Usage()),
    ]  # fmt: skip
    assert worker_pids([entry]) == [71, 72, None]
    without = measure_server(entry, blank_page().tolist(), InlineRunner())
    assert (without.counted, without.memory_bytes, without.cpu_percent) == (False, None, None)


def test_loop_lag_is_in_seconds_and_unknown_without_a_heartbeat() -> None:
    assert loop_lag_seconds(None) is None
    assert loop_lag_seconds(counts_of({tally.BEAT_LAG_NS: 5})) is None
    assert loop_lag_seconds(counts_of({tally.BEAT_ANSWERED_NS: 1, tally.BEAT_LAG_NS: 1_500_000_000})) == 1.5
