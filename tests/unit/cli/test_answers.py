"""The fields of answers that commands make themselves: JSON is the last form of a typed value."""

from __future__ import annotations

import pytest

from poolctl import ServerConfig
from poolctl.config import Place, Problem
from poolctl.control.answers import (
    ErrorEntry,
    Item,
    OwnProcess,
    PlannedChange,
    ReloadResult,
    Result,
    StatusResult,
    Summary,
    error_entries,
    failure,
)
from poolctl.control.answers import item_from_config as item_of
from poolctl.control.gateway_answers import GatewayStats, GatewayStatus
from poolctl.control.server_answers import (
    HealthReportItem,
    LiveOverrides,
    MeasuredServer,
    MonitoredServer,
    ProbeResult,
    ServerAvailability,
    ServerDetails,
    ServerStats,
    ShowResult,
    StacksResult,
    StatsHistory,
    StatsResult,
    WorkerDetails,
    WorkerStats,
)
from poolctl.errors import PoolStartError, ServerError
from poolctl.json_form import field_names, from_json, to_json
from poolctl.routing.route_report import BackendReport, RegisteredServiceReport, RouteReport
from poolctl.runners.stack_report import Frame, KernelThread, SameStackTasks, ThreadStack, WorkerStacks
from tests.stand_in import always, item

from .conftest import Command, Supervised

SERVER = [
    "name", "bind", "expose", "state", "ready", "health", "pids", "workers", "uptime_seconds", "restarts", "tags",
]  # fmt: skip


def test_pools_describes_each_running_pool(poolctl: Command, supervised: Supervised) -> None:
    with supervised(always(item("a"), item("b", ready=False))):
        (pool,) = poolctl("pools", "-o", "json").json["items"]
    assert list(pool) == [
        "name", "files", "pid", "keeper_pid", "version", "directory", "servers", "ready",
    ]  # fmt: skip
    assert (pool["servers"], pool["ready"]) == (2, 1)


FIELDS: dict[type[object], list[str]] = {
    Item: SERVER,
    ErrorEntry: ["code", "error", "name", "bind", "message", "hint"],
    Summary: [
        "name", "files", "version", "protocol", "python", "supervisor_pid", "keeper_pid", "servers", "should_run",
        "ready", "states", "health", "processes",
    ],
    OwnProcess: ["name", "pid", "memory_bytes"],
    PlannedChange: ["name", "bind", "change", "keys", "message"],
    RouteReport: [
        "alias", "host", "path", "to", "policy", "way", "why", "provider", "state", "requests", "refused", "waiting",
        "errors",
    ],
    HealthReportItem: ["name", "kind", "status"],
    RegisteredServiceReport: ["name", "url", "state", "why", "since", "weight", "ttl_seconds", "probe"],
    BackendReport: [
        "host", "routes", "state", "since", "until", "available", "health", "why", "breaker", "connections",
        "in_flight", "waiting", "requests", "errors",
    ],
    GatewayStatus: ["state", "problem", "pid", "addresses", "routes", "uptime_seconds", "restarts"],
    GatewayStats: [
        "requests_total", "refused_total", "errors_total", "requests_per_second", "errors_per_second", "connections",
        "memory_bytes", "cpu_percent", "replaced_processes",
    ],
    WorkerStacks: ["name", "worker", "pid", "source", "problem", "place", "threads", "tasks", "kernel"],
    ThreadStack: ["name", "main", "frames"],
    SameStackTasks: ["count", "names", "waits", "frames"],
    Frame: ["function", "file", "line", "library"],
    KernelThread: ["tid", "name", "state", "wchan", "syscall", "stack"],
    ServerDetails: [
        *SERVER, "config", "origin", "overrides", "endpoints", "generation", "worker_list", "complaint",
        "preload_problem", "certificate_expires", "failure",
    ],
    WorkerDetails: ["id", "pid", "phase", "health", "resting", "probes"],
    ProbeResult: ["kind", "status", "message", "latency_seconds"],
    MeasuredServer: [*SERVER, "stats"],
    ServerStats: [
        "requests_total", "requests_per_second", "responses_total", "errors_total", "disconnects_total", "in_flight",
        "connections", "connections_total", "websockets", "latency_p50_seconds", "latency_p99_seconds", "memory_bytes",
        "cpu_percent", "loop_lag_seconds", "wakes_total", "restarts_total", "counted", "history", "workers",
    ],
    StatsHistory: ["interval_seconds", "requests_per_second", "latency_p99_seconds", "memory_bytes"],
    WorkerStats: ["id", "pid", "phase", "memory_bytes", "cpu_percent", "loop_lag_seconds"],
    LiveOverrides: [],
    MonitoredServer: [*SERVER, "monitor"],
    ServerAvailability: [
        "status", "latency_seconds", "uptime_seconds", "downtime_seconds", "rise_seconds", "fall_seconds", "rises",
        "falls", "sli", "message",
    ],
}  # fmt: skip
# Left out of a document where there is nothing to say.
OPTIONAL_OF_SERVER = [
    "address", "on_demand", "ended", "last_line", "flapping", "kept", "kept_until", "next_run_at", "last_run",
]  # fmt: skip
OPTIONAL: dict[type[object], list[str]] = {
    Item: OPTIONAL_OF_SERVER,
    ErrorEntry: ["file", "line", "column", "key", "found", "allowed"],
    ServerDetails: [*OPTIONAL_OF_SERVER, "routes", "stacks"],
    WorkerDetails: ["placed_at"],
    Summary: ["calm", "not_served"],
    RouteReport: ["p50_seconds", "p99_seconds", "registrations", "machines"],
    HealthReportItem: ["uptime_seconds", "latency_seconds", "detail"],
    RegisteredServiceReport: ["left_seconds", "latency_seconds"],
    GatewayStatus: ["stats"],
    ServerStats: ["errors_per_second"],
    StatsHistory: ["errors_per_second"],
    WorkerStats: ["requests_total", "errors_total", "in_flight", "connections"],
    LiveOverrides: ["workers", "disabled", "drained", "added"],
}
# Of each command that a supervisor answers: the verb's answer, and what its document has besides items and errors.
ANSWERS: dict[str, tuple[type[Result], list[str]]] = {
    **dict.fromkeys(
        ["list", "start", "stop", "restart", "wait", "enable a", "disable a", "drain a", "undrain a", "scale a 2",
         "remove a"], (Result, []),
    ),
    "stacks": (StacksResult, []),
    "status": (StatusResult, ["summary"]),
    "show": (ShowResult, []),
    "metrics": (StatsResult, []),
    "reload": (ReloadResult, ["changes"]),
}  # fmt: skip


@pytest.mark.parametrize("kind", FIELDS)
def test_a_value_has_the_fields_of_its_document(kind: type[object]) -> None:
    optional = OPTIONAL.get(kind, OPTIONAL[Item] if issubclass(kind, Item) else [])
    assert sorted(field_names(kind)) == sorted([*FIELDS[kind], *optional])
    assert list(to_json(from_json(kind, {}))) == [name for name in field_names(kind) if name in FIELDS[kind]]


@pytest.mark.parametrize("command", ANSWERS)
def test_a_commands_document_has_the_fields_of_its_answer(
    poolctl: Command, supervised: Supervised, command: str
) -> None:
    kind, extras = ANSWERS[command]
    everything = {
        "summary": to_json(from_json(Summary, {})),
        "changes": [{}],
    }
    error = to_json(from_json(ErrorEntry, {"code": 1, "message": "no"}))
    errors = [] if kind is ShowResult else [error]  # there is nothing to fail at
    with supervised(always(item("a"), errors=errors, **everything)):
        document = poolctl(*command.split(), "-o", "json").json
    assert list(document) == ["schema", *extras, "items", "errors"]
    (found,) = document["items"]
    element = {
        ShowResult: ServerDetails, StatsResult: MeasuredServer, StacksResult: WorkerStacks,
    }.get(kind, Item)  # fmt: skip
    assert sorted(found) == sorted(FIELDS[element])
    assert [sorted(each) for each in document["errors"]] == [sorted(FIELDS[ErrorEntry])] * len(errors)
    if "summary" in extras:
        assert sorted(document["summary"]) == sorted(FIELDS[Summary])
    if "changes" in extras:
        assert sorted(document["changes"][0]) == sorted(FIELDS[PlannedChange])


def test_error_entry_is_made_of_an_error_of_any_kind() -> None:
    place = ErrorEntry.of(Problem("no", place=Place("/p/pool.toml", 3, 1, "bind"), hint="fix"))
    assert (place.file, place.line, place.column, place.key, place.hint) == (
        "/p/pool.toml",
        3,
        1,
        "bind",
        "fix",
    )
    plain = ErrorEntry.of(ServerError("no", name="a", bind=":1", code=7, error="E"))
    assert (plain.message, plain.name, plain.bind, plain.code, plain.error, plain.file) == (
        "no",
        "a",
        ":1",
        7,
        "E",
        None,
    )
    assert [
        each.message for each in error_entries(PoolStartError("x", [ServerError("1"), ServerError("2")]))
    ] == [
        "1",
        "2",
    ]
    found = failure(PoolStartError, "no", "fix")
    assert (found.code, found.error, found.message, found.hint) == (1323, "ErrorPoolStart", "no", "fix")


def test_item_of_a_file_is_stopped_or_disabled() -> None:
    config = ServerConfig(name="a", bind="127.0.0.1:1", app="a:b", tags=["api"], workers=2)
    found = item_of(config)
    assert (found.name, found.bind, found.expose, found.state) == (
        "a",
        "127.0.0.1:1",
        "http://127.0.0.1:1",
        "stopped",
    )
    assert (found.ready, found.health, found.pids, found.workers, found.tags) == (
        False,
        "unknown",
        (),
        2,
        ("api",),
    )
    assert (found.uptime_seconds, found.restarts) == (0.0, 0)
    assert item_of(config.model_copy(update={"disabled": True})).state == "disabled"


def test_program_without_a_port_is_not_exposed() -> None:
    assert to_json(item_of(ServerConfig(name="q", command=["x"])))["expose"] is None
    assert to_json(item_of(ServerConfig(name="j", job=True, command=["x"])))["expose"] == ""
