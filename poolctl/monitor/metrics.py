"""The current figures of servers and workers, and the metrics made from them, in Prometheus' text format 0.0.4."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import repeat
from operator import truediv
from typing import NamedTuple, TypeVar

from poolctl import __version__
from poolctl.config import masked_text
from poolctl.core.server_entry import Availability, Entry
from poolctl.core.worker import LEAVING, Worker
from poolctl.runners.process_usage import Usage
from poolctl.runners.runner_protocol import Runner
from poolctl.states import State, Status
from poolctl.worker import tally
from poolctl.worker.tally import Counts

Labels = Mapping[str, str]
INTERVAL_SECONDS = 2.0
BOUNDS_SECONDS = tuple(map(truediv, tally.BOUNDS_NS, repeat(1e9)))

Figure = float | None


class Family:
    """One metric with its samples. `kind` is counter, gauge, histogram or info.

    The name ends with the unit, if the metric has one, and lacks the suffix `_total` of counters or `_info` of infos.
    """

    __slots__ = ("help", "kind", "name", "samples", "suffix")

    def __init__(self, name: str, kind: str, help_: str) -> None:
        self.name = name
        self.kind = kind
        self.help = help_
        self.suffix = {"counter": "_total", "info": "_info"}.get(kind, "")
        self.samples: list[tuple[str, Labels, float]] = []

    def add(self, value: float | None, **labels: str) -> None:
        """Add a sample; None adds nothing."""
        if value is not None:
            self.samples.append((self.suffix, labels, value))

    def add_histogram(
        self, bounds: Sequence[float], counts: Sequence[int], total: float, **labels: str
    ) -> None:
        """Add a histogram. `counts` holds the count of each bucket; the last bucket is above all bounds.

        `total` is the sum of the observed values.
        """
        below = 0
        for bound, count in zip((*bounds, math.inf), counts, strict=True):
            below += count
            self.samples.append(("_bucket", {**labels, "le": _number(float(bound))}, below))
        self.samples.append(("_count", labels, below))
        self.samples.append(("_sum", labels, total))


def render(families: Iterable[Family]) -> str:
    """The text of all families that have samples."""
    lines: list[str] = []
    for family in families:
        if family.samples:
            name, kind = family.name + family.suffix, "gauge" if family.kind == "info" else family.kind
            text = family.help.replace("\\", "\\\\").replace("\n", "\\n")
            lines += [f"# HELP {name} {text}", f"# TYPE {name} {kind}"]
            lines += [
                f"{family.name}{suffix}{_labels(labels)} {_number(value)}"
                for suffix, labels, value in family.samples
            ]
    return "\n".join([*lines, ""])


def _labels(labels: Labels) -> str:
    if not labels:
        return ""
    return "{" + ",".join(f'{name}="{_escaped(value)}"' for name, value in labels.items()) + "}"


def _escaped(value: str) -> str:
    value = value.encode(errors="replace").decode()  # replaces bytes of a path that are not UTF-8
    return value.replace("\\", "\\\\").replace("\n", "\\n").replace('"', '\\"')


def _number(value: float) -> str:
    if isinstance(value, int):
        return str(int(value))
    if math.isinf(value):
        return "+Inf" if value > 0 else "-Inf"
    return "NaN" if math.isnan(value) else repr(float(value))


class WorkerUsage(NamedTuple):
    """A worker with its counts of requests and its memory and processor time; no counts if it does not count."""

    worker: Worker
    counts: Counts | None
    usage: Usage

    @property
    def pid(self) -> int | None:
        return self.worker.placement.pid if self.worker.placement is not None else None


class ServerSnapshot:
    """The counts and usage of a server and its workers. A figure of the server is None if a worker's is unknown."""

    def __init__(self, entry: Entry, total: Counts, workers: list[WorkerUsage], *, counts: bool) -> None:
        self.entry = entry
        self.total = total
        self.counted = counts and not entry.config.command
        self.workers = workers
        memory = _sum_if_known(usage.memory_bytes for _, _, usage in workers)
        self.memory_bytes = None if memory is None else int(memory)
        percent = _sum_if_known(usage.cpu_percent for _, _, usage in workers)
        self.cpu_percent = None if percent is None else round(percent, 2)
        self.loop_lag_seconds = max(
            (lag for _, counts, _ in workers if (lag := loop_lag_seconds(counts)) is not None), default=None
        )


def _sum_if_known(figures: Iterable[Figure]) -> Figure:
    values = list(figures)
    return None if None in values else sum(filter(None, values))


# Called with each sample: its time, and the snapshots of all servers.
TakeSample = Callable[[float, Sequence[ServerSnapshot]], None]
# Registers the function to call with each sample; None unregisters it.
GiveSamples = Callable[[TakeSample | None], None]


def measure_server(entry: Entry, total: Counts, runner: Runner) -> ServerSnapshot:
    """Return a server's current statistics, with the memory and processor time that were measured last.

    `total` holds the counts of the server's exited workers; the counts of its current workers are added to it.
    """
    workers: list[WorkerUsage] = []
    for worker in entry.observed.workers.values():
        placement = worker.placement
        if placement is None:
            continue
        counts = runner.counts(placement)
        if counts is not None:
            tally.add(total, counts)
        workers.append(WorkerUsage(worker, counts, runner.usages.of(placement.pid)))
    return ServerSnapshot(entry, total, workers, counts=not runner.in_this_process)


def worker_pids(entries: Iterable[Entry]) -> list[int | None]:
    """The pids of all workers of these servers; None for a worker that is not a process."""
    workers = (worker for entry in entries for worker in entry.observed.workers.values())
    return [worker.placement.pid for worker in workers if worker.placement is not None]


def loop_lag_seconds(counts: Counts | None) -> Figure:
    """The delay of the worker's event loop at its last heartbeat; None before the first heartbeat."""
    if counts is None or not counts[tally.BEAT_ANSWERED_NS]:
        return None
    return round(counts[tally.BEAT_LAG_NS] / 1e9, 6)


class ObservedServer(NamedTuple):
    """The statistics of a server at one time; `name` is its name in metrics."""

    name: str
    state: str
    snapshot: ServerSnapshot
    availability: Availability
    latency_seconds: float | None  # the latency of its last probe
    wakes: int

    @property
    def labels(self) -> Mapping[str, str]:
        """The labels of the server's metrics."""
        return {"server": self.name}


Subject = TypeVar("Subject")
# Name, kind and help of a metric, and its value for a server or worker, or None.
Row = tuple[str, str, str, Callable[[Subject], "float | None"]]

_SERVER: Sequence[Row[ServerSnapshot]] = (
    ("poolctl_server_ready", "gauge", "Whether the server answers.", lambda server: int(server.entry.ready)),
    ("poolctl_server_workers_wanted", "gauge", "How many workers the server is to have.",
     lambda server: server.entry.size),
    ("poolctl_server_workers", "gauge", "How many workers the server has.", lambda server: len(server.workers)),
    ("poolctl_server_restarts", "counter", "How often the server was restarted, ordered or not.",
     lambda server: server.entry.observed.restarts),
    ("poolctl_server_flapping", "gauge", "Whether its workers die soon after they were ready, again and again.",
     lambda server: int(server.entry.flapping)),
    ("poolctl_server_failures", "counter", "How often a start or a stop of the server has failed.",
     lambda server: server.entry.observed.failures),
    ("poolctl_server_memory_bytes", "gauge", "Memory (PSS) of the server's processes.",
     lambda server: server.memory_bytes),
    ("poolctl_certificate_expiration_timestamp_seconds", "gauge",
     "When the certificate that the server uses expires, in seconds since 1970 (UTC).",
     lambda server: server.entry.observed.certificate_ends if server.entry.observed.workers else None),
)  # fmt: skip
_AVAILABILITY: Sequence[Row[Availability]] = (
    ("poolctl_monitor_uptime_seconds", "counter", "How long the server has answered.",
     lambda record: round(record.uptime, 3)),
    ("poolctl_monitor_downtime_seconds", "counter", "How long the server has not answered, though it was on.",
     lambda record: round(record.downtime, 3)),
    ("poolctl_monitor_risetime_seconds", "counter", "How long the server was on its way from ko to ok.",
     lambda record: round(record.risetime, 3)),
    ("poolctl_monitor_falltime_seconds", "counter", "How long the server was on its way from ok to ko.",
     lambda record: round(record.falltime, 3)),
    ("poolctl_monitor_rises", "counter", "How often the server began to answer.", lambda record: record.rise),
    ("poolctl_monitor_falls", "counter", "How often the server ceased to answer, though it was on.",
     lambda record: record.fall),
    ("poolctl_monitor_sli_ratio", "gauge", "The part of its time that it has answered, from 0 to 1.",
     lambda record: record.sli),
)  # fmt: skip
_REQUESTS: Sequence[Row[tally.Counts]] = (
    ("poolctl_requests", "counter", "Requests received.", lambda counts: counts[tally.STARTED]),
    ("poolctl_requests_in_flight", "gauge", "Requests that are being answered.", tally.in_flight),
    ("poolctl_open_connections", "gauge", "Connections that are open.", lambda counts: counts[tally.OPEN_CONNECTIONS]),
    ("poolctl_connections", "counter", "Connections that a worker has accepted, or taken over from another.",
     lambda counts: counts[tally.CONNECTIONS]),
    ("poolctl_open_websockets", "gauge", "WebSockets that are open.", lambda counts: counts[tally.OPEN_WEBSOCKETS]),
    ("poolctl_websockets", "counter", "Connections that became WebSockets.", lambda counts: counts[tally.WEBSOCKETS]),
)  # fmt: skip
_ERRORS = {
    "5xx": tally.STATUS + 5,
    "broken": tally.BROKEN,
    "disconnected": tally.DISCONNECTED,
    "malformed": tally.MALFORMED,
}
_WORKER: Sequence[Row[WorkerUsage]] = (
    ("poolctl_worker_memory_bytes", "gauge", "Memory (PSS) of the worker's processes.",
     lambda worker: worker.usage.memory_bytes),
    ("poolctl_worker_cpu_seconds", "counter", "Processor time of the worker's processes.",
     lambda worker: worker.usage.cpu_seconds),
    ("poolctl_worker_event_loop_lag_seconds", "gauge", "How late the worker's event loop was at its newest heartbeat.",
     lambda worker: loop_lag_seconds(worker.counts)),
    ("poolctl_worker_requests", "counter", "Requests received by the worker.",
     lambda worker: worker.counts[tally.STARTED] if worker.counts else None),
    ("poolctl_worker_requests_in_flight", "gauge", "Requests that the worker is answering.",
     lambda worker: tally.in_flight(worker.counts) if worker.counts else None),
    ("poolctl_worker_open_connections", "gauge", "Connections of the worker that are open.",
     lambda worker: worker.counts[tally.OPEN_CONNECTIONS] if worker.counts else None),
)  # fmt: skip


def pool_families(name: str, python: str, servers: Sequence[ObservedServer]) -> Sequence[Family]:
    """The metrics of the pool's identity and of the number of servers in each state."""
    info = Family("poolctl_build", "info", "Which pool this is, and the version of poolctl that runs it.")
    info.add(1, pool=name, version=__version__, python=python)
    count = Family("poolctl_servers", "gauge", "Servers of the pool by their state.")
    states = [server.state for server in servers]
    for state in State:
        count.add(states.count(state.value), state=state.value)
    return info, count


def _server_families(servers: Sequence[ObservedServer]) -> Iterable[Family]:
    info = Family("poolctl_server", "info", "What the server is: its addresses and tags.")
    state = Family("poolctl_server_state", "gauge", "1 for the state that the server is in.")
    for server in servers:
        config = server.snapshot.entry.config
        exposed, tags = masked_text(config.expose), ",".join(config.tags)
        info.add(1, **server.labels, bind=config.key, expose=exposed, tags=tags)
        for value in State:
            state.add(int(server.state == value.value), **server.labels, state=value.value)
    return info, state, *families_of(_SERVER, [(server.snapshot, server.labels) for server in servers])


def _monitor_families(servers: Sequence[ObservedServer]) -> Iterable[Family]:
    """The metrics of each server's status and availability."""
    text = "1 for the status of the server: ok, warn, ko, or unknown while it is off."
    status = Family("poolctl_monitor_status", "gauge", text)
    text = "How long the newest probe of the server took."
    latency = Family("poolctl_monitor_latency_seconds", "gauge", text)
    wakes = Family("poolctl_server_wakes", "counter", "How often a request has woken the server.")
    for server in servers:
        for value in (Status.OK, Status.WARN, Status.KO, Status.UNKNOWN):
            status.add(int(server.availability.status == value), **server.labels, status=value)
        latency.add(server.latency_seconds, **server.labels)
        wakes.add(server.wakes, **server.labels)
    availability = families_of(_AVAILABILITY, [(server.availability, server.labels) for server in servers])
    return status, latency, *availability, wakes


def _request_families(servers: Sequence[ObservedServer]) -> Iterable[Family]:
    text = "Responses that have begun, by the class of their status."
    responses = Family("poolctl_responses", "counter", text)
    text = "What went wrong: 5xx; broken off by the application; disconnected before the end; malformed."
    errors = Family("poolctl_request_errors", "counter", text)
    text = "From the headers of a request to the end of its response."
    duration = Family("poolctl_request_duration_seconds", "histogram", text)
    counted = [(server.snapshot.total, server.labels) for server in servers if server.snapshot.counted]
    for counts, labels in counted:
        for digit in range(1, 6):
            responses.add(counts[tally.STATUS + digit], **labels, code=f"{digit}xx")
        for reason, slot in _ERRORS.items():
            errors.add(counts[slot], **labels, reason=reason)
        buckets = counts[tally.BUCKETS : tally.COUNTED]
        duration.add_histogram(BOUNDS_SECONDS, buckets, counts[tally.LATENCY_NS] / 1e9, **labels)
    return responses, errors, duration, *families_of(_REQUESTS, counted)


def _worker_families(servers: Sequence[ObservedServer]) -> Iterable[Family]:
    info = Family("poolctl_worker", "info", "The process of the worker.")
    labelled = []
    for server in servers:
        # One per worker index: during a replacement the new worker, not the old one.
        by_age = sorted(
            server.snapshot.workers,
            key=lambda each: (each.worker.phase not in LEAVING, each.worker.generation),
        )
        for worker in {each.worker.index: each for each in by_age}.values():
            labels = {**server.labels, "worker": str(worker.worker.index)}
            labelled.append((worker, labels))
            if worker.pid is not None:
                info.add(1, **labels, pid=str(worker.pid), generation=str(worker.worker.generation))
    return info, *families_of(_WORKER, labelled)


# Each function creates families for all servers. A caller with many servers can do other work between the calls.
PARTS: Sequence[Callable[[Sequence[ObservedServer]], Iterable[Family]]] = (
    _server_families,
    _monitor_families,
    _request_families,
    _worker_families,
)


def families_of(
    rows: Iterable[Row[Subject]], subjects: Sequence[tuple[Subject, Mapping[str, str]]]
) -> Iterable[Family]:
    """Yield one metric per row, with one sample for each of `subjects`, labeled with that subject's labels."""
    for name, kind, text, value in rows:
        family = Family(name, kind, text)
        for subject, labels in subjects:
            family.add(value(subject), **labels)
        yield family
